"""Images with natural statistics from a seed: dead leaves, one occluding the other.

What is known of photographs is what a scene has: power that falls with the square of frequency,
things of all sizes (so that some fill the image and many are small) with sharp or soft outlines in
front of each other, each of one colour and one texture, light from one side, and here and there
a pattern that repeats, or lines as of text. Scenes differ in how much there is in them. Which of
this matters was measured: `benchmarks/scenes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
#: Exponents of the amplitude of textures, from coarse to fine.
_EXPONENTS = (1.3, 1.0, 0.7)


@dataclass(frozen=True)
class Look:
    """Numbers that say how scenes look; the defaults were measured to be like photographs.

    Attributes:
        fewest, most: leaves of a scene, as many from each octave between.
        smallest, largest: radius of a leaf, in shorter sides.
        tail: exponent of the density of radii.
        texture: deviation of the texture of a typical leaf, in the range of pixels.
        contrast: deviation of the colours of leaves.
        chroma: share of it that is not common to the three colours.
        light: difference between the lit side and the other.
        soft: share of leaves out of focus.
        patterned: share of leaves with stripes, checks or text.
    """

    fewest: int = 12
    most: int = 80
    smallest: float = 0.03
    largest: float = 0.6
    tail: float = 2.0
    texture: float = 0.09
    contrast: float = 0.25
    chroma: float = 0.35
    light: float = 0.3
    soft: float = 0.4
    patterned: float = 0.15


LOOK = Look()


@dataclass(frozen=True)
class _Leaf:
    """A thing: an outline (a convex polygon, an ellipse, a rectangle), a colour, a surface."""

    place: Array  # y, x of its middle, in pixels
    moves: Array  # pixels a frame
    radii: Array  # along its two axes
    turn: float
    sides: Array | None  # [k, 2] normals of a polygon; None: an ellipse
    soft: float  # pixels over which its outline fades
    colour: Floats
    surface: int  # which texture
    offset: Array  # where in it
    grain: Floats  # how much of it, of each colour
    pattern: Array | None  # [rows, columns] that repeat over it


def draw(
    rng: np.random.Generator,
    height: int,
    width: int,
    frames: int = 1,
    fullness: float | None = None,
    look: Look = LOOK,
) -> Floats:
    """Draw one scene: [frames, 3, height, width] in 0..1; in later frames everything has moved.

    Args:
        fullness: from nearly empty (0) to crowded (1); None: drawn.
    """
    textures = _textures(rng, height, width)
    side = min(height, width)
    share = rng.random() if fullness is None else fullness
    count = round(look.fewest * (look.most / look.fewest) ** share)
    palette = _palette(rng, look)
    pan = rng.normal(0, 0.02, 2) * side
    leaves = [_leaf(rng, height, width, palette, pan, look) for _ in range(count)]
    leaves.sort(key=lambda leaf: -float(leaf.radii.max()) * rng.uniform(0.3, 1))
    ground = palette[0][:, None, None]
    slope = _ramp(rng, height, width) * rng.uniform(0, 0.25)
    light = 1 + look.light * rng.uniform(0, 1) * _ramp(rng, height, width)
    image = np.empty((frames, 3, height, width), np.float32)
    for frame in range(frames):
        far = _window(textures[0], -np.rint(0.3 * pan * frame), (height, width))
        image[frame] = ground + slope + np.float32(look.texture) * far
        for leaf in leaves:
            _paint(image[frame], leaf, frame, textures)
    image *= light
    np.clip(image, 0, 1, out=image)
    return image


def spread(index: int) -> float:
    """The numbers 0, 1, 2, … spread over 0 to 1 so that the first few of them, too, lie evenly:
    their binary digits in reverse. So any few scenes are of all kinds."""
    digits = f"{index + 1:b}"[::-1]
    return int(digits, 2) / (1 << len(digits))


def _textures(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Noise of amplitude 1/f^e for each exponent, variance 1, without seams."""
    down = np.fft.fftfreq(height, 1 / height).astype(np.float32)[:, None]
    right = np.fft.rfftfreq(width, 1 / width).astype(np.float32)[None]
    radius = np.sqrt(down**2 + right**2)
    radius[0, 0] = 1
    size = (len(_EXPONENTS), *radius.shape)
    parts = rng.standard_normal((2, *size), dtype=np.float32)
    scale = radius ** -np.array(_EXPONENTS, np.float32)[:, None, None]
    scale[:, 0, 0] = 0
    field = np.fft.irfft2((parts[0] + 1j * parts[1]) * scale, (height, width))
    field /= field.std(axis=(1, 2), keepdims=True) + 1e-12
    return np.asarray(field, np.float32)


