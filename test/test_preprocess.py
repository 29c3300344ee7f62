"""Preprocessing of the released encoders: the pixels of transformers' processor and of V-JEPA 2-AC's training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thinkjepa_ros.jepa import preprocess
from thinkjepa_ros.jepa.encoder import MEAN, STD

SIZES = [(180, 320), (320, 180), (480, 640), (256, 256), (292, 292), (300, 292), (97, 131), (17, 120), (720, 1280)]


def frames(height: int, width: int, count: int = 2) -> np.ndarray:
    """Noise on a slope: every pixel matters and no two places look alike."""
    rng = np.random.default_rng(height * 10_000 + width)
    slope = np.linspace(0, 120, height)[:, None, None] + np.linspace(0, 80, width)[None, :, None]
    return (slope + rng.integers(0, 56, (count, height, width, 3))).astype(np.uint8)


def processor(video: np.ndarray, crop: int) -> Tensor:
    """What VJEPA2VideoProcessor computes, step by step with the torch calls that it ends in: [T, 3, crop, crop]."""
    x = torch.from_numpy(video).permute(0, 3, 1, 2).contiguous()
    edge = int(crop * 256 / 224)
    height, width = x.shape[-2:]
    short, long = min(height, width), max(height, width)
    other = int(edge * long / short)
    size = (edge, other) if width > height else (other, edge)
    if size != (height, width):
        x = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    top, left = int((size[0] - crop) / 2.0), int((size[1] - crop) / 2.0)
    x = x[..., top : top + crop, left : left + crop].float()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None] * (1.0 / (1 / 255))
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None] * (1.0 / (1 / 255))
    return (x - mean) / std


def normalised(video: Tensor) -> Tensor:
    return ((video.float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop", [256, 384, 64])
def test_vjepa2_equals_the_steps_of_the_processor(size: tuple[int, int], crop: int) -> None:
    video = frames(*size, count=1)
    got = preprocess.vjepa2(video, crop)
    assert got.shape == (1, crop, crop, 3) and got.dtype == torch.uint8 and got.is_contiguous()
    torch.testing.assert_close(normalised(got), processor(video, crop), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop", [256, 384])
def test_vjepa2_equals_the_processor_itself(size: tuple[int, int], crop: int) -> None:
    pytest.importorskip("torchvision", reason="VJEPA2VideoProcessor needs torchvision, which is not installed")
    from transformers import VJEPA2VideoProcessor

    video = frames(*size)
    wanted = VJEPA2VideoProcessor(crop_size=crop)(list(video), return_tensors="pt")["pixel_values_videos"][0]
    torch.testing.assert_close(normalised(preprocess.vjepa2(video, crop)), wanted, atol=1e-5, rtol=0)


def test_float_and_byte_resizing_differ_by_a_step_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    video = frames(480, 640)
    bytes_ = preprocess.vjepa2(video)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(preprocess.platform, "machine", lambda: "riscv64")
    difference = (preprocess.vjepa2(video).int() - bytes_.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.2


@pytest.mark.parametrize(
    ("size", "used"),
    [
        ((180, 320), (0, 38, 180, 243)),
        ((720, 1280), (0, 154, 720, 972)),
        ((480, 640), (0, 0, 480, 640)),
        ((256, 256), (0, 0, 256, 256)),
        ((640, 360), (80, 0, 480, 360)),
    ],
    ids=str,
)
def test_ac_crops_the_centre_and_squashes_it(size: tuple[int, int], used: tuple[int, int, int, int]) -> None:
    video = frames(*size)
    got = preprocess.vjepa2_ac(video)
    assert got.shape == (2, 256, 256, 3) and got.dtype == torch.float32
    top, left, rows, columns = used
    part = torch.from_numpy(video[:, top : top + rows, left : left + columns]).permute(3, 0, 1, 2).float()
    wanted = torch.nn.functional.interpolate(part, (256, 256), mode="bilinear", align_corners=False)
    assert torch.equal(got, wanted.permute(1, 2, 3, 0))
    outside = video.copy()
    outside[:, top : top + rows, left : left + columns] = 0
    assert not preprocess.vjepa2_ac(outside).any()


def test_an_image_of_the_right_size_passes_ac_untouched() -> None:
    video = frames(256, 256)
    assert torch.equal(preprocess.vjepa2_ac(video), torch.from_numpy(video).float())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(sorted(preprocess.VARIANTS)))
def test_every_size_gives_a_square_or_a_sentence(height: int, width: int, name: str) -> None:
    video = np.full((1, height, width, 3), (10, 20, 30), np.uint8)
    if min(height, width) < 16 or max(height, width) > 8 * min(height, width):
        with pytest.raises(ValueError, match="no camera images"):
            preprocess.VARIANTS[name](video, 64)
    else:
        out = preprocess.VARIANTS[name](video, 64)
        assert out.shape == (1, 64, 64, 3)
        torch.testing.assert_close(out.float(), torch.tensor([10.0, 20, 30]).expand_as(out), atol=1e-4, rtol=0)


def test_views_of_an_array_are_read_as_they_look() -> None:
    video = frames(64, 96)
    turned = video[:, ::-1, ::-1, ::-1]
    for variant in preprocess.VARIANTS.values():
        assert torch.equal(variant(turned, 32), variant(turned.copy(), 32))
        assert torch.equal(variant(torch.from_numpy(video), 32), variant(video, 32))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), "must be uint8, they are float32"),
        (torch.zeros(2, 64, 64, 3), "must be uint8"),
        ([[1]], "must be uint8, they are list"),
        (np.zeros((2, 3, 64, 64), np.uint8), r"must be \[T, H, W, 3\]"),
        (np.zeros((64, 64, 3), np.uint8), r"must be \[T, H, W, 3\]"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"must be \[T, H, W, 3\]"),
        (np.zeros((1, 64, 64, 4), np.uint8), r"must be \[T, H, W, 3\]"),
        (np.zeros((1, 0, 64, 3), np.uint8), "no camera images"),
    ],
)
def test_what_is_no_video_is_refused(bad: object, words: str) -> None:
    for variant in preprocess.VARIANTS.values():
        with pytest.raises(ValueError, match=words):
            variant(bad, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", [0, -1, 15, 5000, 64.0, True, "64"])
def test_a_crop_that_makes_no_sense_is_refused(crop: object) -> None:
    for variant in preprocess.VARIANTS.values():
        with pytest.raises(ValueError, match="crop is"):
            variant(frames(64, 64), crop)  # type: ignore[arg-type]
