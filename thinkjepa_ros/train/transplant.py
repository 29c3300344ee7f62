"""A trained network taken over for other joints, another camera, with or without a guide.

What does not speak of joints keeps its weights: encoder, predictor, and the bodies of the readouts. The rows and
columns of a joint go with its name; joints that the network does not know get new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from ..jepa.attentive import AttentiveMotion, AttentivePose
from ..jepa.guidance import layer_of_each_block
from ..jepa.model import ForecastNet, ModelConfig
from ..jepa.readout import MotionReadout, PoseReadout
from ..values import Camera

#: Weights that speak of joints: the axis, and what it divides into; -1 stands for the joints.
Axes = dict[str, tuple[int, tuple[int, ...]]]


def configuration(
    known: ModelConfig, joints: Sequence[str], camera: Camera, guide: tuple[int, int] | None
) -> ModelConfig:
    """`known` for other joints and another canonical camera. guide: layers and width of a thinker; None: no guidance.

    Its sigma is no longer calibrated. Raises ValueError where layers of the thinker do not fit.
    """
    layers, width = guide or (0, 0)
    mapping = known.predictor.guide_map
    if guide and isinstance(mapping, tuple):  # made by hand for another thinker
        try:
            layer_of_each_block(mapping, known.predictor.depth, layers)
        except ValueError:
            mapping = "spread"
    predictor = dataclasses.replace(known.predictor, guide_layers=layers, guide_width=width, guide_map=mapping)
    return dataclasses.replace(
        known,
        predictor=predictor,
        joint_names=tuple(joints),
        camera=camera,
        guided_readout=guide is not None,
        sigma_scale=None,
    )


def taken_over(known: ForecastNet, config: ModelConfig, seed: int, guide: bool = False) -> ForecastNet:
    """A network of `config` (see `configuration`) with the weights of `known`; what is new is drawn from `seed`.

    guide: whether the guide goes with it, where it has the same shape; it fits no other thinker.
    """
    torch.manual_seed(seed)
    net = ForecastNet(config)
    if config.predictor.guide_layers:  # the readouts are those of a network without a guide
        torch.manual_seed(seed)
        bare = ForecastNet(configuration(config, config.joint_names, config.camera, None))
        net.pose.load_state_dict(bare.pose.state_dict())
        net.motion.load_state_dict(bare.motion.state_dict())
    net.encoder.load_state_dict(known.encoder.state_dict())
    net.predictor.take(known.predictor)
    if guide and net.predictor.guide is not None and known.predictor.guide is not None:
        theirs, mine = known.predictor.guide.state_dict(), net.predictor.guide.state_dict()
        if {name: x.shape for name, x in theirs.items()} == {name: x.shape for name, x in mine.items()}:
            net.predictor.guide.load_state_dict(theirs)
    same = [(config.joint_names.index(n), k) for k, n in enumerate(known.config.joint_names) if n in config.joint_names]
    _take(net.pose, known.pose, _pose_axes(net.pose), same)
    _take(net.motion, known.motion, _motion_axes(net.motion, config), same)
    if net.guided_motion is not None and known.guided_motion is not None:
        _take(net.guided_motion, known.guided_motion, _motion_axes(net.guided_motion, config), same)
    return net


def _pose_axes(readout: PoseReadout | AttentivePose) -> Axes:
    if isinstance(readout, AttentivePose):
        return {"pool.query": (0, (-1,))}
    each = readout.correct1.in_features // readout.joints
    axes: Axes = {f"place.{kind}": (0, (-1, 4)) for kind in ("weight", "bias")}
    axes |= {f"correct2.{kind}": (0, (-1, 3)) for kind in ("weight", "bias")}
    return {**axes, "correct1.weight": (1, (-1, each))}


def _motion_axes(readout: MotionReadout | AttentiveMotion, config: ModelConfig) -> Axes:
    axes: Axes = {f"out.{kind}": (0, (readout.steps, -1, 4)) for kind in ("weight", "bias")}
    axes["pose.weight"] = (1, (config.predictor.latents, -1, 3))
    if isinstance(readout, AttentiveMotion):
        each = readout.gather.in_features // readout.joints
        return {**axes, "pool.query": (0, (-1,)), "gather.weight": (1, (-1, each))}
    share = (0, (readout.steps, -1, readout.pointers.count))
    return {**axes, "share.weight": share, "share.bias": share}


def _take(module: nn.Module, known: nn.Module, axes: Axes, same: list[tuple[int, int]]) -> None:
    """Copy the weights of `known` in place. same: pairs (joint here, joint there) of one name."""
    here, there = (torch.tensor([pair[k] for pair in same], dtype=torch.long) for k in (0, 1))
    state = module.state_dict()
    for name, tensor in known.state_dict().items():
        if name not in axes:
            state[name] = tensor
            continue
        axis, parts = axes[name]
        at = axis + parts.index(-1)
        own, theirs = state[name].unflatten(axis, parts).clone(), tensor.unflatten(axis, parts)
        own.index_copy_(at, here, theirs.index_select(at, there))
        state[name] = own.flatten(axis, axis + len(parts) - 1)
    module.load_state_dict(state)
