"""The rows of the cue-reach table: what every method forecasts at the fixed origins, in lock step on cached latents.

*Image only*: a method sees images alone; the velocities, ridge and hold continue the joints that the shared pose
readout finds. *Observed pose*: the true joints now (models) or of the dense window (baselines) are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...jepa.guidance import Payload, Ready
from ...jepa.model import ForecastNet
from ...train.forecast import thoughts
from ...train.table import ORACLE_SCALE, StatesToMotion, intent_word, states_of
from ...train.tracks import Tracks, Window
from .. import baselines, metrics
from .origins import GROUPS, Truth

IMAGE, POSE = "image only", "observed pose"
INPUTS = (IMAGE, POSE)
#: The newest thought that counts is over frames at least this much older than the origin: what a thought takes.
AGE_NS = 200_000_000
#: Ages of the rows with stale guidance, in seconds.
STALE_S = (1.0, 2.0, 4.0, 6.0)
#: A rollout feeds so many steps back at a time.
ROLLOUT_STEPS = 8
_TOGETHER = 64
_DAMPED, _HELD_OUT = "damped velocity", 0.2


@dataclass(frozen=True)
class Prediction:
    """One row: forecasts at all origins, NaN where the row says nothing. Metres, camera frame of the origin."""

    row: str
    inputs: str  # one of INPUTS
    seed: int  # of the training; 0 where nothing was trained
    positions: np.ndarray  # float32 [N, T, J, 3]
    sigma: np.ndarray | None = None  # float32 [N, T, J]
    latents: np.ndarray | None = None  # float16 [N, tubelets, p^2, D]; of image-only rows


Guide = Callable[[np.ndarray], Payload | None]  # numbers of origins -> what guides them


@dataclass(frozen=True)
class Scene:
    """What all rows look at: the tracks of the test episodes and their origins."""

    tracks: Tracks
    truth: Truth
    context: int

    @property
    def horizon(self) -> int:
        return self.truth.future.shape[1]

    def past(self, inputs: str, samples: np.ndarray | None = None) -> np.ndarray:
        """Joints of the dense window, [N, C, J, 3], as a baseline may see them."""
        samples = self.truth.sample if samples is None else samples
        return past_of(self.tracks, samples, inputs, self.context)

    def group(self, name: str) -> np.ndarray:
        """Numbers of the origins of a group."""
        return np.flatnonzero(self.truth.group == GROUPS.index(name))


def past_of(tracks: Tracks, samples: np.ndarray, inputs: str, context: int) -> np.ndarray:
    """Joints of the dense window, [B, C, J, 3]: as the shared readout finds them, or the true ones."""
    if inputs == POSE:
        return tracks.true_past(samples, context).numpy()
    behind = torch.from_numpy(samples[:, None] + np.arange(1 - context, 1))
    return tracks.poses[behind].numpy()


# --- rows that need no training


def simple(scene: Scene) -> Iterator[Prediction]:
    """Hold and the velocities. Hold's latents are those of the newest frame."""
    step_s, steps = scene.truth.step_s, scene.horizon
    times = np.broadcast_to(np.arange(1 - scene.context, 1) * step_s, (len(scene.truth.sample), scene.context))
    pooled = scene.tracks.pooled[torch.from_numpy(scene.truth.sample)].numpy()
    copied = np.broadcast_to(pooled[:, None], scene.truth.latents.shape)
    for inputs in INPUTS:
        past = scene.past(inputs)
        kept = copied if inputs == IMAGE else None
        yield Prediction("hold", inputs, 0, baselines.hold(past[:, -1], steps).astype(np.float32), latents=kept)
        for row, forecast in (("constant velocity", baselines.constant_velocity), (_DAMPED, baselines.damped_velocity)):
            yield Prediction(row, inputs, 0, forecast(past, times, step_s, steps).astype(np.float32))


# --- rows fitted on the training episodes


