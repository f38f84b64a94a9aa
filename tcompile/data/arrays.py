"""Arrays of .npy and .npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tcompile.core.arrays import UNNAMED, map_array, read_arrays
from tcompile.data.base import Array, ArrayItem, Source

#: The array that holds classes beside a model's inputs.
LABELS = "labels"


def file_source(path: Path) -> Source:
    """The arrays of a file, `labels` apart. An .npz is held in memory as a whole, an .npy stays on
    the disk.

    Raises:
        UsageError: not such a file, or one that holds more than plain arrays.
    """
    if path.suffix == ".npy":
        return arrays_source(str(path), {UNNAMED: map_array(path)})
    return arrays_source(str(path), read_arrays(path))


def arrays_source(name: str, arrays: Mapping[str, Array]) -> Source:
    """Arrays by input name, `labels` apart."""
    rest = dict(arrays)
    labels = rest.pop(LABELS, None)
    count = max((len(array) for array in rest.values() if array.ndim), default=0)

    def items() -> Iterator[ArrayItem]:
        yield ArrayItem(rest, labels)

    return Source(name, items, count)
