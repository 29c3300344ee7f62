"""Stage `thinker`: the mini Qwen3-VL, from scratch, on windows of cue-reach (`data.told`), in two steps.

`see`: the vision tower alone, on pairs of frames around lit lamps. `answer`: everything, first on short windows, then
on those of the live thinker. Both resume after a stop. Under torchrun every process computes the whole batch: the mini
is too small for sharing it to be worth anything.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from .. import checkpoints
from ..data.episode import Episode
from ..data.told import Sample, draw, shares
from ..thinker import folder as thinker_folder
from ..thinker import tiny
from ..thinker.errors import ThinkerError
from .clips import data_hash, load_folder
from .distributed import group
from .pupil import Batch, Pupil, Seen
from .record import made_by
from .run import Run
from .run import threads as use_threads

SEE_LR = 2e-3
#: Windows of a `see` step for each of an `answer` step: these have two or three pairs, those up to seventeen.
SEE_WINDOWS = 1.5
#: Batches drawn together and sorted by length: a batch of like windows wastes little on padding.
POOL = 4


def _see_samples(episodes: Sequence[Episode], run: Run, windows: int) -> Iterator[list[Sample]]:
    """Windows of every step still to do; a function of (seed, step) alone, like all that is random here."""
    chances = shares(episodes)
    for step in range(run.step, run.steps_total):
        rng = np.random.default_rng((run.seed, step, 1))
        yield [draw(episodes, chances, 0.0, rng) for _ in range(windows)]


def _answer_samples(episodes: Sequence[Episode], run: Run, windows: int) -> Iterator[list[Sample]]:
    chances = shares(episodes)
    pool: list[Sample] = []
    order, drawn = np.arange(POOL), -1
    for step in range(run.step, run.steps_total):
        if step // POOL != drawn:
            drawn = step // POOL
            rng = np.random.default_rng((run.seed, drawn, 1))
            progress = drawn * POOL / run.steps_total
            samples = [draw(episodes, chances, progress, rng) for _ in range(POOL * windows)]
            pool = sorted(samples, key=lambda s: len(s.pairs))
            order = rng.permutation(POOL)
        first = int(order[step % POOL]) * windows
        yield pool[first : first + windows]


def _ahead(items: Iterator[list[Sample]], make: Callable[[int, list[Sample]], Any], first: int) -> Iterator[Any]:
    """make(step, samples) of each step from `first` on, prepared by a thread while torch computes."""
    ready: queue.Queue[Any] = queue.Queue(3)
    stop = threading.Event()

    def put(thing: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put(thing, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step, samples in enumerate(items, first):
                if stop.is_set():
                    return
                put((make(step, samples), None))
            put((None, StopIteration()))
        except Exception as error:
            put((None, error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            thing, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield thing
    finally:
        stop.set()
        worker.join()


def _fit(
    run: Run,
    pupil: Pupil,
    title: str,
    samples: Iterator[list[Sample]],
    make: Callable[[int, list[Sample]], Seen | Batch],
) -> None:
    pupil.train()
    ready = _ahead(samples, make, run.step)
    try:
        for _ in run.steps(title):
            out = pupil(next(ready))
            norm = run.update(out["loss"] / run.group.world)
            run.note(norm=norm, **{k: float(v.detach()) for k, v in out.items() if v.ndim == 0 and bool(v.isfinite())})
    finally:
        ready.close()  # type: ignore[attr-defined]
    pupil.eval()


def fit(
    pupil: Pupil,
    episodes: Sequence[Episode],
    folder: Path,
    *,
    see_steps: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict[str, Any],
    quiet: bool = False,
) -> tuple[Run, Run]:
    """Both steps in `folder`; the same call goes on after a stop. Raises run.Stopped."""
    many = round(SEE_WINDOWS * batch_size)
    see = Run(folder / "see", pupil, see_steps, SEE_LR, seed, describe, quiet=quiet)
    _fit(
        see, pupil, "Seeing", _see_samples(episodes, see, many), lambda k, s: pupil.look_at(s, episodes, see.random(k))
    )
    run = Run(folder / "answer", pupil, steps, lr, seed + 1, describe, quiet=quiet)
    _fit(
        run,
        pupil,
        "Answering",
        _answer_samples(episodes, run, batch_size),
        lambda k, s: pupil.collate(s, episodes, run.random(k)),
    )
    return see, run


def _go_on_from(start: Path, pupil: Pupil, words: Path) -> str:
    """Give the pupil the weights of a mini thinker whose tokenizer is that in `words`; returns what it is called.

    Raises ThinkerError.
    """
    found = thinker_folder.find(start)
    network = Qwen3VLForConditionalGeneration.from_pretrained(found.folder, local_files_only=True)
    same = (found.folder / "tokenizer.json").read_bytes() == (words / "tokenizer.json").read_bytes()
    try:
        pupil.model.load_state_dict(network.state_dict())
    except RuntimeError:
        same = False
    if not same:
        raise ThinkerError(
            f"{start}: no mini thinker of this version; training goes on from one of `train thinker` only"
        )
    return f"{found.name} {checkpoints.sha256_of(found.weight_files[0])[:8]}"


def train(
    data: Path | None,
    out: Path,
    *,
    run: Path,
    steps: int,
    see_steps: int = 700,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
    start: Path | None = None,
) -> None:
    """`thinkjepa train thinker`: train on the episodes in `data` (folder train/) and write the checkpoint to `out`.

    steps 0 writes the untrained mini. start: folder of a mini thinker to go on from. Raises run.Stopped, EpisodeError,
    ThinkerError, ValueError.
    """
    if steps == 0:
        tiny.build(out, seed)
        return
    if data is None:
        raise ValueError(
            f"training for {steps} steps needs episodes: thinkjepa train thinker DATA (see docs/cue_reach.md)"
        )
    use_threads(threads)
    processes = group()
    began = time.monotonic()
    folder = run / "tokenizer"
    if processes.first:
        tiny.write_tokenizer(folder)
    processes.wait()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pupil = Pupil(tiny.model(ids, seed), tokenizer)
    base = "" if start is None else _go_on_from(start, pupil, folder)
    pupil.requires_grad_(True)
    source = data / "train"
    episodes = load_folder(source, limit)
    options: dict[str, Any] = {"see_steps": see_steps, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    record = {**options, "episodes": len(episodes), "data_sha256": data_hash(source, limit)}
    if base:
        record["start"] = base
    see, done = fit(pupil, episodes, run, **options, describe=record)
    training: dict[str, Any] = {
        **made_by("thinkjepa train thinker", threads, done),
        **record,
        "see_seconds": round(see.seconds),
        "see_cpu_seconds": round(see.cpu_seconds),
        "seconds_of_this_call": round(time.monotonic() - began),
    }
    if processes.first:
        tiny.write_tokenizer(out)
        tiny.save(out, pupil.model, trained=True, domain="simulation", training=training)
    processes.wait()
