"""Embeddings [B, D]: how near they stayed, nearest neighbours and retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.data.base import Label
from tcompile.evaluation.collector import NO_DENSE, Batch, Column
from tcompile.evaluation.findings import ClassRow, Damage, Measure, OutputFindings
from tcompile.evaluation.intervals import mean, paired_share, share
from tcompile.evaluation.worst import Worst
from tcompile.evaluation.zero_shot import normalized
from tcompile.runtime.metrics import cosine

Array = npt.NDArray[Any]
#: Images whose embeddings are held, for what compares images with each other.
GALLERY = 20_000
#: Neighbours that vote, and the temperature of their votes: DINO's (Caron et al. 2021).
NEIGHBOURS, _TEMPERATURE = 20, 0.07
#: Neighbours that are compared between the two models.
_NEAREST = 10
#: Queries at a time.
_ROWS = 256


class Embeddings:
    """Collects embeddings of both models.

    - `cosine`: of each image's two embeddings.
    - `neighbours`: share of the ten nearest other images that the two models have in common.
    - `own`: share of images whose reduced embedding is nearer to their own dense one than to that
      of any other image: whether an index of dense embeddings can stay.
    - with labels, each image asking all the others: `knn`, the class for which its 20 nearest vote
      (weights exp(cosine / 0.07), as DINO's evaluation); `recall1`, whether the nearest is of its
      class; `map`, the mean average precision of the images of its class.

    An embedding that has NaN or Inf, or is 0, is near nothing: it has no neighbours and is of no
    class.

    Args:
        seed: of the bootstrap.
    """

    def __init__(self, output: str, worst: int, seed: int) -> None:
        self.output, self._seed = output, seed
        self._worst, self._cosine = Worst(worst), Column()
        self._held: tuple[list[Array], list[Array]] = ([], [])
        self._labels: list[Label | None] = []
        self._alone = False

    def add(self, batch: Batch) -> None:
        """Take the embeddings of some samples."""
        dense, reduced = batch.dense[self.output], batch.reduced[self.output]
        self._alone = batch.alone
        near = cosine(dense, reduced)
        self._cosine.add(near)
        for name, value in zip(batch.ids, near.tolist(), strict=True) if not self._alone else ():
            self._worst.add(1 - value, Damage(name, "cosine to dense", 1.0, value))
        room = GALLERY - len(self._labels)
        if room > 0:
            self._labels += batch.labels[:room]
            for held, rows in zip(self._held, (dense, reduced), strict=True):
                sound = np.isfinite(rows[:room]).all(axis=1, keepdims=True)
                held.append(normalized(np.where(sound, rows[:room], 0)))

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""
        measures: list[Measure | None] = []
        if not self._alone:
            measures.append(mean("cosine", self._cosine.values, seed=self._seed))
        dense, reduced = (np.concatenate(held) for held in self._held)
        classes: tuple[ClassRow, ...] = ()
        remarks = []
        if len(self._cosine.values) > len(dense):
            remarks.append(f"neighbours are those among the first {len(dense)} images")
        if len(dense) > 1:
            if not self._alone:
                nearest, own = _compared(dense, reduced)
                measures.append(mean("neighbours", nearest, seed=self._seed))
                measures.append(share("own", own))
            numbers = {n: i for i, n in enumerate(dict.fromkeys(self._labels)) if n is not None}
            labels = np.asarray([numbers.get(n, -1) if n is not None else -1 for n in self._labels])
            known = labels >= 0
            if known.sum() > 1:
                sides = (reduced,) if self._alone else (reduced, dense)
                found = [_asked(x[known], labels[known], len(numbers)) for x in sides]
                voted_r, first_r, precision_r = found[0]
                voted, first, precision = found[-1] if not self._alone else (None, None, None)
                right_r = voted_r == labels[known]
                right = None if voted is None else voted == labels[known]
                measures.append(paired_share("knn", right, right_r))
                measures.append(paired_share("recall1", first, first_r))
                measures.append(mean("map", precision_r, precision, seed=self._seed))
                names = {i: n for n, i in numbers.items()}
                same = None if voted is None else voted == voted_r
                classes = tuple(_rows(labels[known], names, right, right_r, same))
        if not measures:
            remarks.append(f"without labels {NO_DENSE}")
        shown = tuple(m for m in measures if m is not None)
        return OutputFindings(
            self.output, "embedding", "all", shown, classes, self._worst.found(), tuple(remarks)
        )


def _compared(dense: Array, reduced: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Share of nearest neighbours in common, and whether each finds its own dense embedding."""
    count = len(dense)
    most = min(_NEAREST, count - 1)
    common, own = np.empty(count), np.empty(count, bool)
    for rows in _queries(count):
        sets = []
        for side in (dense, reduced):
            near = _without_self(side[rows] @ side.T, rows)
            sets.append(np.argpartition(-near, most - 1, axis=1)[:, :most])
        common[rows] = [len(np.intersect1d(a, b)) / most for a, b in zip(*sets, strict=True)]
        cross = reduced[rows] @ dense.T
        mine = cross[np.arange(len(rows)), rows]
        own[rows] = mine >= cross.max(axis=1)
    there = dense.any(axis=1) & reduced.any(axis=1)
    return np.where(there, common, 0.0), own & there


def _asked(rows: Array, labels: Array, classes: int) -> tuple[Array, npt.NDArray[np.bool_], Array]:
    """The class that neighbours vote for, whether the nearest is of the right one, and average
    precision (NaN where no other image is of that class)."""
    count = len(rows)
    most = min(NEIGHBOURS, count - 1)
    voted, first, precision = np.empty(count, int), np.empty(count, bool), np.full(count, np.nan)
    for at in _queries(count):
        near = _without_self(rows[at] @ rows.T, at)
        order = np.argsort(-near, axis=1, kind="stable")[:, : count - 1]
        same = labels[order] == labels[at][:, None]
        first[at] = same[:, 0]
        votes = np.zeros((len(at), classes))
        weights = np.exp(np.take_along_axis(near, order[:, :most], 1) / _TEMPERATURE)
        np.add.at(votes, (np.arange(len(at))[:, None], labels[order[:, :most]]), weights)
        voted[at] = votes.argmax(axis=1)
        ranks = np.cumsum(same, axis=1) / np.arange(1, count)
        relevant = same.sum(axis=1)
        total = (ranks * same).sum(axis=1)
        precision[at] = np.divide(total, relevant, out=np.full(len(at), np.nan), where=relevant > 0)
    there = rows.any(axis=1)
    missed = np.where(np.isnan(precision), np.nan, 0.0)
    return np.where(there, voted, -1), first & there, np.where(there, precision, missed)


def _queries(count: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, count, _ROWS):
        yield np.arange(start, min(start + _ROWS, count))


def _without_self(near: Array, rows: Array) -> Array:
    """Cosines with that of each row to itself set below all others."""
    near[np.arange(len(rows)), rows] = -np.inf
    return near


def _rows(
    labels: Array, names: dict[int, Label], dense: Array | None, reduced: Array, same: Array | None
) -> Iterator[ClassRow]:
    """One row a class, the most damaged first."""
    found = []
    for number in np.unique(labels).tolist():
        here, name = labels == number, names[number]
        before = None if dense is None else float(dense[here].mean())
        after = float(reduced[here].mean())
        index, label = (name, "") if isinstance(name, int) else (number, name)
        agree = None if same is None else float(same[here].mean())
        found.append(ClassRow(index, label, int(here.sum()), "knn", before, after, agree))
    yield from sorted(
        found, key=lambda r: ((r.dense or 0) - (r.reduced or 0), r.images), reverse=True
    )