def fitted(scene: Scene, train: Tracks, origins: np.ndarray, groups: np.ndarray) -> Iterator[Prediction]:
    """Mean displacement and ridge. train: tracks of the training episodes; origins, groups [M]: their origins of this
    benchmark, for the mean that is told the phase. Ridge and the other mean take every third sample.
    """
    samples = train.origins(scene.context)[::3]
    present, ahead = past_of(train, samples, POSE, 1)[:, 0], train.ahead(samples, scene.horizon).numpy()
    overall = np.nanmean(ahead - present[:, None], 0)
    same = np.zeros((len(GROUPS), *overall.shape), np.float32)
    for group in range(len(GROUPS)):
        chosen = origins[groups == group]
        moved = train.ahead(chosen, scene.horizon).numpy() - past_of(train, chosen, POSE, 1)[:, :1]
        same[group] = _carried_on(metrics.nanmean(moved, 0))
    for inputs in INPUTS:
        now = scene.past(inputs)[:, -1:]
        yield Prediction("mean displacement", inputs, 0, (now + overall).astype(np.float32))
        yield Prediction("mean displacement, same phase", inputs, 0, now + same[scene.truth.group])
        past = past_of(train, samples, inputs, scene.context)
        moved = (ahead - past[:, -1:]).reshape(len(past), scene.horizon, -1)
        ridge = Ridge.fit(_features(past), moved, train.episode[samples])
        found = ridge(_features(scene.past(inputs))).reshape(len(now), scene.horizon, *now.shape[2:])
        yield Prediction("ridge on past joints", inputs, 0, (now + found).astype(np.float32))


def _carried_on(mean: np.ndarray) -> np.ndarray:
    """A mean [T, J, 3] that stays what it was at the last step that some training episode reaches: a longer test
    episode has an answer, too. All NaN where no episode has the group.
    """
    last = np.maximum.accumulate(np.where(np.isfinite(mean), np.arange(len(mean))[:, None, None], 0), 0)
    return np.take_along_axis(mean, last, 0)


def _features(past: np.ndarray) -> np.ndarray:
    """[N, C, J, 3] -> [N, F]: earlier joints relative to now, and now."""
    return np.nan_to_num(np.concatenate((past[:, :-1] - past[:, -1:], past[:, -1:]), 1).reshape(len(past), -1))


