"""Calibration data: images of a folder, arrays, or what a loader script yields."""

from __future__ import annotations

import csv
import hashlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.arrays import read_arrays
from tcompile.core.errors import UsageError
from tcompile.core.files import read_text, regular_file
from tcompile.passes.stages import Analysed
from tcompile.planning.request import Request
from tcompile.runtime.arrays import LABELS
from tcompile.runtime.samples import Samples, sample_arrays, samples_for
from tcompile.runtime.signature import Signature, signature

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

#: Class numbers lie below this.
_MOST_CLASSES = 1 << 31
#: On which rules are weighed.
_IMAGES = 16
#: The file of a folder's labels.
LABELS_FILE = "labels.csv"


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
        """Some of the samples."""
        arrays = {name: array[chosen] for name, array in self.samples.arrays.items()}
        labels = None if self.labels is None else self.labels[chosen]
        return Calibration.of(replace(self.samples, arrays=arrays, source=source, files=()), labels)


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

    A script (`loader.py`) is the user's own program and is executed, with all that it may do: only
    because it was named here, never because it was found. Everything else is read as data alone.

    Args:
        model_path: its file, or its inputs (`signature_of`).
        preprocess: how images are prepared, in place of what the model records.
        data: a folder of images, prepared as `tcompile export` recorded in the model, with the
            labels in `labels.csv` (file,label) if there are any; images that cannot be read are
            left out, and counted; an .npz of arrays by input name and perhaps `labels`; or a .py
            that defines `load_data()`, which yields dicts of arrays by input name, a batch each,
            perhaps with `labels` (what polygraphy's `--data-loader-script` takes).

    Raises:
        UsageError: no such file, or data that does not fit the model.
    """
    path = Path(data)
    if not isinstance(model_path, Signature):
        model_path = signature(model_path).whole
    model = model_path.prepared(preprocess)
    if path.suffix == ".py" and regular_file(path):
        arrays, labels = _run_loader(path)
        return Calibration.of(sample_arrays(model, arrays, path), labels)
    samples = samples_for(model, path, skip_unreadable=True)
    return Calibration.of(samples, _labels_of(path, samples))


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


def _labels_of(path: Path, samples: Samples) -> npt.ArrayLike | None:
    """The labels that lie in or beside the samples."""
    if path.is_dir() and (path / LABELS_FILE).exists():
        return _labels_csv(path, samples.files)
    return read_arrays(path).get(LABELS) if path.suffix == ".npz" else None


def _labels_csv(folder: Path, files: Sequence[Path]) -> list[int]:
    """Labels of the images of a folder."""
    where = str(folder / LABELS_FILE)
    given: dict[str, int] = {}
    try:
        for row in csv.reader(read_text(where).splitlines()):
            if len(row) < 2 or (row[0], row[1]) == ("file", "label"):
                continue
            given[Path(row[0]).as_posix()] = int(row[1])
    except (ValueError, csv.Error) as error:
        raise UsageError("rows must be file,label with whole numbers", where=where) from error
    names = [p.relative_to(folder).as_posix() for p in files]
    missing = [n for n in names if n not in given]
    if missing:
        raise UsageError(
            f"has no label for {missing[0]}",
            where=where,
            hint="a row file,label for every image of the folder",
        )
    return [given[n] for n in names]


def _run_loader(path: Path) -> tuple[dict[str, Array], Array | None]:
    """The arrays and labels that the script's `load_data()` yields, joined."""
    where = str(path)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            load = runpy.run_path(where).get("load_data")
            if not callable(load):
                raise UsageError("defines no load_data()", where=where)
            parts = list(load())
        if not parts or any(not isinstance(p, Mapping) or set(p) != set(parts[0]) for p in parts):
            raise UsageError(
                "load_data() must yield dicts of arrays, all with the same names", where=where
            )
        names = list(parts[0])
        arrays = [[np.atleast_1d(np.asarray(p[n])) for p in parts] for n in names]
    except (UsageError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # The script, and what it yields, may raise anything.
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise UsageError(f"fails: {said}", where=where) from error
    try:
        joined = {str(n): np.concatenate(each) for n, each in zip(names, arrays, strict=True)}
    except (ValueError, TypeError) as error:
        raise UsageError("load_data() yields arrays of different shapes", where=where) from error
    labels = joined.pop(LABELS, None)
    return joined, labels


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
