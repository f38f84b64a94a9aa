"""A source of any length as chunks of samples, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as counting
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.arrays import UNNAMED
from tcompile.core.errors import UsageError
from tcompile.data.base import ArrayItem, Label, Source
from tcompile.runtime.decoding import Unread, decoded, image_input
from tcompile.runtime.samples import Samples, sample_arrays
from tcompile.runtime.signature import Signature

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some samples, one after another in the source.

    Attributes:
        samples: inputs of the model.
        ids: by which a person finds each again.
        labels: the class of each, where it is known.
        clips: the video that each is a frame of; empty: none.
    """

    samples: Samples
    ids: tuple[str, ...]
    labels: tuple[Label | None, ...]
    clips: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Chunk:
        """The first samples alone."""
        if count >= len(self):
            return self
        samples = self.samples.first(count)
        return Chunk(samples, self.ids[:count], self.labels[:count], self.clips[:count])


def chunks(
    model: Signature, source: Source, size: int, unread: list[Unread], limit: int | None = None
) -> Iterator[Chunk]:
    """Samples in the order of the source, `size` at a time, the last time fewer.

    Args:
        unread: what cannot be read is left out and added to it.
        limit: samples at most.

    Raises:
        UsageError: data that does not fit the model, or labels that are not classes.
    """
    waiting: list[Chunk] = []
    left = limit
    pieces = _pieces(model, source, size, unread)
    try:
        for piece in pieces:
            if left is not None:
                piece = piece.first(left)
                left -= len(piece)
            waiting.append(piece)
            if sum(map(len, waiting)) >= size:
                yield _joined(waiting)
                waiting = []
            if left == 0:
                break
    finally:
        pieces.close()
    if waiting:
        yield _joined(waiting)


def _pieces(
    model: Signature, source: Source, size: int, unread: list[Unread]
) -> Generator[Chunk, None, None]:
    where, number = Path(source.name), counting(1)
    for item, row in decoded(model, source, unread):
        if item.label_fault:
            raise UsageError(
                item.label_fault,
                where=source.name,
                hint="a sample is (image, class); or do without, --no-labels",
            )
        if isinstance(item, ArrayItem):
            for arrays, labels in _cut(model, item, size, source.name):
                samples = sample_arrays(model, arrays, where)
                ids = tuple(f"sample {next(number)}" for _ in range(len(samples)))
                yield Chunk(samples, ids, labels or (None,) * len(ids), ("",) * len(ids))
        else:
            source.check_label(item)
            samples = sample_arrays(model, {image_input(model).name: row}, where)
            yield Chunk(samples, (item.id,), (item.label,), (item.clip,))


def _cut(
    model: Signature, item: ArrayItem, size: int, where: str
) -> Iterator[tuple[Mapping[str, Array], tuple[Label, ...] | None]]:
    """Some rows of all arrays at a time; what has no rows of its own is given each time."""
    known = {tensor.name: tensor for tensor in model.inputs}
    rows: dict[str, int] = {}
    for name, array in item.arrays.items():
        tensor = known.get(name) or (model.inputs[0] if name == UNNAMED else None)
        if tensor is not None and array.ndim == len(model.rows(tensor)) + 1:
            rows[name] = len(array)
    own = {t.name for t in model.inputs if model.own_batch(t)}
    total = max((n for name, n in rows.items() if name not in own), default=1)
    labels = None if item.labels is None else _labels(item.labels, total, where)
    for start in range(0, max(total, 1), size):
        part = {
            name: array[start : start + size] if rows.get(name) == total else np.asarray(array)
            for name, array in item.arrays.items()
        }
        yield part, None if labels is None else labels[start : start + size]


def _labels(labels: Array, count: int, where: str) -> tuple[Label, ...]:
    found = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if found.shape != (count,) or found.dtype.kind not in "iuU":
        raise UsageError(
            f"labels must be {count} class numbers or names, one for each sample", where=where
        )
    return tuple(found.tolist())


def _joined(parts: Sequence[Chunk]) -> Chunk:
    if len(parts) == 1:
        return parts[0]
    first = parts[0].samples
    try:
        arrays = {
            name: np.concatenate([part.samples.arrays[name] for part in parts])
            for name in first.arrays
        }
    except ValueError as error:
        raise UsageError("gives arrays of different shapes", where=first.source) from error
    samples = Samples(arrays, first.source, real=True)
    return Chunk(
        samples,
        tuple(x for part in parts for x in part.ids),
        tuple(x for part in parts for x in part.labels),
        tuple(x for part in parts for x in part.clips),
    )
