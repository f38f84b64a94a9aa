"""Procedurally rendered scenes: four different digits over clutter, and the question is their sum.

A scene is a function of `(seed, index)` alone. It holds `GLYPHS` different digits in bundled fonts,
at random places, scales, rotations and colours, that do not overlap; behind them lie gradients,
noise, lines, shapes and letters. Ink covers about a quarter of the 14x14 patches, so most patches
do not matter, yet losing any one digit loses the answer:

- scene label: the sum of the digits, minus the smallest possible sum, in [0, CLASSES);
- patch labels [196]: the digit whose ink covers the most of each 4x4 patch, or `BACKGROUND`.

Pillow rasterises the fonts, so pixels may differ in the last bits between its versions, and a patch
at the threshold may change its label; a scene's label never does unless a glyph's box changes by a
pixel. Judge models by accuracy, not by hashes of pixels.

Needs numpy and Pillow (extra `export`); Pillow is imported when the first scene is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tcompile.core.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SIZE = 56
PATCH = 4
GRID = IMAGE_SIZE // PATCH
DIGITS = 10
GLYPHS = 4
BACKGROUND = DIGITS
PATCH_CLASSES = DIGITS + 1
SUM_MIN = sum(range(GLYPHS))
SUM_MAX = sum(range(DIGITS - GLYPHS, DIGITS))
CLASSES = SUM_MAX - SUM_MIN + 1
"""Sums 6 ... 30: 25 classes."""

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

FONTS = (
    "DejaVuSans-subset.ttf",
    "DejaVuSans-Bold-subset.ttf",
    "DejaVuSerif-subset.ttf",
    "DejaVuSerif-Bold-subset.ttf",
    "DejaVuSansMono-Bold-subset.ttf",
)
LETTERS = "ACEFHKLMNPRTUVWXY"
"""Distractors: capitals that are not digits in disguise (no B, D, G, I, O, Q, S, Z)."""

_ATLAS_PX = 64
_HEIGHT_RANGE = (15.0, 19.0)
_ROTATION = 10.0
_CONTRAST = 0.55
_INK = 0.15
"""A patch belongs to a digit whose ink covers at least this share of it."""

Rgb = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """One image and its labels."""

    image: UInt8  # [56, 56, 3] RGB
    digits: tuple[int, ...]  # in the order they were drawn, all different
    patches: UInt8  # [196] in raster order, digit or BACKGROUND

    @property
    def label(self) -> int:
        """Class of the scene: the sum of its digits, counted from the smallest possible."""
        return sum(self.digits) - SUM_MIN


@dataclass(frozen=True)
class _Placed:
    """An ink mask in [0, 1] and where its upper left corner lies."""

    ink: NDArray[np.float32]  # [h, w]
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.ink.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def touches(self, other: _Placed) -> bool:
        """Return whether the bounding boxes share a pixel."""
        (height, width), (other_height, other_width) = self.ink.shape, other.ink.shape
        return bool(
            self.top < other.top + other_height
            and other.top < self.top + height
            and self.left < other.left + other_width
            and other.left < self.left + width
        )


def scene(seed: int, index: int) -> Scene:
    """Scene `index` of the stream `seed`; the same arguments always give the same scene."""
    rng = np.random.default_rng((seed, index))
    digits = tuple(int(d) for d in rng.permutation(DIGITS)[:GLYPHS])
    placed = _place_all(rng, [str(d) for d in digits])
    canvas = _clutter(rng, placed)
    for glyph in placed:
        _paint(canvas, glyph, _contrasting(rng, canvas[glyph.window]))
    canvas += rng.normal(0.0, rng.uniform(0.0, 0.04), canvas.shape).astype(np.float32)
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Scene(image, digits, _patch_labels(digits, placed))


def batch(seed: int, start: int, count: int) -> tuple[UInt8, NDArray[np.int64], UInt8]:
    """Scenes `start ... start + count - 1`: images [n, 56, 56, 3], labels [n], patches [n, 196]."""
    scenes = [scene(seed, index) for index in range(start, start + count)]
    return (
        np.stack([s.image for s in scenes]),
        np.array([s.label for s in scenes], dtype=np.int64),
        np.stack([s.patches for s in scenes]),
    )


def preprocess(images: UInt8) -> NDArray[np.float32]:
    """uint8 [..., H, W, 3] RGB -> float32 [..., 3, H, W]: x / 255, minus `MEAN`, over `STD`."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    pixels = (images.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(np.moveaxis(pixels, -1, -3))


