"""The trainings behind the table of the cue-reach benchmark, on cached latents: `thinkjepa train table`.

A trial is stage `forecast` with another seed or encoder; or stage `guide` over the shipped predictor or one of those,
with one thing changed; or a model without JEPA latents. A trial that is done is not done again, one that was stopped
goes on, and several processes share the list.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import CheckpointError, Manifest
from ..data.episode import Episode
from ..jepa import model
from ..jepa.guidance import LayerMap, Mode
from ..jepa.readout import bounded_log_sigma
from . import forecast
from .cache import fingerprint
from .mini import settled_dtype
from .run import Run
from .tracks import Tracks

KIND = "states-to-motion"
#: Width of the oracle's word: three cubes, two trays, nothing told.
ORACLE_WIDTH = 6


@dataclass(frozen=True)
class Trial:
    """One training. source: who guides ("thinker", "oracle", "none"), or "states": thoughts alone, without latents.

    streams: which mean states are given, over the prompt and over what was generated. encoder: "shipped" or "random".
    """

    name: str
    seed: int = 0
    source: str = "thinker"
    streams: tuple[bool, bool] = (True, True)
    mode: Mode = "film"
    layers: LayerMap = "spread"
    encoder: str = "shipped"

    @property
    def folder(self) -> str:
        return f"{self.name.replace(', ', '_').replace(' ', '_').replace('-', '_').lower()}_{self.seed}"

    @property
    def guided(self) -> bool:
        """Whether it is stage `guide` over a predictor that is there already."""
        return self.source in ("thinker", "oracle")

    @property
    def over(self) -> Trial | None:
        """The trial whose predictor a guided one is trained over; None for the shipped one."""
        alike = (t for t in TRIALS if t.source == "none" and (t.seed, t.encoder) == (self.seed, self.encoder))
        return next(alike, None) if self.guided else None

    @property
    def model_id(self) -> str:
        return f"cue-reach-{self.folder}"


#: The trainings of the table. The shipped model is "guided" with seed 0, and with a silent thinker "unguided".
TRIALS = (
    Trial("unguided", 1, "none"),
    Trial("unguided", 2, "none"),
    Trial("oracle intent", 0, "oracle"),
    Trial("guided", 1),
    Trial("oracle intent", 1, "oracle"),
    Trial("guided", 2),
    Trial("oracle intent", 2, "oracle"),
    Trial("thinker only", 0, "states"),
    Trial("guided, prompt states only", streams=(True, False)),
    Trial("guided, generated states only", streams=(False, True)),
    Trial("guided, last layer", layers="last"),
    Trial("guided, middle layer", layers=(1, 1, 1)),
    Trial("guided, AdaLN", mode="adaln"),
    Trial("guided, cross-attention", mode="cross"),
    Trial("random encoder, unguided", 0, "none", encoder="random"),
    Trial("random encoder, guided", encoder="random"),
)


def oracle_states(episodes: Sequence[Episode], tracks: Tracks) -> Tensor:
    """What an ideal thinker would say at the time of every thought, [K, 1, 2, ORACLE_WIDTH]: cube and tray from the
    moment on that a frame shows the cue, or that the instruction names them; before it that nothing was told.
    """
    words = torch.zeros(len(tracks.thought_ns), 1, 2, ORACLE_WIDTH)
    for number, episode in enumerate(episodes):
        for k in range(tracks.thoughts[number], tracks.thoughts[number + 1]):
            lit = episode.cue_ns is not None and tracks.thought_ns[k] >= episode.cue_ns[0]
            if episode.intent is None or not (lit or episode.split == "text"):
                words[k, :, :, -1] = 1
            else:
                words[k] = intent_word(int(episode.intent["class"]))
    return ORACLE_SCALE * words


#: The states of a thinker have about this size; the projection starts from it.
ORACLE_SCALE = 3.0


def intent_word(intent: int) -> Tensor:
    """The oracle's word for a class of intent (0 to 5), [ORACLE_WIDTH], not scaled."""
    word = torch.zeros(ORACLE_WIDTH)
    word[intent // 2] = 1
    word[3 + intent % 2] = 1
    return word


def configure(config: model.ModelConfig, trial: Trial, tracks: Tracks) -> model.ModelConfig:
    """The configuration of a trial's network from that of the shipped one."""
    layers, width = (tracks.pyramids.shape[1], tracks.pyramids.shape[3]) if trial.guided else (0, 0)
    predictor = dataclasses.replace(
        config.predictor, guide_mode=trial.mode, guide_map=trial.layers, guide_layers=layers, guide_width=width
    )
    return dataclasses.replace(config, predictor=predictor, guided_readout=trial.guided, sigma_scale=None)


def train_trial(
    trial: Trial,
    base: model.ForecastNet,
    tracks: Tracks,
    out: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    describe: dict,
    dtype: str = "auto",
) -> Path:
    """Train one trial over the encoder of `base`, a guided one over its predictor as well, unless it is there already.
    Returns its checkpoint folder.

    tracks: with the states of the source that guides it. Raises run.Stopped, ValueError, CheckpointError.
    """
    folder = out / trial.folder
    if trial.guided:
        describe = {**describe, "over": fingerprint(base.predictor.blocks, base.predictor.out, base.motion)}
    describe = {**describe, "trial": dataclasses.asdict(trial), "steps": steps, "batch_size": batch_size, "lr": lr}
    describe = json.loads(json.dumps(describe))  # as it will be read back: JSON has no tuples
    if (folder / checkpoints.MANIFEST).exists():
        kind = KIND if trial.source == "states" else model.KIND
        done = checkpoints.read_manifest(folder, kind).training.get("describe")
        if done == describe:
            return folder
        raise CheckpointError(f"{folder} holds a trial with other settings; choose another --out or delete it")
    torch.manual_seed(trial.seed)
    if trial.source == "states":
        states = StatesToMotion(StatesConfig.of(base.config, tracks))
        run = _train_states(states, tracks, folder, trial, steps=steps, lr=lr, describe=describe)
        config, weights = dataclasses.asdict(states.config), states.state_dict()
        manifest = Manifest(KIND, trial.model_id, config, True, "simulation", _record(run, describe))
        checkpoints.save(folder, manifest, weights)
        return folder
    net = model.ForecastNet(configure(base.config, trial, tracks))
    for part in ("encoder", "pose", "motion") if trial.guided else ("encoder", "pose"):
        getattr(net, part).load_state_dict(getattr(base, part).state_dict())
    if trial.guided:
        net.predictor.take(base.predictor)
    run = forecast.train(
        tracks,
        net,
        folder / "run",
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=trial.seed + 1,
        describe=describe,
        guided=trial.guided,
        streams=trial.streams,
        dtype=settled_dtype(dtype, torch.device("cpu"), net.config.predictor.width, folder / "run" / "dtype"),
    )
    model.save(folder, net, trial.model_id, trained=True, domain="simulation",
               training=_record(run, describe))  # fmt: skip
    return folder


def _record(run: Run, describe: dict) -> dict:
    return {"describe": describe, "seconds": round(run.seconds), "cpu_seconds": round(run.cpu_seconds)}


@dataclass(frozen=True)
class StatesConfig:
    layers: int
    width: int
    joints: int
    steps: int
    hidden: int = 256

    @staticmethod
    def of(config: model.ModelConfig, tracks: Tracks) -> StatesConfig:
        """For the thoughts of `tracks` and forecasts as of `config`."""
        layers, _, width = tracks.pyramids.shape[1:]
        return StatesConfig(layers, width, len(config.joint_names), config.horizon)


class StatesToMotion(nn.Module):
    """The row without JEPA: states of a thought and the joints now to displacements and log sigma, by an MLP."""

    def __init__(self, config: StatesConfig):
        super().__init__()
        self.config = c = config
        self.states = nn.Linear(c.layers * 2 * c.width, c.hidden)
        self.present = nn.Linear(c.joints * 3, c.hidden)
        self.fc = nn.Linear(c.hidden, c.hidden)
        self.out = nn.Linear(c.hidden, c.steps * c.joints * 4)
        nn.init.trunc_normal_(self.out.weight, std=0.002)
        nn.init.zeros_(self.out.bias)

    def forward(self, pyramid: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """pyramid [B, L, 2, D] (zero where nobody said anything), present [B, J, 3]: displacement [B, T, J, 3] and log
        sigma [B, T, J].
        """
        said = F.layer_norm(pyramid, pyramid.shape[-1:]).flatten(1)
        x = F.gelu(self.states(said) + self.present(present.flatten(1)))
        out = self.out(x + F.gelu(self.fc(x))).unflatten(-1, (self.config.steps, self.config.joints, 4))
        return out[..., :3], bounded_log_sigma(out[..., 3])


def load_states(folder: Path) -> StatesToMotion:
    """Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: StatesToMotion(StatesConfig(**config)))[0]


def _train_states(
    net: StatesToMotion, tracks: Tracks, folder: Path, trial: Trial, *, steps: int, lr: float, describe: dict
) -> Run:
    run = Run(folder / "run", net, steps, lr, trial.seed + 1, describe)
    origins = forecast.Origins.of(tracks, 1)
    for step in run.steps(trial.name):
        rng = run.random(step)
        samples = origins.draw(256, rng)
        late_ns = (rng.uniform(*forecast.LATE_S, size=len(samples)) * 1e9).astype(np.int64)
        pyramid, poses, future = states_of(tracks, samples, late_ns, net.config.steps)
        displacement, log_sigma = net(pyramid, poses)
        known = future.isfinite().all(-1)
        target = torch.where(known[..., None], future - poses[:, None], 0.0)
        count = known.sum().clamp(min=1)
        distance, likelihood = forecast.motion_losses(displacement, log_sigma, target, known, count)
        norm = run.update(10 * distance + 0.02 * likelihood)
        run.note(ade_cm=100 * distance.item(), grad=norm)
    return run


def states_of(
    tracks: Tracks, samples: np.ndarray, late_ns: np.ndarray | int, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """States of the newest thought so old (zeros without one), estimated joints now, true joints ahead."""
    found = tracks.thought_before(samples, late_ns)
    pyramid = tracks.pyramids[torch.from_numpy(np.maximum(found, 0))]
    pyramid = torch.where(torch.from_numpy(found >= 0)[:, None, None, None], pyramid, 0.0)
    origin = torch.from_numpy(np.asarray(samples))
    return pyramid, tracks.poses[origin], tracks.ahead(np.asarray(samples), steps)


@dataclass(frozen=True)
class Lessons:
    """The training episodes of the table: over the shipped encoder or over the random one."""

    base: model.ForecastNet
    tracks: Tracks
    oracle: Tracks


def train_table(
    lessons: Callable[[str], Lessons],
    out: Path,
    trials: Sequence[Trial] = TRIALS,
    *,
    steps: int,
    guide_steps: int,
    batch_size: int,
    lr: float,
    guide_lr: float,
    describe: dict,
    dtype: str = "auto",
) -> None:
    """Train every trial that is not there yet. lessons: gives those of an encoder ("shipped" or "random").

    Several processes may work on one table: each takes the next trial that no other has. Raises run.Stopped,
    ValueError, CheckpointError.
    """
    known: dict[str, Lessons] = {}

    def run(trial: Trial, base: model.ForecastNet) -> None:
        tracks = known[trial.encoder].oracle if trial.source == "oracle" else known[trial.encoder].tracks
        train_trial(
            trial,
            base,
            tracks,
            out,
            steps=guide_steps if trial.guided else steps,
            batch_size=batch_size,
            lr=guide_lr if trial.guided else lr,
            describe=describe,
            dtype=dtype,
        )

    for trial in sorted(trials, key=lambda t: t.encoder != "shipped"):
        with claimed(out / trial.folder) as mine:
            if not mine:
                continue
            if trial.encoder not in known:
                known = {trial.encoder: lessons(trial.encoder)}
            base = known[trial.encoder].base
            if trial.over is not None:
                with claimed(out / trial.over.folder, wait=True):
                    run(trial.over, base)
                base = model.load(out / trial.over.folder)[0].eval()
            run(trial, base)


@contextmanager
def claimed(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has `folder` for itself; with `wait` it has, once no other does. The lock ends with the
    process, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
