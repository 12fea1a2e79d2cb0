"""Images of every mode and of odd files, against values computed by hand."""

import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_bridge_vq.data.decoding import MAX_ASPECT, decode_image
from diffusion_bridge_vq.data.pixels import to_eight_bits

RED, WHITE = (255, 0, 0), (255, 255, 255)
# mode: (value of a pixel, gray, RGB); a pixel over white is alpha * value + (1 - alpha) * 255.
PIXELS = {
    "1": (255, 255, WHITE),
    "L": (77, 77, (77, 77, 77)),
    "LA": ((50, 51), 214, (214, 214, 214)),  # alpha 0.2: 0.2 * 50 + 0.8 * 255
    "La": ((10, 51), 214, (214, 214, 214)),  # the same, premultiplied
    "P": (1, 76, RED),  # gray by ITU-R 601: 0.299 * 255
    "PA": ((1, 51), 219, (255, 204, 204)),
    "RGB": (RED, 76, RED),
    "RGBA": ((255, 0, 0, 51), 219, (255, 204, 204)),  # 0.299 * 255 + 0.701 * 204
    "RGBa": ((51, 0, 0, 51), 219, (255, 204, 204)),
    "RGBX": ((255, 0, 0, 9), 76, RED),
    "CMYK": ((0, 255, 255, 0), 76, RED),
    "YCbCr": ((76, 85, 255), 76, (254, 0, 0)),  # JFIF's red, rounded
    "LAB": ((128, 0, 0), 119, (119, 119, 119)),  # L* = 50.2 is a linear luminance of 0.186: 118.9 in sRGB
    "HSV": ((0, 255, 255), 76, RED),
    "I;16": (25700, 100, (100, 100, 100)),  # 257 * 100
    "I;16L": (25700, 100, (100, 100, 100)),
    "I;16B": (25700, 100, (100, 100, 100)),
    "I;16N": (25700, 100, (100, 100, 100)),
}


def image_of(mode, value):
    image = Image.new("PA" if mode == "PA" else mode, (2, 2))
    if mode in ("P", "PA"):
        image.putpalette([9, 9, 9, *RED])
    if mode in ("La", "RGBa", "LAB", "HSV"):  # which Pillow sets no pixels of
        image = Image.frombytes(mode, (2, 2), bytes(value) * 4)
    elif mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, (2, 2), np.full((2, 2), value, order).tobytes())
    else:
        image.paste(value, (0, 0, 2, 2))
    return image


def test_the_table_has_every_mode_of_pillow():
    assert set(PIXELS) | {"I", "F"} >= set(Image.MODES)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", PIXELS)
