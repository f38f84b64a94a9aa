"""Scores of classes [B, classes]: top-1, top-5, agreement, and what becomes of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.evaluation.collector import NO_DENSE, Batch, Column
from tcompile.evaluation.findings import ClassRow, Damage, Measure, OutputFindings, Task
from tcompile.evaluation.intervals import paired_share, share
from tcompile.evaluation.labels import ClassNumbers
from tcompile.evaluation.worst import Worst

Array = npt.NDArray[Any]


class Classes:
    """Collects what an output of class scores says.

    A class whose score is NaN or Inf is the last of all; where all are, there is no answer, which
    is wrong. Of equal scores the first counts.

    Args:
        output: its name.
        names: of the classes; empty: not known.
        numbers: which class a label means; None: labels are not looked at.
        worst: images to keep.
        scores: what makes [B, classes] of the output; by default it is that.
        prefix: of the measures' names: `top1`, `top5` and `agreement` by default.
    """

    def __init__(
        self,
        output: str,
        names: Sequence[str],
        numbers: ClassNumbers | None,
        worst: int,
        *,
        scores: Callable[[Array], Array] = np.asarray,
        prefix: tuple[str, str] = ("top", ""),
        task: Task = "classes",
    ) -> None:
        self.output, self._names, self._numbers = output, tuple(names), numbers
        self._scores, self._prefix, self._task = scores, prefix, task
        self._worst = Worst(worst)
        self._answers = Column(np.int32), Column(np.int32)
        self._labels = Column(np.int32)
        self._ranks = Column(np.int32), Column(np.int32)
        self._count, self._alone = 0, False

    def add(self, batch: Batch) -> None:
        """Take the scores of some samples."""
        dense, reduced = (
            _finite(self._scores(o[self.output])) for o in (batch.dense, batch.reduced)
        )
        self._count, self._alone = dense.shape[1], batch.alone
        labels = np.full(len(dense), -1)
        if self._numbers is not None:
            pairs = zip(batch.labels, batch.ids, strict=True)
            labels = np.asarray([self._numbers.number(label, name) for label, name in pairs])
        answers = [_answer(scores) for scores in (dense, reduced)]
        self._labels.add(labels)
        for column, values in zip(self._answers, answers, strict=True):
            column.add(values)
        for column, scores in zip(self._ranks, (dense, reduced), strict=True):
            column.add(_rank(scores, labels))
        self._keep_worst(batch.ids, labels, dense, reduced, answers)

    def _keep_worst(
        self, ids: Sequence[str], labels: Array, dense: Array, reduced: Array, answers: list[Array]
    ) -> None:
        shares = [_softmax(scores) for scores in (dense, reduced)]
        for i, name in enumerate(ids):
            meant = int(labels[i]) if labels[i] >= 0 else int(answers[0][i])
            if meant < 0:
                continue
            had, has = float(shares[0][i, meant]), float(shares[1][i, meant])
            if self._worst.wants(had - has):
                said = (self._name(answers[0][i]), self._name(answers[1][i]))
                label = self._name(labels[i]) if labels[i] >= 0 else ""
                words = f"probability of {self._name(meant)}"
                self._worst.add(had - has, Damage(name, words, had, has, label, said))

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""
        top, plain = self._prefix
        (dense, reduced), labels = (c.values for c in self._answers), self._labels.values
        known = labels >= 0
        measures: list[Measure] = []
        if known.any():
            ranks = [c.values[known] for c in self._ranks]
            most = (1, 5) if self._count > 5 else (1,)
            for k in most:
                right = [(r >= 0) & (r < k) for r in ranks]
                measures.append(
                    paired_share(f"{top}{k}", None if self._alone else right[0], right[1])
                )
        if not self._alone:
            measures.append(share(f"{plain}agreement", (dense == reduced) & (reduced >= 0)))
        remarks = (self._numbers.rule,) if self._numbers is not None and known.any() else ()
        remarks = remarks if measures else (f"without labels {NO_DENSE}",)
        rows = self._rows(dense, reduced, labels)
        return OutputFindings(
            self.output, self._task, "all", tuple(measures), rows, self._worst.found(), remarks
        )

    def _rows(self, dense: Array, reduced: Array, labels: Array) -> tuple[ClassRow, ...]:
        """One row a class that occurs, the most damaged first."""
        known = labels >= 0
        group = labels if known.any() else dense
        rows = []
        for number in np.unique(group[group >= 0]).tolist():
            here = group == number
            before, after, count = dense[here], reduced[here], int(here.sum())
            same = None if self._alone else float(((before == after) & (after >= 0)).mean())
            right: tuple[float | None, float | None] = (None, None)
            if known.any():
                was = None if self._alone else float((before == number).mean())
                right = (was, float((after == number).mean()))
            measure = f"{self._prefix[0]}1" if known.any() else f"{self._prefix[1]}agreement"
            rows.append(ClassRow(number, self._label(number), count, measure, *right, same))
        return tuple(sorted(rows, key=_damage, reverse=True))

    def _label(self, number: int) -> str:
        return self._names[number] if len(self._names) == self._count else ""

    def _name(self, number: int) -> str:
        number = int(number)
        return "none" if number < 0 else self._label(number) or f"class {number}"


def _damage(row: ClassRow) -> tuple[float, float, int]:
    lost = 0.0 if row.dense is None or row.reduced is None else row.dense - row.reduced
    return lost, -(row.agreement or 0.0), row.images


def _finite(scores: Array) -> Array:
    wide = scores.astype(np.float64)
    return np.where(np.isfinite(wide), wide, -np.inf)


def _answer(scores: Array) -> Array:
    return np.where(np.isfinite(scores).any(axis=1), scores.argmax(axis=1), -1)


def _rank(scores: Array, labels: Array) -> Array:
    """How many classes come before the right one; −1 where it is not known or not finite."""
    rows = np.arange(len(scores))
    own = scores[rows, labels.clip(min=0)][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    return np.where((labels >= 0) & np.isfinite(own[:, 0]), rank, -1)


def _softmax(scores: Array) -> Array:
    """Shares of the classes; of a row with nothing finite all are 0."""
    top = scores.max(axis=1, keepdims=True)
    found = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = found.sum(axis=1, keepdims=True)
    shares: Array = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
    return shares