@cache
def _atlas(font: str, char: str) -> Image.Image:
    """The character at `_ATLAS_PX`, cropped to its ink, as a PIL 'L' image."""
    image_module, draw_module, font_module = _pillow()
    path = Path(__file__).parent / "fonts" / font
    # BASIC layout: the complex one depends on a library that not every Pillow has.
    face = font_module.truetype(path, _ATLAS_PX, layout_engine=font_module.Layout.BASIC)
    sheet = image_module.new("L", (2 * _ATLAS_PX, 2 * _ATLAS_PX))
    draw_module.Draw(sheet).text((_ATLAS_PX // 2, _ATLAS_PX // 4), char, fill=255, font=face)
    cropped: Image.Image = sheet.crop(sheet.getbbox())
    return cropped


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError("pillow", "cpu", "rendering the glyphs scenes") from None
    return Image, ImageDraw, ImageFont


def _ink(rng: np.random.Generator, char: str, height: float) -> NDArray[np.float32]:
    """A rotated, scaled mask of one character, [h, w] in [0, 1]."""
    image_module, _, _ = _pillow()
    mask = _atlas(FONTS[rng.integers(len(FONTS))], char)
    scale = height / mask.height
    stretch = rng.uniform(0.9, 1.15)
    angle = rng.uniform(-_ROTATION, _ROTATION)
    mask = mask.rotate(angle, resample=image_module.Resampling.BILINEAR, expand=True)
    size = (max(3, math.ceil(mask.width * scale * stretch)), max(3, math.ceil(mask.height * scale)))
    mask = mask.resize(size, resample=image_module.Resampling.BOX)
    ink: NDArray[np.float32] = np.asarray(mask, dtype=np.float32) / np.float32(255.0)
    return ink


def _place_all(rng: np.random.Generator, chars: list[str]) -> list[_Placed]:
    """Masks of all characters at places where their boxes do not touch.

    Starts over with smaller glyphs when the drawn sizes do not fit, so it always ends.
    """
    low, high = _HEIGHT_RANGE
    for attempt in range(100):
        shrink = 0.97**attempt
        placed: list[_Placed] = []
        for char in chars:
            ink = _ink(rng, char, rng.uniform(low, high) * shrink)
            candidate = _free_spot(rng, ink, placed, tries=20)
            if candidate is None:
                break
            placed.append(candidate)
        else:
            return placed
    raise AssertionError("glyphs of a few pixels always fit")


def _free_spot(
    rng: np.random.Generator, ink: NDArray[np.float32], taken: list[_Placed], tries: int
) -> _Placed | None:
    for _ in range(tries):
        top = int(rng.integers(0, IMAGE_SIZE - ink.shape[0] + 1))
        left = int(rng.integers(0, IMAGE_SIZE - ink.shape[1] + 1))
        candidate = _Placed(ink, top, left)
        if not any(candidate.touches(other) for other in taken):
            return candidate
    return None


def _clutter(rng: np.random.Generator, digits: list[_Placed]) -> Rgb:
    """Gradients, soft noise, lines and shapes, and letters between the digits; [56, 56, 3]."""
    image_module, draw_module, _ = _pillow()
    base = rng.uniform(0.15, 0.85, 3)
    coarse = base + rng.normal(0.0, 0.12, (2, 2, 3))
    fine = rng.normal(0.0, 0.04, (8, 8, 3))
    canvas = _upscale(coarse) + _upscale(fine)
    picture = image_module.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    draw = draw_module.Draw(picture)
    for _ in range(int(rng.integers(2, 6))):
        points = [int(v) for v in rng.integers(-8, IMAGE_SIZE + 8, 4)]
        colour = tuple(int(v) for v in np.clip(base + rng.normal(0, 0.15, 3), 0, 1) * 255)
        kind = rng.integers(3)
        if kind == 0:
            draw.line(points, fill=colour, width=int(rng.integers(1, 3)))
        else:
            x0, x1 = sorted(points[0::2])
            y0, y1 = sorted(points[1::2])
            shape = draw.ellipse if kind == 1 else draw.rectangle
            shape((x0, y0, x1, y1), outline=colour, width=1)
    painted: Rgb = np.asarray(picture, dtype=np.float32) / np.float32(255.0)
    taken = list(digits)
    for letter in rng.choice(list(LETTERS), int(rng.integers(1, 3)), replace=False):
        spot = _free_spot(rng, _ink(rng, str(letter), rng.uniform(9.0, 13.0)), taken, tries=10)
        if spot is not None:
            taken.append(spot)
            _paint(painted, spot, _contrasting(rng, painted[spot.window]))
    return painted


def _upscale(grid: NDArray[np.float64]) -> Rgb:
    """Bilinear interpolation of [n, n, 3] to the size of the image."""
    at = np.linspace(0.0, grid.shape[0] - 1.0, IMAGE_SIZE)
    low = np.minimum(at.astype(int), grid.shape[0] - 2)
    weight = (at - low)[:, None]
    matrix = np.zeros((IMAGE_SIZE, grid.shape[0]))
    rows = np.arange(IMAGE_SIZE)
    matrix[rows, low], matrix[rows, low + 1] = 1.0 - weight[:, 0], weight[:, 0]
    scaled: Rgb = np.einsum("ai,ijc,bj->abc", matrix, grid, matrix, optimize=True).astype(
        np.float32
    )
    return scaled


def _contrasting(rng: np.random.Generator, behind: Rgb) -> Rgb:
    """A random colour that differs enough from what lies behind, by distance in RGB."""
    ground = behind.reshape(-1, 3).mean(axis=0)
    best: Rgb = ground
    for _ in range(20):
        colour = rng.uniform(0.0, 1.0, 3).astype(np.float32)
        if np.linalg.norm(colour - ground) > np.linalg.norm(best - ground):
            best = colour
        if np.linalg.norm(colour - ground) >= _CONTRAST:
            return colour
    return best


def _paint(canvas: Rgb, glyph: _Placed, colour: Rgb) -> None:
    alpha = glyph.ink[..., None]
    canvas[glyph.window] = canvas[glyph.window] * (1.0 - alpha) + colour * alpha


def _patch_labels(digits: tuple[int, ...], placed: list[_Placed]) -> UInt8:
    cover = np.zeros((len(placed), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for layer, glyph in zip(cover, placed, strict=True):
        layer[glyph.window] = glyph.ink
    shares = cover.reshape(len(placed), GRID, PATCH, GRID, PATCH).mean(axis=(2, 4))
    owner = np.array(digits, np.uint8)[shares.argmax(axis=0)]
    labels = np.where(shares.max(axis=0) >= _INK, owner, BACKGROUND)
    return labels.astype(np.uint8).reshape(-1)