def test_every_mode(mode, channels):
    value, gray, rgb = PIXELS[mode]
    image = to_eight_bits(image_of(mode, value), channels)
    assert image.mode == ("L" if channels == 1 else "RGB")
    expected = np.full((2, 2), gray) if channels == 1 else np.full((2, 2, 3), rgb)
    np.testing.assert_allclose(np.asarray(image).astype(int), expected, atol=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(mode, channels):
    with pytest.raises(ValueError, match="no known range"):
        to_eight_bits(Image.new(mode, (2, 2)), channels)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        *[("TIFF", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B")],
        *[("GIF", mode) for mode in ("1", "L", "P")],
        *[("BMP", mode) for mode in ("1", "L", "P", "RGB")],
        *[("TGA", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
        *[("PPM", mode) for mode in ("1", "L", "RGB", "I;16")],
    ],
)
def test_every_mode_that_a_file_can_have(kind, mode):
    value, gray, rgb = PIXELS[mode]
    file = io.BytesIO()
    image_of(mode, value).save(file, kind)
    if (kind, mode) == ("TIFF", "YCbCr") and not _can_be_read(file):
        pytest.skip("this version of Pillow writes such files, but can't read them (13.0 can)")
    record = {"bytes": file.getvalue(), "path": None}
    assert abs(decode_image(record, 2, 1).astype(int) - gray).max() <= 1
    assert abs(decode_image(record, 2, 3).astype(int) - np.reshape(rgb, (3, 1, 1))).max() <= 1


def _can_be_read(file: io.BytesIO) -> bool:
    try:
        Image.open(file).load()
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ PNG, byte by byte


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(row, width, bits, color_type, *chunks):
    """One row of pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def pixels_of(data, channels):
    image = to_eight_bits(Image.open(io.BytesIO(data)), channels)
    return np.asarray(image)[0].tolist()


@pytest.mark.parametrize(
    ("row", "width", "bits", "transparent", "expected"),
    [
        (b"\x40", 2, 1, 1, [0, 255]),  # 0 and 1
        (b"\x40", 2, 1, 0, [255, 255]),
        (b"\x60", 3, 2, 1, [255, 170, 0]),  # 1, 2, 0 of 3
        (b"\x60", 3, 2, 2, [85, 255, 0]),
        (b"\x6a", 2, 4, 6, [255, 170]),  # 6 and 10 of 15
        (b"\x64\x65", 2, 8, 100, [255, 101]),
        (struct.pack(">HH", 25700, 25701), 2, 16, 25700, [255, 100]),
        (struct.pack(">HH", 25700, 0), 2, 16, 0, [100, 255]),
        (struct.pack(">HH", 25700, 0), 2, 16, 7, [100, 0]),
    ],
)
def test_gray_with_a_transparent_value(row, width, bits, transparent, expected):
    data = png(row, width, bits, 0, chunk(b"tRNS", struct.pack(">H", transparent)))
    assert pixels_of(data, 1) == expected
    assert pixels_of(data, 3) == [[value] * 3 for value in expected]


@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_with_a_transparent_color(bits):
    values = [20, 30, 40] if bits == 8 else [20 * 256 + 1, 30 * 256, 40 * 256 + 255]  # the low byte is dropped
    rows = struct.pack(">6H" if bits == 16 else ">6B", *values, *values[::-1])
    data = png(rows, 2, bits, 2, chunk(b"tRNS", struct.pack(">3H", *values)))
    assert pixels_of(data, 3) == [[255] * 3, [40, 30, 20]]


@pytest.mark.parametrize(("color_type", "count"), [(4, 2), (6, 4)])
def test_16_bits_with_alpha(color_type, count):
    row = struct.pack(f">{2 * count}H", *[257 * 50] * (count - 1), 257 * 51, *[257 * 50] * (count - 1), 65535)
    assert pixels_of(png(row, 2, 16, color_type), 1) == [214, 50]


BIG = zlib.compress(b"\0" * (5 << 20))
METADATA = {
    "a color profile of 5 MB": chunk(b"iCCP", b"x\0\0" + BIG),
    "a compressed text of 5 MB": chunk(b"zTXt", b"x\0\0" + BIG),
    "a text of 5 MB in UTF-8": chunk(b"iTXt", b"x\0\1\0\0\0" + BIG),
    "many texts": b"".join(chunk(b"tEXt", b"x\0" + b"a" * (1 << 20)) for _ in range(65)),
    "damaged EXIF data": chunk(b"eXIf", b"garbage"),
    "an orientation that is text": chunk(b"eXIf", b"MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x112, 2, 4, b"abc", 0)),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_do_not_matter(tmp_path, name):
    data = png(b"\x11\x22\x33", 1, 8, 2, METADATA[name])
    (tmp_path / "a.png").write_bytes(data)
    for record in ({"bytes": data, "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}):
        assert decode_image(record, 1, 3).ravel().tolist() == [0x11, 0x22, 0x33]


# ------------------------------------------------------------------------------------------------------ other files


def tiff(data, bits, photometric):
    """Two by two pixels of one channel."""
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 2}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {279: len(data)}).items()]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<I", 0) + data


def test_tiff_where_0_is_white():
    data = tiff(np.array([0, 257, 25700, 65535], "<u2").tobytes(), 16, photometric=0)
    assert decode_image({"bytes": data, "path": None}, 2, 1).ravel().tolist() == [255, 254, 155, 0]


def test_tiff_of_12_bits():
    packed = int("000" + "3e8" + "800" + "fff", 16).to_bytes(6, "big")  # 0, 1000, 2048, 4095
    data = tiff(packed, 12, photometric=1)
    assert decode_image({"bytes": data, "path": None}, 2, 1).ravel().tolist() == [0, 62, 128, 255]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_turned_upright(kind, orientation):
    gray = np.arange(9, dtype=np.uint8).reshape(3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(gray.astype(np.uint16) * 257).save(file, kind, exif=exif)
    upright = np.rot90(gray, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_array_equal(decode_image({"bytes": file.getvalue(), "path": None}, 3, 1)[0], upright)


def test_an_image_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    stored = np.arange(9, dtype=np.uint8).reshape(3, 3)
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    once = to_eight_bits(Image.open(file), 1)
    np.testing.assert_array_equal(once, np.rot90(stored, -1))
    np.testing.assert_array_equal(to_eight_bits(once, 1), once)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    first, second = (Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255)))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(file) as animation:
        assert animation.n_frames == 2
    decoded = decode_image({"bytes": file.getvalue(), "path": None}, 4, 3)
    assert decoded.reshape(3, -1).T.tolist() == [list(RED)] * 16


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (20_000, 3)])
def test_a_long_image_takes_little_memory(monkeypatch, size):
    """It is cropped before it is scaled: 20,000 x 1 pixels at resolution 128 would have 2.6 million columns."""
    scaled, resize = [], Image.Image.resize

    def record_size(image, size, *args, **kwargs):
        scaled.append(size)
        return resize(image, size, *args, **kwargs)

    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(file, "PNG")
    record = {"bytes": file.getvalue(), "path": None}
    monkeypatch.setattr(Image.Image, "resize", record_size)
    assert decode_image(record, 128, 3).shape == (3, 128, 128)
    assert [width * height <= MAX_ASPECT * 128 * 128 for width, height in scaled] == [True]


@pytest.mark.parametrize(("width", "height"), [(96, 8), (8, 64), (160, 16)])
def test_a_long_image_keeps_its_center(width, height):
    """As if all of it had been scaled."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    scale = min(width, height) // 4
    whole = np.asarray(image.resize((width // scale, height // scale), Image.Resampling.BICUBIC))
    top, left = (side // 2 - 2 for side in whole.shape)
    found = decode_image({"bytes": file.getvalue(), "path": None}, 4, 1)[0]
    np.testing.assert_array_equal(found, whole[top : top + 4, left : left + 4])


def test_a_decompression_bomb_is_refused_quickly():
    side = 20_000
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        with pytest.raises(Image.DecompressionBombError, match="400000000 pixels"):
            decode_image({"bytes": data, "path": None}, 8, 1)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_named_pipe_is_refused(tmp_path):
    """Opening it would wait for ever."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not a regular file"):
        decode_image({"bytes": None, "path": str(tmp_path / "a.png")}, 2, 1)
