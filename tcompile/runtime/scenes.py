"""Procedural scenes as inputs of a model: what plans and figures rest on where there are no images.

White noise says little of a model: no patch differs from another, and nothing in it is large. A
method that ruins every photograph may change nothing on noise. How a scene is made says
`dead_leaves`; here it is put through what the model wants done with an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.models.preprocess import pack_patches
from tcompile.models.preprocess_option import PRESETS
from tcompile.runtime.dead_leaves import draw, spread
from tcompile.runtime.samples import Samples, samples_for
from tcompile.runtime.signature import Signature

Array = npt.NDArray[Any]
#: Makes a sample from what draws and how full its scene is.
Maker = Callable[[np.random.Generator, float], Array]
#: Seed of the scenes that figures rest on: nothing is planned on these.
JUDGED_ON = 0
#: Scenes that figures rest on, and the FLOPs of the dense model that they may take.
_MOST, _FEWEST, _FLOPS = 8, 2, 2e12
#: Sizes of an axis that is of colours, the likeliest first.
_COLOURS = (3, 4, 1)
#: What is assumed of a model that does not say how images are prepared.
_ASSUMED = PRESETS["imagenet"]


def scenes_for(model: Signature, *, count: int, seed: int = 0) -> Samples:
    """Return `count` inputs for a model, its images procedural scenes (`Samples.scenes`).

    A seed's first scenes are the same, however many are asked for. Images are prepared as the
    model's file says; where it does not, as ImageNet's, which `Samples.source` says. A model that
    scales pixels from 0 to 255 itself gets those, and so do bytes. What is no image is as
    `samples_for` has it, and so is everything where there is none. Raises as that.
    """
    drawn = samples_for(model, count=count, seed=seed)
    makers = {name: _maker(model, name, array) for name, array in drawn.arrays.items()}
    if not any(makers.values()):
        return drawn
    arrays = {
        name: array if maker is None else np.empty_like(array)
        for (name, array), maker in zip(drawn.arrays.items(), makers.values(), strict=True)
    }
    for i in range(count):
        rng, fullness = np.random.default_rng((seed, i)), spread(i)
        for name, maker in makers.items():
            if maker is not None:
                arrays[name][i] = maker(rng, fullness)
    source = f"{_scenes(count)} (seed {seed}{_assumption(model, drawn, makers)})"
    return replace(drawn, arrays=arrays, source=source, scenes=True)


def evidence_for(
    model: Signature, data: str | Path | None = None, *, count: int = _MOST, seed: int = JUDGED_ON
) -> Samples:
    """Return the inputs that figures rest on: `data`, or scenes where there is none.

    Raises `UsageError` for data that does not fit the model.
    """
    if data is None:
        return scenes_for(model, count=count, seed=seed)
    return samples_for(model, data, skip_unreadable=True)


def calibration_for(model: Signature, *, count: int) -> Samples:
    """Return scenes to take ranges from, for int8 and mixed precision: no figure rests on them."""
    return scenes_for(model, count=count, seed=JUDGED_ON + 1)


def evidence_count(flops: int) -> int:
    """Return how many scenes figures rest on, of a model that takes so many FLOPs for an image."""
    return int(min(max(_FLOPS / max(flops, 1), _FEWEST), _MOST))


def scenes_and_noise(model: Signature, *, seed: int = 0) -> Samples:
    """Return inputs for a comparison of numerics: three scenes, then one of white noise, in which
    no two tokens are alike. Raises as `samples_for`."""
    scenes, noise = (make(model, count=4, seed=seed) for make in (scenes_for, samples_for))
    if not scenes.scenes:
        return noise
    arrays = {
        name: np.concatenate([array[:3], noise.arrays[name][3:]])
        for name, array in scenes.arrays.items()
    }
    return replace(noise, arrays=arrays, source=f"{_scenes(3)} and 1 of white noise (seed {seed})")


def _assumption(model: Signature, drawn: Samples, makers: Mapping[str, Maker | None]) -> str:
    """The words for how images are taken to be prepared where the model does not say it."""
    if _norms(model.preprocessing):
        return ""
    scaled = [
        name
        for name, maker in makers.items()
        if maker is not None and name not in model.pixels and drawn.arrays[name].dtype.kind == "f"
    ]
    if not scaled:
        return ""
    if model.packed:
        return "; normalised as for ImageNet, packed as for Qwen: the model does not say"
    return "; normalised as for ImageNet: the model does not say how, --preprocess does"


def _scenes(count: int) -> str:
    return f"{count} procedural scene{'s' if count != 1 else ''}"


def _maker(model: Signature, name: str, array: Array) -> Maker | None:
    """Return what makes one sample of an input; None: it holds no images that can be drawn."""
    rows, known = array.shape[1:], model.preprocessing
    if model.packed:
        form = _packed_form(rows, known) if array.dtype.kind == "f" and len(rows) == 2 else None
        return None if form is None else lambda rng, full: _packed(rng, full, form)
    if len(rows) == 3 and array.dtype == np.uint8:
        return lambda rng, full: np.rint(255 * _scene(rng, full, rows))
    if not (array.dtype.kind == "f" and _is_image(model, name, rows)):
        return None
    if name in model.pixels and not _norms(known):
        return lambda rng, full: 255 * _scene(rng, full, rows)
    return lambda rng, full: _scene(rng, full, rows, known if _norms(known) else _ASSUMED)


def _is_image(model: Signature, name: str, rows: tuple[int, ...]) -> bool:
    """Tell whether an input is of images or video, and not a mask [1, N, N] beside one."""
    if len(rows) not in (3, 4):
        return False
    first = model.image_input
    colours = any(rows[-i] in (3, 4) for i in (1, 3, len(rows)))
    return colours or name in model.pixels or (first is not None and first.name == name)


def _norms(preprocessing: Mapping[str, Any]) -> bool:
    """Tell whether there is a mean and a deviation that can be used."""
    try:
        mean, std = (np.asarray(preprocessing[k], np.float32) for k in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    known = {mean.shape, std.shape} <= {(), (1,), (3,)}
    return known and bool(np.isfinite(mean).all() and np.isfinite(std).all() and std.min() > 0)


def _scene(
    rng: np.random.Generator,
    full: float,
    rows: tuple[int, ...],
    preprocessing: Mapping[str, Any] | None = None,
) -> Array:
    """A scene in a layout, its colours first or last, moving where there are frames; in 0..1, or
    normalised by `mean` and `std`."""
    last = rows[-1] in _COLOURS and rows[-2] not in _COLOURS
    height, width = rows[-3:-1] if last else rows[-2:]
    # Frames lie before or behind the colours.
    places = [a for n in _COLOURS for a in (-3, -4) if -a <= len(rows) and rows[a] == n]
    colours = -1 if last else (places or [-3])[0]
    frames = rows[-3 if colours == -4 else -4] if len(rows) == 4 else 1
    padded = preprocessing is not None and preprocessing.get("resize") == "pad"
    image = _coloured(_drawn(rng, full, height, width, frames, padded), rows[colours])
    if preprocessing is not None:
        mean, std = (_each_colour(preprocessing[k], rows[colours]) for k in ("mean", "std"))
        image = (image - mean) / std
    if last:
        image = image.transpose(0, 2, 3, 1)
    elif colours == -4:
        image = image.transpose(1, 0, 2, 3)
    return image.reshape(rows)


def _drawn(
    rng: np.random.Generator, full: float, height: int, width: int, frames: int, padded: bool
) -> Array:
    """A scene; where images are padded, half of them are of another shape, between black bars."""
    inner = [height, width]
    if padded and rng.random() < 0.5:
        side = int(rng.integers(2))
        inner[side] = max(round(inner[side] * rng.uniform(0.5, 1)), 1)
    image = draw(rng, inner[0], inner[1], frames, full)
    rest = height - inner[0], width - inner[1]
    bars = [(size // 2, size - size // 2) for size in rest]
    return np.pad(image, [(0, 0), (0, 0), *bars])


def _coloured(image: Array, colours: int) -> Array:
    """Red, green and blue as so many planes [F, colours, H, W]: alone, grey; beyond them, grey."""
    if colours == 3:
        return image
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image, (0, 1))[:, None]
    first = image if colours > 3 else grey[:, :0]
    return np.concatenate([first, *[grey] * (colours - first.shape[1])], axis=1)


def _each_colour(value: Any, colours: int) -> Array:
    """A number for each colour, [colours, 1, 1]; the mean of three for grey and what is beyond."""
    given = np.atleast_1d(np.asarray(value, np.float32))
    if given.size != colours:
        rest = np.full(colours, given.mean(), np.float32)
        if 1 < given.size < colours:
            rest[: given.size] = given
        given = rest
    return given[:, None, None]


def _packed_form(rows: tuple[int, ...], known: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how patches of an image are packed, as the model records or, where its patches look
    like those of Qwen's processors, as those do; None: these rows are no such patches."""
    form = {"frames": known.get("temporal_patch_size"), **(known or _guessed(*rows))}
    if not _norms(form):
        form |= _ASSUMED
    try:
        height, width = (int(v) for v in form["size"])
        names = ("patch_size", "merge_size", "temporal_patch_size", "frames")
        patch, merge, time, frames = (int(form[name]) for name in names)
        whole = not (height % (patch * merge) or width % (patch * merge) or frames % time)
        cells = height * width // patch**2 * (frames // time)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return form if whole and (cells, 3 * time * patch**2) == rows else None


