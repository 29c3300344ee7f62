"""The encoder beside that of `transformers`, with the same weights, and a stream beside recomputing its clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..importers import source, vjepa2
from ..jepa.encoder import MEAN, STD, Encoder, EncoderConfig
from ..jepa.streaming import StreamingEncoder
from . import roofline
from .roofline import Peak, Work
from .timing import Group, Target, Variant

THEIRS, OURS = "transformers", "ours"
NOTE = "the difference is that of its first step, after the other tubelets; then its window slides on"


@dataclass(frozen=True)
class Shape:
    """Of an encoder and its input."""

    name: str
    image_size: int
    frames: int
    tubelet: int
    width: int
    depth: int
    heads: int

    @property
    def tokens(self) -> int:
        return self.frames // self.tubelet * (self.image_size // 16) ** 2

    def title(self) -> str:
        return (
            f"encoder, {self.name}: {self.frames} frame(s) of {self.image_size} px, {self.tokens} tokens, "
            f"{self.depth} blocks of width {self.width}"
        )


def shapes(size: str, layers: int | None) -> list[Shape]:
    """mini: one frame, and the window of 8 as one clip, in all its blocks. vitl: one tubelet, and 32 frames."""
    if size == "mini":
        return [Shape("mini", 128, frames, 1, 128, 6, 4) for frames in (1, 8)]
    return [Shape("ViT-L", 256, frames, 2, 1024, layers or 24, 16) for frames in (2, 32)]


def against_transformers(shape: Shape, device: torch.device, dtype: torch.dtype, peak: Peak) -> Group:
    """Both get the same random weights, ours through the importer; theirs gets pixels that are normalised already."""
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    config = VJEPA2Config(
        crop_size=shape.image_size,
        frames_per_clip=shape.frames,
        tubelet_size=shape.tubelet,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        pred_hidden_size=48,  # not run
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
    )
    theirs = VJEPA2Model(config)
    theirs.set_attn_implementation("sdpa")
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    foreign = source.Source(Path("transformers"), {"": state}, config.to_dict())
    part = next(p for p in vjepa2.convert(foreign, source.Options()) if p.kind == "encoder")
    ours = vjepa2.BUILD["encoder"](part.config)
    ours.load_state_dict(part.state)
    for module in (theirs, ours):
        module.eval().requires_grad_(False).to(device, dtype)
    video = torch.randint(0, 256, (1, shape.frames, shape.image_size, shape.image_size, 3), dtype=torch.uint8)
    pixels = ((video - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 1, 4, 2, 3).contiguous()
    video, pixels = video.to(device), pixels.to(device, dtype)
    n, patch = shape.tokens, 3 * shape.tubelet * 16 * 16
    flops = roofline.encoder(n, n, shape.width, shape.depth, 4.0, patch)
    result = torch.empty(n, shape.width, dtype=dtype)
    return Group(
        shape.title(),
        dtype,
        [
            Variant(
                THEIRS, lambda: theirs.get_vision_features(pixels), Work(flops, roofline.moved(ours, pixels, result))
            ),
            Variant(OURS, lambda: ours(video).flatten(1, 2), Work(flops, roofline.moved(ours, video, result)), THEIRS),
        ],
        peak,
        device,
        [(THEIRS, OURS)],
        [Target(OURS, 1.2 if shape.name == "mini" else 1.0, beside=THEIRS)],
    )


def streaming(
    layers: int | None,
    device: torch.device,
    dtype: torch.dtype,
    peak: Peak,
    times: int = 16,
    image_size: int = 256,
    width: int = 1024,
) -> Group:
    """A causal encoder, by default of ViT-L's shape: the newest tubelet alone, and the whole clip again."""
    torch.manual_seed(0)
    depth, n = layers or 24, (image_size // 16) ** 2
    config = EncoderConfig(image_size, 16, width, depth, width // 64 or 1, tubelet=2, attention="causal", window=times)
    encoder = Encoder(config).eval().requires_grad_(False).to(device, dtype)
    video = torch.randint(0, 256, (1, 2 * times, image_size, image_size, 3), dtype=torch.uint8, device=device)
    stream = StreamingEncoder(encoder)
    for end in range(2, 2 * times, 2):
        stream.step(video[:, end - 2 : end])
    newest_frames = video[:, -2:]
    patch = 3 * 2 * 16 * 16
    one = roofline.block(n, width, 4 * width, roofline.attention(n, times * n, width))
    clip = roofline.block(times * n, width, 4 * width, roofline.causal(times, n, width))
    kept = [torch.empty(2, (times - 1) * n, width, dtype=dtype, device="meta")] * depth  # keys and values are read
    step = Work(depth * one + roofline.linear(n, patch, width), roofline.moved(encoder, newest_frames, *kept))
    full = Work(depth * clip + roofline.linear(times * n, patch, width), roofline.moved(encoder, video))
    again, newest = "the clip again, block-causal", "streaming: the newest tubelet"
    return Group(
        f"causal encoder: {times} tubelets of {n} tokens, {depth} blocks of width {width}",
        dtype,
        [
            Variant(again, lambda: encoder(video)[:, -1], full),
            Variant(newest, lambda: stream.step(newest_frames), step, again, NOTE),
        ],
        peak,
        device,
        [(again, newest)],
    )
