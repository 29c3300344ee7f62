"""Stage `policy`: from demonstrations to chunks of actions, `thinkjepa train policy`.

What is minimised is in `policy_objective`, what it is minimised on in `policy_data`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..control import imagination, policy, space
from ..control.policy import Policy, PolicyConfig
from ..jepa import model
from ..jepa.encoder import EncoderConfig
from ..version import __version__
from . import clips, defaults
from .mini import LICENCE, folder_of, settled_dtype
from .policy_data import Demonstration, Mixture
from .policy_objective import PolicyLearner, Recipe, times
from .record import made_by
from .run import Run
from .run import threads as use_threads
from .world import _encoder_of as encoder_of
from .world_guidance import Thoughts

MODEL_ID = f"thinkjepa-policy-{__version__}"


def train(
    mixture: Mixture,
    learner: PolicyLearner,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict[str, Any],
    encoder_rate: float = 0.0,
    dtype: torch.dtype = torch.float32,
    quiet: bool = False,
) -> Run:
    """Train `learner` in place. Resumes from `folder`. encoder_rate: learning rate of the encoder as a share of the
    others'; 0 leaves it as it is. Raises run.Stopped, ValueError.
    """
    c, recipe = learner.policy.config, learner.recipe
    device = next(learner.parameters()).device
    if not encoder_rate:
        learner.policy.encoder.requires_grad_(False)
    slower = {"policy.encoder.": encoder_rate} if encoder_rate not in (0, 1) else {}
    run = Run(
        folder, learner, steps, lr, seed, describe, warm_up=max(1, min(100, steps // 10)), quiet=quiet, slower=slower
    )
    learner.train()
    for step in run.steps("policy"):
        rng = run.random(step)
        batch = mixture.draw(batch_size, c.frames, c.horizon, recipe.future if recipe.world else 0, rng).to(device)
        noise = torch.from_numpy(rng.standard_normal((batch_size, recipe.draws, c.horizon, space.DIM)).astype("f4"))
        time = times(torch.from_numpy(rng.random((batch_size, recipe.draws)).astype("f4")))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, notes = learner(batch, noise.to(device), time.to(device))
        norm = run.update(loss / run.group.world)  # every process computes the whole batch
        run.note(loss=loss.item(), **notes, grad=norm)
    learner.eval()
    return run


def train_policy(
    data: Path,
    out: Path,
    *,
    run: Path,
    init: Path | None = None,
    world: Path | None = None,
    start: Path | None = None,
    recipe: Recipe | None = None,
    horizon: int = defaults.WORLD_HORIZON,
    frames: int = 1,
    width: int = defaults.POLICY_WIDTH,
    detail: int = defaults.POLICY_DETAIL,
    image_size: int = defaults.WORLD_IMAGE,
    encoder_depth: int = defaults.WORLD_ENCODER_DEPTH,
    steps: int = defaults.POLICY_STEPS,
    batch_size: int = defaults.POLICY_BATCH,
    lr: float = defaults.POLICY_LR,
    encoder_rate: float = 0.0,
    thoughts: Path | None = None,
    more: Sequence[Path] = (),
    dtype: str = "auto",
    action_s: float = 0.2,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train a policy on the episodes in `data` (or its folder train/) and in `more`, and write it to `out`.

    world: folder of an imagination: the policy starts from its encoder, and its latents are what latent actions must
    foretell (unless recipe.world is 0). init: another checkpoint whose encoder to start from. start: a policy to go on
    from, with all its weights. thoughts: folder of cached thoughts (`train cache`). Work in progress lives in `run`;
    the same command goes on where it was. Raises run.Stopped, EpisodeError, CheckpointError, CacheError, ValueError.
    """
    where = model.torch_device(device)
    use_threads(threads)
    recipe = recipe or Recipe(world=Recipe().world if world else 0.0)
    source = folder_of(data)
    episodes = [*clips.load_folder(source, limit), *(e for folder in more for e in clips.load_folder(folder))]
    said = Thoughts.load(thoughts, episodes) if thoughts else None
    known = imagination.load_imagination(world)[0] if world else None
    torch.manual_seed(seed)
    base = ""
    if start is not None:
        net, manifest = policy.load_policy(start)
        net = guidable(net, said) if said else net
        net.requires_grad_(True)
        base = manifest.name
        mixture = _mixture(episodes, net.config, said)
    else:
        encoder, base = encoder_of(init or world) if init or world else (None, "")  # type: ignore[arg-type]
        shape = encoder.config if encoder else EncoderConfig(image_size=image_size, depth=encoder_depth)
        camera = imagination.canonical_camera(episodes[0].camera, max(image_size, shape.image_size))
        layers, size = said.shape if said else (0, 0)
        config = PolicyConfig(
            shape, camera, action_s, horizon=horizon, frames=frames, width=width, detail=detail, guide_layers=layers,
            guide_width=size,
        )  # fmt: skip
        mixture = _mixture(episodes, config, said)
        net = Policy(dataclasses.replace(config, **dataclasses.asdict(mixture.spread())))
        if encoder is not None:
            net.encoder.load_state_dict(encoder.state_dict())
    learner = PolicyLearner(net, recipe, known).to(where)
    describe = {
        "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "encoder_rate": encoder_rate,
        "episodes": len(episodes), "demonstrations": sum(d.weight > 0 for d in mixture.demonstrations),
        "data_sha256": " ".join([clips.data_hash(source, limit), *(clips.data_hash(folder, None) for folder in more)]),
        "init": base, "recipe": dataclasses.asdict(recipe),
        "thoughts": said.made_by if said else "",
    }  # fmt: skip
    chosen = settled_dtype(dtype, where, net.config.width, run / "dtype")
    done = train(
        mixture, learner, run, steps=steps, batch_size=batch_size, lr=lr, seed=seed,
        describe={**describe, "config": net.config.as_dict(), "dtype": chosen}, encoder_rate=encoder_rate,
        dtype=getattr(torch, chosen),
    )  # fmt: skip
    training = {
        **describe,
        **made_by("thinkjepa train policy", threads, done),
        "dtype": chosen,
    }
    domain = ", ".join(sorted({e.domain for e in episodes}))
    if done.group.first:
        policy.save(out, net.cpu(), MODEL_ID, trained=True, domain=domain, training=training, licence=LICENCE)
    done.group.wait()


def guidable(net: Policy, said: Thoughts) -> Policy:
    """The same policy, unguided bit for bit, that can learn to be guided by such thoughts. Raises ValueError."""
    layers, size = said.shape
    if net.film is not None:
        if (net.config.guide_layers, net.config.guide_width) != (layers, size):
            raise ValueError(f"this policy is guided by other thoughts than {layers} layers of width {size}")
        return net
    wider = Policy(dataclasses.replace(net.config, guide_layers=layers, guide_width=size))
    wider.load_state_dict({**wider.state_dict(), **net.state_dict()})
    return wider


def _mixture(episodes: list[Any], config: PolicyConfig, said: Thoughts | None) -> Mixture:
    return Mixture([Demonstration.of(e, config.camera, config.action_s) for e in episodes], thoughts=said)
