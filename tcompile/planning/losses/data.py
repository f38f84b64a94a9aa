"""Calibration data: samples of any source, and their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.data.folder import LABELS_FILE, read_labels
from tcompile.passes.stages import Analysed
from tcompile.planning.request import Request
from tcompile.runtime.samples import Samples, samples_for
from tcompile.runtime.signature import Signature, signature

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

#: Class numbers lie below this.
_MOST_CLASSES = 1 << 31
#: On which rules are weighed.
_IMAGES = 16


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs of a model and, where they are known, their classes.

    Attributes:
        samples: one a row.
        labels: [images] class numbers, or None.
        digest: of names, shapes and contents, for caches.
    """

    samples: Samples
    labels: Labels | None
    digest: str

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    def of(samples: Samples, labels: npt.ArrayLike | None) -> Calibration:
        """Calibration data with its digest.

        Raises:
            UsageError: labels that are not class numbers, or another number of them than samples.
        """
        checked = None if labels is None else _labels(labels, len(samples), samples.source)
        return Calibration(samples, checked, _digest(samples.arrays, checked))

    def rows(self, chosen: npt.NDArray[np.int64], source: str) -> Calibration:
        """Some of the samples; those without a name keep the number that they have here."""
        arrays = {name: array[chosen] for name, array in self.samples.arrays.items()}
        labels = None if self.labels is None else self.labels[chosen]
        ids = tuple(self.samples.ids[i] if self.samples.ids else f"sample {i + 1}" for i in chosen)
        return Calibration.of(
            replace(self.samples, arrays=arrays, source=source, ids=ids, labels=None), labels
        )


def signature_of(model: Analysed, preprocess: str | None = None) -> Signature:
    """The inputs of a model as it is planned, dims bound as was asked, and how images are prepared
    for it.

    Args:
        preprocess: in place of what the model records.
    """
    file = signature(model.source).whole
    bound = {str(t.name): tuple(t.shape) for t in model.graph.inputs}
    inputs = tuple(replace(t, shape=bound.get(t.name, t.shape)) for t in file.inputs)
    return replace(file, inputs=inputs).prepared(preprocess)


def read_calibration(
    model_path: str | Path | Signature, data: str | Path, preprocess: str | None = None
) -> Calibration:
    """Read calibration data for a model.

    Args:
        model_path: its file, or its inputs (`signature_of`).
        preprocess: how images are prepared, in place of what the model records.
        data: see `tcompile.data.opening`; a script and a callable are executed. Labels that are
            numbers of the model's classes are used, others are not; images that cannot be read are
            left out, and counted.

    Raises:
        UsageError: no such file, or data that does not fit the model.
    """
    if not isinstance(model_path, Signature):
        model_path = signature(model_path).whole
    model = model_path.prepared(preprocess)
    _check_numbers(Path(data))
    samples = samples_for(model, data, skip_unreadable=True, labels=True)
    return Calibration.of(samples, samples.labels)


def calibration_samples(model: Analysed, request: Request) -> Samples:
    """The first of a person's images, sixteen unless the request says how many, to weigh rules on.

    Raises:
        UsageError: see `read_calibration`.
    """
    assert request.calibration is not None
    data = read_calibration(signature_of(model, request.preprocess), request.calibration)
    most = request.images or _IMAGES
    if len(data) <= most:
        return data.samples
    return data.rows(np.arange(most), f"{most} of {data.samples.source}").samples


def split(calibration: Calibration, seed: int, *, bound: bool) -> tuple[Calibration, Calibration]:
    """Two disjoint parts: what is planned with, and what is checked on.

    Args:
        bound: a bound is to be shown on the second, which needs more images than a mean: it has
            half the samples, rounded up; else a quarter, one at least.

    Raises:
        UsageError: fewer than two samples.
    """
    total = len(calibration)
    if total < 2:
        raise UsageError(
            "two images at least: one to plan with, one to check on", where="--calibration"
        )
    order = np.random.default_rng(seed).permutation(total)
    first = total // 2 if bound else total - max(total // 4, 1)
    parts = np.sort(order[:first]), np.sort(order[first:])
    names = ("to plan with", "to check on")
    fit, check = (
        calibration.rows(rows, f"{len(rows)} of {calibration.samples.source} {name} (seed {seed})")
        for rows, name in zip(parts, names, strict=True)
    )
    return fit, check


def _check_numbers(data: Path) -> None:
    """Refuse a folder whose labels are names: of these nothing says which class they are."""
    file = data / LABELS_FILE
    if file.is_file() and any(isinstance(label, str) for label in read_labels(file).values()):
        raise UsageError("rows must be file,label with whole numbers", where=str(file))


def _labels(labels: npt.ArrayLike, count: int, where: str) -> Labels:
    found = np.asarray(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    whole = found.shape == (count,) and found.dtype.kind in "iu"
    if not whole or np.any((found < 0) | (found > _MOST_CLASSES)):
        raise UsageError(f"labels must be {count} class numbers, one for each sample", where=where)
    return found.astype(np.int64)


def _digest(arrays: Mapping[str, Array], labels: Labels | None) -> str:
    """SHA-256 of everything, names and shapes included."""
    found = hashlib.sha256()
    for name, array in sorted({**arrays, **({} if labels is None else {"": labels})}.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
