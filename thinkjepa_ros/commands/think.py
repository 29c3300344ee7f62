"""`thinkjepa think`: the thinker over something that was recorded, without any node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import MINI, ThinkerPath, Threads, shipped

if TYPE_CHECKING:
    from rich.table import Table

    from ..bridge.footage import Footage
    from ..thinker.interface import Backend
    from ..thinker.qwen import Report
    from ..values import Frame, Guidance

FORMAT = "thinkjepa_ros/pyramids/1"
#: How a pair of frames stands in the prompt; with other marks the same model has other states.
PAIR_FORM = "<{seconds:.1f} seconds><|vision_start|><|video_pad|>...<|vision_end|>"
#: A step of the clock back, or further ahead, is another scene: as for the node.
_JUMP_NS = 5_000_000_000
#: The live table shows the newest thoughts; the whole one is printed at the end.
_SHOWN = 15


def think(
    source: Annotated[Path, typer.Argument(help="Video file, episode (.h5), or rosbag2 folder or file.")],
    instruction: Annotated[
        str | None, typer.Option(help="What is to be done. Default: what the source says itself, if anything.")
    ] = None,
    model: ThinkerPath = MINI / "thinker",
    every: Annotated[float, typer.Option(min=0.05, help="Seconds of the source between two thoughts.")] = 2.0,
    out: Annotated[
        Path | None, typer.Option(help="Write the pyramids to this safetensors file, what made them in its header.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Question with {instruction} in it. Default: the checkpoint's.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens of a thought at most.")] = 16,
    think_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of the thought before it is closed and the answer begins; 0: no limit.")
    ] = 0,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    quantization: Annotated[str, typer.Option(help="none or int8 (torchao, weights of the decoder).")] = "none",
    memory_gib: Annotated[float, typer.Option(min=0.0, help="Memory it may take, in GiB; 0: what there is.")] = 0.0,
    image_topic: Annotated[str, typer.Option(help="Camera topic, where a recording has several.")] = "",
    reader: Annotated[str, typer.Option(help="Of video files: opencv or qwen-vl-utils.")] = "opencv",
    threads: Threads = 1,
) -> None:
    """Let the thinker look at a video, an episode or a recording, and show its thoughts over time.

    Each thought sees the long window up to its moment and nothing later, sampled as a node samples its camera.
    """
    import cv2
    import torch

    from ..bridge.footage import open_footage
    from ..thinker.qwen import Thinker
    from ..thinker.window import Window

    window = Window()
    footage = open_footage(source, window, image_topic, reader)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    path = shipped(model)
    thinker = Thinker.load(
        path, device, dtype, window=window, attention=attention, quantization=quantization,
        memory_gib=memory_gib, prompt=prompt or None,
    )  # fmt: skip
    budget = {"max_new_tokens": max_new_tokens, "think_tokens": think_tokens or None}
    thoughts = show(footage, thinker, over(footage, thinker, instruction, every, budget))
    if out is not None:
        how = {"device": device, "attention": attention, "quantization": quantization, **budget}
        save(out, thoughts, header(path, thinker, footage, how, dtype))
        print(f"{len(thoughts)} pyramids in {out}")


@dataclass(frozen=True)
class Thought:
    """at_s: seconds from the first frame to the newest that was looked at."""

    at_s: float
    guidance: Guidance
    report: Report


def over(
    footage: Footage, thinker: Backend, instruction: str | None, every_s: float, budget: dict[str, Any]
) -> Iterator[tuple[float, Thought | None]]:
    """Seconds of the footage that were read and, whenever there is one, the thought that was due then.

    The first is due `every_s` after the first frame of a scene, the last one at the end of the footage. Only the
    prepared frames of one window are kept.
    """
    ring: list[Frame] = []
    start, due, words, sequence, step_ns = None, 0, "", 0, round(every_s * 1e9)

    def thought() -> Thought:
        guidance = thinker.think(ring, words, sequence=sequence, **budget)
        assert thinker.report is not None and start is not None
        return Thought((guidance.stamp_ns - start) * 1e-9, guidance, thinker.report)

    for frame, told in footage.told:
        if start is None:
            start = frame.stamp_ns
        if ring and not 0 < frame.stamp_ns - ring[-1].stamp_ns <= _JUMP_NS:
            ring.clear()
        if not ring:
            due = frame.stamp_ns + step_ns
        words = told if instruction is None else instruction
        ring.append(thinker.prepare(frame))
        while ring[0].stamp_ns < frame.stamp_ns - thinker.window.span_ns - 2 * thinker.window.period_ns:
            ring.pop(0)
        fresh = frame.stamp_ns >= due
        while due <= frame.stamp_ns:
            due += step_ns
        yield (frame.stamp_ns - start) * 1e-9, thought() if fresh else None
        sequence += fresh
    if ring and not fresh:
        assert start is not None
        yield (ring[-1].stamp_ns - start) * 1e-9, thought()


def show(footage: Footage, thinker: Backend, steps: Iterator[tuple[float, Thought | None]]) -> list[Thought]:
    """All thoughts, with a bar and the newest of them while they come, and a table of all at the end.

    The model's name says "(untrained)" where it is.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    console.print(f"{thinker.model_id} over {footage.title}", markup=False, highlight=False)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f} s"),
                   TimeRemainingColumn(), console=console)  # fmt: skip
    task = bar.add_task("thinking", total=footage.duration_s or None)
    thoughts: list[Thought] = []
    with Live(bar, console=console, transient=True) as live:
        for read_s, thought in steps:
            if thought is not None:
                thoughts.append(thought)
                live.update(Group(table(thoughts[-_SHOWN:]), bar))
            bar.update(task, completed=read_s)
    console.print(table(thoughts))
    if footage.unreadable:
        told = f"{len(footage.unreadable)} damaged images were passed over, the first: {footage.unreadable[0]}"
        console.print(told, markup=False, highlight=False)
    return thoughts


