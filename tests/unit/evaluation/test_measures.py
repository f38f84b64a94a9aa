"""Every figure against a computation that shares no code with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcompile.core.errors import UsageError, VerificationError
from tcompile.data.base import Label, Source
from tcompile.evaluation.classes import Classes
from tcompile.evaluation.collector import Batch, Collector
from tcompile.evaluation.embeddings import Embeddings
from tcompile.evaluation.features import Features, Numbers
from tcompile.evaluation.findings import Damage, Measure, OutputFindings
from tcompile.evaluation.kept import NEXT_FRAME, Overlaps
from tcompile.evaluation.label_maps import LabelMaps
from tcompile.evaluation.labels import ClassNumbers
from tcompile.evaluation.result import Bound, fault, judged
from tcompile.evaluation.worst import Worst
from tcompile.evaluation.zero_shot import read_texts
from tests.support.colours import RECORD

PLAIN = Source("data", lambda: iter(()))


def collect(
    collector: Collector,
    dense: np.ndarray,
    reduced: np.ndarray,
    labels: Sequence[Label | None] | None = None,
    **extra: np.ndarray,
) -> OutputFindings:
    """Feed a collector in batches of 7."""
    count = len(dense)
    labels = labels or [None] * count
    for at in range(0, count, 7):
        part = slice(at, at + 7)
        ids = [f"{i}.png" for i in range(count)][part]
        told = {name: array[part] for name, array in extra.items()}
        collector.add(Batch(ids, labels[part], {"x": dense[part]}, {"x": reduced[part], **told}))
    return collector.found()


def measures(found: OutputFindings) -> dict[str, Measure]:
    return {m.name: m for m in found.measures}


def noisy(shape: tuple[int, ...], noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=shape).astype(np.float32)
    return dense, (dense + noise * rng.normal(size=shape)).astype(np.float32)


def test_classes() -> None:
    dense, reduced = noisy((40, 8), 1.0)
    labels = np.random.default_rng(1).integers(8, size=40)
    labels[:25] = dense[:25].argmax(axis=1)
    names = [f"name {i}" for i in range(8)]
    collector = Classes("x", names, ClassNumbers(PLAIN, names, 8, "x"), worst=3)
    found = collect(collector, dense, reduced, labels.tolist())
    have = measures(found)
    ranks = {}
    for side, scores in (("dense", dense), ("reduced", reduced)):
        ranks[side] = [
            sorted(row, reverse=True).index(row[y]) for row, y in zip(scores, labels, strict=True)
        ]
    for k in (1, 5):
        assert have[f"top{k}"].dense == sum(r < k for r in ranks["dense"]) / 40
        assert have[f"top{k}"].reduced == sum(r < k for r in ranks["reduced"]) / 40
    same = [np.argmax(a) == np.argmax(b) for a, b in zip(dense, reduced, strict=True)]
    assert have["agreement"].reduced == sum(same) / 40
    for row in found.classes:
        mine = [i for i in range(40) if labels[i] == row.number]
        assert (row.images, row.label) == (len(mine), names[row.number])
        assert row.dense == sum(ranks["dense"][i] == 0 for i in mine) / len(mine)
        assert row.reduced == sum(ranks["reduced"][i] == 0 for i in mine) / len(mine)
        assert row.agreement == sum(same[i] for i in mine) / len(mine)
    lost = [(r.dense or 0) - (r.reduced or 0) for r in found.classes]
    assert lost == sorted(lost, reverse=True)

    def share(row: np.ndarray, label: int) -> float:
        return math.exp(row[label]) / sum(math.exp(v) for v in row)

    pairs = [(share(dense[i], y), share(reduced[i], y), f"{i}.png") for i, y in enumerate(labels)]
    pairs.sort(key=lambda p: p[1] - p[0])
    assert [w.id for w in found.worst] == [p[2] for p in pairs[:3]]
    assert found.worst[0].dense == pytest.approx(pairs[0][0])
    assert found.worst[0].reduced == pytest.approx(pairs[0][1])
    assert found.worst[0].measure == f"probability of {found.worst[0].label}"


def test_classes_without_labels_are_those_that_dense_says() -> None:
    dense, reduced = noisy((30, 4), 1.0)
    found = collect(Classes("x", (), None, worst=2), dense, reduced)
    assert set(measures(found)) == {"agreement"}
    for row in found.classes:
        mine = [i for i in range(30) if dense[i].argmax() == row.number]
        same = [reduced[i].argmax() == row.number for i in mine]
        assert (row.images, row.agreement) == (len(mine), sum(same) / len(mine))
        assert (row.dense, row.reduced, row.label) == (None, None, "")


def test_scores_that_are_not_finite_are_no_answer() -> None:
    nan, inf = np.nan, np.inf
    dense = np.array([[0.0, 1], [1, 0], [0, 1]])
    reduced = np.array([[nan, 1], [nan, nan], [inf, 0]])
    numbers = ClassNumbers(PLAIN, (), 2, "x")
    have = measures(collect(Classes("x", (), numbers, 1), dense, reduced, [1, 0, 1]))
    assert (have["top1"].dense, have["top1"].reduced) == (1.0, 2 / 3)
    assert have["agreement"].reduced == 2 / 3


def test_zero_shot(tmp_path: Path) -> None:
    images, reduced = noisy((20, 6), 0.5)
    texts = np.random.default_rng(5).normal(size=(4, 6))
    labels = [int(i) for i in np.random.default_rng(6).integers(4, size=20)]
    np.savez(tmp_path / "t.npz", embeddings=texts, classes=np.array(["a", "b", "c", "d"]))
    read = read_texts(tmp_path / "t.npz")
    assert read.names == ("a", "b", "c", "d")
    collector = Classes(
        "x",
        read.names,
        ClassNumbers(PLAIN, read.names, 4, "texts"),
        1,
        scores=read.scores(),
        prefix=("zeroshot", "zeroshot_"),
    )
    have = measures(collect(collector, images, reduced, labels))

    def best(image: np.ndarray) -> int:
        near = [
            float(image @ t) / float(np.linalg.norm(image)) / float(np.linalg.norm(t))
            for t in texts
        ]
        return near.index(max(near))

    for side, rows in (("dense", images), ("reduced", reduced)):
        want = sum(best(row) == y for row, y in zip(rows, labels, strict=True)) / 20
        assert getattr(have["zeroshot1"], side) == want
    want = sum(best(a) == best(b) for a, b in zip(images, reduced, strict=True)) / 20
    assert have["zeroshot_agreement"].reduced == want
    # Templates: embeddings of length 1 are averaged.
    np.save(tmp_path / "many.npy", np.stack([texts, 3 * texts], axis=1))
    np.testing.assert_allclose(read_texts(tmp_path / "many.npy").rows, read.rows, atol=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"embeddings": np.ones(4)},
        {"other": np.ones((2, 2))},
        {"embeddings": np.full((2, 2), np.nan)},
        {"embeddings": np.ones((2, 2)), "classes": np.array(["a"])},
    ],
)
def test_files_of_texts_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(UsageError, match=r"holds no 'embeddings'|must be 2 names"):
        read_texts(tmp_path / "t.npz")


def unit(rows: np.ndarray) -> list[np.ndarray]:
    return [row.astype(np.float64) / np.linalg.norm(row.astype(np.float64)) for row in rows]


def test_embeddings() -> None:
    dense, reduced = noisy((30, 5), 0.4)
    labels = [int(i) for i in np.random.default_rng(2).integers(3, size=30)]
    found = collect(Embeddings("x", 2, 0), dense, reduced, labels)
    have = measures(found)
    sides = {"dense": unit(dense), "reduced": unit(reduced)}
    cosines = [float(a @ b) for a, b in zip(*sides.values(), strict=True)]
    assert have["cosine"].reduced == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.worst[0].id == f"{int(np.argmin(cosines))}.png"

    def others(rows: list[np.ndarray], i: int) -> list[int]:
        near = [(-float(rows[i] @ rows[j]), j) for j in range(30) if j != i]
        return [j for _, j in sorted(near)]

    common = [
        len(set(others(sides["dense"], i)[:10]) & set(others(sides["reduced"], i)[:10])) / 10
        for i in range(30)
    ]
    assert have["neighbours"].reduced == pytest.approx(np.mean(common))
    own = [
        max(range(30), key=lambda j: float(sides["reduced"][i] @ sides["dense"][j])) == i
        for i in range(30)
    ]
    assert have["own"].reduced == sum(own) / 30
    for side, rows in sides.items():
        voted, first, precisions = [], [], []
        for i in range(30):
            order = others(rows, i)
            votes = [0.0] * 3
            for j in order[:20]:
                votes[labels[j]] += math.exp(float(rows[i] @ rows[j]) / 0.07)
            voted.append(votes.index(max(votes)) == labels[i])
            same = [labels[j] == labels[i] for j in order]
            first.append(same[0])
            hits = [sum(same[: k + 1]) / (k + 1) for k in range(len(same)) if same[k]]
            precisions.append(np.mean(hits))
        assert getattr(have["knn"], side) == sum(voted) / 30
        assert getattr(have["recall1"], side) == sum(first) / 30
        assert getattr(have["map"], side) == pytest.approx(np.mean(precisions), abs=1e-6)
    assert sum(row.images for row in found.classes) == 30


def test_embeddings_of_few_images() -> None:
    dense, reduced = noisy((1, 5), 0.4)
    assert set(measures(collect(Embeddings("x", 1, 0), dense, reduced, ["cat"]))) == {"cosine"}
    dense, reduced = noisy((2, 5), 0.0)
    have = measures(collect(Embeddings("x", 1, 0), dense, reduced, ["cat", "dog"]))
    assert (have["neighbours"].reduced, have["own"].reduced, have["knn"].dense) == (1, 1, 0)
    assert "map" not in have  # no other image of either class


@pytest.mark.parametrize(
    ("shape", "channels"), [((5, 6, 4), None), ((5, 4, 3, 2), 1), ((5, 1, 3, 4), 1), ((5, 3, 4), 0)]
)
def test_features_and_maps(shape: tuple[int, ...], channels: int | None) -> None:
    dense, reduced = noisy(shape, 0.3)
    found = collect(Features("x", 1, 0, {}, channels), dense, reduced)
    have = measures(found)
    errors, highs, cosines, correlations = [], [], [], []
    for a, b in zip(dense.astype(np.float64), reduced.astype(np.float64), strict=True):
        if channels == 0:
            places = [(np.array([x]), np.array([y])) for x, y in zip(a.flat, b.flat, strict=True)]
        elif channels == 1:
            spots = np.ndindex(a.shape[1:])
            places = [(a[:, i, j], b[:, i, j]) for i, j in spots]
        else:
            places = list(zip(a, b, strict=True))
        size = math.sqrt(sum(float(x @ x) for x, _ in places) / len(places))
        each = [math.sqrt(float((y - x) @ (y - x))) / size for x, y in places]
        errors.append(sum(each) / len(each))
        highs.append(float(np.percentile(each, 95)))
        if len(places[0][0]) > 1:
            near = [x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in places]
            cosines.append(float(np.mean(near)))
        correlations.append(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))
    assert have["error"].reduced == pytest.approx(np.mean(errors))
    assert have["error_p95"].reduced == pytest.approx(np.mean(highs))
    assert have["correlation"].reduced == pytest.approx(np.mean(correlations))
    assert ("cosine" in have) == bool(cosines)
    if cosines:
        assert have["cosine"].reduced == pytest.approx(np.mean(cosines))
    assert found.worst[0].id == f"{int(np.argmin(correlations))}.png"
    assert found.worst[0].reduced == pytest.approx(min(correlations))
    assert not have["error"].higher_is_better


def test_features_of_kept_tokens_are_compared_with_the_same_tokens() -> None:
    dense, _ = noisy((3, 6, 4), 0.0)
    index = np.array([[0, 2, 5], [1, 2, 3], [0, 4, -1]])
    reduced = np.stack([d[i.clip(min=0)] for d, i in zip(dense, index, strict=True)]).copy()
    reduced[0, 1] += 1  # token 2 of the first image alone
    reduced[2, 2] = 9  # fused: not one of the dense model's
    found = collect(Features("x", 3, 0, {}), dense, reduced, token_index=index)
    assert found.compared == "kept tokens"
    kept = dense[0, [0, 2, 5]].astype(np.float64)
    size = math.sqrt(float((kept**2).sum()) / 3)
    assert measures(found)["error"].reduced == pytest.approx(2 / size / 3 / 3, rel=1e-5)
    assert [w.id for w in found.worst][:1] == ["0.png"]


def test_a_map_that_is_constant_has_an_error_and_no_correlation() -> None:
    dense = np.ones((2, 1, 2, 2), np.float32)
    reduced = dense.copy()
    reduced[1] = np.nan
    found = collect(Features("x", 1, 0, {}, 1), dense, reduced)
    assert measures(found)["error"].reduced == 0
    assert measures(found)["error"].images == 1
    assert found.remarks == ("NaN, Inf or nothing to compare in 1 of 2 images",)


def test_a_model_that_gives_nan_is_near_nothing_and_holds_no_bound(tmp_path: Path) -> None:
    """What overflows in 16 bits must not look good by being left out, or by being class 0."""
    dense, reduced = noisy((40, 6), 0.0)
    reduced[:] = np.nan
    labels = [i % 2 for i in range(40)]
    found = measures(collect(Embeddings("x", 1, 0), dense, reduced, labels))
    assert {n: m.reduced for n, m in found.items()} == dict.fromkeys(
        ("cosine", "neighbours", "own", "knn", "recall1", "map"), 0
    )
    np.save(tmp_path / "texts.npy", np.eye(6, dtype=np.float32))
    scores = read_texts(tmp_path / "texts.npy").scores()
    assert np.isnan(scores(reduced)).all()
    assert not np.isnan(scores(dense)).any()

    dense, reduced = noisy((8, 3, 6), 0.1)
    reduced[2:6] = np.nan
    features = collect(Features("x", 1, 0, {}), dense, reduced)
    dense, reduced = noisy((8, 1), 0.1)
    reduced[2:6] = np.inf
    numbers = collect(Numbers("x", 1, 0), dense, reduced)
    assert measures(features)["cosine"].images == 8
    assert measures(features)["cosine"].reduced < 0.51
    assert numbers.remarks == ("NaN or Inf in 4 of 8 images",)
    bounds = [Bound("error", 9, drop=True), Bound("absolute_error", 9, drop=True)]
    for gate in judged(bounds, (features, numbers)):
        assert not gate.passed
        assert "4 images have NaN or Inf" in fault(gate)
    reduced[:] = np.nan
    with pytest.raises(VerificationError, match="cannot be told: 'x' has NaN or Inf in 8 images"):
        judged(bounds[1:], [collect(Numbers("x", 1, 0), dense, reduced)])


def test_what_is_lost_is_compared_as_it_is_written() -> None:
    """19 of 20 are alike: 0.05 is lost, where 1 - 0.95 is a little more."""
    dense = np.eye(2, dtype=np.float32)[[0] * 20]
    reduced = np.eye(2, dtype=np.float32)[[0] * 19 + [1]]
    found = [collect(Classes("x", (), None, 0), dense, reduced)]
    bounds = [Bound("agreement", 0.05, drop=True), Bound("agreement", 0.95)]
    assert [gate.passed for gate in judged(bounds, found)] == [True, True]
    assert not judged([Bound("agreement", 0.0499, drop=True)], found)[0].passed


def test_numbers() -> None:
    dense, reduced = noisy((9, 1), 0.3)
    found = collect(Numbers("x", 1, 0), dense, reduced)
    apart = [abs(float(b[0]) - float(a[0])) for a, b in zip(dense, reduced, strict=True)]
    assert measures(found)["absolute_error"].reduced == pytest.approx(np.mean(apart))
    assert found.worst[0].id == f"{int(np.argmax(apart))}.png"


def test_label_maps(tmp_path: Path) -> None:
    """8 × 8 maps, scores of three classes at 4 × 4, some pixels and a class that are not there."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, size=(9, 8, 8)).astype(np.uint8)
    truth[:, 0, 0] = 255
    dense = rng.normal(size=(9, 3, 4, 4)).astype(np.float32)
    reduced = (dense + 0.7 * rng.normal(size=dense.shape)).astype(np.float32)
    for i, one in enumerate(truth):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    collector = LabelMaps("x", tmp_path, RECORD, ("a", "b", "c"), 3, 2, 0)
    found = collect(collector, dense, reduced)
    have = measures(found)

    def enlarged(plane: np.ndarray) -> np.ndarray:
        """Twice as large, half-pixel centres: weights .75 and .25, the border repeated."""
        wide = np.pad(plane.astype(np.float64), 1, mode="edge")
        rows = np.empty((8, 6))
        for i in range(8):
            k = i // 2 + 1
            rows[i] = 0.75 * wide[k] + 0.25 * wide[k + (1 if i % 2 else -1)]
        out = np.empty((8, 8))
        for j in range(8):
            k = j // 2 + 1
            out[:, j] = 0.75 * rows[:, k] + 0.25 * rows[:, k + (1 if j % 2 else -1)]
        return out

    said = {
        side: np.array([[enlarged(p) for p in one] for one in scores]).argmax(axis=1)
        for side, scores in (("dense", dense), ("reduced", reduced))
    }
    known = truth != 255
    for side, answers in said.items():
        ious = []
        for c in (0, 1):  # no map has class 2
            inter = int(((answers == c) & (truth == c)).sum())
            union = int((((answers == c) & known) | (truth == c)).sum())
            ious.append(inter / union)
        assert getattr(have["miou"], side) == pytest.approx(np.mean(ious))
        assert [getattr(r, side) for r in sorted(found.classes, key=lambda r: r.number)] == (
            pytest.approx(ious)
        )
        right = [(a == t)[k].mean() for a, t, k in zip(answers, truth, known, strict=True)]
        assert getattr(have["pixel"], side) == pytest.approx(np.mean(right))
    same = [
        (a == b)[k].mean() for a, b, k in zip(said["dense"], said["reduced"], known, strict=True)
    ]
    assert have["pixel_agreement"].reduced == pytest.approx(np.mean(same))
    miou = have["miou"]
    assert miou.low is not None
    assert miou.high is not None
    assert miou.difference is not None
    assert miou.low < miou.difference < miou.high
    truth[0, 1, 1] = 3
    Image.fromarray(truth[0]).save(tmp_path / "0.png")
    with pytest.raises(UsageError, match=r"0\.png: has class 3, output 'x' has classes 0 to 2"):
        collect(LabelMaps("x", tmp_path, RECORD, (), 3, 2, 0), dense, reduced)
    (tmp_path / "0.png").unlink()
    with pytest.raises(UsageError, match=r"no label map 0\.png for image 0\.png"):
        collect(LabelMaps("x", tmp_path, RECORD, (), 3, 2, 0), dense, reduced)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(UsageError, match="one whole number a pixel"):
        collect(LabelMaps("x", tmp_path, RECORD, (), 3, 2, 0), dense, reduced)


