"""From an image file to the model's input, with pillow and numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.core.decode import parse_json
from tcompile.core.errors import ModelError, UsageError
from tcompile.models.images import ImageError, read_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

#: Pixels that an image may be resized to before its middle is cut out.
_MOST_PIXELS = 1 << 26
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
        read = parse_json(metadata[PREPROCESS_KEY])
        if not isinstance(read, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ModelError(
            f"its metadata '{PREPROCESS_KEY}' is not a JSON object: {error}"
        ) from error
    if not _are_names(read.get("labels", [])):
        raise ModelError(f"its metadata '{PREPROCESS_KEY}' has labels that are not names")
    return read


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def load_image(
    source: str | Path | bytes | Image.Image, preprocessing: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Read an image as the model wants it: [1, 3, H, W] float32, [1, H, W, 3] where its
    `channels` are "last", or the packed patches of it.

    The shorter side is resized to `size / crop_pct` and the middle cut out ("crop"), the whole
    image is squashed to `size` ("squash"), or it is resized until it fits and black is put around
    it ("pad"); pixels in 0..1 are then normalised by `mean` and `std`. What every kind of file
    becomes before that, `read_rgb` says.

    Args:
        source: any image that pillow reads, or has read; or the bytes of a file.
        preprocessing: see `LoadedModel.preprocessing`.

    Raises:
        UsageError: not an image, the preprocessing says too little, or one image is not enough.
        MissingExtraError: pillow is not installed.
    """
    _, mean, std, _ = _numbers(preprocessing)
    layout = preprocessing.get("layout", "image")
    if layout not in ("image", "patches"):
        raise UsageError(
            f"the model takes {layout}, not one image", hint="give the input as .npy or .npz"
        )
    image = read_rgb(source)
    from PIL import Image

    names = {r.name.lower(): r for r in Image.Resampling}
    resample = names.get(str(preprocessing.get("interpolation", "bicubic")), names["bicubic"])
    where = str(source) if isinstance(source, (str, Path)) else "the image given"
    image = _fitted(image, preprocessing, resample, where)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255.0)
    normal = (pixels - mean) / std
    if preprocessing.get("channels") == "last":
        return np.ascontiguousarray(normal, dtype=np.float32)[None]
    planes = np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)
    return planes[None] if layout == "image" else pack_patches(planes, preprocessing)


def load_label_map(
    source: str | Path, preprocessing: Mapping[str, Any], outside: int
) -> NDArray[np.int64]:
    """Read a map of class numbers, one a pixel, cut as the image that it belongs to: [H, W].

    Args:
        preprocessing: of the image; the nearest pixel counts, nothing is interpolated.
        outside: the number of what "pad" puts around it.

    Raises:
        UsageError: as `load_image`; also a picture in colours that are not those of a palette.
    """
    from PIL import Image

    from tcompile.models.images import decode_plain

    image = decode_plain(source)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise ImageError(
            f"has pixels of {image.mode}, a label map has one whole number a pixel",
            where=str(source),
        )
    whole = Image.fromarray(np.asarray(image).astype(np.int32))
    cut = _fitted(whole, preprocessing, Image.Resampling.NEAREST, str(source), outside)
    return np.asarray(cut, dtype=np.int64)


def _numbers(
    preprocessing: Mapping[str, Any],
) -> tuple[tuple[int, int], NDArray[np.float32], NDArray[np.float32], float]:
    """Size, mean, deviation and share that is cut out, if they can be used."""
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
    whole = {mean.shape, std.shape} <= {(), (1,), (3,)} and bool(np.isfinite(scales).all())
    positive = whole and min(height, width, std.min(), crop) > 0
    if not positive or height * width / crop**2 > _MOST_PIXELS:
        raise UsageError(
            "the model's metadata says how images are prepared, but its numbers cannot be used "
            f"(size {height} × {width}, mean {mean.tolist()}, std {std.tolist()}, crop_pct {crop})",
            hint="give the input as .npy or .npz",
        )
    return (height, width), mean, std, crop


