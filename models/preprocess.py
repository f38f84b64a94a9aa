"""From an image file to the model's input, with pillow and numpy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.core.errors import ModelError, UsageError
from tcompile.models.images import read_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

PREPROCESS_KEY = "tcompile.preprocess"
SOURCE_KEY = "tcompile.source"


def read_preprocessing(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what `export` recorded in a model's metadata, or None.

    Raises:
        ModelError: the entry is there but is not what we write.
    """
    if PREPROCESS_KEY not in metadata:
        return None
    try:
        read = json.loads(metadata[PREPROCESS_KEY])
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise ModelError(f"its metadata '{PREPROCESS_KEY}' is not a JSON object")
    return read


def load_image(path: str | Path, preprocessing: Mapping[str, Any]) -> NDArray[np.float32]:
    """Read an image as the model wants it: [1, 3, H, W] float32, [1, H, W, 3] where its
    `channels` are "last", or the packed patches of it.

    The shorter side is resized to `size / crop_pct` and the middle cut out ("crop"), or the whole
    image is squashed to `size` ("squash"); pixels in 0..1 are then normalised by `mean` and `std`.
    What every kind of file becomes before that, `read_rgb` says.

    Args:
        path: any image that pillow reads.
        preprocessing: see `LoadedModel.preprocessing`.

    Raises:
        UsageError: not an image, the preprocessing says too little, or one image is not enough.
        MissingExtraError: pillow is not installed.
    """
    try:
        height, width = (int(v) for v in preprocessing["size"])
        mean = np.asarray(preprocessing["mean"], dtype=np.float32)
        std = np.asarray(preprocessing["std"], dtype=np.float32)
        crop = float(preprocessing.get("crop_pct") or 1.0)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            "the model does not say how images are prepared for it",
            hint="say --preprocess, or give the input as .npy or .npz",
        ) from error
    scales = np.array([*mean.ravel(), *std.ravel(), crop])
    if min(height, width) < 1 or not np.isfinite(scales).all() or std.min() <= 0 or crop <= 0:
        raise UsageError(
            "the model's metadata says how images are prepared, but its numbers cannot be used "
            f"(size {height} × {width}, mean {mean.tolist()}, std {std.tolist()}, crop_pct {crop})",
            hint="give the input as .npy or .npz",
        )
    layout = preprocessing.get("layout", "image")
    if layout not in ("image", "patches"):
        raise UsageError(
            f"the model takes {layout}, not one image", hint="give the input as .npy or .npz"
        )
    image = read_rgb(path)
    from PIL import Image

    names = {r.name.lower(): r for r in Image.Resampling}
    resample = names.get(str(preprocessing.get("interpolation", "bicubic")), names["bicubic"])
    if preprocessing.get("resize", "crop") == "squash":
        image = image.resize((width, height), resample)
    else:
        image = _middle(image, height, width, crop, resample)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255.0)
    normal = (pixels - mean) / std
    if preprocessing.get("channels") == "last":
        return np.ascontiguousarray(normal, dtype=np.float32)[None]
    planes = np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)
    return planes[None] if layout == "image" else pack_patches(planes, preprocessing)


def pack_patches(
    planes: NDArray[np.float32], preprocessing: Mapping[str, Any]
) -> NDArray[np.float32]:
    """[3, H, W] as Qwen-VL processors pack it: [N, 3 x time x patch x patch], squares together.

    The patches that are merged into one token lie one after another; a still image stands in for
    each of the frames of a patch.
    """
    patch, merge = int(preprocessing["patch_size"]), int(preprocessing["merge_size"])
    time = int(preprocessing["temporal_patch_size"])
    if int(preprocessing.get("frames", time)) != time:
        raise UsageError(
            "the model takes a video, not an image", hint="give the input as .npy or .npz"
        )
    channels, height, width = planes.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    split = planes.reshape(channels, rows, merge, patch, columns, merge, patch)
    packed = split.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels, 1, patch * patch)
    return np.repeat(packed, time, axis=2).reshape(len(packed), -1)


def _middle(
    image: Image.Image, height: int, width: int, crop_pct: float, resample: Image.Resampling
) -> Image.Image:
    """Resize and cut as torchvision does, to the pixel: the shorter side to floor(size / crop)."""
    # The small term: 384 / (384 / 438) must give 438, not 437.
    edges = (math.floor(height / crop_pct + 1e-6), math.floor(width / crop_pct + 1e-6))
    if image.height / edges[0] < image.width / edges[1]:
        new = (max(width, int(edges[0] * image.width / image.height)), edges[0])
    else:
        new = (edges[1], max(height, int(edges[1] * image.height / image.width)))
    image = image.resize(new, resample)
    left, top = round((new[0] - width) / 2), round((new[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))
