"""Maps of tokens as pictures: drawn over the image that they are of.

Dropped patches are dark and hatched, merged regions have one colour, an outline and, where they lie
in several places, a number; what is as it was shows the image. So nothing is told by colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tcompile.core.packages import require
from tcompile.models.preprocess_option import PRESETS
from tcompile.report.token_maps import DROPPED

if TYPE_CHECKING:
    from tcompile.runtime.signature import Signature

Array = npt.NDArray[Any]
#: Pixels that the longer side of a map is drawn with, about.
_SIDE = 392
#: Pixels of a patch from which on numbers are legible in it.
_LEGIBLE = 18
#: Colours of regions, in turn: those of Okabe and Ito and their mixtures, apart in lightness too.
_HUES = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 220, 150),
    (120, 94, 200),
    (255, 190, 160),
    (90, 140, 40),
    (160, 30, 60),
)
_CLEAR, _DARK, _HATCH, _BLACK, _WHITE = range(5)
_FIRST = 5
#: Red, green, blue and opacity by number in the palette.
_PALETTE = (
    (0, 0, 0, 0),
    (10, 10, 14, 205),
    (170, 170, 180, 205),
    (0, 0, 0, 255),
    (255, 255, 255, 255),
    *((*hue, 150) for hue in _HUES),
)


def picture_of(model: Signature, sample: Array) -> Array | None:
    """A sample of the image input as people see it: [H, W, 3] uint8; None: it is no one image."""
    if model.packed or sample.ndim != 3:
        return None
    last = sample.shape[-1] in (1, 3, 4) and sample.shape[0] not in (1, 3, 4)
    pixels = np.asarray(sample if last else sample.transpose(1, 2, 0), np.float32)
    if pixels.shape[-1] not in (1, 3, 4):
        return None
    if sample.dtype == np.uint8:
        return _three(pixels)
    known = model.preprocessing
    if "mean" not in known or "std" not in known:
        image = model.image_input
        if image is not None and image.name in model.pixels:
            return _three(pixels)
        known = PRESETS["imagenet"]  # as scenes are prepared where the model does not say it
    mean, std = (np.asarray(known[name], np.float32).reshape(-1) for name in ("mean", "std"))
    if mean.size not in (1, pixels.shape[-1]) or std.size not in (1, pixels.shape[-1]):
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    return _three(255 * (pixels * std + mean))


def _three(pixels: Array) -> Array:
    """[H, W, 1, 3 or 4] from 0 to 255 as [H, W, 3] uint8."""
    pixels = np.nan_to_num(pixels)
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def cell_of(grid: tuple[int, int]) -> int:
    """Pixels of a patch in a picture."""
    return max(4, round(_SIDE / max(grid)))


def overlay(region: npt.NDArray[np.int64], grid: tuple[int, int]) -> bytes:
    """A map [T] as a PNG that lies over its image, `cell_of` pixels a patch."""
    image_class = require("PIL.Image", "cpu", "drawing token maps")
    cell, regions = cell_of(grid), region.reshape(grid)
    colours, numbers = _coloured(regions)
    drawn = np.repeat(np.repeat(colours, cell, axis=0), cell, axis=1).astype(np.uint8)
    rows, columns = np.indices(drawn.shape)
    step = max(cell // 3, 4)
    hatched = (drawn == _DARK) & ((rows + columns) % step < max(step // 4, 1))
    drawn[hatched] = _HATCH
    _outline(drawn, regions, cell)
    picture = _palette_image(image_class, drawn)
    if cell >= _LEGIBLE:
        _write_numbers(picture, numbers, cell)
    return _png(picture)


def _palette_image(image_class: Any, drawn: Array) -> Any:
    picture = image_class.frombytes("P", drawn.shape[::-1], drawn.tobytes())
    picture.putpalette([value for *rgb, _ in _PALETTE for value in rgb])
    return picture


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    opacity = bytes(alpha for *_, alpha in _PALETTE)
    picture.save(stream, "PNG", transparency=opacity)
    return stream.getvalue()


def _coloured(regions: Array) -> tuple[Array, Mapping[tuple[int, int], int]]:
    """Colours of the patches [h, w], and the numbers of regions that lie in several places, by a
    patch of each place."""
    colours = np.full(regions.shape, _CLEAR)
    colours[regions == DROPPED] = _DARK
    names, sizes = np.unique(regions[regions != DROPPED], return_counts=True)
    order = [n for n, s in sorted(zip(names, sizes, strict=True), key=lambda p: -p[1]) if s > 1]
    numbers: dict[tuple[int, int], int] = {}
    count = 0
    taken: dict[int, int] = {}
    for name in order:
        mask = regions == name
        near = {taken[n] for n in _neighbours(regions, mask) if n in taken}
        free = [i for i in range(len(_HUES)) if i not in near]
        # Neighbours differ where they can; the colours are used in turn.
        choice = min(free or range(len(_HUES)), key=lambda i: (list(taken.values()).count(i), i))
        taken[int(name)] = choice
        colours[mask] = _FIRST + choice
        places = _places(mask)
        if len(places) > 1:
            count += 1
            numbers |= dict.fromkeys(places, count)
    return colours, numbers


def _neighbours(regions: Array, mask: Array) -> set[int]:
    """The regions beside one."""
    padded = np.pad(mask, 1)
    grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return {int(n) for n in np.unique(regions[grown & ~mask])}


def _places(mask: Array) -> list[tuple[int, int]]:
    """The first patch of each part of a mask [h, w] that hangs together."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    found = []
    while left:
        first = min(left)
        found.append(first)
        pending = [first]
        left.discard(first)
        while pending:
            r, c = pending.pop()
            for place in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if place in left:
                    left.discard(place)
                    pending.append(place)
    return found


