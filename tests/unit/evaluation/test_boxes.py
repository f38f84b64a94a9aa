"""Average precision of boxes against a plain computation of it, and where boxes come to lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcompile.core.errors import UsageError
from tcompile.evaluation.boxes import Boxes, read_boxes
from tcompile.evaluation.collector import Batch
from tcompile.models.preprocess import load_image, placement

pytest.importorskip("pycocotools")
#: Width and height of all files, and of the model's image.
FILE, WHOLE = (60, 40), 32
RECORD = {"size": [WHOLE, WHOLE], "mean": [0.0] * 3, "std": [1.0] * 3, "resize": "squash"}
Box = tuple[float, float, float, float]


def scene(count: int) -> dict[str, Any]:
    """Two or three boxes an image, of categories 1 and 2."""
    rng = np.random.default_rng(0)
    boxes = []
    for image in range(count):
        for k in range(int(rng.integers(2, 4))):
            x, y = (float(v) for v in rng.uniform(0, 20, 2))
            w, h = (float(v) for v in rng.uniform(8, 20, 2))
            boxes.append({"image_id": image, "category_id": 1 + k % 2, "bbox": [x, y, w, h]})
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": FILE[0], "height": FILE[1]}
            for i in range(count)
        ],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def answers(document: dict[str, Any], noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, 6, 3] (cat, dog, no object) and boxes [B, 6, 4]: true ones moved, some more."""
    rng = np.random.default_rng(seed)
    count = len(document["images"])
    logits, boxes = rng.normal(size=(count, 6, 3)), rng.uniform(0.2, 0.5, size=(count, 6, 4))
    for image in range(count):
        mine = [a for a in document["annotations"] if a["image_id"] == image]
        for q, a in enumerate(mine):
            x, y, w, h = a["bbox"]
            moved = np.array([x + w / 2, y + h / 2, w, h]) + noise * rng.normal(size=4)
            boxes[image, q] = np.abs(moved) / [*FILE, *FILE]
            logits[image, q, a["category_id"] - 1] += 3
    return logits.astype(np.float32), boxes.astype(np.float32)


def overlap(a: Box, b: Box) -> float:
    x = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    y = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return x * y / (a[2] * a[3] + b[2] * b[3] - x * y)


def average_precision(
    document: dict[str, Any], logits: np.ndarray, boxes: np.ndarray, category: int, iou: float
) -> float:
    """As the paper has it: greedy matching by score, precision at 101 recalls."""
    found = []
    for image in range(len(logits)):
        for q in range(logits.shape[1]):
            shares = np.exp(logits[image, q].astype(float))
            shares /= shares.sum()
            if int(shares[:2].argmax()) + 1 == category:
                cx, cy, w, h = boxes[image, q].astype(float) * [*FILE, *FILE]
                found.append((-shares[:2].max(), image, (cx - w / 2, cy - h / 2, w, h)))
    found.sort(key=lambda f: f[0])
    true = [a for a in document["annotations"] if a["category_id"] == category]
    taken: set[int] = set()
    hits = []
    for _, image, box in found:
        free = [
            (overlap(box, tuple(a["bbox"])), -j)
            for j, a in enumerate(true)
            if a["image_id"] == image and j not in taken
        ]
        best = max(free, default=(0.0, 0))
        hits.append(best[0] >= iou)
        if hits[-1]:
            taken.add(-best[1])
    right = np.cumsum(hits)
    recall, precision = right / len(true), right / np.arange(1, len(hits) + 1)
    points = [
        max((p for p, r in zip(precision, recall, strict=True) if r >= at - 1e-12), default=0.0)
        for at in np.linspace(0, 1, 101)
    ]
    return float(np.mean(points))


def evaluated(document: dict[str, Any], path: Path, pair: Any, **options: Any) -> Any:
    path.write_text(json.dumps(document), encoding="utf-8")
    names = options.pop("names", ("cat", "dog"))
    classes = options.pop("classes", 3)
    record = options.pop("record", RECORD)
    collector = Boxes("logits", "boxes", read_boxes(path), names, classes, record, 2)
    ids = [e["file_name"] for e in document["images"]]
    outputs = [{"logits": logits, "boxes": boxes} for logits, boxes in pair]
    for part in (slice(0, 5), slice(5, None)):
        dense, reduced = ({n: a[part] for n, a in o.items()} for o in outputs)
        collector.add(Batch(ids[part], [None] * len(ids[part]), dense, reduced))
    return collector.found()


