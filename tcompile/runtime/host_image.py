"""The image that a host makes smaller for a model: `--resize host`.

Such a model records how large its image was, so that it can be held against the dense model on the
same inputs: they are resized as the graph would have done it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.decode import parse_json
from tcompile.passes.resize.rules import IMAGE_RULE, resampled

Array = npt.NDArray[Any]
Pair = tuple[int, int]
_RECORD = "tcompile.resized"


@dataclass(frozen=True)
class HostImage:
    """An input that takes a smaller image than the dense model's.

    Attributes:
        input: its name.
        dims: which of its dims are rows and columns.
        whole, size: them in the dense model, and here.
    """

    input: str
    dims: Pair
    whole: Pair
    size: Pair

    def record(self) -> dict[str, str]:
        """The entry of the model's metadata."""
        return {_RECORD: json.dumps(vars(self))}

    def fed(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays with images of the dense model resized; others are as they are."""
        found = dict(arrays)
        image = found.get(self.input)
        if image is None or tuple(image.shape[d] for d in self.dims) != self.whole:
            return found
        integers = image.dtype.kind in "iu"
        made = image.astype(np.float32) if integers else image
        for dim, size in zip(self.dims, self.size, strict=True):
            made = resampled(made, dim, size, IMAGE_RULE)
        if integers:
            kind = np.iinfo(image.dtype)
            made = np.rint(made).clip(kind.min, kind.max)
        return {**found, self.input: made.astype(image.dtype)}


def read_host_image(metadata: Mapping[str, str]) -> HostImage | None:
    """Return what a model's metadata records; None of other models."""
    try:
        found = parse_json(metadata.get(_RECORD, "null"))
        if found is None:
            return None
        pairs = (_pair(found[name]) for name in ("dims", "whole", "size"))
        return HostImage(str(found["input"]), *pairs)
    except (ValueError, TypeError, KeyError):
        return None


def _pair(numbers: Any) -> Pair:
    first, second = map(int, numbers)
    return first, second
