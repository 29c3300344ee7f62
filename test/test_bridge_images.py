"""bridge.images, raw messages: every encoding against naive per-pixel code, and words for every wrong header."""

import time
from array import array

import numpy as np
import pytest
from image_kit import BAYER, PLAIN, YUV, compressed, filled, random_message, raw
from sensor_msgs.msg import Image

from thinkjepa_ros.bridge.codecs import MAX_BYTES
from thinkjepa_ros.bridge.images import ENCODINGS, ImageError, check_header, to_rgb

ORDER = {"mono": (0, 0, 0), "rgb": (0, 1, 2), "bgr": (2, 1, 0), "rgba": (0, 1, 2), "bgra": (2, 1, 0)}
ORDER |= {"8UC1": (0, 0, 0), "8UC3": (2, 1, 0), "8UC4": (2, 1, 0)}


def eight_bits(value, size):
    return value if size == 1 else (value * 255 + 32767) // 65535


def naive_plain(encoding, pixels):
    order = ORDER.get(encoding) or ORDER[encoding.rstrip("0123456789")]
    height, width = pixels.shape[:2]
    out = np.zeros((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                out[y, x, c] = eight_bits(int(pixels[y, x, order[c]]), ENCODINGS[encoding].size)
    return out


def naive_yuv(encoding, pixels):
    """BT.601, limited range."""
    bright = 1 if encoding in ("yuv422", "uyvy") else 0
    height, width = pixels.shape[:2]
    out = np.zeros((height, width, 3), np.float64)
    for y in range(height):
        for x in range(width):
            left = x // 2 * 2
            light = 1.164 * max(int(pixels[y, x, bright]) - 16, 0)
            u, v = int(pixels[y, left, 1 - bright]) - 128, int(pixels[y, left + 1, 1 - bright]) - 128
            out[y, x] = light + 1.596 * v, light - 0.813 * v - 0.391 * u, light + 2.018 * u
    return np.clip(out, 0, 255)


def naive_bayer(encoding, pixels):
    """Mean of the neighbours of each colour; the outermost pixels are left out (NaN)."""
    pattern = encoding[6:10]
    height, width = pixels.shape[:2]
    out = np.full((height, width, 3), np.nan)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            own = pattern[y % 2 * 2 + x % 2]
            for c, colour in enumerate("rgb"):
                if colour == own:
                    out[y, x, c] = pixels[y, x, 0]
                    continue
                near = [
                    int(pixels[j, i, 0])
                    for j in (y - 1, y, y + 1)
                    for i in (x - 1, x, x + 1)
                    if pattern[j % 2 * 2 + i % 2] == colour
                ]
                out[y, x, c] = sum(near) / len(near)
    return out


@pytest.mark.parametrize("padding", [0, 1, 6])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", PLAIN)
def test_plain_encodings_are_exact(encoding, padding, big):
    message, pixels = random_message(encoding, padding=padding, big=big)
    check_header(message)
    out = to_rgb(message)
    assert out.dtype == np.uint8 and out.flags.c_contiguous
    assert (out == naive_plain(encoding, pixels)).all()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", YUV)
def test_yuv_is_bt601(encoding, padding):
    message, pixels = random_message(encoding, padding=padding)
    assert np.abs(to_rgb(message) - naive_yuv(encoding, pixels)).max() <= 2


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", BAYER)
@pytest.mark.parametrize("size", [(20, 14), (21, 15)])
def test_bayer_is_the_mean_of_the_neighbours(encoding, padding, big, size):
    message, pixels = random_message(encoding, *size, padding=padding, big=big)
    out, expected = to_rgb(message), naive_bayer(encoding, pixels)
    expected /= 1 if ENCODINGS[encoding].size == 1 else 257
    assert out.shape == (size[1], size[0], 3)
    assert np.nanmax(np.abs(out - expected)) <= 1


def test_every_value_of_16_bits_is_scaled_and_rounded():
    values = np.arange(65536, dtype="<u2").reshape(256, 256)
    out = to_rgb(raw("mono16", 256, 256, values.tobytes()))
    assert (out[..., 0] == np.rint(values / 65535 * 255)).all()


def test_rgb8_is_a_read_only_view_of_the_message():
    message, pixels = random_message("rgb8")
    out = to_rgb(message)
    assert np.shares_memory(out, np.frombuffer(message.data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        out[0, 0, 0] = 1
    assert (out == pixels).all()


def test_the_padding_of_the_last_row_may_be_missing_and_more_may_follow():
    message, pixels = random_message("bgr8", padding=7)
    message.data = filled(bytes(message.data)[:-7])
    assert (to_rgb(message) == pixels[..., ::-1]).all()
    message.data = filled(bytes(message.data) + bytes(500))
    assert (to_rgb(message) == pixels[..., ::-1]).all()


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: np.frombuffer(data, np.uint8)])
def test_messages_of_a_bag_reader_serve_too(kind):
    class Recorded:
        encoding, width, height, step, is_bigendian = "rgb8", 2, 1, 6, 0
        data = kind(bytes([1, 2, 3, 4, 5, 6]))

    assert to_rgb(Recorded()).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_data_that_is_no_buffer_is_refused():
    class Odd:
        encoding, width, height, step, is_bigendian, data = "rgb8", 1, 1, 3, 0, [1, 2, 3]

    with pytest.raises(ImageError, match="must be bytes, not list"):
        to_rgb(Odd())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"encoding": ""}, "encoding '' is not supported; supported are .*rgb8"),
        ({"encoding": "RGB8"}, "'RGB8' is not supported"),
        ({"encoding": "x" * 10**6}, r"'x{37}\.\.\.' is not supported"),
        ({"encoding": "16UC1"}, "16UC1 is a depth image; remap the image topic to a colour one"),
        ({"encoding": "32FC1"}, "32FC1 is a depth image"),
        ({"width": 0}, "claims 0x14"),
        ({"height": 0}, "claims 20x0"),
        ({"width": 100_000, "height": 1}, "claims 100000x1 pixels"),
        ({"width": 4294967295, "height": 4294967295, "step": 4294967295}, "claims 4294967295x4294967295"),
        ({"width": 8192, "height": 8192, "step": 8192 * 3}, "more than 64 MiB"),
        ({"step": 59}, "step is 59 but a row of 20 rgb8 pixels has 60 bytes"),
        ({"step": 0}, "step is 0"),
        ({"step": 4294967295}, "needs 55834574895 bytes, not 840"),
        ({"height": 15}, "20x15 rgb8 with step 60 needs 900 bytes, not 840"),
        ({"data": array("B")}, "needs 840 bytes, not 0"),
        ({"encoding": "yuv422", "width": 19}, "a width of 19 is impossible"),
        ({"encoding": "yuyv", "width": 19}, "a width of 19 is impossible"),
        ({"encoding": "rgb16"}, "step is 60 but a row of 20 rgb16 pixels has 120 bytes"),
    ],
)
def test_headers_that_cannot_be_true_are_refused_with_words(changes, words):
    message, _ = random_message("rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    for function in (check_header, to_rgb):
        with pytest.raises(ImageError, match=words):
            function(message)


def test_a_message_of_more_than_64_mib_is_refused():
    message = Image(encoding="mono8", width=8, height=8, step=8)
    message.data = filled(bytes(MAX_BYTES + 1))
    with pytest.raises(ImageError, match="67108865 bytes"):
        check_header(message)
    with pytest.raises(ImageError, match="67108865 bytes"):
        check_header(compressed(message.data))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 9), (9, 2)])