def table(thoughts: list[Thought]) -> Table:
    """One row per thought; an instruction stands where it is new."""
    from rich.markup import escape
    from rich.table import Table

    rows = Table()
    for name in ("s", "instruction", "thought", "answer"):
        rows.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
    for name in ("tokens", "new pairs", "ms"):
        rows.add_column(name, justify="right")
    before = None
    for t in thoughts:
        instruction = "" if t.guidance.instruction == before else t.guidance.instruction
        before = t.guidance.instruction
        words = (instruction, t.guidance.thought, t.guidance.text)
        figures = (f"{t.report.prompt_tokens}+{t.report.new_tokens}", f"{t.report.new_pairs}/{t.report.pairs}")
        rows.add_row(f"{t.at_s:.1f}", *map(escape, words), *figures, f"{t.report.total_s * 1e3:.0f}")
    return rows


@dataclass(frozen=True)
class Header:
    """What made the pyramids: everything that changes their numbers, so that nobody mixes them up."""

    model_id: str
    trained: bool
    weights_sha256: dict[str, str]
    revision: str
    dtype: str
    layers: list[int]
    width: int
    image_size: list[int]
    window: dict[str, float]
    question: str
    pair_form: str
    transformers: str
    torch: str
    source: str
    how: dict[str, Any] = field(default_factory=dict)


def header(path: Path, thinker: Backend, footage: Footage, how: dict[str, Any], dtype: str) -> Header:
    """revision: the commit of a checkpoint out of the local Hugging Face cache, else empty. The weights are hashed."""
    import torch
    import transformers

    from ..checkpoints import sha256_of
    from ..thinker import folder as folders
    from ..thinker.loading import resolve_dtype

    checkpoint = folders.find(path)
    cached = checkpoint.folder.parent.name == "snapshots"
    return Header(
        model_id=thinker.model_id,
        trained=thinker.trained,
        weights_sha256={file.name: sha256_of(file) for file in checkpoint.weight_files},
        revision=checkpoint.folder.name if cached else "",
        dtype=str(resolve_dtype(dtype, how["device"])).removeprefix("torch."),
        layers=list(thinker.layers),
        width=thinker.width,
        image_size=list(thinker.image_size),
        window=asdict(thinker.window),
        question=thinker.question,
        pair_form=PAIR_FORM,
        transformers=transformers.__version__,
        torch=torch.__version__,
        source=footage.title,
        how=how,
    )


def save(out: Path, thoughts: list[Thought], made_by: Header) -> None:
    """Write safetensors, whole or not at all.

    pyramids float32 [T, L, 2, D] (prompt, generated), present bool [T, 2], stamps_ns int64 [T]; the metadata key
    "thinkjepa" is JSON: the fields of `Header`, and thoughts: for each its words, stop, and number of tokens.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from ..files import replacing

    guidance = [t.guidance for t in thoughts]
    layers, width = len(made_by.layers), made_by.width
    tensors = {
        "pyramids": np.array([g.pyramid for g in guidance], np.float32).reshape(-1, layers, 2, width),
        "present": np.array([g.present for g in guidance], bool).reshape(-1, 2),
        "stamps_ns": np.array([g.stamp_ns for g in guidance], np.int64),
    }
    said = [
        {"instruction": t.guidance.instruction, "thought": t.guidance.thought, "text": t.guidance.text,
         "stop": t.report.stop, "prompt_tokens": t.report.prompt_tokens, "new_tokens": t.report.new_tokens}
        for t in thoughts
    ]  # fmt: skip
    words = json.dumps({"format": FORMAT, **asdict(made_by), "thoughts": said}, allow_nan=False)
    with replacing(out) as temporary:
        save_file(tensors, temporary, metadata={"thinkjepa": words})