@dataclass(frozen=True)
class Ridge:
    """Linear regression of every step with one penalty, chosen on a fifth of the training episodes held out."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray  # [T, F + 1, J * 3]

    @staticmethod
    def fit(features: np.ndarray, targets: np.ndarray, episode: np.ndarray) -> Ridge:
        """features [N, F], targets [N, T, K] (NaN: unknown), episode [N]."""
        mean, scale = features.mean(0), features.std(0) + 1e-6
        x = np.concatenate(((features - mean) / scale, np.ones((len(features), 1))), 1)
        held = np.random.default_rng(0).permutation(np.unique(episode))
        out = np.isin(episode, held[: max(1, round(_HELD_OUT * len(held)))])
        best, chosen = np.inf, 1.0
        for penalty in (1e1, 1e2, 1e3, 1e4, 1e5):
            # the last step decides as well as the first: every fourth is enough to choose by
            w = _solve(x[~out], targets[~out][:, ::4], penalty)
            error = np.nanmean(np.abs(np.einsum("nf,tfk->ntk", x[out], w) - targets[out][:, ::4]))
            if error < best:
                best, chosen = error, penalty
        return Ridge(mean, scale, _solve(x, targets, chosen))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        x = np.concatenate(((features - self.mean) / self.scale, np.ones((len(features), 1))), 1)
        return np.einsum("nf,tfk->ntk", x, self.weights)


def _solve(x: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """[T, F, K]; rows whose target is not known at a step are left out there."""
    weights = []
    for step in range(targets.shape[1]):
        known = np.isfinite(targets[:, step]).all(-1)
        rows = x[known]
        gram = rows.T @ rows + penalty * np.diag([1.0] * (x.shape[1] - 1) + [1e-6])
        weights.append(np.linalg.solve(gram, rows.T @ targets[known, step]))
    return np.stack(weights)


# --- rows of trained networks


def shuffled(scene: Scene, seed: int = 0) -> np.ndarray:
    """For every origin another one of the same group, of another episode that told or did not tell alike, int64 [N].

    An origin alone of its kind gets itself.
    """
    rng, other = np.random.default_rng(seed), np.arange(len(scene.truth.sample))
    for group, told in itertools.product(range(len(GROUPS)), (True, False)):
        chosen = np.flatnonzero((scene.truth.group == group) & (scene.truth.told == told))
        episodes = scene.truth.episode[chosen]
        for _ in range(100):  # until nobody has a thought about his own episode
            drawn = rng.permutation(chosen)
            if len(np.unique(episodes)) < 2 or (scene.truth.episode[drawn] != episodes).all():
                break
            wrong = scene.truth.episode[drawn] == episodes
            swap = rng.choice(len(chosen), wrong.sum())
            for a, b in zip(np.flatnonzero(wrong), swap, strict=True):
                drawn[a], drawn[b] = drawn[b], drawn[a]
            if (scene.truth.episode[drawn] != episodes).all():
                break
        other[chosen] = drawn
    return other


def anytime(scene: Scene, seed: int = 0) -> np.ndarray:
    """For every origin a sample of another episode, drawn evenly from all that come after its first thought, int64 [N].

    Unlike `shuffled` it keeps nothing of the origin's phase: a thought tells what time it is, too, by its own phase.
    Raises ValueError if no other episode has a thought.
    """
    tracks, rng = scene.tracks, np.random.default_rng(seed)
    every = np.flatnonzero(tracks.thought_before(np.arange(len(tracks)), AGE_NS) >= 0)
    drawn = np.empty(len(scene.truth.sample), np.int64)
    for number in np.unique(scene.truth.episode):
        foreign = every[tracks.episode[every] != number]
        if not len(foreign):
            raise ValueError("no other episode has a thought to be guided by")
        own = np.flatnonzero(scene.truth.episode == number)
        drawn[own] = rng.choice(foreign, len(own))
    return drawn


def by_thinker(scene: Scene, streams: tuple[bool, bool] = (True, True), age_s: float = 0.0) -> Guide:
    """The newest thought at every origin, at least `age_s` old."""
    age_ns = max(AGE_NS, round(age_s * 1e9))
    return lambda chosen: thoughts(scene.tracks, scene.truth.sample[chosen], age_ns, 1.0, streams)


def by_another(scene: Scene, samples: np.ndarray) -> Guide:
    """The thought that another sample has for each origin, int64 [N]; see `shuffled` and `anytime`."""
    return lambda chosen: thoughts(scene.tracks, samples[chosen], AGE_NS)


def by_word(scene: Scene, intent: int) -> Guide:
    """The oracle's word for one intent, whatever is true."""
    word = ORACLE_SCALE * intent_word(intent)

    def guide(chosen: np.ndarray) -> Payload:
        there = torch.ones(len(chosen), 2, dtype=torch.bool)
        return Payload.pooled(word.expand(len(chosen), 1, 2, -1), there, torch.ones(len(chosen)))

    return guide


def nobody(chosen: np.ndarray) -> None:
    """No guidance."""
    return


def ready_of(net: ForecastNet, payload: Payload | None) -> Ready | None:
    """Guidance as the network takes it."""
    return None if payload is None else net.predictor.ready(payload)