def _ramp(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A plane that rises in one direction, from −1 to 1 along the longest way."""
    angle = rng.uniform(0, 2 * np.pi)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
    return np.asarray((y + x) / (abs(np.sin(angle)) + abs(np.cos(angle))), np.float32)


def _palette(rng: np.random.Generator, look: Look) -> Floats:
    """The colours of a scene: [12, 3], around one mean, some scenes with little colour."""
    mean = rng.uniform(0.3, 0.6) + 0.06 * rng.standard_normal(3)
    chroma = look.chroma * rng.uniform(0.2, 1.4)
    grey = rng.standard_normal((12, 1))
    hue = rng.standard_normal((12, 3))
    spread = look.contrast * (np.sqrt(max(1 - chroma**2, 0)) * grey + chroma * hue)
    return np.asarray(np.clip(mean + spread, 0.02, 0.98), np.float32)


def _leaf(
    rng: np.random.Generator, height: int, width: int, palette: Array, pan: Array, look: Look
) -> _Leaf:
    side = min(height, width)
    # The inverse of the distribution with density r^-tail between the two radii.
    power = 1 - look.tail
    low, high = look.smallest**power, look.largest**power
    radius = side * float((low + rng.random() * (high - low)) ** (1 / power))
    kind = rng.random()
    sides = None
    if kind < 0.3:
        sides = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    elif kind < 0.65:
        corners = rng.integers(3, 7)
        angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
        sides = np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    soft = 1.0 + (radius * 0.5 * rng.random() ** 2 if rng.random() < look.soft else 0)
    grain = look.texture * np.exp(0.7 * rng.standard_normal())
    pattern = None
    if rng.random() < look.patterned:
        pattern = (_pattern(rng) * rng.uniform(0.1, 0.35)).astype(np.float32)
    return _Leaf(
        place=rng.uniform(-0.05, 1.05, 2) * (height, width),
        moves=pan + rng.normal(0, 0.03, 2) * side,
        radii=radius * np.array([1, rng.uniform(0.3, 1)]),
        turn=float(rng.uniform(0, 2 * np.pi)) if rng.random() < 0.7 else 0.0,
        sides=sides,
        soft=soft,
        colour=palette[rng.integers(len(palette))] + 0.04 * rng.standard_normal(3, np.float32),
        surface=int(rng.integers(len(_EXPONENTS))),
        offset=rng.integers(0, (height, width)),
        grain=(grain * (1 + 0.25 * rng.standard_normal(3))).astype(np.float32),
        pattern=pattern,
    )


def _pattern(rng: np.random.Generator) -> Array:
    """A tile of −1 and 1 that repeats: stripes, checks, or lines as of text."""
    kind = rng.integers(3)
    if kind == 0:
        return np.array([[1.0], [-1.0]])
    if kind == 1:
        return np.array([[1.0, -1.0], [-1.0, 1.0]])
    words = rng.random((13, 61)) < 0.5
    words[::2] = False
    return np.where(words, -1.0, 0.3)


def _paint(image: Array, leaf: _Leaf, frame: int, textures: Array) -> None:
    """Put a leaf in front of what is there, within the box that it fills."""
    height, width = image.shape[-2:]
    middle = leaf.place + leaf.moves * frame
    sin, cos = np.sin(leaf.turn), np.cos(leaf.turn)
    a, b = leaf.radii
    # An ellipse around it: corners lie beyond its radii.
    around = 1.0 if leaf.sides is None else 1.2 if len(leaf.sides) == 4 else 1.6
    reach = around * np.hypot([a * cos, a * sin], [b * sin, b * cos]) + leaf.soft
    top, left = (max(int(v), 0) for v in middle - reach)
    bottom, right = (
        min(int(v) + 2, n) for v, n in zip(middle + reach, (height, width), strict=True)
    )
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(middle[0])
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(middle[1])
    # In its own axes, in radii.
    v = y * np.float32(cos / a) - x * np.float32(sin / a)
    u = y * np.float32(sin / b) + x * np.float32(cos / b)
    if leaf.sides is None:
        beyond = np.sqrt(v * v + u * u) - np.float32(1)
    else:
        beyond = np.maximum.reduce([v * first + u * second for first, second in leaf.sides])
        beyond -= np.float32(0.8)
    beyond *= np.float32(b)
    alpha = np.clip(np.float32(0.5) - beyond / np.float32(leaf.soft), 0, 1)
    # It moves with the leaf.
    start = leaf.offset + np.array([top, left]) - np.rint(leaf.moves * frame).astype(int)
    surface = _window(textures[leaf.surface], start, alpha.shape)
    front = leaf.colour[:, None, None] + leaf.grain[:, None, None] * surface
    if leaf.pattern is not None:
        rows, columns = leaf.pattern.shape
        size = max(b / 8, 1.5)
        down, across = ((w * np.float32(r / size)).astype(np.int32) for w, r in ((v, a), (u, b)))
        front += leaf.pattern[down % rows, across % columns]
    box = image[:, top:bottom, left:right]
    box += alpha * (front - box)


def _window(plane: Array, start: Array, shape: tuple[int, ...]) -> Array:
    """A part of a plane that has no seams: beyond its end it goes on at the other side."""
    y, x = (
        (int(at) + np.arange(size)) % whole
        for at, size, whole in zip(start, shape, plane.shape, strict=True)
    )
    return np.asarray(plane[y[:, None], x])
