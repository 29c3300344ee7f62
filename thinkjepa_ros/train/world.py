"""Stage `world`: encoder and world model together, from scratch or from a trained encoder: `thinkjepa train world`.

g(latents up to now, state, actions, guidance) -> latents after every action. What is minimised is in `world_objective`,
what it is minimised on in `world_data`. A collapsing model shows an excellent loss, so every line of the log holds the
spread and the effective rank of the latents, the SIGReg statistic and the ratio of the prediction error to that of "no
change"; a run that stays collapsed is stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import MANIFEST
from ..control import imagination, space
from ..control.imagination import Imagination, ImaginationConfig
from ..data.episode import Episode
from ..jepa import model
from ..jepa.encoder import Encoder, EncoderConfig
from ..jepa.world_model import Sight, WorldModelConfig
from ..version import __version__
from . import clips, defaults
from .mini import LICENCE, folder_of, settled_dtype
from .objectives import CollapseGauge, Reading, random_directions
from .record import made_by
from .run import Run
from .run import threads as use_threads
from .world_data import Spread, Track, befores_and_afters, draw
from .world_guidance import Thoughts, drop
from .world_objective import Learner, Recipe
from .world_points import teach

MODEL_ID = f"thinkjepa-world-{__version__}"
#: The gauge needs a singular value decomposition: every so many steps.
GAUGE_EVERY = 10
#: So many readings in a row that say "collapsed" end a run; random weights may need some steps to spread.
PATIENCE = 10
GAUGE = CollapseGauge(least_spread=0.05, least_rank=0.03)
#: Batches over which the error of the finished model is averaged (`Imagination.likelihood_scale`).
SCALE_BATCHES = 30
#: Frames by which the latents are scaled before the first step.
FIRST_FRAMES = 256


class Collapsed(RuntimeError):
    """The latents became the same whatever the picture."""


def train(
    tracks: Sequence[Track],
    learner: Learner,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    encoder_rate: float = 1.0,
    thoughts: Thoughts | None = None,
    gauge: CollapseGauge = GAUGE,
    quiet: bool = False,
) -> tuple[Run, Reading | None]:
    """Train `learner` in place. Resumes from `folder`. encoder_rate: learning rate of the encoder as a share of the
    others', and of the points. Raises run.Stopped, Collapsed, ValueError.
    """
    net, recipe = learner.net, learner.recipe
    w = net.config.world
    device = next(net.parameters()).device
    slower = {name: encoder_rate for name in ("net.encoder.", "net.points.") if encoder_rate not in (0, 1)}
    run = Run(
        folder, learner, steps, lr, seed, describe, warm_up=max(1, min(100, steps // 10)), quiet=quiet, slower=slower
    )
    learner.train()
    reading: Reading | None = None
    bad = 0
    for step in run.steps("world"):
        rng = run.random(step)
        moments, origins = draw(tracks, batch_size, w.context, w.horizon, recipe.targets, rng)
        payload = drop(thoughts.payload(origins, rng), recipe.guidance_dropout, rng) if thoughts else None
        found = learner(
            moments.to(device),
            random_directions(rng, w.latent_width).to(device),
            dtype,
            None if payload is None else payload.to(device, torch.float32),
        )
        norm = run.update(found.total / run.group.world)  # every process computes the whole batch
        learner.stepped()
        if step % GAUGE_EVERY == 0 or reading is None:
            reading = gauge.read(found.latents, found.prediction, found.copy)
            bad = bad + 1 if reading.collapsed else 0
            if bad >= PATIENCE:
                raise Collapsed(
                    f"step {step}: {reading.sentence} This run does not recover ({folder}); give SIGReg more weight "
                    "or a larger batch, or a lower learning rate."
                )
        columns = {**reading.columns(), "prediction_over_copy": found.prediction / max(found.copy, 1e-12)}
        run.note(loss=found.prediction, **columns, sigreg=found.sigreg, **found.notes, grad=norm)
    return run, reading


@torch.no_grad()
def whiten(tracks: Sequence[Track], net: Imagination, seed: int, changes: bool) -> None:
    """Set the linear map behind the encoder so that pooled latents of some random frames, or their changes within half
    the horizon, are about N(0, 1), as SIGReg wants them: pulled there by its gradient alone they would take hundreds of
    steps.
    """
    rng = np.random.default_rng((seed, 1))
    frames = befores_and_afters(tracks, FIRST_FRAMES // 2, net.config.world.horizon // 2, rng)
    tokens = net.pool(torch.cat([net.encoder.frames(part) for part in frames.split(32)])).double()
    middle = tokens.mean((0, 1))
    rows = (tokens[1::2] - tokens[::2] if changes else tokens - tokens.mean(0, keepdim=True)).flatten(0, 1)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    count = net.project.out_features
    if count > len(values):
        raise ValueError(f"latents of width {count} cannot come from an encoder of width {len(values)}")
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    # directions in which next to nothing happens are not blown up beyond a tenth of what the largest needs
    scale = values.clamp(min=float(values[0]) / 100 + 1e-12).rsqrt()
    turn = torch.linalg.qr(torch.from_numpy(rng.normal(size=(count, count))))[0]
    weight = turn @ (vectors * scale).T
    net.project.weight.copy_(weight)
    net.project.bias.copy_(-weight @ middle)


@torch.no_grad()
def measure_scale(tracks: Sequence[Track], learner: Learner, batch_size: int, run: Run) -> None:
    """Set `likelihood_scale`: mean absolute error of the predictions over random training moments."""
    net, w = learner.net.eval(), learner.net.config.world
    device = next(net.parameters()).device
    total, count = torch.zeros(w.tokens, w.latent_width, device=device), 0.0
    for number in range(SCALE_BATCHES):
        rng = run.random(run.steps_total + 1 + number)
        m = draw(tracks, batch_size, w.context, w.horizon, learner.recipe.targets, rng)[0].to(device)
        latents = net.see(m.context.flatten(0, 1)).unflatten(0, (batch_size, -1))
        target = net.pool(net.see(m.targets.flatten(0, 1))).unflatten(0, (batch_size, -1))
        context = net.world.remember(net.pool(latents[:, :-1]), latents[:, -1], m.state)
        ahead = net.world.imagine(context, m.actions, steps=m.steps)
        total += ((ahead - target).abs() * m.known[..., None, None]).sum((0, 1))
        count += float(m.known.sum())
    net.likelihood_scale.copy_((total / max(1.0, count)).clamp(min=1e-3))


def configuration(
    episodes: Sequence[Episode],
    encoder: EncoderConfig,
    *,
    latent: int = 64,
    pooled: int = 4,
    context: int = 2,
    horizon: int = 8,
    width: int = 128,
    depth: int = 3,
    action_s: float = 0.2,
    guide: tuple[int, int] = (0, 0),
    sight: Sight = "actions",
    points: tuple[int, int] = (0, 0),
) -> tuple[ImaginationConfig, list[Track]]:
    """What fits these episodes, and the episodes as tracks. Raises EpisodeError, ValueError."""
    camera = imagination.canonical_camera(episodes[0].camera, encoder.image_size)
    tracks = [Track.of(e, camera, action_s) for e in episodes]
    spread = dataclasses.asdict(Spread.of(tracks))
    world = WorldModelConfig(
        latent_width=latent, grid=encoder.grid, pooled=pooled, context=context, context_steps=1, horizon=horizon,
        action_steps=1, width=width, depth=depth, action_dim=space.DIM, state_dim=space.DIM, guide_layers=guide[0],
        guide_width=guide[1], sight=sight, **spread,
    )  # fmt: skip
    return ImaginationConfig(encoder, world, camera, action_s, *points), tracks


def train_world(
    data: Path,
    out: Path,
    *,
    run: Path,
    init: Path | None = None,
    image_size: int = defaults.WORLD_IMAGE,
    encoder_depth: int = defaults.WORLD_ENCODER_DEPTH,
    latent: int = defaults.WORLD_LATENT,
    pooled: int = defaults.WORLD_POOLED,
    context: int = defaults.WORLD_CONTEXT,
    horizon: int = defaults.WORLD_HORIZON,
    points: int = defaults.WORLD_POINTS,
    points_width: int = defaults.WORLD_POINTS_WIDTH,
    see_steps: int = defaults.WORLD_SEE_STEPS,
    recipe: Recipe | None = None,
    steps: int = defaults.WORLD_STEPS,
    batch_size: int = defaults.WORLD_BATCH,
    lr: float = defaults.WORLD_LR,
    encoder_rate: float = 1.0,
    thoughts: Path | None = None,
    dtype: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
) -> Reading | None:
    """Train an imagination on the episodes in `data` (or its folder train/) and write it to `out`.

    init: checkpoint whose encoder it starts from (a predictor's or another imagination's); else from scratch, with
    `encoder_depth` blocks on images of `image_size`. points, points_width, see_steps: of the eye (`Imagination`), and
    the steps in which it learns to see beforehand (`world_points`). encoder_rate 0 leaves encoder and points as they
    are then. thoughts: folder of cached thoughts (`train cache`). Work in progress lives in `run`; the same command
    goes on where it was. Raises run.Stopped, Collapsed, EpisodeError, CheckpointError, CacheError, ValueError.
    """
    where, recipe = model.torch_device(device), recipe or Recipe()
    use_threads(threads)
    known, base = _encoder_of(init) if init else (None, "")
    config = known.config if known else EncoderConfig(image_size=image_size, depth=encoder_depth)
    source = folder_of(data)
    episodes = clips.load_folder(source, limit)
    said = Thoughts.load(thoughts, episodes) if thoughts else None
    whole, tracks = configuration(
        episodes, config, latent=latent, pooled=pooled, context=context, horizon=horizon,
        guide=said.shape if said else (0, 0), points=(points, points_width if points else 0),
    )  # fmt: skip
    torch.manual_seed(seed)
    net = Imagination(whole)
    if known is not None:
        net.encoder.load_state_dict(known.state_dict())
    whiten(tracks, net, seed, recipe.sigreg_on == "changes")
    learner = Learner(net, recipe).to(where)
    describe = {
        "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "encoder_rate": encoder_rate,
        "episodes": len(episodes), "data_sha256": clips.data_hash(source, limit), "init": base,
        "recipe": dataclasses.asdict(recipe), "thoughts": said.made_by if said else "",
        "see_steps": see_steps if points else 0,
    }  # fmt: skip
    chosen = settled_dtype(dtype, where, whole.world.width, run / "dtype")
    if points and see_steps:
        of_points = {name: describe[name] for name in ("seed", "data_sha256")} | {"steps": see_steps}
        teach(
            tracks, net, run / "points", steps=see_steps, seed=seed, dtype=getattr(torch, chosen),
            describe={**of_points, "config": whole.as_dict(), "dtype": chosen},
        )  # fmt: skip
    if not encoder_rate:
        for part in (net.encoder, net.points or net.encoder):
            part.requires_grad_(False)
    done, reading = train(
        tracks, learner, run, steps=steps, batch_size=batch_size, lr=lr, seed=seed,
        describe={**describe, "config": whole.as_dict(), "dtype": chosen}, dtype=getattr(torch, chosen),
        encoder_rate=encoder_rate, thoughts=said,
    )  # fmt: skip
    measure_scale(tracks, learner, batch_size, done)
    training = {
        **describe,
        **made_by("thinkjepa train world", threads, done),
        "dtype": chosen,
        **({"gauge": dataclasses.asdict(reading)} if reading else {}),
    }
    domain = ", ".join(sorted({e.domain for e in episodes}))
    if done.group.first:
        imagination.save(out, net.cpu(), MODEL_ID, trained=True, domain=domain, training=training, licence=LICENCE)
    done.group.wait()
    return reading


def _encoder_of(folder: Path) -> tuple[Encoder, str]:
    """The encoder of a checkpoint folder, and what it is called. Raises CheckpointError."""
    path = folder / MANIFEST
    ours = path.is_file() and f'"kind": "{imagination.KIND}"' in path.read_text(errors="replace")
    net, manifest = imagination.load_imagination(folder) if ours else model.load(folder)
    return net.encoder, manifest.name
