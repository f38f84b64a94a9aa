"""Images with natural statistics from a seed, where there are no real ones.

White noise says little of a model: no patch differs from another, and nothing in it is large. A
scene is a background of pink noise (amplitude 1/f) that ellipses and rectangles of heavy-tailed
sizes occlude, each of its own colour, lit from one side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.models.preprocess import pack_patches
from tcompile.runtime.samples import Samples, samples_for
from tcompile.runtime.signature import Signature

Array = npt.NDArray[Any]
#: Sizes of an axis that is of colours.
_COLOURS = (1, 3, 4)
_SHAPES = 24


def scene(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """One image, [3, height, width] in 0..1."""
    light = _pink(rng, 1, height, width)
    image = 0.45 + 0.12 * light + 0.05 * _pink(rng, 3, height, width)
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(_SHAPES):
        # Pareto: many small things, a few that fill the image.
        radius = min(0.03 * (1 + rng.pareto(1.2)), 0.45) * min(height, width)
        across = (x - rng.uniform(0, width)) / (radius * rng.uniform(0.5, 2))
        along = (y - rng.uniform(0, height)) / radius
        turn = rng.uniform(0, np.pi)
        u = across * np.cos(turn) + along * np.sin(turn)
        v = along * np.cos(turn) - across * np.sin(turn)
        inside = u * u + v * v < 1 if rng.random() < 0.5 else np.maximum(abs(u), abs(v)) < 0.8
        colour = rng.uniform(0, 1, (3, 1, 1)) + 0.08 * u + 0.04 * light
        image = np.where(inside, colour, image)
    return np.clip(image, 0, 1).astype(np.float32)


def scenes_for(model: Signature, *, count: int, seed: int = 0) -> Samples:
    """Return `count` inputs for a model, its images procedural scenes (`Samples.scenes`).

    Images are prepared as the model's file says; where it does not, each has mean 0 and variance 1,
    but for a model that scales pixels from 0 to 255 itself. Bytes of four axes are such pixels too;
    other inputs are as `samples_for` has them, and so is all of a model that takes no images.
    Raises as that.
    """
    drawn = samples_for(model, count=count, seed=seed)
    rng = np.random.default_rng(seed)
    arrays = {name: array.copy() for name, array in drawn.arrays.items()}
    pictures = False
    for name, array in arrays.items():
        draw = _drawn_by(model, name, array)
        if draw is None:
            continue
        pictures = True
        for i in range(count):
            array[i] = draw(rng)
    if not pictures:
        return drawn
    return Samples(arrays, f"{count} procedural scenes (seed {seed})", real=False, scenes=True)


def scenes_and_noise(model: Signature, *, seed: int = 0) -> Samples:
    """Return inputs for a comparison of numerics: three scenes, then one of white noise, in which
    no two tokens are alike. Raises as `samples_for`."""
    scenes, noise = (draw(model, count=4, seed=seed) for draw in (scenes_for, samples_for))
    if not scenes.scenes:
        return noise
    arrays = {
        name: np.concatenate([array[:3], noise.arrays[name][3:]])
        for name, array in scenes.arrays.items()
    }
    return Samples(arrays, f"3 procedural scenes and 1 of white noise (seed {seed})", real=False)


def _drawn_by(
    model: Signature, name: str, array: Array
) -> Callable[[np.random.Generator], Array] | None:
    """Return what draws one sample of an input; None: it holds no images."""
    rows, known = array.shape[1:], model.preprocessing
    if model.packed and array.dtype.kind == "f" and len(rows) == 2:
        return lambda rng: _packed(rng, rows, known)
    if len(rows) == 3 and array.dtype == np.uint8:
        return lambda rng: np.round(255 * _like(rng, rows, {}))
    if name in model.pixels and len(rows) >= 3:
        return lambda rng: 255 * _like(rng, rows, {})
    if _is_image(model, name, rows) and array.dtype.kind == "f":
        return lambda rng: _prepared(_like(rng, rows, known), known)
    return None


def _is_image(model: Signature, name: str, rows: tuple[int, ...]) -> bool:
    """Tell whether an input is of images or video, and not a mask [1, N, N] beside one."""
    if len(rows) not in (3, 4):
        return False
    first = model.image_input
    return any(rows[-i] in (3, 4) for i in (1, 3, len(rows))) or (
        first is not None and first.name == name
    )


def _pink(rng: np.random.Generator, planes: int, height: int, width: int) -> Array:
    """Noise of amplitude 1/f, variance 1: [planes, height, width]."""
    spectrum = np.fft.rfft2(rng.standard_normal((planes, height, width)))
    down = np.fft.fftfreq(height)[:, None] * height
    right = np.fft.rfftfreq(width)[None] * width
    field = np.fft.irfft2(spectrum / np.maximum(np.hypot(down, right), 1), (height, width))
    return np.asarray(field / (field.std(axis=(1, 2), keepdims=True) + 1e-12))


def _like(
    rng: np.random.Generator, shape: tuple[int, ...], preprocessing: Mapping[str, Any]
) -> Array:
    """A scene in a layout: colours last or first, one image for all frames; normalised by `mean`
    and `std` of the preprocessing where it has them."""
    last = shape[-1] in _COLOURS and shape[-2] not in _COLOURS
    height, width = shape[-3:-1] if last else shape[-2:]
    planes = scene(rng, height, width)
    if "mean" in preprocessing and "std" in preprocessing:
        mean, std = (
            np.resize(np.asarray(preprocessing[k], np.float32), 3) for k in ("mean", "std")
        )
        planes = (planes - mean[:, None, None]) / std[:, None, None]
    if last:
        axis = -1
    else:
        axis = next((a for a in (-3, -4) if -a <= len(shape) and shape[a] in _COLOURS), -3)
    planes = planes[np.arange(shape[axis]) % 3]
    if axis == -1:
        planes = planes.transpose(1, 2, 0)
    elif axis == -4:
        planes = planes[:, None]
    return np.broadcast_to(planes, shape)


def _prepared(image: Array, preprocessing: Mapping[str, Any]) -> Array:
    if "mean" in preprocessing and "std" in preprocessing:
        return image
    return np.asarray((image - image.mean()) / (image.std() + 1e-6))


def _packed(
    rng: np.random.Generator, shape: tuple[int, ...], preprocessing: Mapping[str, Any]
) -> Array:
    """Patches [N, C] of a scene; without a record of how they are packed, plain ones: a colour
    each, more or less textured."""
    try:
        height, width = (int(v) for v in preprocessing["size"])
        rows = pack_patches(_like(rng, (3, height, width), preprocessing), preprocessing)
        if rows.shape == shape:
            return rows
    except (KeyError, TypeError, ValueError):
        pass
    colours = np.cumsum(rng.standard_normal((shape[0], 1)), axis=0) / np.sqrt(shape[0])
    texture = 0.3 * rng.pareto(2, (shape[0], 1)) * rng.standard_normal(shape)
    return np.asarray(np.clip(colours + texture, -3, 3))
