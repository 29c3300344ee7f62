"""`thinkjepa bench thinker`: a thought and its parts, with and without the vision cache, beside the library's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..jepa import precision
from ..jepa.model import torch_device
from ..thinker import pyramid
from ..thinker.decode import EagerDecoder, StaticDecoder
from ..values import Guidance
from . import report, roofline, running, thinker_models
from .roofline import Peak, Work
from .thinker_calls import Camera, Decode, Library, Live, Pooling, Prefill, WindowUpdate
from .thinker_models import QWEN3_VL_2B, Subject
from .timing import Group, Target, Variant

SIZES = ("mini", "2b", "all")
DTYPES = ("auto", "float32", "bfloat16")
#: Layers of the 2B shape where nothing else is said: on a processor all of them would take hours.
CPU_LAYERS = 2

LIBRARY, WITHOUT, WITH, STATIC = "library", "without cache", "with cache", "with cache, static"
WINDOW, PREFILL, DECODE, DECODE_STATIC, POOL = "window update", "prefill", "decode", "decode, static", "pooling"
POOLED, STATES = "pooled", "token form"
NOTES = {
    LIBRARY: "generate(output_hidden_states=True) with the pixels of the whole window",
    WITHOUT: "every pair of the window encoded anew",
    WITH: "the window slid by one pair, the others' features kept",
}
#: Largest difference to the library's states, as a share of their largest value.
WITHIN = {torch.float32: 1e-4, torch.bfloat16: 0.03}

#: Milliseconds of a thought with the cache: the mini on one processor core, Qwen3-VL-2B as a CUDA graph on an H200.
MINI_LIMIT, LARGE_LIMIT = 80.0, 150.0
#: The vision time without the cache, over that with it (0.4 of the time).
CACHE_GAIN = 2.5
#: Bytes of the pooled guidance of Qwen3-VL-2B.
EXPORT_LIMIT = 100 * 1024.0

#: A guidance as it travels, in bytes.
Serialise = Callable[[Guidance], bytes]


def bench(
    checkpoint: Path,
    size: str = "all",
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 3.0,
    layers: int | None = None,
    tokens: int = 16,
    dtype: str = "auto",
    out: Path | None = None,
    serialise: Serialise | None = None,
) -> list[Group]:
    """Measure, print, and write JSON to `out`. What was measured before Ctrl-C is printed and written too.

    tokens: written in every thought. dtype auto: the mini in float32; the 2B in bfloat16 where the device multiplies
    it. serialise: makes a message of a guidance; None: its numbers as float16 stand for it. Raises
    ValueError naming the option that makes no sense, ThinkerError for a checkpoint or device that cannot be used, and
    UnequalError where two ways to the same thought do not give the same states.
    """
    for name, value, known in (("size", size, SIZES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"--{name} {value}: must be one of {', '.join(known)}")
    if tokens < 1:
        raise ValueError(f"--tokens {tokens}: must be at least 1")
    where = torch_device(device)
    if layers is None and where.type == "cpu":
        layers = CPU_LAYERS
    QWEN3_VL_2B.cut(layers)
    torch.set_num_threads(threads)
    kinds = {whole: _kind(dtype, whole, where) for whole in (SIZES[:2] if size == "all" else (size,))}
    console = running.console()
    machine = running.introduce(where, threads, console)
    peaks = running.peaks(where, dict.fromkeys(kinds.values()), seconds, console)

    def groups() -> Iterator[Callable[[], Group]]:
        for whole, kind in kinds.items():
            if whole == "mini":
                subject = thinker_models.stored(checkpoint, where, kind)
            else:
                subject = thinker_models.random(QWEN3_VL_2B, layers, checkpoint, where, kind)
            targets = [Target(WITH, CACHE_GAIN, beside=WITHOUT, part="window")]
            if whole == "mini" and where.type == "cpu" and threads == 1:
                targets.append(Target(WITH, MINI_LIMIT))
            if whole == "2b" and where.type == "cuda" and subject.depth == QWEN3_VL_2B.layers:
                targets.append(Target(STATIC, LARGE_LIMIT))
            yield partial(thoughts, subject, tokens, peaks[kind], targets)
            yield partial(parts, subject, tokens, peaks[kind])
            yield partial(export, subject, tokens, peaks[kind], serialise, whole == "2b")

    return running.run(groups(), seconds, machine, out, console)


def _kind(dtype: str, whole: str, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    # The mini in half precision has words that are nearly as likely as each other, and rounding would choose.
    halves = whole == "2b" and (device.type == "cuda" or precision.cpu_flags())
    return torch.bfloat16 if halves else torch.float32


def _weights(subject: Subject) -> tuple[float, float]:
    """Bytes that a pair through the vision tower must move, and a token through the decoder."""
    core: Any = subject.model.model
    return roofline.moved(core.visual), roofline.moved(core.language_model.layers) + roofline.moved(
        subject.model.lm_head
    )


def _title(what: str, subject: Subject, *more: str) -> str:
    text: Any = subject.model.config.text_config
    vision: Any = subject.model.config.vision_config
    name = subject.checkpoint.name + ("" if subject.checkpoint.trained else " (untrained)")
    depth = f"{text.num_hidden_layers} layers, {vision.depth} vision blocks"
    return ", ".join((f"{what}: {name}", depth, *more))


def thoughts(subject: Subject, tokens: int, peak: Peak, targets: list[Target]) -> Group:
    """Whole thoughts on a window that slides by one pair, four ways, with the parts that the thinker tells."""
    model: Any = subject.model
    thinkers = [subject.thinker(), subject.thinker(), subject.thinker(static=True)]
    camera, last = Camera(thinkers[0]), model.config.text_config.num_hidden_layers - 1
    library = Library(subject, thinkers[0], camera, tokens)
    lives = {
        name: Live(thinker, camera, tokens, last, cached=name != WITHOUT)
        for name, thinker in zip((WITHOUT, WITH, STATIC), thinkers, strict=True)
    }
    vision, token = _weights(subject)
    flops = {LIBRARY: roofline.counted(library)}
    flops |= {name: roofline.counted(lives[name]) for name in (WITHOUT, WITH)}
    flops[STATIC] = flops[WITH]  # what a graph computes is not seen by the counter
    works = {name: Work(count, vision + (1 + tokens) * token) for name, count in flops.items()}
    shown = lives[WITH].thinker
    assert shown.report is not None
    pairs, prompt = shown.report.pairs, shown.report.prompt_tokens
    library.begin()
    for live in lives.values():
        live.begin()
    within = WITHIN[model.dtype]
    variants = [Variant(LIBRARY, library, works[LIBRARY], note=NOTES[LIBRARY])]
    variants += [
        Variant(name, live, works[name], LIBRARY, NOTES.get(name, ""), within, told=live.told)
        for name, live in lives.items()
    ]
    static = lives[STATIC].thinker
    variants[-1].note = static.words.rpartition(", ")[2] if static.words else ""
    height, width = shown.image_size
    return Group(
        _title("thought", subject, f"{2 * pairs} frames of {height}x{width}", f"{prompt} + {tokens} tokens"),
        model.dtype,
        variants,
        peak,
        model.device,
        [(LIBRARY, WITH), (WITHOUT, WITH), (WITH, STATIC)],
        targets,
        allocations=True,
    )


def parts(subject: Subject, tokens: int, peak: Peak) -> Group:
    """The parts of a thought, each alone."""
    model: Any = subject.model
    thinker = subject.thinker()
    camera = Camera(thinker)
    with torch.inference_mode():
        prefill = Prefill(subject, thinker, camera)
        pooling = Pooling(prefill)
    update = WindowUpdate(subject, thinker, camera)
    vision, token = _weights(subject)
    eager, static = (Decode(prefill, kind(model, thinker.layers), tokens) for kind in (EagerDecoder, StaticDecoder))
    with torch.inference_mode():
        eager.before()
        decoding = Work(roofline.counted(eager), tokens * token)
    states = len(thinker.layers) * prefill.length * thinker.width * model.dtype.itemsize
    return Group(
        _title("parts", subject, f"{prefill.length} tokens of prompt"),
        model.dtype,
        [
            Variant(
                WINDOW, update, Work(roofline.counted(update), vision), note="one new pair through the vision tower"
            ),
            Variant(PREFILL, prefill, Work(roofline.counted(prefill), token)),
            Variant(DECODE, eager, decoding, note=f"{tokens} tokens, the prompt read before", before=eager.before),
            Variant(DECODE_STATIC, static, decoding, DECODE, within=WITHIN[model.dtype], before=static.before),
            Variant(POOL, pooling, Work(0.0, states), note=f"{len(thinker.layers)} layers of the prompt's states"),
        ],
        peak,
        model.device,
        [(DECODE, DECODE_STATIC)],
        allocations=True,
    )


def export(subject: Subject, tokens: int, peak: Peak, serialise: Serialise | None, limited: bool) -> Group:
    """Guidance of the whole depth, pooled and as tokens, made ready to be sent."""
    layers = pyramid.default_layers(subject.depth)
    thinker = subject.thinker()
    with torch.inference_mode():
        length = Prefill(subject, thinker, Camera(thinker)).length + tokens
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(len(layers), 2, thinker.width)).astype(np.float32)
    states = rng.normal(size=(len(layers), length, thinker.width)).astype(np.float32)
    text = "lamp red, left tray"
    plain = Guidance(pooled, layers, 0, 10.0, text=text, thought=text, model_id=thinker.model_id)
    streams = np.zeros(length, np.uint8)
    whole = Guidance(
        pooled, layers, 0, 10.0, text=text, thought=text, model_id=thinker.model_id, states=states, streams=streams
    )
    sent = serialise or numbers
    variants = []
    for name, guidance in ((POOLED, plain), (STATES, whole)):
        size = float(len(sent(guidance)))
        taken = guidance.pyramid.nbytes + (guidance.states.nbytes if guidance.states is not None else 0)
        variants.append(
            Variant(name, partial(sent, guidance), Work(0.0, taken + size), note=f"{report.in_units(size)}", size=size)
        )
    how = "as a message" if serialise else "its numbers as float16, without ROS"
    return Group(
        _title("export", subject, f"{len(layers)} layers of width {thinker.width}, {how}"),
        torch.float32,
        variants,
        peak,
        torch.device("cpu"),
        targets=[Target(POOLED, EXPORT_LIMIT, size=True)] if limited else [],
        allocations=True,
    )


def numbers(guidance: Guidance) -> bytes:
    """The numbers of a guidance as float16. ValueError where that overflows."""
    packed = []
    for values in (guidance.pyramid, guidance.states):
        if values is not None:
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise ValueError("the guidance does not fit into float16")
            packed.append(half.tobytes())
    return b"".join(packed)
