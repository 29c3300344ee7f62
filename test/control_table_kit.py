"""Tiny checkpoints for tests of the control table: random weights, and they say so."""

from __future__ import annotations

from pathlib import Path

import torch

from thinkjepa_ros.control import imagination, policy
from thinkjepa_ros.control.imagination import Imagination, ImaginationConfig, canonical_camera
from thinkjepa_ros.control.policy import Policy, PolicyConfig
from thinkjepa_ros.data.sim.scene import camera_of
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.world_model import WorldModelConfig

CAMERA = canonical_camera(camera_of(128, 128), 32)
ENCODER = EncoderConfig(image_size=32, width=32, depth=1, heads=2)


def world(folder: Path, seed: int = 0, trained: bool = False) -> Path:
    """`folder` with an imagination."""
    torch.manual_seed(seed)
    model = WorldModelConfig(
        latent_width=16, grid=2, pooled=2, context=2, context_steps=1, horizon=4, action_steps=1, width=32, depth=1,
        heads=2, action_dim=4, state_dim=4, sight="actions",
    )  # fmt: skip
    net = Imagination(ImaginationConfig(ENCODER, model, CAMERA))
    imagination.save(folder, net, "tiny", trained=trained, domain="nowhere")
    return folder


def proposer(folder: Path, seed: int = 0) -> Path:
    """`folder` with a policy."""
    torch.manual_seed(seed)
    config = PolicyConfig(
        ENCODER, CAMERA, horizon=4, pooled=2, width=32, heads=2, reader_depth=1, depth=1, queries=2, detail=8,
        action_std=(0.01, 0.01, 0.01, 0.1),
    )  # fmt: skip
    net = Policy(config)
    torch.nn.init.normal_(net.out.weight)  # it begins at 0, and then nothing that is told counts
    policy.save(folder, net, "tiny policy", trained=False, domain="nowhere")
    return folder