def test_where_no_score_is_finite_a_map_has_no_answer(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    dense = np.zeros((1, 3, 8, 8), np.float32)
    dense[:, 0] = 1
    reduced = np.full_like(dense, np.nan)
    collector = LabelMaps("x", tmp_path, RECORD, ("a", "b", "c"), 3, 2, 0)
    found = measures(collect(collector, dense, reduced))
    assert [found[n].reduced for n in ("miou", "pixel", "pixel_agreement")] == [0, 0, 0]
    assert (found["miou"].dense, found["pixel"].dense) == (1, 1)


def test_overlaps_with_other_runs_and_with_the_next_frame() -> None:
    index = np.array([[0, 1, 2], [0, 1, 3], [4, 5, 6], [4, 5, 6], [0, 1, 2]])
    other = np.array([[0, 1, 2], [0, 1, 2], [1, 2, 3], [4, 5, 6], [0, 1, 2]])
    clips = ["a", "a", "b", "b", ""]
    overlaps = Overlaps()
    for part in (slice(0, 1), slice(1, 3), slice(3, 5)):  # pairs go across batches
        told = {"token_index": index[part], "x": np.zeros((len(index[part]), 2))}
        overlaps.add("int8", told, {"token_index": other[part]})
        overlaps.add_frames(clips[part], told)
    found = {o.between: o for o in overlaps.found()}
    assert found["int8"].mean == pytest.approx((1 + 0.5 + 0 + 1 + 1) / 5)
    assert (found["int8"].least, found["int8"].images) == (0, 5)
    assert found[NEXT_FRAME].images == 2  # within a, within b; not from a to b
    assert found[NEXT_FRAME].mean == pytest.approx((0.5 + 1) / 2)
    silent = Overlaps()
    silent.add("int8", {"x": index}, {"x": other})
    assert silent.found() == ()


def named(*classes: str) -> Source:
    return Source("data", lambda: iter(()), classes=classes)


def test_numbers_of_classes() -> None:
    model = ("tench, Tinca tinca", "Great_White", "crane", "crane, bird")
    found = ClassNumbers(named("great white", "Tinca Tinca"), model, 4, "x")
    assert (found.number("great white", "s"), found.number("Tinca Tinca", "s")) == (1, 0)
    assert found.number(0, "s") == 1  # the data's own number of "great white"
    assert ClassNumbers(named("3", "1"), model, 4, "x").number("3", "s") == 3
    sorted_ = ClassNumbers(named("n01", "n02", "n03", "n04"), model, 4, "x")
    assert sorted_.number("n03", "s") == 2
    assert "in the order of their names" in sorted_.rule
    assert ClassNumbers(PLAIN, model, 4, "x").number(3, "s") == 3
    assert ClassNumbers(PLAIN, model, 4, "x").number(None, "s") == -1


@pytest.mark.parametrize(
    ("classes", "label", "says"),
    [
        (("tench", "dog"), "tench", "labels 'dog' are none of the classes of x, which has 3"),
        (("n1", "n2"), "n1", "labels 'n1', 'n2' are none of the classes"),
        ((), 3, "label 3 of s is none of the classes 0 to 2"),
        ((), -1, "label -1 of s"),
        ((), "dog", "label 'dog' of s"),
        (("0", "3"), "3", "label '3' of s"),
    ],
)
def test_labels_that_do_not_match(classes: tuple[str, ...], label: Label, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ClassNumbers(named(*classes), ("tench", "cat", "cow"), 3, "x").number(label, "s")


def test_the_worst_are_a_few_of_many() -> None:
    worst = Worst(2)
    for i, damage in enumerate((0.1, 0.5, 0.0, 0.5, -1.0, 0.7)):
        worst.add(damage, Damage(f"{i}", "m", 1.0, 1 - damage))
    assert [w.id for w in worst.found()] == ["5", "1"]
    assert not Worst(0).wants(1.0)
