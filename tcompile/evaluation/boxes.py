"""Object detection: class scores [B, Q, C] and boxes [B, Q, 4] against boxes in COCO's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.core.packages import require
from tcompile.evaluation.collector import Batch
from tcompile.evaluation.findings import ClassRow, Damage, Measure, OutputFindings
from tcompile.evaluation.labels import plain_name
from tcompile.evaluation.worst import Worst
from tcompile.models.preprocess import placement

Array = npt.NDArray[Any]
#: Detections of an image that count, as in COCO.
_MOST = 100
#: Groups of the jackknife, and the quantile of Student's t with one less that leaves 2.5 % above.
_GROUPS, _T = 20, 2.093


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The boxes of a data set.

    Attributes:
        document: as COCO has it, with `images`, `annotations` and `categories`.
        images: file name → its entry.
        categories: id → name.
    """

    document: dict[str, Any]
    images: Mapping[str, Mapping[str, Any]]
    categories: Mapping[int, str]


def read_boxes(path: str | Path) -> TrueBoxes:
    """Read boxes in COCO's form (`instances_val2017.json`); masks in it are not looked at.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        document = json.loads(read_text(path))  # of masks it may have millions of numbers
        images = {str(e["file_name"]): e for e in document["images"]}
        categories = {int(e["id"]): str(e["name"]) for e in document["categories"]}
        for entry in document["images"]:
            _ = int(entry["id"]), int(entry["width"]), int(entry["height"])
        made: list[dict[str, Any]] = []
        for entry in document["annotations"]:
            box = [float(v) for v in entry["bbox"]]
            if len(box) != 4 or int(entry["category_id"]) not in categories:
                raise ValueError("a box that is not [x, y, width, height] of a known category")
            made.append(
                {
                    "id": len(made) + 1,
                    "image_id": int(entry["image_id"]),
                    "category_id": int(entry["category_id"]),
                    "bbox": box,
                    "area": float(entry.get("area", box[2] * box[3])),
                    "iscrowd": int(entry.get("iscrowd", 0)),
                }
            )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"is not a file of boxes in COCO's form: {type(error).__name__} {error}",
            where=str(path),
        ) from error
    if not made:
        raise UsageError("has no boxes", where=str(path))
    known = ("images", "categories")
    return TrueBoxes({**{k: document[k] for k in known}, "annotations": made}, images, categories)


class Boxes:
    """Collects the average precision of an output of boxes, by pycocotools.

    Boxes are those of DETR and its kin: centre, width and height as shares of the model's image.
    Scores are a softmax whose last class is no object where there is one class more than names
    (DETR, YOLOS); else one sigmoid a class (Deformable DETR, RT-DETR). The best 100 count.

    - `ap`, `ap50`, `ap75`: COCO's, boxes of all sizes. The interval of the difference is that of
      a jackknife that leaves out each of twenty groups of images in turn.

    Args:
        scores, boxes: names of the outputs.
        names: of the model's classes; empty: their numbers are the categories' ids.
        classes: numbers of scores of a query.
        preprocessing: of the images.

    Raises:
        UsageError: which category a class is cannot be told.
        MissingExtraError: pycocotools is not installed.
    """

    def __init__(
        self,
        scores: str,
        boxes: str,
        truth: TrueBoxes,
        names: Sequence[str],
        classes: int,
        preprocessing: Mapping[str, Any],
        worst: int,
    ) -> None:
        require("pycocotools.cocoeval", "data", "average precision of boxes")
        self.output, self._scores, self._truth = boxes, scores, truth
        self._preprocessing, self._most = preprocessing, worst
        count = len(names) or max(truth.categories) + 1
        if classes not in (count, count + 1):
            raise UsageError(
                f"output '{scores}' has {classes} classes, of which there are {count} or one more"
            )
        self._softmax = classes == count + 1
        self._categories = _categories(truth, names, count)
        self._found: tuple[list[Array], list[Array]] = ([], [])
        self._ids: dict[int, str] = {}
        self._alone = False

    def add(self, batch: Batch) -> None:
        """Take the outputs of some samples."""
        self._alone = batch.alone
        for i, name in enumerate(batch.ids):
            entry = self._truth.images.get(name)
            entry = entry or self._truth.images.get(PurePosixPath(name).name)
            if entry is None:
                raise UsageError(f"there are no boxes for image {name}", where="--boxes")
            first = self._ids.setdefault(int(entry["id"]), name)
            if first != name or len(self._ids) <= len(self._found[0]):
                raise UsageError(
                    f"images {first} and {name} have the same entry, {entry['file_name']}",
                    where="--boxes",
                    hint="each image once; file_name may have its folders",
                )
            for outputs, rows in zip((batch.dense, batch.reduced), self._found, strict=True):
                rows.append(
                    self._detections(outputs[self._scores][i], outputs[self.output][i], entry)
                )

    def _detections(self, scores: Array, boxes: Array, entry: Mapping[str, Any]) -> Array:
        """Rows image, x, y, width, height, score, category, in pixels of the file."""
        wide = np.nan_to_num(scores.astype(np.float64), nan=-1e9, posinf=1e9, neginf=-1e9)
        if self._softmax:
            shares = np.exp(wide - wide.max(axis=1, keepdims=True))
            shares = (shares / shares.sum(axis=1, keepdims=True))[:, :-1]
            queries, classes = np.arange(len(shares)), shares.argmax(axis=1)
        else:
            shares = 1 / (1 + np.exp(-wide.clip(-500, 500)))
            queries, classes = (x.ravel() for x in np.indices(shares.shape))
        best = shares[queries, classes]
        known = np.isin(classes, list(self._categories))
        queries, classes, best = queries[known], classes[known], best[known]
        order = np.argsort(-best, kind="stable")[:_MOST]
        place = placement(int(entry["width"]), int(entry["height"]), self._preprocessing)
        whole, offset, size = (np.asarray(x) for x in (place.whole, place.offset, place.size))
        picked = np.nan_to_num(boxes[queries[order]].astype(np.float64))
        scale = np.asarray([int(entry["width"]), int(entry["height"])]) / size
        corner = ((picked[:, :2] - picked[:, 2:] / 2) * whole - offset) * scale
        extent = picked[:, 2:] * whole * scale
        image = np.full((len(order), 1), int(entry["id"]))
        categories = [[self._categories[int(classes[k])]] for k in order]
        category = np.asarray(categories, np.float64).reshape(-1, 1)
        return np.hstack([image, corner, extent, best[order, np.newaxis], category])

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""
        images = sorted(self._ids)
        with redirect_stdout(StringIO()):  # pycocotools prints
            dense, reduced = (
                _evaluated(self._truth, np.concatenate(rows), images) for rows in self._found
            )
            pair = [_precisions(e, np.arange(len(images))) for e in (dense, reduced)]
            kept = _left_out(len(images))
            drawn = np.asarray(
                [
                    _summary(_precisions(reduced, k))
                    - (0 if self._alone else _summary(_precisions(dense, k)))
                    for k in kept
                ]
            )
        before, after = map(_summary, pair)
        measures = []
        for i, name in enumerate(("ap", "ap50", "ap75")):
            if not np.isfinite(before[i]) or not np.isfinite(after[i]):
                continue
            low = high = None
            more = float(after[i] - (0 if self._alone else before[i]))
            if len(drawn) > 1 and np.isfinite(drawn[:, i]).all():
                groups = len(drawn)
                spread = (groups - 1) / groups * ((drawn[:, i] - drawn[:, i].mean()) ** 2).sum()
                low, high = more - _T * spread**0.5, more + _T * spread**0.5
            kind = "jackknife" if low is not None else ""
            was, apart = (None, None) if self._alone else (float(before[i]), more)
            measures.append(
                Measure(name, was, float(after[i]), apart, low, high, kind, len(images))
            )
        remarks = () if measures else ("none of the images has a box",)
        rows = _rows(self._truth, pair, self._ids)
        if self._alone:
            rows = tuple(replace(row, dense=None) for row in rows)
        worst = self._worst(dense, reduced, images)
        return OutputFindings(self.output, "boxes", "all", tuple(measures), rows, worst, remarks)

    def _worst(self, dense: Any, reduced: Any, images: Sequence[int]) -> tuple[Damage, ...]:
        """Images by the share of their boxes that is found, at an IoU of 0.5."""
        worst = Worst(self._most)
        for i, image in enumerate(images):
            had, has = (_share_found(e, i) for e in (dense, reduced))
            words = "boxes found at IoU 0.5"
            worst.add(had - has, Damage(self._ids[image], words, had, has))
        return worst.found()


def _categories(truth: TrueBoxes, names: Sequence[str], count: int) -> dict[int, int]:
    """Class → category: by name where the model has the names of all, else its number is the id."""
    by_name = {plain_name(name): i for i, name in enumerate(names)}
    if all(plain_name(name) in by_name for name in truth.categories.values()):
        return {by_name[plain_name(n)]: number for number, n in truth.categories.items()}
    strange = next((n for i, n in truth.categories.items() if not 0 <= i < count), None)
    if strange is not None:
        raise UsageError(
            f"category '{strange}' is none of the model's {count} classes, by name or by number",
            where="--boxes",
        )
    return {number: number for number in truth.categories}


def _evaluated(truth: TrueBoxes, rows: Array, images: Sequence[int]) -> Any:
    """Detections matched to boxes, image by image."""
    coco = require("pycocotools.coco", "data", "average precision of boxes")
    cocoeval = require("pycocotools.cocoeval", "data", "average precision of boxes")
    boxes = coco.COCO()
    boxes.dataset = truth.document
    boxes.createIndex()
    if len(rows):
        detections = boxes.loadRes(rows)
    else:
        detections = coco.COCO()
        detections.dataset = {**truth.document, "annotations": []}
        detections.createIndex()
    found = cocoeval.COCOeval(boxes, detections, "bbox")
    found.params.imgIds = list(images)
    found.params.catIds = sorted(truth.categories)
    found.params.areaRng, found.params.areaRngLbl = found.params.areaRng[:1], ["all"]
    found.params.maxDets = [_MOST]
    found.evaluate()
    return found


def _precisions(evaluator: Any, kept: npt.NDArray[np.int64]) -> Array:
    """Precision over some of the images: [IoUs, recalls, categories], −1 where there is no box."""
    whole, images = evaluator.evalImgs, evaluator.params.imgIds
    try:
        rows = [whole[k * len(images) + i] for k in range(len(whole) // len(images)) for i in kept]
        evaluator.evalImgs = rows
        evaluator.params.imgIds = [images[i] for i in kept]
        evaluator._paramsEval.imgIds = evaluator.params.imgIds
        evaluator.accumulate()
        return np.asarray(evaluator.eval["precision"][:, :, :, 0, 0])
    finally:
        evaluator.evalImgs, evaluator.params.imgIds = whole, images
        evaluator._paramsEval.imgIds = images


def _left_out(count: int) -> list[npt.NDArray[np.int64]]:
    """The images that are left of each group's being left out; none where there are too few."""
    if count < _GROUPS:
        return []
    numbers = np.arange(count)
    return [numbers[numbers % _GROUPS != g] for g in range(_GROUPS)]


