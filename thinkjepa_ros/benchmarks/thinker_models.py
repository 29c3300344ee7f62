"""The models that `thinkjepa bench thinker` runs: a checkpoint, and random weights in the shape of Qwen3-VL-2B."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.initialization import no_init_weights

from ..thinker import folder, loading
from ..thinker.folder import Checkpoint
from ..thinker.qwen import Thinker

#: Levels of the vision tower that go into the first decoder layers.
_DEEPSTACK = 3
#: A prime, so that the rows of a matrix begin at different places.
_NOISE = 1_048_583
#: Standard deviation of the weights, but for those of the words.
_SPREAD = 0.02


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen3-VL and of what it is shown."""

    name: str
    vocabulary: int
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    sections: tuple[int, int, int]  #: of half a head that turn with time, height and width
    vision_width: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    levels: tuple[int, ...]  #: vision blocks whose features enter the decoder a second time
    positions: int = 2304
    image_size: tuple[int, int] = (256, 256)

    def cut(self, layers: int | None) -> Shape:
        """With at most so many layers and vision blocks. ValueError for fewer than 2: nothing could be compared."""
        if layers is None:
            return self
        if layers < 2:
            raise ValueError(f"--layers {layers}: must be at least 2; the states of the last layer are not compared")
        blocks = min(layers, self.vision_layers)
        levels = self.levels if blocks == self.vision_layers else tuple(range(blocks))[-_DEEPSTACK:]
        return dataclasses.replace(
            self,
            layers=min(layers, self.layers),
            vision_layers=blocks,
            levels=levels[: min(layers, self.layers)],
        )

    def config(self, ids: dict[str, int]) -> Qwen3VLConfig:
        """ids: of the marks around pictures, by their text."""
        return Qwen3VLConfig(
            text_config={
                "vocab_size": self.vocabulary,
                "hidden_size": self.width,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5_000_000.0,
                    "mrope_section": list(self.sections),
                    "mrope_interleaved": True,
                },
                "tie_word_embeddings": True,
            },
            vision_config={
                "depth": self.vision_layers,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_mlp,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.width,
                "num_position_embeddings": self.positions,
                "deepstack_visual_indexes": list(self.levels),
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )


QWEN3_VL_2B = Shape(
    "Qwen3-VL-2B",
    vocabulary=151936,
    width=2048,
    mlp=6144,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    sections=(24, 20, 20),
    vision_width=1024,
    vision_mlp=4096,
    vision_layers=24,
    vision_heads=16,
    levels=(5, 11, 17),
)


@dataclass
class Subject:
    """A model that never ends a text by itself, so that every thought has the same length, and what belongs to it."""

    model: Qwen3VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Checkpoint
    depth: int  #: layers of the whole model, where this one is cut

    def __post_init__(self) -> None:
        assert self.model.generation_config is not None
        self.model.generation_config.eos_token_id = None

    def thinker(self, static: bool = False) -> Thinker:
        """A thinker with nothing cached; all of them share the weights."""
        return Thinker(self.model, self.tokenizer, self.checkpoint, static=static)


def stored(path: Path, device: torch.device, dtype: torch.dtype) -> Subject:
    """A checkpoint. Raises ThinkerError."""
    model, tokenizer, checkpoint = loading.load(path, str(device), dtype)
    text: Any = model.config.text_config
    return Subject(model, tokenizer, checkpoint, text.num_hidden_layers)


def random(shape: Shape, layers: int | None, like: Path, device: torch.device, dtype: torch.dtype) -> Subject:
    """Random weights in this shape, at most `layers` deep, with the tokenizer and the question of a checkpoint.

    Ids of its small vocabulary are ids of the large one too, and its marks are configured.
    """
    cut = shape.cut(layers)
    checkpoint = folder.find(like)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    # Made without the library's initialisation, which takes a minute on a processor.
    with no_init_weights(), device:
        model = Qwen3VLForConditionalGeneration._from_config(
            cut.config(tokenizer.get_added_vocab()), dtype=dtype, attn_implementation="sdpa"
        )
    _fill(model, device, dtype)
    visual: Any = model.model.visual
    visual.patch_embed = loading.PatchEmbedding(visual.patch_embed.proj)
    named = dataclasses.replace(
        checkpoint, name=f"{shape.name} shape", trained=False, image_size=shape.image_size, view="whole"
    )
    return Subject(model.eval().requires_grad_(False), tokenizer, named, shape.layers)


def _fill(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Norms that do nothing, no biases, and matrices from one long piece of noise, no two rows of them alike.

    The words are so long that a state resembles its own word most: the model repeats itself, and never wavers between
    two words that rounding could exchange.
    """
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                piece = (noise if name.endswith("embed_tokens.weight") else noise * _SPREAD).to(dtype)
                parameter.copy_(piece.repeat(-(-parameter.numel() // _NOISE))[: parameter.numel()].view_as(parameter))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
