"""bridge.images, compressed messages: JPEG and PNG as image_transport sends them, and as somebody hostile would."""

import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from image_kit import BAYER, SMOOTH, compressed, jpeg, png, random_message, resident_bytes

from thinkjepa_ros.bridge.images import ENCODINGS, ImageError, check_header, to_rgb

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("text", ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"])
@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_colour_jpeg(text, options):
    message = compressed(jpeg(SMOOTH[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 98, *options), text)
    check_header(message)
    assert np.abs(to_rgb(message).astype(int) - SMOOTH).mean() < 4


@pytest.mark.parametrize("codec", [jpeg, png])
def test_grey_becomes_three_equal_channels(codec):
    out = to_rgb(compressed(codec(SMOOTH[..., 0]), "mono8; jpeg compressed "))
    assert out.shape == (48, 64, 3) and (out == out[..., :1]).all()
    assert np.abs(out[..., 0].astype(int) - SMOOTH[..., 0]).mean() < 2


def test_a_publisher_that_compressed_rgb_as_bgr_says_so():
    out = to_rgb(compressed(png(SMOOTH), "rgb8; png compressed rgb8"))
    assert (out == SMOOTH).all()


@pytest.mark.parametrize("text", ["png", "", "rgb8; png compressed bgr8"])
def test_png_is_exact(text):
    assert (to_rgb(compressed(png(SMOOTH[..., ::-1]), text)) == SMOOTH).all()
    alpha = np.dstack([SMOOTH[..., ::-1], np.full((48, 64), 7, np.uint8)])
    assert (to_rgb(compressed(png(alpha), text)) == SMOOTH).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_16_bits_is_scaled_and_rounded(channels):
    deep = np.random.default_rng(6).integers(0, 65536, (48, 64, channels), dtype=np.uint16)
    out = to_rgb(compressed(png(deep), "rgb16; png compressed bgr16"))
    assert (out == np.rint(deep[..., ::-1] / 257)).all()


@pytest.mark.parametrize("encoding", BAYER)
def test_bayer_pixels_compressed_as_grey_get_their_colours(encoding):
    plain, pixels = random_message(encoding)
    dtype = np.uint8 if ENCODINGS[encoding].size == 1 else np.uint16
    message = compressed(png(pixels[..., 0].astype(dtype)), f"{encoding}; png compressed ")
    assert (to_rgb(message) == to_rgb(plain)).all()


def test_a_bayer_camera_that_sends_colour_is_taken_as_it_is():
    assert (to_rgb(compressed(png(SMOOTH[..., ::-1]), "bayer_rggb8; png compressed bgr8")) == SMOOTH).all()


def test_orientation_tags_are_ignored():
    """Exif says "rotate by 90 degrees"; ROS never does, and intrinsics would not hold."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = jpeg(SMOOTH)
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert to_rgb(compressed(turned)).shape == (48, 64, 3)
    assert (to_rgb(compressed(turned)) == to_rgb(compressed(data))).all()


def test_padding_behind_a_jpeg_and_fill_bytes_within_are_fine():
    data = jpeg(SMOOTH)
    assert (to_rgb(compressed(data + bytes(4096))) == to_rgb(compressed(data))).all()
    assert (to_rgb(compressed(data[:2] + b"\xff\xff" + data[2:])) == to_rgb(compressed(data))).all()


@pytest.mark.parametrize("text", ["16UC1; compressedDepth png", "16UC1; png compressed ", "32FC1; compressedDepth rvl"])
def test_compressed_depth_is_refused_with_words(text):
    with pytest.raises(ImageError, match="is a depth image; remap"):
        check_header(compressed(png(SMOOTH), text))


@pytest.mark.parametrize(
    "other", [b"", b"\xff\xd8", b"GIF89a" + bytes(50), b"BM" + bytes(80), bytes(100), b"RIFF____WEBP"]
)
def test_other_formats_are_refused(other):
    with pytest.raises(ImageError, match="neither JPEG nor PNG"):
        check_header(compressed(other))


def test_formats_that_opencv_could_read_never_reach_it():
    for extension in (".bmp", ".tiff", ".webp", ".ppm"):
        with pytest.raises(ImageError, match="neither JPEG nor PNG"):
            to_rgb(compressed(cv2.imencode(extension, SMOOTH)[1].tobytes()))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width, height):
    """A PNG of a few hundred kilobytes that would unfold to width x height zeros."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 26), 9)) + chunk(b"IEND", b"")


def jpeg_claiming(width, height):
    data = bytearray(jpeg(SMOOTH))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data, words",
    [
        (png_bomb(60_000, 60_000), "claims 60000x60000 pixels"),
        (png_bomb(8192, 8192), "more than 64 MiB"),
        (png_bomb(0, 10), "claims 0x10"),
        (jpeg_claiming(65_000, 65_000), "claims 65000x65000 pixels"),
        (jpeg_claiming(8000, 8000), "claims 8000x8000 pixels"),
        (jpeg_claiming(64, 0), "claims 64x0"),
        (jpeg_claiming(4000, 4000), "claims 4000x4000 pixels, which cannot be in its"),
    ],
)
def test_bombs_are_refused_before_they_unfold(data, words):
    before, began = resident_bytes(), time.monotonic()
    for function in (check_header, to_rgb):
        with pytest.raises(ImageError, match=words):
            function(compressed(data))
    assert time.monotonic() - began < 1
    assert resident_bytes() - before < 20 << 20


def test_a_png_chunk_longer_than_the_data_is_refused_before_room_is_made_for_it():
    data = bytearray(png(SMOOTH))
    data[33:37] = b"\x7f\xff\xff\xf0"  # length of the chunk behind IHDR: 2 GiB
    before, began = resident_bytes(), time.monotonic()
    with pytest.raises(ImageError, match="do not reach an end chunk"):
        to_rgb(compressed(data))
    assert time.monotonic() - began < 1 and resident_bytes() - before < 20 << 20


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_a_thousand_tiny_scans_is_refused(progressive):
    """Each costs the decoder a pass over the whole picture: 300 scans of 17 bytes took 5 seconds at 6 megapixels."""
    data = jpeg(np.zeros((1000, 1000, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive))
    last = data.rindex(b"\xff\xda")
    many = data[:last] + 1000 * (b"\xff\xda\x00\x08\x01\x01\x11\x00\x3f\x00" + b"\x7f") + data[last:]
    began = time.monotonic()
    with pytest.raises(ImageError, match=r"has 10\d\d scans; 64 is the most"):
        to_rgb(compressed(many))
    assert time.monotonic() - began < 1


def test_endless_chunks_end_soon():
    header = png(SMOOTH)[:33]
    began = time.monotonic()
    with pytest.raises(ImageError, match="more than 20000 chunks"):
        check_header(compressed(header + chunk(b"tEXt", b"") * 1_000_000))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("codec", [jpeg, png])
def test_data_cut_off_anywhere_is_refused(codec, capfd):
    data = codec(SMOOTH)
    for end in range(0, len(data) - 12, 7):
        with pytest.raises(ImageError):
            to_rgb(compressed(data[:end]))


def test_a_jpeg_whose_picture_is_smaller_than_its_size_is_damaged_or_whole_but_never_an_error(capfd):
    data = bytearray(jpeg(SMOOTH))
    for place in range(2, len(data) - 2, 3):
        broken = bytearray(data)
        broken[place] ^= 0xA5
        try:
            out = to_rgb(compressed(broken))
        except ImageError:
            continue
        assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


def test_endless_segments_and_fill_bytes_end_soon():
    for data in (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5_000_000, b"\xff\xd8" + b"\xff" * 20_000_000):
        began = time.monotonic()
        with pytest.raises(ImageError, match="more than 1000 segments"):
            check_header(compressed(data))
        assert time.monotonic() - began < 1
