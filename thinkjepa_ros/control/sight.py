"""The frames that the controller has seen: latents for the world model, pictures for the policy, kept by stamp."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..stream.geometry import CanonicalView
from ..values import Camera, Frame
from .imagination import Imagination
from .policy import Policy

_REMEMBERED = 64  # frames
_VIEWS = 8  # calibrations: a stream of ever-changing ones must not fill the memory


class _Seen(NamedTuple):
    """A frame: its latent [n, Z] for the world model, its picture [S, S, 3] for the policy; None where not needed."""

    latent: Tensor | None
    picture: Tensor | None


class Sight:
    """Every frame is encoded once, alone. net or policy may be None: then nothing is made for it. One thread."""

    def __init__(self, net: Imagination | None, policy: Policy | None, device: torch.device) -> None:
        self._net, self._policy, self._device = net, policy, device
        self._frames: OrderedDict[int, _Seen] = OrderedDict()
        self._views: OrderedDict[tuple[bool, Camera | None], CanonicalView] = OrderedDict()

    def forget(self) -> None:
        self._frames.clear()
        self._views.clear()

    def observe(self, frame: Frame, camera: Camera | None) -> None:
        """Take in a frame. Raises ValueError on an image that is none, or has another size than its camera."""
        picture = self._picture(True, frame.rgb, camera) if self._policy is not None else None
        latent = self.see(frame.rgb, camera)[0] if self._net is not None else None
        self._frames[frame.stamp_ns] = _Seen(latent, picture)
        self._frames.move_to_end(frame.stamp_ns)
        while len(self._frames) > _REMEMBERED:
            self._frames.popitem(last=False)

    def knows(self, stamp_ns: int) -> bool:
        """Whether this frame was observed and is not forgotten."""
        return stamp_ns in self._frames

    def see(self, rgb: np.ndarray, camera: Camera | None) -> Tensor:
        """Latents [1, n, Z] of an image uint8 [H, W, 3]. Raises ValueError."""
        assert self._net is not None
        with torch.inference_mode():
            return self._net.see(self._picture(False, rgb, camera)[None])

    def latents(self, stamps: Sequence[int]) -> Tensor:
        """[1, F, n, Z] of frames that are known."""
        found = (self._frames[stamp].latent for stamp in stamps)
        return torch.stack([latent for latent in found if latent is not None])[None]

    def pictures(self, stamps: Sequence[int]) -> Tensor:
        """uint8 [1, F, S, S, 3] of frames that are known, as the policy's canonical camera sees them."""
        found = (self._frames[stamp].picture for stamp in stamps)
        return torch.stack([picture for picture in found if picture is not None])[None]

    def _picture(self, for_policy: bool, rgb: np.ndarray, camera: Camera | None) -> Tensor:
        """As the canonical camera of policy or imagination sees it, uint8 [S, S, 3]."""
        view = self._views.get((for_policy, camera))
        if view is None:
            net = self._policy if for_policy else self._net
            assert net is not None
            view = self._views[for_policy, camera] = net.view(camera)
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        return torch.from_numpy(np.ascontiguousarray(view.apply(rgb))).to(self._device)