def test_bayer_too_small_for_its_colours_is_refused(size):
    with pytest.raises(ImageError, match="at least 3x3"):
        to_rgb(random_message("bayer_rggb8", *size)[0])


@pytest.mark.parametrize(
    "encoding, most_ms", [("rgb8", 0.5), ("bgr8", 1.5), ("yuv422", 2.5), ("bayer_rggb8", 4), ("rgb16", 4)]
)
def test_conversion_of_vga_is_cheap(encoding, most_ms):
    """Bounds are several times what one quiet core needs (0.01, 0.03, 0.1, 0.2 and 0.2 ms)."""
    message, _ = random_message(encoding, 640, 480)
    best = 1.0
    for _ in range(30):
        began = time.perf_counter()
        to_rgb(message)
        best = min(best, time.perf_counter() - began)
    assert best * 1e3 < most_ms


def bridge():
    module = pytest.importorskip("cv_bridge", reason="cv_bridge is not installed")
    try:
        module.CvBridge().imgmsg_to_cv2(random_message("bgr8")[0], "rgb8")
    except Exception as error:
        pytest.skip(f"cv_bridge does not work with this numpy and OpenCV: {error}")
    return module.CvBridge()


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name[0] != "8" and name not in ("uyvy", "yuyv")])
def test_cv_bridge_gives_the_same(encoding):
    message, _ = random_message(encoding)
    theirs = bridge().imgmsg_to_cv2(message, "rgb8").astype(int)
    inner = (slice(1, -1), slice(1, -1)) if encoding in BAYER else ()
    assert np.abs(theirs[inner] - to_rgb(message)[inner]).max() <= 1
