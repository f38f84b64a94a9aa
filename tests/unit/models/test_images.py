"""Every kind of image file becomes upright 8-bit RGB, or is refused with the reason."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcompile.core.errors import UsageError
from tcompile.models.images import read_rgb
from tcompile.models.preprocess import load_image

#: From black to white, and what it is in 8 bits.
WIDE = np.array([[0, 256, 257], [32768, 65279, 65535]], np.uint16)
NARROW = np.array([[0, 1, 1], [128, 254, 255]], np.uint8)
HALF = np.array([[0, 64, 128, 255]], np.uint8)


def pixels(path: Path) -> np.ndarray:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def tiff(
    order: str, array: np.ndarray, bits: int, *, photometric: int = 1, kind: int = 1, turn: int = 1
) -> bytes:
    """A baseline TIFF of one channel. kind: 1 unsigned, 2 signed, 3 float."""
    data, (height, width) = array.tobytes(), array.shape
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8 + 2 + 12 * 11 + 4),
        (274, 3, turn),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, kind),
    ]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    for tag, form, value in entries:
        field = (
            struct.pack(f"{order}I", value) if form == 4 else struct.pack(f"{order}HH", value, 0)
        )
        out += struct.pack(f"{order}HHI", tag, form, 1) + field
    return out + struct.pack(f"{order}I", 0) + data


def png(width: int, height: int, depth: int, colour: int, rows: bytes, clear: bytes = b"") -> bytes:
    """A PNG as its specification says, for forms that pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    lines = len(rows) // height
    raw = b"".join(b"\0" + rows[i * lines : (i + 1) * lines] for i in range(height))
    parts = [
        chunk(b"IHDR", head),
        chunk(b"tRNS", clear) if clear else b"",
        chunk(b"IDAT", zlib.compress(raw)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ["a.png", "little.tif", "big.tif", "white_is_zero.tif", "a.ppm"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    path, expected = tmp_path / name, NARROW
    if name == "a.png":
        Image.fromarray(WIDE).save(path)
    elif name == "a.ppm":
        path.write_bytes(b"P5 3 2 65535 " + WIDE.astype(">u2").tobytes())
    elif name == "big.tif":
        path.write_bytes(tiff(">", WIDE.astype(">u2"), 16))
    else:
        inverse = name != "little.tif"
        path.write_bytes(tiff("<", WIDE, 16, photometric=0 if inverse else 1))
        expected = 255 - NARROW if inverse else NARROW
    np.testing.assert_array_equal(pixels(path), grey(expected))


def test_sixteen_bits_with_colour_or_alpha(tmp_path: Path) -> None:
    colour = np.array([[[65535, 0, 257]], [[256, 32768, 65279]]], ">u2")
    path = tmp_path / "rgb.png"
    path.write_bytes(png(1, 2, 16, 2, colour.tobytes()))
    np.testing.assert_allclose(pixels(path), colour / 257, atol=1)
    # Grey 0 and alpha 0, 1/2 and 1: white, grey, black.
    with_alpha = np.array([[[0, 0], [0, 32768], [0, 65535]]], ">u2")
    path.write_bytes(png(3, 1, 16, 4, with_alpha.tobytes()))
    np.testing.assert_array_equal(pixels(path), grey(np.array([[255, 127, 0]])))
    # One grey value that is transparent, in 16 bits: 1000, not its neighbour.
    values = np.array([[1000, 1001, 65535]], ">u2")
    path.write_bytes(png(3, 1, 16, 0, values.tobytes(), struct.pack(">H", 1000)))
    np.testing.assert_array_equal(pixels(path), grey(np.array([[255, 4, 255]])))


def test_twelve_bits_of_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    # 4095, 0, 2048, 0: two values in three bytes.
    path.write_bytes(tiff("<", np.frombuffer(b"\xff\xf0\x00\x80\x00\x00", np.uint8)[None], 12))
    whole = bytearray(path.read_bytes())
    struct.pack_into("<I", whole, 10 + 8, 4)  # the width is in pixels, not bytes
    path.write_bytes(bytes(whole))
    np.testing.assert_array_equal(pixels(path), grey(np.array([[255, 0, 128, 0]])))


def test_float_pixels_are_shares_of_white_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(path)
    np.testing.assert_array_equal(pixels(path), grey(np.array([[0, 128, 255]])))
    for value, says in ((255.0, "255"), (-0.1, "-0.1"), (np.nan, "nan"), (np.inf, "inf")):
        Image.fromarray(np.array([[0, 0.5], [1, value]], np.float32)).save(path)
        with pytest.raises(UsageError, match=rf"a\.tif: .* within 0 .* {says} in row 1, column 1"):
            read_rgb(path)


@pytest.mark.parametrize(("dtype", "kind"), [("<i2", 2), ("<u4", 1), ("<i4", 2)])
def test_integers_of_unknown_range_are_refused(tmp_path: Path, dtype: str, kind: int) -> None:
    path, array = tmp_path / "a.tif", np.array([[0, 100]], dtype)
    path.write_bytes(tiff("<", array, 8 * array.itemsize, kind=kind))
    with pytest.raises(UsageError, match="signed or 32-bit integers") as caught:
        read_rgb(path)
    assert "16 bits" in (caught.value.hint or "")


#: What is stored when the upright image is `UPRIGHT`, by EXIF's definition of row 0 and column 0.
UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("turn", STORED)
@pytest.mark.parametrize(
    "kind",
    ["a.png", "a.webp", "a.tif", "packed.tif", "raw.tif", "wide.png", "alpha.png", "palette.png"],
)
def test_exif_orientation_is_applied(tmp_path: Path, kind: str, turn: int) -> None:
    stored = np.ascontiguousarray(STORED[turn])
    exif, path = Image.Exif(), tmp_path / kind
    exif[0x0112] = turn
    image = Image.fromarray(stored.astype(np.uint16) * 257 if kind == "wide.png" else stored)
    if kind.startswith(("alpha", "palette")):
        image = image.convert("RGBA" if kind.startswith("alpha") else "P")
    options = {"a.webp": {"lossless": True}, "packed.tif": {"compression": "tiff_lzw"}}
    image.save(path, exif=exif, **options.get(kind, {}))
    if kind == "raw.tif":
        path.write_bytes(tiff("<", stored.astype(np.uint16) * 257, 16, turn=turn))
    np.testing.assert_array_equal(pixels(path), grey(UPRIGHT))
    # As it reaches the model: the corners are where they belong.
    plain = {
        "mean": [0] * 3,
        "std": [1] * 3,
        "size": [2, 3],
        "resize": "squash",
        "interpolation": "nearest",
    }
    np.testing.assert_allclose(load_image(path, plain)[0, 0] * 255, UPRIGHT, atol=1e-4)


def test_exif_of_a_jpeg_and_exif_that_says_nothing(tmp_path: Path) -> None:
    path, exif = tmp_path / "a.jpg", Image.Exif()
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 16:] = 255
    exif[0x0112] = 6  # turned clockwise to be seen: what was right is below
    Image.fromarray(wide).save(path, exif=exif, quality=100)
    found = pixels(path)
    assert found.shape == (32, 16, 3)
    assert found[:8].max() < 10
    assert found[-8:].min() > 245
    for damaged in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        Image.fromarray(wide).save(path, exif=damaged)
        assert pixels(path).shape == (16, 32, 3)
    exif[0x0112] = 9
    Image.fromarray(wide).save(path, exif=exif)
    assert pixels(path).shape == (16, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    """What lies under alpha 0 is arbitrary and invisible: here it is black."""
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    image = Image.new("L", (4, 1))
    if mode == "PA":
        image = Image.new("P", (4, 1)).convert("PA")
    else:
        image = image.convert(mode)
    image.putalpha(Image.fromarray(HALF))
    if mode == "PA":
        # Pillow writes no PA; decoded as such by some readers, so the step is asked itself.
        from tcompile.models.images import _on_background

        found = np.asarray(_on_background(image))
    else:
        image.save(path)
        found = pixels(path)
    np.testing.assert_array_equal(found, grey(255 - HALF))


def test_palettes_and_single_transparent_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    expected = [[[255, 255, 255], [0, 255, 0], [0, 0, 255]]]
    for name, clear in (("a.png", 0), ("b.png", b"\x00\xff"), ("c.gif", 0)):
        palette.save(tmp_path / name, transparency=clear)
        assert pixels(tmp_path / name).tolist() == expected, name
    half = tmp_path / "half.png"
    palette.save(half, transparency=b"\x80\xff\xff")
    assert pixels(half)[0, 0].tolist() == [255, 127, 127]
    colour = tmp_path / "colour.png"
    palette.convert("RGB").save(colour, transparency=(255, 0, 0))
    assert pixels(colour).tolist() == expected


def test_other_colour_spaces(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(path)
    assert pixels(path)[0, 0].tolist() == [255, 0, 0]
    jpeg = tmp_path / "a.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(jpeg, quality=100)
    np.testing.assert_allclose(pixels(jpeg)[0, 0], [255, 0, 0], atol=3)
    Image.new("1", (2, 2), 1).save(path)
    assert pixels(path).min() == 255
    Image.new("RGB", (8, 8), (255, 0, 0)).convert("YCbCr").save(jpeg, quality=100)
    np.testing.assert_allclose(pixels(jpeg)[0, 0], [255, 0, 0], atol=3)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    whole = path.read_bytes()
    for size in (0, 8, 40, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"a\.png: is not an image that pillow can read"):
            read_rgb(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": [0.5, 0, 0.5]},
        {"mean": [float("nan")] * 3},
        {"size": [0, 16]},
        {"size": [-1, 16]},
        {"crop_pct": float("inf")},
        {"crop_pct": -1},
    ],
)
def test_metadata_that_would_make_nan_of_an_image(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [16, 16], **wrong}
    with pytest.raises(UsageError, match="how images are prepared"):
        load_image(path, settings)
