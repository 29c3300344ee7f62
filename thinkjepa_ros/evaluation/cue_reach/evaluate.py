"""`thinkjepa evaluate cue-reach`: every row of the table on the test episodes, scored, shown, written."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ... import checkpoints
from ...checkpoints import WEIGHTS, sha256_of
from ...data.episode import Episode
from ...jepa import model as jepa_model
from ...jepa.model import ForecastNet
from ...thinker.qwen import Thinker
from ...train import cache, clips, table
from ...train.mini import cache_maker
from ...train.tracks import Tracks
from . import figures as pictures
from . import origins, report, rows
from .removed import without_cue
from .rows import Guide, Prediction, Scene
from .score import score

_CONSOLE = Console()


@dataclass(frozen=True)
class Sources:
    """Where everything lies. train: the episodes that the rows "mean displacement" and "ridge" are fitted on; None
    leaves them out.
    """

    test: Path
    train: Path | None
    model: Path
    thinker: Path
    table: Path
    cache: Path
    limit: int | None = None


class Bench:
    """The test episodes as the shipped model sees them, and the trained networks of the table."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.net, self.manifest = jepa_model.load(sources.model)
        self.net.eval().requires_grad_(False)
        self.mind = Thinker.load(sources.thinker)
        self.episodes = clips.load_folder(sources.test, sources.limit)
        self.tracks = self._tracks(self.episodes, "test")
        self.truth = self._truth(self.tracks)
        self.scene = Scene(self.tracks, self.truth, self.net.config.predictor.latents)

    def _tracks(self, episodes: list[Episode], name: str, other: ForecastNet | None = None) -> Tracks:
        """As the shipped encoder sees them, or another one."""
        maker = cache_maker(self.net, self.mind, self.sources.thinker)
        folder = self.sources.cache / name
        if other is not None:
            maker = cache.Maker(other, thoughts=(folder, maker.made_by))
            folder = self.sources.cache / f"{name}_random"
        cache.fill(episodes, maker, folder, title=f"Latents and thoughts ({folder.name})")
        return Tracks.of(episodes, cache.load(episodes, folder, maker.made_by))

    def _truth(self, tracks: Tracks) -> origins.Truth:
        c = self.net.config
        return origins.truth_of(
            self.episodes,
            tracks,
            context=c.predictor.latents,
            tubelets=c.predictor.tubelets,
            steps=c.predictor.tubelet_steps,
            joint_names=c.joint_names,
            step_s=c.step_s,
        )

    def trained(self, name: str) -> Iterator[tuple[int, ForecastNet, table.Trial]]:
        """Seed, network and trial of every training of a row that is there. The shipped model is "guided", seed 0, and,
        since its predictor was trained without a thinker and kept, with a silent one "unguided", seed 0.
        """
        if name in ("guided", "unguided"):
            yield 0, self.net, table.Trial(name)
        for trial in table.TRIALS:
            if trial.name != name:
                continue
            folder = self.sources.table / trial.folder
            if not (folder / checkpoints.MANIFEST).exists():
                _CONSOLE.print(f'[yellow]row "{name}", seed {trial.seed}: {folder} is not trained yet, left out[/]')
                continue
            yield trial.seed, jepa_model.load(folder)[0].eval().requires_grad_(False), trial

    @functools.cached_property
    def oracle(self) -> Scene:
        """The same origins, guided by an ideal thinker."""
        return dataclasses.replace(
            self.scene, tracks=self.tracks.with_thoughts(table.oracle_states(self.episodes, self.tracks))
        )

    def predictions(self) -> Iterator[Prediction]:
        """All rows, one after the other. Baselines, unguided, guided and oracle at all origins, every other row at
        the main ones; several seeds for unguided, guided, silent, shuffled and oracle.
        """
        yield from rows.simple(self.scene)
        if self.sources.train is not None:
            yield from self._fitted(self.sources.train)
        main = self.scene.group(origins.MAIN)
        for seed, net, _ in self.trained("unguided"):
            yield from rows.forecasts(self.scene, net, "unguided", seed, rows.nobody)
            if not seed:
                yield from rows.rollout(self.scene, net, "unguided, rollout by 8 steps", seed, rows.nobody, main)
        for seed, net, _ in self.trained("guided"):
            yield from self._guided(net, seed, main)
        for seed, net, _ in self.trained("oracle intent"):
            yield from rows.forecasts(self.oracle, net, "oracle intent", seed, rows.by_thinker(self.oracle))
            guesses = [rows.forecasts(self.oracle, net, "", seed, rows.by_word(self.oracle, i), main) for i in range(6)]
            yield from rows.best_of(self.oracle, guesses, "best of 6 intents")
        states = next(t for t in table.TRIALS if t.source == "states")
        folder = self.sources.table / states.folder
        if (folder / checkpoints.MANIFEST).exists():
            yield from rows.states_only(self.scene, table.load_states(folder), states.seed)
        seen = {"unguided", "guided", "oracle intent"}
        for trial in table.TRIALS:
            if trial.name not in seen and trial.source != "states":
                seen.add(trial.name)
                yield from self._ablation(trial.name)

    def _fitted(self, folder: Path) -> Iterator[Prediction]:
        episodes = clips.load_folder(folder)
        tracks = self._tracks(episodes, "train")
        chosen = origins.choose(episodes, tracks, self.scene.context, self.net.config.step_s)
        yield from rows.fitted(self.scene, tracks, *chosen)

    def _guided(self, net: ForecastNet, seed: int, main: np.ndarray) -> Iterator[Prediction]:
        scene, thinker = self.scene, rows.by_thinker(self.scene)
        yield from rows.forecasts(scene, net, "guided", seed, thinker)
        yield from rows.forecasts(scene, net, "guided, thinker silent", seed, rows.nobody)
        other = self._shuffled
        foreign = main[self.truth.episode[other[main]] != self.truth.episode[main]]  # one alone of its kind has none
        yield from rows.forecasts(
            scene, net, "shuffled guidance", seed, rows.by_another(scene, self.truth.sample[other]), foreign
        )
        yield from rows.forecasts(
            scene, net, "shuffled guidance, any time", seed, rows.by_another(scene, self._anytime), main
        )
        if seed:
            return
        for age_s in rows.STALE_S:
            stale = rows.by_thinker(scene, age_s=age_s)
            yield from rows.forecasts(scene, net, f"stale guidance, {age_s:g} s", seed, stale, main)
        lamp, guide = self._without_cue
        yield from rows.forecasts(scene, net, "removed cue", seed, guide, lamp)
        yield from rows.rollout(scene, net, "guided, rollout by 8 steps", seed, thinker, main)

    @functools.cached_property
    def _shuffled(self) -> np.ndarray:
        return rows.shuffled(self.scene)

    @functools.cached_property
    def _anytime(self) -> np.ndarray:
        return rows.anytime(self.scene)

    @functools.cached_property
    def _without_cue(self) -> tuple[np.ndarray, Guide]:
        """Main origins of episodes with a lamp, and the thoughts of a thinker that was not shown the lit frames."""
        main = self.scene.group(origins.MAIN)
        lamp = main[np.isin(self.truth.split[main], ("lamp", "distractor"))]
        needed = np.unique(self.tracks.thought_before(self.truth.sample[lamp], rows.AGE_NS))
        tracks, _ = without_cue(self.episodes, self.tracks, self.mind, needed[needed >= 0])
        return lamp, rows.by_thinker(dataclasses.replace(self.scene, tracks=tracks))

    def _ablation(self, name: str) -> Iterator[Prediction]:
        for seed, net, trial in self.trained(name):
            scene = self.scene
            if trial.encoder != "shipped":
                scene = dataclasses.replace(scene, tracks=self._tracks(self.episodes, "test", net))
            guide = rows.nobody if trial.source == "none" else rows.by_thinker(scene, trial.streams)
            for made in rows.forecasts(scene, net, name, seed, guide, self.scene.group(origins.MAIN)):
                # another encoder's latents have nothing to be compared with here
                yield made if trial.encoder == "shipped" else dataclasses.replace(made, latents=None)


