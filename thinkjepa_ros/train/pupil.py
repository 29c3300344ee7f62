"""The mini thinker with the heads that teach it, and the batches it learns from.

The loss that counts is the usual one: the tokens of the thought and of the answer. By itself it finds out what an
answer looks like long before it looks at the pictures, so three linear heads, thrown away afterwards, ask easier
questions. At each visual token: is there a lamp, and what does it show? Behind each pair of frames, after two decoder
layers: what do the lamps show in this pair? After three: what have they told up to here?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from ..data.episode import Episode
from ..data.told import LAMP_STATES, UNKNOWN, Sample, answer
from ..thinker import tiny
from ..thinker.inputs import Prompt, patchify
from .views import NO_LAMP, TOKEN_CLASSES, View, lamp_tokens, pictures

#: Decoder layers after which the heads behind a pair read: what is seen comes before what it means.
SEEN_AFTER, TOLD_AFTER = 2, 3
_ATTENTION = "flash_pairs"  # the library hands the sequence over unsplit only to what is called "flash"
_LEFT_OUT = -100


def _pairs_at_once(
    _module: nn.Module, q: Tensor, k: Tensor, v: Tensor, _mask: Any = None, scaling: float | None = None, **more: Any
) -> tuple[Tensor, None]:
    """Attention [1, H, N * n, d] within each of N pairs, in one call instead of one per pair."""
    heads, tokens, width = q.shape[1:]
    count = more["cu_seq_lens_q"].numel() - 1
    q, k, v = (x[0].view(heads, count, tokens // count, width).transpose(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.permute(0, 2, 1, 3).reshape(1, tokens, heads, width), None


@dataclass(frozen=True)
class Seen:
    """Pictures of N pairs. patches: float [N * p, ...] as `patchify` orders them. tokens: int [N, n], a class each."""

    patches: Tensor
    tokens: Tensor

    @property
    def pairs(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """B windows, S tokens in the longest.

    ids, labels: int [B, S]. positions: int [3, B, S]. pairs: number of each window, N in all. lamps: int [N, 2] and
    so_far: int [N], what the heads should say behind each pair.
    """

    seen: Seen
    ids: Tensor
    labels: Tensor
    positions: Tensor
    pairs: list[int]
    lamps: Tensor
    so_far: Tensor


class Pupil(nn.Module):
    """The thinker and its heads. Call it with `Seen` to learn to see, with a `Batch` to learn to answer."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = model
        text: Any = model.config.text_config
        width = text.hidden_size
        self.token = nn.Linear(width, TOKEN_CLASSES)
        self.pair = nn.Linear(width, 2 * len(LAMP_STATES))
        self.told = nn.Linear(width, UNKNOWN + 1)
        self._tokenizer = tokenizer
        self._prompt = Prompt(tokenizer, tiny.PROMPT)
        self._pad: Any = tokenizer.pad_token_id
        self._end: Any = tokenizer.eos_token_id
        vision: Any = model.config.vision_config
        self._patch, self._merge = vision.patch_size, vision.spatial_merge_size
        self.grid = tiny.IMAGE_SIZE[0] // self._patch, tiny.IMAGE_SIZE[1] // self._patch
        self._known: dict[bytes, Tensor] = {}
        AttentionInterface.register(_ATTENTION, _pairs_at_once)

    # --- batches ---

    def look_at(self, samples: Sequence[Sample], episodes: Sequence[Episode], rng: np.random.Generator | None) -> Seen:
        """The pictures of all pairs of these windows; with `rng` every window is seen in its own way."""
        patches, tokens = [], []
        for sample in samples:
            episode = episodes[sample.episode]
            view = None if rng is None else View.draw(rng, tiny.IMAGE_SIZE[0])
            images = pictures(episode, sample, view)
            patches += [patchify(images[[p.first, p.second]], self._patch, self._merge) for p in sample.pairs]
            tokens.append(lamp_tokens(episode, sample, view, self.grid[0] // self._merge))
        return Seen(torch.cat(patches), torch.from_numpy(np.concatenate(tokens)))

    def collate(self, samples: Sequence[Sample], episodes: Sequence[Episode], rng: np.random.Generator | None) -> Batch:
        """A batch of windows with their prompts and the right answers."""
        rows, wanted = [], []
        for sample in samples:
            tokens = self.grid[0] * self.grid[1] // self._merge**2
            prompt = self._prompt.ids(sample.times_s, tokens, sample.instruction)[0]
            words = self._tokenizer.encode(answer(sample.intent, sample.told), add_special_tokens=False)
            said = torch.tensor([*words, self._end])
            rows.append(torch.cat([prompt, said]))
            wanted.append(torch.cat([torch.full_like(prompt, _LEFT_OUT), said]))
        positions = [self._positions(row, len(s.pairs)).T for row, s in zip(rows, samples, strict=True)]
        # Padded behind, where a causal model cannot see it; no mask is needed then.
        return Batch(
            seen=self.look_at(samples, episodes, rng),
            ids=nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad),
            labels=nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=_LEFT_OUT),
            positions=nn.utils.rnn.pad_sequence(positions, batch_first=True).permute(2, 0, 1),
            pairs=[len(s.pairs) for s in samples],
            lamps=torch.from_numpy(np.concatenate([s.lamps for s in samples])),
            so_far=torch.from_numpy(np.concatenate([s.so_far for s in samples])),
        )

    def _positions(self, ids: Tensor, pairs: int) -> Tensor:
        """Rotary positions int [3, S]. They depend on where the pictures lie alone, and the library takes its time."""
        types = ids.eq(self.model.config.video_token_id).int() * 2
        key = types.numpy().tobytes()
        if key not in self._known:
            grid = torch.tensor([[pairs, *self.grid]])
            found = self.model.model.get_rope_index(ids[None], mm_token_type_ids=types[None], video_grid_thw=grid)
            self._known[key] = found[0][:, 0]
        return self._known[key]

    # --- losses ---

    def forward(self, batch: Seen | Batch) -> dict[str, Tensor]:
        """`loss`, its parts, and shares of right answers; for a Batch also `right` bool [B]: the whole answer is."""
        if isinstance(batch, Seen):
            return self._see(batch)[1]
        features, out = self._see(batch.seen)
        return {**out, **self._answer(batch, features, out["loss"])}

    def _see(self, seen: Seen) -> tuple[BaseModelOutputWithDeepstackFeatures, dict[str, Tensor]]:
        visual = self.model.model.visual
        before = visual.config._attn_implementation
        visual.config._attn_implementation = _ATTENTION
        try:
            out = visual(seen.patches, torch.tensor([[seen.pairs, *self.grid]]), return_dict=True)
        finally:
            visual.config._attn_implementation = before
        logits = self.token(out.pooler_output).view(*seen.tokens.shape, -1)
        loss = F.cross_entropy(logits.flatten(0, 1), seen.tokens.flatten())
        lamp = seen.tokens.ne(NO_LAMP)
        lit = lamp & ((seen.tokens - 1) % len(LAMP_STATES)).ne(0)
        right = logits.argmax(-1).eq(seen.tokens)
        # What `get_video_features` returns: one entry per video, and all pairs together are one long video here.
        features = BaseModelOutputWithDeepstackFeatures(
            pooler_output=[out.pooler_output],  # type: ignore[arg-type]
            deepstack_features=[[level] for level in out.deepstack_features],  # type: ignore[misc]
        )
        return features, {"loss": loss, "tokens": loss.detach(), "lit_tokens_right": right[lit].float().mean()}

    def _answer(
        self, batch: Batch, features: BaseModelOutputWithDeepstackFeatures, seen_loss: Tensor
    ) -> dict[str, Tensor]:
        config = self.model.config
        out = self.model.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            mm_token_type_ids=batch.ids.eq(config.video_token_id).int() * 2,
            video_grid_thw=torch.tensor([[n, *self.grid] for n in batch.pairs]),
            mm_encoder_outputs={"video": features},
            output_hidden_states=True,
            use_cache=False,
        )
        behind = batch.ids.eq(config.vision_end_token_id)
        pair = self.pair(out.hidden_states[SEEN_AFTER][behind]).view(*batch.lamps.shape, -1)
        told = self.told(out.hidden_states[TOLD_AFTER][behind])
        wanted = batch.labels[:, 1:]
        place = wanted.ne(_LEFT_OUT)
        logits = self.model.lm_head(out.last_hidden_state[:, :-1][place])
        words = F.cross_entropy(logits, wanted[place])
        lamps = F.cross_entropy(pair.flatten(0, 1), batch.lamps.flatten())
        so_far = F.cross_entropy(told, batch.so_far)
        hit = torch.ones_like(wanted, dtype=torch.bool)
        hit[place] = logits.argmax(-1).eq(wanted[place])
        known = batch.so_far < UNKNOWN
        return {
            "loss": seen_loss + words + lamps + so_far,
            "words": words.detach(),
            "lamps": lamps.detach(),
            "told": so_far.detach(),
            "right": hit.all(1),
            "answers_right": hit.all(1).float().mean(),
            "told_right": told.argmax(-1).eq(batch.so_far)[known].float().mean(),
        }