def test_average_precision(tmp_path: Path) -> None:
    document = scene(24)
    pair = [answers(document, 0.6, 1), answers(document, 2.0, 2)]
    found = evaluated(document, tmp_path / "b.json", pair)
    have = {m.name: m for m in found.measures}
    ious = [0.5 + 0.05 * i for i in range(10)]
    for side, (logits, boxes) in zip(("dense", "reduced"), pair, strict=True):
        want = np.array(
            [[average_precision(document, logits, boxes, c, t) for c in (1, 2)] for t in ious]
        )
        assert getattr(have["ap"], side) == pytest.approx(want.mean(), abs=1e-9)
        assert getattr(have["ap50"], side) == pytest.approx(want[0].mean(), abs=1e-9)
        assert getattr(have["ap75"], side) == pytest.approx(want[5].mean(), abs=1e-9)
        by_class = {row.number: getattr(row, side) for row in found.classes}
        assert by_class == pytest.approx({1: want[:, 0].mean(), 2: want[:, 1].mean()})
    ap = have["ap"]
    assert ap.interval == "jackknife"
    assert ap.low < ap.difference < ap.high < 0
    # Jackknife by hand: group g leaves out image g, and g + 20 where there is one.
    apart = []
    for g in range(20):
        kept = [i for i in range(24) if i % 20 != g]
        part = {
            **document,
            "annotations": [
                {**a, "image_id": kept.index(a["image_id"])}
                for a in document["annotations"]
                if a["image_id"] in kept
            ],
        }
        sides = [
            np.mean([average_precision(part, x[kept], b[kept], c, 0.5) for c in (1, 2)])
            for x, b in pair
        ]
        apart.append(sides[1] - sides[0])
    spread = 2.093 * np.sqrt(19 / 20 * np.sum((np.array(apart) - np.mean(apart)) ** 2))
    ap50 = have["ap50"]
    assert ap50.high - ap50.low == pytest.approx(2 * spread, rel=1e-6)
    worst = found.worst[0]
    assert worst.dense > worst.reduced


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_boxes_are_brought_back_to_the_file(tmp_path: Path, resize: str) -> None:
    """A white rectangle, found in the prepared image, lies where it was drawn."""
    record = {**RECORD, "size": [64, 64], "resize": resize}
    image = Image.new("RGB", (120, 80))
    image.paste((255, 255, 255), (50, 30, 74, 46))
    pixels = load_image(image, record)[0, 0] > 0.5
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    top, left = rows[0] / 64, columns[0] / 64
    high, wide = len(rows) / 64, len(columns) / 64
    box = np.array([[left + wide / 2, top + high / 2, wide, high]], np.float32)
    document = scene(1)
    document["images"][0].update(width=120, height=80)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    collector = Boxes("s", "b", read_boxes(path), ("cat", "dog"), 3, record, 1)
    found = collector._detections(np.array([[5.0, 0, 0]]), box, document["images"][0])
    assert found[0][0] == 0
    np.testing.assert_allclose(found[0][1:5], [50, 30, 24, 16], atol=1.5)
    assert found[0][6] == 1
    place = placement(120, 80, record)
    assert place.whole == (64, 64)


def test_one_sigmoid_a_class_where_there_is_none_for_no_object(tmp_path: Path) -> None:
    document = scene(1)
    (tmp_path / "b.json").write_text(json.dumps(document), encoding="utf-8")
    collector = Boxes("s", "b", read_boxes(tmp_path / "b.json"), ("dog", "cat"), 2, RECORD, 1)
    rows = collector._detections(
        np.array([[2.0, 1.0], [0.0, 3.0]]), np.full((2, 4), 0.5), document["images"][0]
    )
    assert [r[6] for r in rows] == [1, 2, 1, 2]  # dog, category 2, is the model's class 0
    assert [r[5] for r in rows] == pytest.approx([1 / (1 + np.exp(-s)) for s in (3, 2, 1, 0)])


def test_a_model_that_finds_nothing_of_these_categories(tmp_path: Path) -> None:
    document = scene(6)
    right, boxes = answers(document, 0.5, 1)
    other = np.full((6, 6, 1), -9.0)
    dense = np.concatenate([other, right], axis=2)
    pair = [(dense, boxes), (np.concatenate([other + 99, right], axis=2), boxes)]
    found = evaluated(document, tmp_path / "b.json", pair, names=("x", "cat", "dog"), classes=4)
    ap = found.measures[0]
    assert (ap.reduced, ap.low) == (0.0, None)  # fewer images than groups: no interval
    assert ap.dense > 0.5
    assert len(found.worst) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": None}, "is not a file of boxes in COCO's form"),
        ({"annotations": []}, "has no boxes"),
        (
            {"annotations": [{"image_id": 0, "category_id": 9, "bbox": [0, 0, 1, 1]}]},
            "of a known category",
        ),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}, "'b' is none of the"),
        ({"images": [{"id": 7, "file_name": "x", "width": 1, "height": 1}]}, "no boxes for image"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    document = scene(6)
    logits, boxes = answers(document, 0.5, 1)
    path = tmp_path / "b.json"
    path.write_text(json.dumps({**document, **change}), encoding="utf-8")
    outputs = {"logits": logits, "boxes": boxes}
    batch = Batch(["0.png"], [None], outputs, outputs)
    with pytest.raises(UsageError, match=says):
        Boxes("logits", "boxes", read_boxes(path), ("cat", "dog"), 3, RECORD, 2).add(batch)
    path.write_text(json.dumps(document), encoding="utf-8")
    truth = read_boxes(path)
    with pytest.raises(UsageError, match="has 5 classes, of which there are 2 or one more"):
        Boxes("logits", "boxes", truth, ("cat", "dog"), 5, RECORD, 2)


@pytest.mark.parametrize("ids", [["a/0.png", "b/0.png"], ["0.png", "0.png"]])
def test_two_images_of_one_entry(ids: list[str], tmp_path: Path) -> None:
    document = scene(6)
    logits, boxes = answers(document, 0.5, 1)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    outputs = {"logits": logits, "boxes": boxes}
    collector = Boxes("logits", "boxes", read_boxes(path), ("cat", "dog"), 3, RECORD, 2)
    with pytest.raises(UsageError, match=f"{ids[0]} and {ids[1]} have the same entry, 0.png"):
        collector.add(Batch(ids, [None] * 2, outputs, outputs))
