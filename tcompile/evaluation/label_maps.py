"""Semantic segmentation: scores [B, classes, h, w] against label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.evaluation.collector import Batch, Column
from tcompile.evaluation.findings import ClassRow, Damage, Measure, OutputFindings
from tcompile.evaluation.intervals import WeightedSums, mean
from tcompile.evaluation.worst import Worst
from tcompile.models.preprocess import load_label_map

Array = npt.NDArray[Any]
#: Pixels that have no class.
IGNORED = 255
#: The answer where no score is finite.
_NONE = -1


class LabelMaps:
    """Collects how well an output of class scores a place agrees with label maps.

    A map is a grey or palette image with one class number a pixel, of the name of its image with
    `.png`; 255 does not count. It is cut as its image is. Scores are enlarged to the size of the
    model's image, bilinearly with half-pixel centres; the class with the largest is the answer.

    - `miou`: the mean over the classes that the maps have of intersection over union, counted over
      all images; interval by the Poisson bootstrap over images.
    - `pixel`: share of right pixels, `pixel_agreement`: of pixels where both models say the same;
      the mean over images.

    Args:
        folder: of the maps.
        preprocessing: of the images.
        names: of the classes; empty: not known.
        classes: how many the output has.
    """

    def __init__(
        self,
        output: str,
        folder: Path,
        preprocessing: Mapping[str, Any],
        names: Sequence[str],
        classes: int,
        worst: int,
        seed: int,
    ) -> None:
        self.output, self._folder, self._preprocessing = output, folder, preprocessing
        self._names = tuple(names) if len(names) == classes else ()
        self._classes, self._seed = classes, seed
        self._worst = Worst(worst)
        # Intersections, unions (dense, reduced), pixels, and those with equal answers.
        self._sums = WeightedSums(6 * classes, seed)
        self._images = np.zeros(classes, np.int64)
        self._right = Column(), Column()
        self._same, self._alone = Column(), False

    def add(self, batch: Batch) -> None:
        """Take the scores of some samples."""
        self._alone = batch.alone
        for i, name in enumerate(batch.ids):
            truth = self._truth(name)
            dense, reduced = (
                _answers(o[self.output][i], (truth.shape[0], truth.shape[1]))
                for o in (batch.dense, batch.reduced)
            )
            known = truth != IGNORED
            if not known.any():
                continue
            self._add(name, truth[known], dense[known], reduced[known])

    def _add(self, name: str, truth: Array, dense: Array, reduced: Array) -> None:
        count = self._classes
        pixels = np.bincount(truth, minlength=count)
        parts, ious = [], []
        for said in (dense, reduced):
            answered = said[said != _NONE]
            hits = np.bincount(truth[truth == said], minlength=count)
            union = pixels + np.bincount(answered, minlength=count) - hits
            parts += [hits, union]
            here = pixels > 0
            ious.append(float((hits[here] / union[here]).mean()))
        agreed = (dense == reduced) & (reduced != _NONE)
        same = np.bincount(truth[agreed], minlength=count)
        self._sums.add(np.concatenate([*parts, pixels, same]))
        self._images += pixels > 0
        for column, said in zip(self._right, (dense, reduced), strict=True):
            column.add(np.asarray([(said == truth).mean()]))
        self._same.add(np.asarray([agreed.mean()]))
        self._worst.add(ious[0] - ious[1], Damage(name, "mIoU of the image", ious[0], ious[1]))

    def _truth(self, name: str) -> npt.NDArray[np.int64]:
        file = self._file(name)
        found = load_label_map(file, self._preprocessing, IGNORED)
        strange = found[(found != IGNORED) & ((found < 0) | (found >= self._classes))]
        if strange.size:
            raise UsageError(
                f"has class {int(strange[0])}, output '{self.output}' has classes 0 to "
                f"{self._classes - 1}, and {IGNORED} does not count",
                where=str(file),
            )
        return found

    def _file(self, name: str) -> Path:
        path = PurePosixPath(name).with_suffix(".png")
        for file in (self._folder / path, self._folder / path.name):
            if file.is_file():
                return file
        raise UsageError(f"there is no label map {path} for image {name}", where=str(self._folder))

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""
        if not self._images.any():
            remark = f"no pixel of the label maps has a class: all are {IGNORED}"
            return OutputFindings(self.output, "label map", "all", (), remarks=(remark,))
        total = self._sums.total.reshape(6, self._classes)
        dense, reduced = _miou(total[:5])
        count = len(self._same.values)
        low = high = None
        if count > 1:
            drawn = [_miou(row) for row in self._sums.sums.reshape(-1, 6, self._classes)[:, :5]]
            apart = np.asarray([after - (0 if self._alone else before) for before, after in drawn])
            low, high = (float(q) for q in np.nanquantile(apart, (0.025, 0.975)))
        kind = "bootstrap" if count > 1 else ""
        was, more = (None, None) if self._alone else (dense, reduced - dense)
        right = None if self._alone else self._right[0].values
        measures = [
            Measure("miou", was, reduced, more, low, high, kind, count),
            mean("pixel", self._right[1].values, right, seed=self._seed),
        ]
        if not self._alone:
            measures.append(mean("pixel_agreement", self._same.values, seed=self._seed))
        rows = []
        for number in np.flatnonzero(total[4]).tolist():
            hits, union, hits_r, union_r, pixels, same = total[:, number]
            label = self._names[number] if self._names else ""
            after, images = float(hits_r / union_r), int(self._images[number])
            before, agree = (None, None) if self._alone else (hits / union, float(same / pixels))
            rows.append(ClassRow(number, label, images, "iou", before, after, agree))
        rows.sort(key=lambda row: (row.dense or 0) - (row.reduced or 0), reverse=True)
        return OutputFindings(
            self.output,
            "label map",
            "all",
            tuple(m for m in measures if m is not None),
            tuple(rows),
            self._worst.found(),
        )


def _miou(sums: Array) -> tuple[float, float]:
    """Of dense and of reduced, from intersections, unions and pixels [5, classes]; NaN without any
    class. A class that the maps do not have counts by the mistakes that it makes in others."""
    there = sums[4] > 0
    if not there.any():
        return np.nan, np.nan
    dense, reduced = (float((sums[i][there] / sums[i + 1][there]).mean()) for i in (0, 2))
    return dense, reduced


def _answers(scores: Array, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The class of each pixel of the image [H, W], of scores [classes, h, w]; −1 where none of its
    scores is finite."""
    from PIL import Image

    if scores.shape[1:] != size:
        resized = [
            Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            for plane in scores.astype(np.float32)
        ]
        scores = np.stack([np.asarray(plane) for plane in resized])
    finite = np.isfinite(scores)
    answers = np.where(finite, scores, -np.inf).argmax(axis=0)
    return np.where(finite.any(axis=0), answers, _NONE)
