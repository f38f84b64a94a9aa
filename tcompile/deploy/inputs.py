"""From what a program has at hand (files, images, arrays) to the samples that a model is run on."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.runtime.decoding import image_input, prepared_image
from tcompile.runtime.samples import Samples, sample_arrays
from tcompile.runtime.signature import Signature

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]
#: One image, several, or prepared arrays: see `Model.__call__`.
OneImage: TypeAlias = "str | os.PathLike[str] | Image.Image | Array"
Given: TypeAlias = "OneImage | Sequence[OneImage] | Mapping[str, OneImage | Sequence[OneImage]]"
_TAKEN = (
    "the path of an image, a PIL image, an array (prepared floats as the input has them, or uint8 "
    "pixels [H, W, 3] or [B, H, W, 3]), a list of these, or {input name: array}"
)
_SAY = "say preprocess='imagenet', 'clip', 'siglip', … when it is loaded, or give prepared arrays"


def samples_of(model: Signature, given: Given) -> Samples:
    """What a model is run on, checked, one sample a row.

    Raises:
        UsageError: it does not fit the model: says which input, and what it takes.
        ImageError: an image cannot be read.
        MissingExtraError: pillow is not installed.
    """
    where = Path("inputs" if isinstance(given, Mapping) else "images")
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        leading = model.image_input or next(iter(model.inputs), None)
        named = {} if leading is None else {leading.name: given}
    _check_names(model, named, where)
    known = {tensor.name: tensor for tensor in model.inputs}
    arrays = {name: _array(model, known[name], value) for name, value in named.items()}
    return sample_arrays(model, arrays, where)


def _check_names(model: Signature, given: Mapping[str, object], where: Path) -> None:
    """All inputs, and no others: ones in place of what is missing would be a silent guess."""
    names = [tensor.name for tensor in model.inputs]
    strange = [f"'{name}'" for name in given if name not in names]
    missing = [f"'{name}'" for name in names if name not in given]
    if strange or missing:
        what = f"has no {', '.join(missing)}" if missing else f"has {', '.join(strange)}"
        raise UsageError(
            f"{what}; the model takes {', '.join(names)}",
            where=str(where),
            hint="give {input name: array} for all of them",
        )


def _array(model: Signature, tensor: TensorInfo, value: Any) -> Array:
    """The rows of an input: prepared already, or made from images."""
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    items = list(value) if several else [value]
    if several and not items:
        raise UsageError("an empty list", where=f"input '{tensor.name}'", hint=f"give {_TAKEN}")
    if any(map(_is_image, items)) or any(_is_pixels(tensor, item) for item in items):
        return _from_images(model, tensor, items)
    arrays = [_prepared(model, tensor, item) for item in items]
    if not several:
        return arrays[0]
    if len({array.shape for array in arrays}) != 1:
        shapes = ", ".join(dict.fromkeys(str(list(a.shape)) for a in arrays))
        raise UsageError(
            f"arrays of several shapes in a list: {shapes}", where=f"input '{tensor.name}'"
        )
    one_each = arrays[0].ndim < len(model.rows(tensor)) + 1
    return np.stack(arrays) if one_each else np.concatenate(arrays)


def _from_images(model: Signature, tensor: TensorInfo, items: Sequence[Any]) -> Array:
    if image_input(model, _SAY).name != tensor.name:
        raise UsageError(
            f"images are for input '{image_input(model).name}'", where=f"input '{tensor.name}'"
        )
    images: list[Any] = []
    for item in items:
        if isinstance(item, (str, os.PathLike)):
            images.append(Path(item))
        elif _is_pixels(tensor, item):
            images += _pictures(np.asarray(item))
        elif _is_image(item):
            images.append(item)
        else:
            raise UsageError(
                f"images and {type(item).__name__} in one list",
                where=f"input '{tensor.name}'",
                hint=f"give {_TAKEN}",
            )
    return np.concatenate([prepared_image(model, image) for image in images])


def _pictures(pixels: Array) -> list[Image.Image]:
    from tcompile.core.packages import require

    image = require("PIL.Image", "cpu", "preparing images")
    return [image.fromarray(one) for one in (pixels if pixels.ndim == 4 else pixels[None])]


def _is_image(value: Any) -> bool:
    """Whether it is a path or a PIL image; there is none of those where nothing imported PIL."""
    pil = sys.modules.get("PIL.Image")
    return isinstance(value, (str, os.PathLike)) or (
        pil is not None and isinstance(value, pil.Image)
    )


def _is_pixels(tensor: TensorInfo, value: Any) -> bool:
    """Whether it is uint8 [H, W, 3] or [B, H, W, 3], and not what a uint8 input takes as it is."""
    shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
    if len(shape) not in (3, 4) or shape[-1] != 3 or not hasattr(value, "__array__"):
        return False
    if _as_array(tensor, value).dtype != np.uint8:  # a tensor's dtype is its library's own
        return False
    return not (tensor.dtype == "uint8" and _fits(tuple(tensor.shape[1:]), shape[-3:]))


def _fits(wanted: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted, shape, strict=True)
    )


def _as_array(tensor: TensorInfo, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:  # of another library: a tensor on a GPU, or one with a gradient
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{type(value).__name__} does not become an array: {reason}",
            where=f"input '{tensor.name}'",
        ) from error


def _prepared(model: Signature, tensor: TensorInfo, value: Any) -> Array:
    if isinstance(value, bytes) or not hasattr(value, "__array__"):
        scalar = isinstance(value, (bool, int, float))
        if not scalar or len(tensor.shape) > 1:
            raise UsageError(
                f"{type(value).__name__} is not understood",
                where=f"input '{tensor.name}'",
                hint=f"give {_TAKEN}",
            )
    array = _as_array(tensor, value)
    image = model.image_input
    floats = tensor.dtype != "uint8" and tensor.name not in model.pixels
    if image is not None and tensor.name == image.name and array.dtype == np.uint8 and floats:
        # As floats they would be pixels to 255 where the model wants normalised ones.
        raise UsageError(
            f"uint8 {list(array.shape)} is neither pixels [H, W, 3] or [B, H, W, 3] nor prepared "
            f"{tensor.dtype}",
            where=f"input '{tensor.name}'",
        )
    return array
