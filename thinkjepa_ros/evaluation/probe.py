"""How much of the intent each layer of a pyramid carries: a linear probe per layer and per way to pool its tokens.

Only windows whose newest frame lies in the wait between cue and reach count: the lamp has gone out and the hand has
told nothing, so what a layer knows, it remembers. The probe is fitted on other episodes than it is scored on. Beside it
the same network with random weights: those keep something of a picture too, and only what is beyond was learned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..data.episode import Episode
from ..data.told import SAMPLE_S, UNKNOWN, WINDOW_S, Sample, cut
from ..thinker import tiny
from ..thinker.qwen import Thinker
from ..thinker.window import Window

#: How the tokens of a layer are pooled, and the kinds of `Guidance.streams` in it.
POOLS = {"prompt, all": (0, 1), "prompt, text": (0,), "prompt, visual": (1,), "generated": (2,)}
#: Weights of the ridge penalty to choose from, by the folds of the fitting episodes.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5


def run(
    thinker: Thinker, fitting: Sequence[Episode], held_out: Sequence[Episode], per_episode: int, fitting_hash: str
) -> dict[str, Any]:
    """Accuracy over the six intents, by layer and pool, of `thinker` and of the mini with random weights.

    ValueError for a thinker that is not of the mini's shape: the control would say nothing about it.
    """
    control = untrained(thinker)
    figures: dict[str, Any] = {"fitted_on_sha256": fitting_hash, "chance": 1 / UNKNOWN, "layers": list(thinker.layers)}
    for name, mind in (("trained", thinker), ("random", control)):
        train = features(mind, fitting, per_episode, f"Probe, {name}, fitting")
        test = features(mind, held_out, per_episode, f"Probe, {name}")
        figures["fitted_windows"], figures["windows"] = len(train[1]), len(test[1])
        figures[name] = {
            pool: [_score(train, test, pool, layer) for layer in range(len(thinker.layers))] for pool in POOLS
        }
    return figures


def untrained(thinker: Thinker) -> Thinker:
    """The mini with random weights, looking at the same window."""
    with tempfile.TemporaryDirectory(prefix="thinkjepa-") as folder:
        control = Thinker.load(tiny.build(Path(folder), seed=1), window=thinker.window)
    if (control.layers, control.width) != (thinker.layers, thinker.width):
        raise ValueError(f"the probe compares with the untrained mini, and {thinker.model_id} is of another shape")
    return control


Features = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


def features(thinker: Thinker, episodes: Sequence[Episode], per_episode: int, title: str) -> Features:
    """Pooled states by pool, float64 [N, L, D] each; the intents int [N]; the episodes' seeds int [N]."""
    from .thinker import MAX_NEW_TOKENS, frames_of

    pooled: dict[str, list[np.ndarray]] = {pool: [] for pool in POOLS}
    intents, seeds = [], []
    for number, episode in enumerate(track(episodes, title, transient=True)):
        thinker.forget()
        for sample in waiting(episode, number, per_episode):
            frames = frames_of(episode, sample)
            thought = thinker.think(frames, sample.instruction, max_new_tokens=MAX_NEW_TOKENS, tokens=True)
            assert thought.states is not None and thought.streams is not None
            for pool, kinds in POOLS.items():
                chosen = thought.states[:, np.isin(thought.streams, kinds)]
                # A network that ends at once has generated nothing: that tells nothing.
                mean = chosen.mean(1) if chosen.shape[1] else np.zeros((len(chosen), chosen.shape[2]))
                pooled[pool].append(mean.astype(np.float64))
            intents.append(sample.intent)
            seeds.append(episode.seed)
    return {pool: np.stack(rows) for pool, rows in pooled.items()}, np.array(intents), np.array(seeds)


def waiting(episode: Episode, number: int, count: int) -> list[Sample]:
    """Windows told by the lamp whose newest frame lies in the wait; none for an episode without a cue."""
    frames = [k for k in range(len(episode)) if episode.phase(k) == "wait"]
    if episode.cue_ns is None or not frames:
        return []
    rng = np.random.default_rng((episode.seed, 4712))
    window = Window(WINDOW_S, SAMPLE_S)
    cuts = [
        cut(episode, number, int(rng.choice(frames)), window, phase_ns=int(rng.integers(1_000_000_000)))
        for _ in range(count)
    ]
    dark = [sample for sample in cuts if episode.phase(int(sample.frames[-1])) == "wait"]
    return [sample for sample in dark if sample.told == "lamp"]


def _score(train: Features, test: Features, pool: str, layer: int) -> dict[str, float]:
    from .thinker import sure

    right = classify(train[0][pool][:, layer], train[1], train[2], test[0][pool][:, layer]) == test[1]
    return sure(np.array([right[test[2] == seed].mean() for seed in np.unique(test[2])]))._asdict()


def classify(x: np.ndarray, intents: np.ndarray, groups: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Intents int [M] of `unseen` [M, D] by ridge regression on one-hot classes, from x [N, D].

    The penalty is the one with the most right answers where whole groups (episodes) are left out.
    """
    mean, spread = x.mean(0), x.std(0) + 1e-6
    x, unseen = (x - mean) / spread, (unseen - mean) / spread
    wanted = np.eye(UNKNOWN)[intents]
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    hits = []
    for penalty in PENALTIES:
        right = 0
        for k in range(FOLDS):
            out = fold == k
            if out.any() and not out.all():
                right += int((_ridge(x[~out], wanted[~out], x[out], penalty).argmax(1) == intents[out]).sum())
        hits.append(right)
    return np.asarray(_ridge(x, wanted, unseen, PENALTIES[int(np.argmax(hits))]).argmax(1))


def _ridge(x: np.ndarray, y: np.ndarray, unseen: np.ndarray, penalty: float) -> np.ndarray:
    offset = y.mean(0)
    a = torch.from_numpy(x.T @ x + penalty * len(x) * np.eye(x.shape[1]))
    weights = torch.linalg.solve(a, torch.from_numpy(x.T @ (y - offset))).numpy()
    return np.asarray(unseen @ weights + offset)


def show(figures: dict[str, Any]) -> None:
    """Print the table of the probe."""
    from .bootstrap import Interval
    from .thinker import percent

    title = (
        f"Intent that a linear probe reads from each layer while the hand waits (of 6, chance "
        f"{100 * figures['chance']:.0f} %): {figures['windows']} windows, right in %, 95 % intervals over episodes"
    )
    table = Table(title=title)
    table.add_column("pooled over")
    table.add_column("weights")
    for layer in figures["layers"]:
        table.add_column(f"layer {layer}", justify="right")
    for pool in POOLS:
        for name in ("trained", "random"):
            table.add_row(pool, name, *(percent(Interval(**cell)) for cell in figures[name][pool]))
    Console().print(table)
