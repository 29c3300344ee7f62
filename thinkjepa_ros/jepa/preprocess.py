"""Camera images as the released encoders were trained on them. Normalisation is not here: the encoder has it folded in.

A model of our own sees the canonical view of `stream.geometry` instead, which keeps the scale of the world.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: An image with a shorter side has less than one patch of the encoder to say.
_LEAST_SIDE = 16
#: A longer image would be enlarged beyond reason, and little of it would be left after the crop.
_MOST_ASPECT = 8
#: Width over height that V-JEPA 2-AC was trained with; wider or narrower images are cropped to it.
_AC_ASPECT = (0.75, 1.35)


def vjepa2(frames: np.ndarray | Tensor, crop: int = 256) -> Tensor:
    """V-JEPA 2, evaluation: the short side to crop * 256 / 224, bilinear, then the centre.

    frames: uint8 RGB [T, H, W, 3]. Returns uint8 [T, crop, crop, 3]: what `VJEPA2VideoProcessor` of transformers has
    before it normalises. Raises ValueError on anything but frames of a usable size.
    """
    video = _checked(frames, crop)
    _, _, height, width = video.shape
    short = int(crop * 256 / 224)
    if height < width:
        size = (short, int(short * width / height))
    else:
        size = (int(short * height / width), short)
    if size != (height, width):
        video = _resized(video, size)
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    return video[:, :, top : top + crop, left : left + crop].permute(0, 2, 3, 1).contiguous()


def vjepa2_ac(frames: np.ndarray | Tensor, crop: int = 256) -> Tensor:
    """V-JEPA 2-AC: the centre of at most 1.35:1 (3:4 where it is upright), squashed to a square, bilinear without
    antialiasing. A 16:9 image loses its sides, a 4:3 image nothing.

    frames: uint8 RGB [T, H, W, 3]. Returns float32 [T, crop, crop, 3] in 8-bit units. Equal to the training code, whose
    random crop falls back to this one always. Raises ValueError as `vjepa2`.
    """
    video = _checked(frames, crop)
    _, _, height, width = video.shape
    least, most = _AC_ASPECT
    if width / height < least:
        rows, columns = round(width / least), width
    elif width / height > most:
        rows, columns = height, round(height * most)
    else:
        rows, columns = height, width
    top, left = (height - rows) // 2, (width - columns) // 2
    video = video[:, :, top : top + rows, left : left + columns].float()
    return F.interpolate(video, (crop, crop), mode="bilinear", align_corners=False).permute(0, 2, 3, 1).contiguous()


#: By name, for a configuration or a command.
VARIANTS: dict[str, Callable[[np.ndarray | Tensor, int], Tensor]] = {"vjepa2": vjepa2, "vjepa2_ac": vjepa2_ac}


def _checked(frames: np.ndarray | Tensor, crop: int) -> Tensor:
    """Frames as a tensor [T, 3, H, W]."""
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8, they are {getattr(frames, 'dtype', type(frames).__name__)}")
    if frames.dim() != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames are {list(frames.shape)}, must be [T, H, W, 3], rows before columns before colours")
    _, height, width, _ = frames.shape
    if min(height, width) < _LEAST_SIDE or max(height, width) > _MOST_ASPECT * min(height, width):
        raise ValueError(
            f"frames of {height}x{width} (height x width) are no camera images: each side must have {_LEAST_SIDE} "
            f"pixels, and the longer one at most {_MOST_ASPECT} times the shorter one"
        )
    if isinstance(crop, bool) or not isinstance(crop, int) or not _LEAST_SIDE <= crop <= 4096:
        raise ValueError(f"crop is {crop!r}, must be a whole number of {_LEAST_SIDE} ... 4096 pixels")
    return frames.permute(0, 3, 1, 2)


def _resized(video: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [T, 3, H, W] to another size, bilinear with antialiasing, as torchvision does it on this device.

    Where the processor can, it is done on bytes with weights in fixed point; elsewhere in float32, then rounded. They
    differ by at most one step in a few pixels.
    """
    vector = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if video.is_cpu and (vector or platform.machine() in ("aarch64", "arm64")):
        return F.interpolate(video, size, mode="bilinear", align_corners=False, antialias=True)
    resized = F.interpolate(video.float(), size, mode="bilinear", align_corners=False, antialias=True)
    return resized.round_().to(torch.uint8)