@torch.inference_mode()
def forecasts(
    scene: Scene, net: ForecastNet, row: str, seed: int, guide: Guide, where: np.ndarray | None = None
) -> list[Prediction]:
    """One row from a network, for both inputs. where: numbers of the origins (default all); NaN elsewhere."""
    p = net.config.predictor
    where = np.arange(len(scene.truth.sample)) if where is None else where
    out = _Blank(scene, net.config.predictor.pooled**2, net.config.encoder.width)
    for chosen in np.array_split(where, max(1, -(-len(where) // _TOGETHER))):
        if not len(chosen):
            continue
        w = scene.tracks.window(scene.truth.sample[chosen], p.latents, p.tubelets, p.tubelet_steps)
        ready = ready_of(net, guide(chosen))
        future = net.predictor(w.past, w.now, ready)
        out.latents[chosen] = future.half().numpy()
        for inputs in INPUTS:
            poses, observed = _poses(w, inputs)
            displacement, log_sigma = net.read(future, w.now, poses, ready)
            out.positions[inputs][chosen] = (poses[:, -1:] + displacement).numpy()
            sigma = [net.sigma(one, seen) for one, seen in zip(log_sigma, observed, strict=True)]
            out.sigma[inputs][chosen] = torch.stack(sigma).numpy()
    return out.predictions(row, seed)


@torch.inference_mode()
def rollout(scene: Scene, net: ForecastNet, row: str, seed: int, guide: Guide, where: np.ndarray) -> list[Prediction]:
    """Autoregressive: the first steps of a forecast are fed back as context until the horizon is reached.

    Predicted latents are means over a tubelet on the pooled grid: each stands for all its steps, and for the newest
    frame spread over the full grid. No model here was trained to be used so.
    """
    p, e = net.config.predictor, net.config.encoder
    tubelets, spread = ROLLOUT_STEPS // p.tubelet_steps, e.grid // p.pooled
    if ROLLOUT_STEPS % p.tubelet_steps or p.latents != ROLLOUT_STEPS or e.grid % p.pooled:
        raise ValueError("a rollout needs as many steps at a time as the context has, in whole tubelets")
    out = _Blank(scene, 0, 0)
    for chosen in np.array_split(where, max(1, -(-len(where) // _TOGETHER))):
        if not len(chosen):
            continue
        w = scene.tracks.window(scene.truth.sample[chosen], p.latents, p.tubelets, p.tubelet_steps)
        ready, past, now = ready_of(net, guide(chosen)), w.past, w.now
        poses = {inputs: _poses(w, inputs)[0] for inputs in INPUTS}
        for first in range(0, scene.horizon, ROLLOUT_STEPS):
            future = net.predictor(past, now, ready)
            for inputs in INPUTS:
                displacement, _ = net.read(future, now, poses[inputs], ready)
                poses[inputs] = poses[inputs][:, -1:] + displacement[:, :ROLLOUT_STEPS]
                out.positions[inputs][chosen, first : first + ROLLOUT_STEPS] = poses[inputs].numpy()
            each = future[:, :tubelets].repeat_interleave(p.tubelet_steps, 1)
            past, newest = each[:, :-1], each[:, -1].unflatten(1, (p.pooled, p.pooled))
            now = newest.repeat_interleave(spread, 1).repeat_interleave(spread, 2).flatten(1, 2)
    return [Prediction(row, inputs, seed, out.positions[inputs]) for inputs in INPUTS]


@torch.inference_mode()
def states_only(scene: Scene, net: StatesToMotion, seed: int) -> list[Prediction]:
    """The row of a thinker without JEPA."""
    pyramid, found, _ = states_of(scene.tracks, scene.truth.sample, AGE_NS, scene.horizon)
    made = []
    for inputs in INPUTS:
        present = found if inputs == IMAGE else torch.from_numpy(scene.truth.present).nan_to_num()
        displacement, log_sigma = net(pyramid, present)
        positions = (present[:, None] + displacement).numpy()
        made.append(Prediction("thinker only", inputs, seed, positions, log_sigma.exp().numpy()))
    return made


def best_of(scene: Scene, candidates: list[list[Prediction]], row: str) -> list[Prediction]:
    """At every origin the candidate with the least mean error over the horizon: what one of K guesses could reach."""
    made = []
    for k, inputs in enumerate(INPUTS):
        stacked = np.stack([c[k].positions for c in candidates])
        error = np.linalg.norm(stacked - scene.truth.future, axis=-1)
        mean = metrics.nanmean(error, (2, 3))
        best = np.nan_to_num(mean, nan=np.inf).argmin(0)
        made.append(Prediction(row, inputs, candidates[0][k].seed, stacked[best, np.arange(len(best))]))
    return made


def _poses(w: Window, inputs: str) -> tuple[Tensor, Tensor]:
    """Poses [B, C, J, 3] as the model takes them, and which joints are observed, bool [B, J]."""
    return w.anchored(torch.full((len(w.poses),), inputs == POSE))


class _Blank:
    """Room for the forecasts of all origins."""

    def __init__(self, scene: Scene, tokens: int, width: int):
        shape = scene.truth.future.shape
        self.positions = {inputs: np.full(shape, np.nan, np.float32) for inputs in INPUTS}
        self.sigma = {inputs: np.full(shape[:3], np.nan, np.float32) for inputs in INPUTS}
        tubelets = scene.truth.latents.shape[1]
        self.latents = np.full((shape[0], tubelets, tokens, width), np.nan, np.float16)

    def predictions(self, row: str, seed: int) -> list[Prediction]:
        return [
            Prediction(
                row, inputs, seed, self.positions[inputs], self.sigma[inputs], self.latents if inputs == IMAGE else None
            )
            for inputs in INPUTS
        ]