def evaluate(sources: Sources, out: Path, command: Sequence[str] = ()) -> dict[str, Any]:
    """Score all rows, print the tables, write `out` (JSON) and pictures beside it. Returns the contents.

    Raises CheckpointError, EpisodeError, CacheError, ThinkerError.
    """
    began = time.monotonic()
    bench = Bench(sources)

    def told() -> Iterator[Prediction]:
        with _CONSOLE.status("Rows of the table") as status:
            for made in bench.predictions():
                status.update(f"{made.row} ({made.inputs}, seed {made.seed})")
                if not _CONSOLE.is_terminal and made.inputs == rows.IMAGE:  # a log has no spinner
                    _CONSOLE.print(f"{time.monotonic() - began:5.0f} s  {made.row}, seed {made.seed}", highlight=False)
                yield made

    found = score(bench.truth, told())
    about = {
        "command": " ".join(command),
        "model": bench.manifest.model_id,
        "weights_sha256": bench.manifest.sha256[WEIGHTS],
        "thinker_sha256": sha256_of(sources.thinker / WEIGHTS),
        "test": clips.data_hash(sources.test, sources.limit),
        "told_rightly": thoughts_right(bench),
    }
    contents = report.contents(found, about)
    report.show(contents)
    report.write(contents, out)
    try:
        pictures.draw(contents, out.parent)
    except ImportError as error:
        _CONSOLE.print(str(error))
    _CONSOLE.print(f"{out}: {len(bench.episodes)} episodes in {time.monotonic() - began:.0f} s")
    return contents


def thoughts_right(bench: Bench) -> float | None:
    """Share of the main origins at which the newest thought names cube and tray rightly; None where none was told."""
    main = bench.scene.group(origins.MAIN)
    main = main[bench.truth.told[main]]
    found = bench.tracks.thought_before(bench.truth.sample[main], rows.AGE_NS)
    right = []
    for k, number in zip(found, bench.truth.episode[main], strict=True):
        intent = bench.episodes[number].intent
        wanted = f"{intent['cube']} cube, {intent['tray']} tray" if intent else ""
        right.append(k >= 0 and bench.tracks.texts[k].strip() == wanted)
    return float(np.mean(right)) if right else None
