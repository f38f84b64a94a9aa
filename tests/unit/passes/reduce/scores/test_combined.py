"""Combiners, window penalty, and heads from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tcompile.passes.reduce.scores import leaves
from tests.unit.passes.reduce.scores import bare
from tests.unit.passes.reduce.scores.graphs import Array, close, images, scored, softmax, taps
from tests.unit.passes.reduce.scores.test_stream import tokens

NORM = {"name": "norm"}
STATIC = {"name": "static", "pattern": "random"}


def normalised(x: Array, norm: str) -> Array:
    if norm == "softmax":
        return softmax(x)
    if norm == "minmax":
        x = x - x.min(-1, keepdims=True)
    if norm in ("max", "minmax"):
        return np.asarray(x / np.abs(x).max(-1, keepdims=True))
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True) if norm == "l2" else x)


@pytest.mark.parametrize("norm", ["none", "max", "minmax", "l2", "softmax"])
@pytest.mark.parametrize("batch", [1, 3])
def test_sum(norm: str, batch: int) -> None:
    """Each term is normalised over the patches of its own image."""
    x = images(batch)
    t = taps(x, "attn:1")
    terms = [
        {"score": {"name": "cls", "softmax": "pre"}, "weight": 0.35, "norm": norm},
        {"score": {"name": "rowmean"}, "weight": -0.65, "norm": norm},
    ]
    logits = t.logits.mean(1)
    expected = 0.35 * normalised(logits[:, 0, 1:], norm)
    expected -= 0.65 * normalised(logits[:, 1:, 1:].mean(-1), norm)
    close(scored(Spec("sum", {"terms": terms}), x), expected)


def test_pomt() -> None:
    x = images(3)
    t = taps(x, "attn:1")
    terms = [
        {"score": {"name": "colsum", "agg": "max"}, "norm": "max"},
        {"score": {"name": "value_mass"}},
    ]
    received = t.attention[:, :, 1:, 1:].max(1).sum(1)
    expected = received / received.max(-1, keepdims=True)
    expected += softmax(t.v.max(1).sum(-1))[:, 1:]
    close(scored(Spec("sum", {"terms": terms}), x), expected)


def test_constant_terms_have_a_row_for_each_image() -> None:
    x = tokens(3, 16)
    one = bare.scored(Spec(**_spec(STATIC)), x)
    found = bare.scored(Spec("sum", {"terms": [{"score": STATIC, "weight": 2}]}), x)
    close(found, np.tile(2 * one, (3, 1)))


def _spec(document: dict[str, Any]) -> dict[str, Any]:
    parameters = {k: v for k, v in document.items() if k != "name"}
    return {"name": document["name"], "parameters": parameters}


def test_product() -> None:
    x = tokens(2, 20)
    terms = [{"score": NORM, "power": 0.5}, {"score": {"name": "norm", "p": 1}, "power": -1}]
    length = np.linalg.norm(x[:, 1:], axis=-1)
    expected = length**0.5 / np.abs(x[:, 1:]).sum(-1)
    close(bare.scored(Spec("product", {"terms": terms}), x, prefix=1), expected)


def penalised(score: Array, grid: tuple[int, int], side: int, factor: float, index: Array) -> Array:
    """By loops; a window that has lost a token is let be."""
    found, (h, w) = score.copy(), grid
    for b in range(len(score)):
        place = {int(j): n for n, j in enumerate(index[b])}
        for top in range(0, h, side):
            for left in range(0, w, side):
                window = [
                    i * w + j
                    for i in range(top, min(top + side, h))
                    for j in range(left, min(left + side, w))
                ]
                if all(j in place for j in window):
                    n = place[min(window, key=lambda j: (score[b, place[j]], j))]
                    found[b, n] *= factor if score[b, n] < 0 else 1 / factor
    return found


@pytest.mark.parametrize(("grid", "side", "factor"), [((4, 6), 2, 2.0), ((5, 7), 3, 4.0)])
@pytest.mark.parametrize("left", [None, 13])
def test_window_penalty(grid: tuple[int, int], side: int, factor: float, left: int | None) -> None:
    total = grid[0] * grid[1]
    index = np.tile(np.arange(total), (3, 1))
    if left:
        rng = np.random.default_rng(0)
        index = np.stack([np.sort(rng.permutation(total)[:left]) for _ in range(3)])
        index[0] = np.arange(left)  # so that some windows are whole
    x = tokens(3, index.shape[1])
    shifted = {
        "name": "sum",
        "terms": [{"score": NORM}, {"score": {"name": "norm", "p": 1}, "weight": -0.4}],
    }
    spec = Spec("window_penalty", {"score": shifted, "side": side, "factor": factor})
    score = np.linalg.norm(x, axis=-1) - 0.4 * np.abs(x).sum(-1)
    assert (score < 0).any()
    assert (score > 0).any()
    found = bare.scored(spec, x, grid=grid, index=index if left else None, patches=total)
    close(found, penalised(score, grid, side, factor, index))


def test_window_penalty_of_ties_takes_the_first() -> None:
    spec = Spec("window_penalty", {"score": NORM})
    found = bare.scored(spec, np.ones((1, 16, 4)), grid=(4, 4))[0].reshape(4, 4)
    assert (found[::2, ::2] == 1).all()
    assert (found == 2).sum() == 12


def test_window_penalty_needs_places() -> None:
    spec = Spec("window_penalty", {"score": NORM})
    with pytest.raises(UsageError, match="a place in the grid for every token"):
        bare.scored(
            spec,
            tokens(1, 4),
            grid=(4, 4),
            patches=16,
            positioned=False,
            index=np.array([[0, 1, 2, -1]]),
        )


def gelu(x: Array) -> Array:
    from math import erf

    return np.asarray(0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("norm", [False, True])
def test_head(tmp_path: Path, rows: int, norm: bool) -> None:
    rng = np.random.default_rng(0)
    w = {
        "0.weight": rng.normal(size=(4, 8)),
        "0.bias": rng.normal(size=4),
        "1.weight": rng.normal(size=(rows, 4)),
    }
    if rows == 2:
        w["1.bias"] = rng.normal(size=2)
    x = y = tokens(3, 12).astype(float)
    if norm:
        w |= {"norm.weight": rng.normal(size=8), "norm.bias": rng.normal(size=8)}
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        y = y * w["norm.weight"] + w["norm.bias"]
    np.savez(tmp_path / "head.npz", **{k: a.astype(np.float32) for k, a in w.items()})
    y = gelu(y @ w["0.weight"].T + w["0.bias"]) @ w["1.weight"].T
    expected = y[..., 0] if rows == 1 else (y + w["1.bias"]) @ [-1, 1]
    spec = Spec("head", {"file": str(tmp_path / "head.npz"), "keep_class": rows - 1})
    close(bare.scored(spec, x, prefix=1), expected[:, 1:])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"0.weight": np.ones((3, 8))}, "a last layer of 1 or 2"),
        ({"1.weight": np.ones((1, 8))}, "has '1.weight'"),
        ({"0.weight": np.ones((1, 7))}, "takes 7 channels, tokens have 8"),
        ({"0.weight": np.ones((4, 8)), "1.weight": np.ones((1, 5))}, "5 channels of 4"),
        ({"0.weight": np.full((1, 8), np.nan)}, "finite"),
        ({"0.weight": np.ones((1, 8), np.int64)}, "finite floats"),
        ({"0.weight": np.ones(8)}, r"\[out, in\]"),
        ({"0.weight": np.ones((1, 8)), "norm.weight": np.ones(5)}, "norm"),
        ({}, "needs 0.weight"),
    ],
)
def test_heads_that_do_not_fit(tmp_path: Path, weights: dict[str, Array], words: str) -> None:
    np.savez(tmp_path / "head.npz", **weights)
    with pytest.raises(UsageError, match=words):
        bare.scored(Spec("head", {"file": str(tmp_path / "head.npz")}), tokens(1, 4))


def test_head_files_are_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **{"0.weight": np.array([{}], dtype=object)})
    (tmp_path / "text.npz").write_text("nothing")
    for name, words in (
        ("bad.npz", "not an .npz"),
        ("text.npz", "not an .npz"),
        ("none.npz", "not an .npz"),
        ("", "needs file"),
    ):
        file = str(tmp_path / name) if name else None
        with pytest.raises(UsageError, match=words) as caught:
            bare.scored(Spec("head", {"file": file} if file else {}), tokens(1, 4))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"name": "sum"}, "needs 1 to 16 terms"),
        ({"name": "sum", "terms": []}, "needs 1 to 16 terms"),
        ({"name": "sum", "terms": ["cls"]}, "is not a term"),
        ({"name": "sum", "terms": [{"score": NORM, "power": 1}]}, "is not a term"),
        ({"name": "sum", "terms": [{"score": NORM, "weight": "1"}]}, "is not a number"),
        ({"name": "sum", "terms": [{"score": NORM, "weight": float("nan")}]}, "is not a number"),
        ({"name": "sum", "terms": [{"score": NORM, "norm": "l3"}]}, "is not one of"),
        ({"name": "sum", "terms": [{"score": "norm"}]}, "is not a score"),
        ({"name": "sum", "terms": [{"score": {"name": "nrm"}}]}, "unknown score 'nrm'"),
        ({"name": "product", "terms": [{"score": {"name": "norm", "p": 7}}]}, "is not 1 or 2"),
        ({"name": "window_penalty"}, "is not a score"),
        ({"name": "window_penalty", "score": NORM, "factor": 0.5}, "is less than 1"),
    ],
)
def test_combiners_that_say_nothing(document: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        list(leaves(Spec(**_spec(document))))


def test_scores_of_scores_of_scores() -> None:
    spec: dict[str, Any] = NORM
    for _ in range(400):
        spec = {"name": "window_penalty", "score": spec}
    with pytest.raises(UsageError, match="more than 8 deep"):
        list(leaves(Spec(**_spec(spec))))


def test_leaves_of_a_tree_and_of_its_json() -> None:
    inner = {"name": "sum", "terms": [{"score": {"name": "cls"}}, {"score": {"name": "rowmean"}}]}
    spec = Spec("window_penalty", {"score": inner})
    assert [s.name for s, _ in leaves(spec)] == ["window_penalty", "sum", "cls", "rowmean"]
    one = Schedule("ficoco", Shape(17, 1, 16, 3), (Reduction("attn:1", spec, Spec("topk"), 5),))
    assert Schedule.from_json(one.to_json()) == one