def _summary(precisions: Array) -> Array:
    """AP, AP50 and AP75."""
    parts = (precisions, precisions[0], precisions[5])
    return np.asarray([p[p > -1].mean() if (p > -1).any() else np.nan for p in parts])


def _rows(
    truth: TrueBoxes, pair: Sequence[Array], images: Mapping[int, str]
) -> tuple[ClassRow, ...]:
    rows = []
    for k, number in enumerate(sorted(truth.categories)):
        before, after = (p[:, :, k] for p in pair)
        if not (before > -1).any():
            continue
        here = {a["image_id"] for a in truth.document["annotations"] if a["category_id"] == number}
        figures = float(before[before > -1].mean()), float(after[after > -1].mean())
        count = len(here & images.keys())
        rows.append(ClassRow(number, truth.categories[number], count, "ap", *figures, None))
    rows.sort(key=lambda row: (row.dense or 0) - (row.reduced or 0), reverse=True)
    return tuple(rows)


def _share_found(evaluator: Any, image: int) -> float:
    """Share of an image's boxes that a detection was matched to, at the first IoU, 0.5."""
    total = found = 0
    for row in evaluator.evalImgs[image :: len(evaluator.params.imgIds)]:
        if row is not None:
            real = ~np.asarray(row["gtIgnore"], bool)
            total += int(real.sum())
            found += int((np.asarray(row["gtMatches"])[0] > 0)[real].sum())
    return found / total if total else 0.0