@dataclass(frozen=True)
class Placement:
    """Where an image lies in that of the model.

    Attributes:
        size: width and height that it is resized to.
        offset: of its upper left corner; negative where it is cut.
        whole: width and height of the model's image.
    """

    size: tuple[int, int]
    offset: tuple[int, int]
    whole: tuple[int, int]


def placement(width: int, height: int, preprocessing: Mapping[str, Any]) -> Placement:
    """Where an image of some width and height comes to lie, as `load_image` says.

    Cut as torchvision does, to the pixel: the shorter side to floor(size / crop).
    """
    (rows, columns), _, _, crop = _numbers(preprocessing)
    whole = columns, rows
    resize = preprocessing.get("resize", "crop")
    if resize == "squash":
        return Placement(whole, (0, 0), whole)
    if resize == "pad":
        scale = min(rows / height, columns / width)
        new = max(1, round(width * scale)), max(1, round(height * scale))
        return Placement(new, ((columns - new[0]) // 2, (rows - new[1]) // 2), whole)
    # The small term: 384 / (384 / 438) must give 438, not 437.
    edges = math.floor(rows / crop + 1e-6), math.floor(columns / crop + 1e-6)
    if height / edges[0] < width / edges[1]:
        new = max(columns, int(edges[0] * width / height)), edges[0]
    else:
        new = edges[1], max(rows, int(edges[1] * height / width))
    return Placement(new, (-round((new[0] - columns) / 2), -round((new[1] - rows) / 2)), whole)


def _fitted(
    image: Image.Image,
    preprocessing: Mapping[str, Any],
    resample: Image.Resampling,
    where: str,
    outside: int = 0,
) -> Image.Image:
    """The image in the size that the model takes, as `load_image` says."""
    place = placement(image.width, image.height, preprocessing)
    if place.size[0] * place.size[1] > 4 * _MOST_PIXELS:
        size, wanted = (f"{w} × {h}" for w, h in (image.size, place.whole))
        raise ImageError(f"is {size} pixels, too narrow to be cut to {wanted}", where=where)
    (width, height), (left, top) = place.whole, place.offset
    image = image.resize(place.size, resample)
    if min(place.offset) >= 0 and place.size != place.whole:
        from PIL import Image as Images

        behind = Images.new(image.mode, place.whole, outside)
        behind.paste(image, place.offset)
        return behind
    return image.crop((-left, -top, width - left, height - top))


def pack_patches(
    planes: NDArray[np.float32], preprocessing: Mapping[str, Any]
) -> NDArray[np.float32]:
    """[3, H, W] as Qwen-VL processors pack it: [N, 3 x time x patch x patch], squares together.

    The patches that are merged into one token lie one after another; a still image stands in for
    each of the frames of a patch.
    """
    names = ("patch_size", "merge_size", "temporal_patch_size")
    try:
        patch, merge, time = (int(preprocessing[name]) for name in names)
        if min(patch, merge, time) < 1:
            raise ValueError("a size below 1")
        frames = int(preprocessing.get("frames", time))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the model does not say how images are cut into patches ({', '.join(names)})",
            hint="give the input as .npy or .npz",
        ) from error
    if frames != time:
        raise UsageError(
            "the model takes a video, not an image", hint="give the input as .npy or .npz"
        )
    channels, height, width = planes.shape
    if height % (patch * merge) or width % (patch * merge):
        raise UsageError(
            f"the model records images of {height} x {width}, which {merge} x {merge} patches of "
            f"{patch} pixels do not fill",
            hint="give the input as .npy or .npz",
        )
    rows, columns = height // (patch * merge), width // (patch * merge)
    split = planes.reshape(channels, rows, merge, patch, columns, merge, patch)
    packed = split.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels, 1, patch * patch)
    return np.repeat(packed, time, axis=2).reshape(len(packed), -1)
