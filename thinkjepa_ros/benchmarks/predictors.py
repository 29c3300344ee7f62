"""The guided predictor in the published layouts: written plainly, as published, and ours, with the same weights."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from ..importers import source, thinkjepa
from ..jepa.guidance import Payload
from ..jepa.guided import GuidedPredictor
from . import roofline
from .baselines import Layout, Plain, Published, Sizes
from .roofline import Peak, Work
from .timing import Group, Target, Variant

PLAIN, MASKED, PUBLISHED, OURS = "plain", "plain, mask of all true", "as published", "ours"
TWO_STREAM = "ours, two-stream layout"
#: How much faster than `plain` ours should be at 4096 + 4096 tokens.
AT_LEAST = {"v1": 1.1, "v2": 1.5}
NOTES = {
    PLAIN: "one sequence, one scaled_dot_product_attention per block (v2: with a boolean mask, v1: without), "
    "rotary table once per call",
    MASKED: "the same with a boolean mask that hides nothing",
    OURS: "",
    PUBLISHED: "rows sorted and put back in Python, mask made in every call, rotary angles in every block",
    TWO_STREAM: "other numbers: the context sees itself only, targets see everything",
}


def layout(name: str, tokens: int) -> Layout:
    """Context and targets of `tokens` each: 32 frames (v1) or 16 tubelets (v2), as published."""
    frames = {"v1": 32, "v2": 16}[name]
    if tokens < 32 or tokens % 32:
        raise ValueError(f"--tokens {tokens}: must be a multiple of 32")
    return Layout(name, frames, frames, tokens // frames)


def imported(weights: dict[str, Tensor], layout: Layout, sizes: Sizes) -> GuidedPredictor:
    """Ours with the weights of a published checkpoint."""
    args = {"img_size": [layout.tokens, 1], "patch_size": 1}
    foreign = source.Source(Path("published"), {"predictor": dict(weights)}, args=args)
    options = source.Options(layout=layout.name, heads=sizes.heads)
    part = next(p for p in thinkjepa.convert(foreign, options) if p.kind == "guided_predictor")
    ours = thinkjepa.BUILD[part.kind](part.config)
    ours.load_state_dict(part.state)
    assert isinstance(ours, GuidedPredictor)
    return ours


def compare(layout: Layout, sizes: Sizes, device: torch.device, dtype: torch.dtype, peak: Peak) -> Group:
    """All with the same weights, batch 1, guided by a pooled pyramid, whose cost is the same small one for all."""
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {PLAIN: Plain(layout, sizes), PUBLISHED: Published(layout, sizes)}
    if not layout.causal:
        modules[MASKED] = Plain(layout, sizes, masked=True)
    weights = modules[PLAIN].state_dict()
    for module in modules.values():
        module.load_state_dict(weights)
    ours = imported(weights, layout, sizes)
    modules[OURS] = ours
    modules[TWO_STREAM] = GuidedPredictor(dataclasses.replace(ours.config, attention="two_stream"))
    modules[TWO_STREAM].load_state_dict(ours.state_dict())
    for name, module in modules.items():
        modules[name] = module.eval().requires_grad_(False).to(device, dtype)

    seen, wanted = layout.context * layout.tokens, layout.targets * layout.tokens
    context = torch.randn(1, seen, sizes.latent).to(device, dtype)
    old, new = torch.randn(2, 1, sizes.guide_layers, 1, sizes.guide_width).to(device, dtype)
    at, asked = torch.arange(seen + wanted, device=device)[None].split((seen, wanted), 1)
    places = range(seen), range(seen, seen + wanted), Payload(old, new)
    inputs: dict[str, tuple[object, ...]] = {
        PLAIN: (context, old, new),
        MASKED: (context, old, new),
        PUBLISHED: (context, at, asked, old, new),
        OURS: (context, *places),
        TWO_STREAM: (context, *places),
    }
    shape = (sizes.depth, seen, wanted, sizes.width)
    mixing = dict.fromkeys(modules, roofline.everything(*shape))
    mixing[OURS] = roofline.tubelets(*shape, layout.tokens) if layout.causal else roofline.full(*shape)
    mixing[TWO_STREAM] = roofline.two_stream(*shape)
    # per block in the other ways, which v1 has none for beyond the last layer; per layer in ours
    projected = sizes.depth if layout.causal else min(sizes.depth, sizes.guide_layers)
    guiding = {
        name: roofline.film(sizes.depth, sizes.width, sizes.guide_width, sizes.guide_hidden, layers)
        for name in modules
        for layers in (sizes.guide_layers if name in (OURS, TWO_STREAM) else projected,)
    }
    moved = roofline.moved(modules[OURS], context, old, new, torch.empty(1, wanted, sizes.latent, dtype=dtype))

    def work(name: str) -> Work:
        flops = roofline.predictor(sizes.latent, sizes.width, sizes.depth, seen, wanted, mixing[name])
        return Work(flops + guiding[name], moved)

    variants = [
        Variant(
            name,
            functools.partial(modules[name], *inputs[name]),
            work(name),
            same_as="" if name in (PLAIN, TWO_STREAM) else PLAIN,
            note=NOTES[name],
            memory=float(
                (seen + wanted) ** 2 if name == MASKED or (layout.causal and name in (PLAIN, PUBLISHED)) else 0
            ),
        )
        for name in (PLAIN, MASKED, PUBLISHED, OURS, TWO_STREAM)
        if name in modules
    ]
    beside = [name for name in (PLAIN, MASKED, PUBLISHED) if name in modules]
    return Group(
        f"guided predictor {layout.name}: {seen} + {wanted} tokens, {sizes.depth} blocks of width {sizes.width}",
        dtype,
        variants,
        peak,
        device,
        [*((name, OURS) for name in beside), (PLAIN, TWO_STREAM)],
        [Target(OURS, AT_LEAST[layout.name], beside=PLAIN)] if seen == wanted == 4096 else [],
    )
