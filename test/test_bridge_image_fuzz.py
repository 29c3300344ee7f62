"""No image message, however wrong, does more than an ImageError: random headers, nearly right ones, damaged files."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from image_kit import BAYER, SMOOTH, YUV, compressed, filled, jpeg, png, random_message, resident_bytes
from sensor_msgs.msg import Image

from thinkjepa_ros.bridge.images import ENCODINGS, ImageError, check_header, to_rgb

NAMES = [*ENCODINGS, "16UC1", "32FC1", "64FC4", "nv21", "", "rgb8 ", "Größe"]
WHOLE = [jpeg(SMOOTH), png(SMOOTH[:8, :8]), jpeg(SMOOTH[..., 0])]
FORMATS = [
    "",
    "jpeg",
    "rgb8; jpeg compressed rgb8",
    "bayer_gbrg8; png compressed ",
    "16UC1; compressedDepth png",
    ";;;",
]


def outcome(message):
    """True for an image, False for a refusal with a sentence; anything else fails the test."""
    try:
        check_header(message)
        out = to_rgb(message)
    except ImageError as error:
        assert 10 < len(str(error)) < 700
        return False
    assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3 and out.flags.c_contiguous
    assert 0 < out.shape[0] <= 8192 and 0 < out.shape[1] <= 8192
    return True


def test_ten_thousand_random_headers():
    rng, images = np.random.default_rng(11), 0
    wild = [0, 1, 2, 3, 7, 8, 8192, 8193, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
    for _ in range(10_000):
        width, height, step = (
            int(rng.choice(wild)) if rng.random() < 0.2 else int(rng.integers(0, limit)) for limit in (12, 12, 60)
        )
        message = Image(encoding=NAMES[rng.integers(len(NAMES))], is_bigendian=int(rng.integers(0, 256)))
        message.width, message.height, message.step = width, height, step
        message.data = filled(rng.bytes(int(rng.integers(0, 700))))
        images += outcome(message)
    assert 500 < images < 9500, "both outcomes must be common, or this test shows nothing"


def test_five_thousand_damaged_files(capfd):
    rng, images, before = np.random.default_rng(12), 0, resident_bytes()
    for _ in range(5_000):
        data = bytearray(WHOLE[rng.integers(len(WHOLE))])
        for place in rng.integers(0, len(data), rng.integers(0, 5)):
            data[place] = rng.integers(0, 256)
        if rng.random() < 0.2:
            data = data[: rng.integers(0, len(data))]
        if rng.random() < 0.1:
            data[int(rng.integers(0, len(data) + 1)) :] += rng.bytes(40)
        images += outcome(compressed(data, FORMATS[rng.integers(len(FORMATS))]))
    assert 500 < images < 4500
    assert resident_bytes() - before < 50 << 20


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20) | st.sampled_from(NAMES),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)
def test_any_header(encoding, width, height, step, data):
    message = Image(encoding=encoding, width=width, height=height, step=step)
    message.data = filled(data)
    outcome(message)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(ENCODINGS)),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 9),
    st.booleans(),
    st.integers(-3, 3),
)
def test_nearly_right_headers(encoding, width, height, padding, big, off):
    assume(not (encoding in YUV and width % 2))
    message, _ = random_message(encoding, width, height, padding, big)
    assert outcome(message) == (encoding not in BAYER or min(width, height) >= 3)
    message.step = max(message.step + off, 0)
    outcome(message)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), st.text(max_size=20))
def test_any_compressed_bytes(data, start, form):
    try:
        form.encode()
    except UnicodeEncodeError:
        assume(False)
    outcome(compressed(start + data, form.replace("\0", "")))


def test_refusals_leave_no_memory_behind(capfd):
    good, wrong = random_message("rgb8", 640, 480)[0], random_message("bgra16", 640, 480)[0]
    wrong.step += 1
    items = good, wrong, compressed(jpeg(SMOOTH)[:-40])
    assert [outcome(item) for item in items] == [True, False, False]
    before = resident_bytes()
    for _ in range(300):
        for item in items:
            outcome(item)
    assert resident_bytes() - before < 30 << 20


def test_a_good_frame_after_bad_ones_is_an_image():
    bad = random_message("rgb8")[0]
    bad.data = filled(b"")
    with pytest.raises(ImageError):
        to_rgb(bad)
    assert outcome(random_message("rgb8")[0])