def _guessed(count: int, channels: int) -> dict[str, Any]:
    """The form of so many patches of so many values, as near to a square as they can lie."""
    for time in (2, 1):
        patch = round((channels / 3 / time) ** 0.5)
        if patch > 1 and 3 * time * patch**2 == channels:
            for merge in (2, 1):
                cells, rest = divmod(count, merge**2)
                if rest:
                    continue
                high = next(h for h in range(int(cells**0.5), 0, -1) if cells % h == 0)
                size = [high * merge * patch, cells // high * merge * patch]
                return {
                    "size": size,
                    "patch_size": patch,
                    "merge_size": merge,
                    "temporal_patch_size": time,
                    "frames": time,
                }
    return {}


def _packed(rng: np.random.Generator, full: float, form: Mapping[str, Any]) -> Array:
    """Patches [N, C] of a scene; of a video, its frames by the time of a patch."""
    height, width = (int(v) for v in form["size"])
    time, frames = int(form["temporal_patch_size"]), int(form["frames"])
    still = frames == time  # an image, which stands for each frame of its patches
    scene = draw(rng, height, width, 1 if still else frames, full)
    mean, std = (_each_colour(form[k], 3) for k in ("mean", "std"))
    one = {**form, "temporal_patch_size": 1, "frames": 1}
    packed = [pack_patches(frame, one) for frame in (scene - mean) / std]
    groups = [packed * time] if still else [packed[i : i + time] for i in range(0, frames, time)]
    # [N, colours, pixels] of each frame: the frames of a patch lie between its colours and pixels.
    joined = [
        np.stack([p.reshape(len(p), 3, -1) for p in group], axis=2).reshape(len(group[0]), -1)
        for group in groups
    ]
    return np.concatenate(joined)