def _outline(drawn: Array, regions: Array, cell: int) -> None:
    """Lines where a merged region ends: white on its own side, black on the other's."""
    several = drawn >= _FIRST
    wide = 1 if cell < _LEGIBLE else 2
    for axis in (0, 1):
        before, after = np.moveaxis(regions, axis, 0)[:-1], np.moveaxis(regions, axis, 0)[1:]
        pixels, merged = np.moveaxis(drawn, axis, 0), np.moveaxis(several, axis, 0)
        for line in range(before.shape[0]):
            edge = np.repeat(before[line] != after[line], cell)
            at = (line + 1) * cell
            beside = edge & (merged[at - 1] | merged[at])
            pixels[at - wide : at, beside] = _WHITE
            pixels[at : at + wide, beside] = _BLACK


def _write_numbers(picture: Any, numbers: Mapping[tuple[int, int], int], cell: int) -> None:
    draw = require("PIL.ImageDraw", "cpu", "drawing token maps").Draw(picture)
    fonts = require("PIL.ImageFont", "cpu", "drawing token maps")
    font = fonts.load_default(max(cell // 2, 9))
    for (row, column), number in numbers.items():
        at = (column * cell + cell // 2, row * cell + cell // 2)
        draw.text(at, str(number), fill=_BLACK, anchor="mm", font=font)


def jpeg(pixels: Array, side: int = _SIDE) -> bytes:
    """Pixels [H, W, 3] as a JPEG, no larger than `side`."""
    image_class = require("PIL.Image", "cpu", "drawing token maps")
    picture = image_class.fromarray(pixels)
    if max(picture.size) > side:
        picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return stream.getvalue()


def composed(pixels: Array, region: npt.NDArray[np.int64], grid: tuple[int, int]) -> bytes:
    """A map over its image, as one PNG."""
    image_class = require("PIL.Image", "cpu", "drawing token maps")
    cell = cell_of(grid)
    size = (grid[1] * cell, grid[0] * cell)
    base = image_class.fromarray(pixels).resize(size).convert("RGBA")
    top = image_class.open(io.BytesIO(overlay(region, grid))).convert("RGBA")
    stream = io.BytesIO()
    image_class.alpha_composite(base, top).convert("RGB").save(stream, "PNG", optimize=True)
    return stream.getvalue()


def heat(values: Array, low: float, high: float) -> bytes:
    """A map [h, w] in grey, black at `low` and white at `high`, as a PNG of its own size or some
    hundred pixels."""
    image_class = require("PIL.Image", "cpu", "drawing maps")
    spread = high - low
    grey = np.clip((np.nan_to_num(values) - low) / (spread if spread > 0 else 1), 0, 1)
    picture = image_class.fromarray(np.rint(255 * grey).astype(np.uint8))
    if max(picture.size) > 196:
        picture.thumbnail((196, 196))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def classes_picture(classes: Array) -> bytes:
    """A map of classes [h, w], a colour each, as a PNG."""
    image_class = require("PIL.Image", "cpu", "drawing maps")
    stride = max(1, -(-max(classes.shape) // 196))
    index = (classes[::stride, ::stride] % len(_HUES)).astype(np.uint8)
    picture = image_class.frombytes("P", index.shape[::-1], index.tobytes())
    picture.putpalette([value for hue in _HUES for value in hue])
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
