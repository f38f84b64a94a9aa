"""Arrays of .npy and .npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tcompile.core.arrays import StoredArray, stored_arrays
from tcompile.data.base import Array, ArrayItem, Source

#: The array that holds classes beside a model's inputs.
LABELS = "labels"


def file_source(path: Path) -> Source:
    """The arrays of a file, `labels` apart, which stay in it until rows are asked for.

    Raises:
        UsageError: not such a file, or one that holds more than plain arrays.
    """

    def items() -> Iterator[ArrayItem]:
        with stored_arrays(path) as arrays:
            yield _item(arrays)

    with stored_arrays(path) as arrays:
        return Source(str(path), items, _count(arrays))


def arrays_source(name: str, arrays: Mapping[str, Array]) -> Source:
    """Arrays by input name, `labels` apart."""
    return Source(name, lambda: iter([_item(arrays)]), _count(arrays))


def _item(arrays: Mapping[str, Array | StoredArray]) -> ArrayItem:
    labels = arrays.get(LABELS)
    rest = {name: array for name, array in arrays.items() if name != LABELS}
    return ArrayItem(rest, None if labels is None else np.asarray(labels))


def _count(arrays: Mapping[str, Array | StoredArray]) -> int:
    inputs = (array for name, array in arrays.items() if name != LABELS)
    return max((len(array) for array in inputs if array.ndim), default=0)
