"""Scores that read the stream, the keys or nothing, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Spec
from tests.unit.passes.reduce.scores import bare
from tests.unit.passes.reduce.scores.graphs import (
    SPEC,
    Array,
    Step,
    VitSpec,
    close,
    cosines,
    images,
    kept,
    scored,
    taps,
)

RNG = np.random.default_rng(0)


def tokens(batch: int, count: int, width: int = 8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(batch, count, width)).astype(np.float32)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("batch", "prefix"), [(1, 0), (3, 5)])
def test_norm(p: int, batch: int, prefix: int) -> None:
    x = tokens(batch, 20)
    found = bare.scored(Spec("norm", {"p": p}), x, prefix=prefix)
    close(found, (np.abs(x.astype(float)) ** p).sum(-1)[:, prefix:] ** (1 / p))


def energy(m: Array, margin: float, alpha: float, form: str) -> Array:
    c = cosines(m, m)
    above = c if form == "paper" else c - margin
    return -np.where(c >= margin, above, alpha * (np.exp(c - margin) - 1)).mean(-1)


@pytest.mark.parametrize("form", ["elu", "paper"])
@pytest.mark.parametrize(("margin", "alpha"), [(0.75, 1.0), (0.1, 0.5)])
def test_energy(form: str, margin: float, alpha: float) -> None:
    given: dict[str, Any] = {"form": form, "margin": margin, "alpha": alpha}
    x = tokens(3, 19)
    found = bare.scored(Spec("energy", {**given, "metric": "x"}), x, prefix=1)
    close(found, energy(x[:, 1:].astype(float), margin, alpha, form))
    pixels = images(2)
    keys = taps(pixels, "attn:1").k.mean(1)[:, 1:]
    close(scored(Spec("energy", given), pixels), energy(keys, margin, alpha, form))


def aggregate(x: Array, agg: str) -> Array:
    return np.asarray(x.max(-1) if agg == "max" else x.mean(-1))


@pytest.mark.parametrize("agg", ["max", "mean"])
@pytest.mark.parametrize(("p", "count"), [(1, 4), (2, 3)])
def test_dup_pivots(agg: str, p: int, count: int) -> None:
    x = tokens(3, 21)
    spec = Spec("dup", {"agg": agg, "p": p, "count": count})
    found, x = bare.scored(spec, x, prefix=5), x[:, 5:].astype(float)
    length = (np.abs(x) ** p).sum(-1)
    for b in range(3):
        pivots = np.argsort(-length[b], kind="stable")[:count]
        expected = -aggregate(cosines(x[b : b + 1], x[b : b + 1, pivots])[0], agg)
        expected[pivots] = 2
        close(found[b], expected)


def test_dup_by_keys() -> None:
    pixels = images(2)
    t = taps(pixels, "attn:1")
    found = scored(Spec("dup", {"metric": "keys", "count": 2}), pixels)
    m, length = t.k.mean(1)[:, 1:], np.abs(t.x[:, 1:]).sum(-1)
    for b in range(2):
        pivots = np.argsort(-length[b], kind="stable")[:2]
        expected = -cosines(m[b : b + 1], m[b : b + 1, pivots])[0].max(-1)
        expected[pivots] = 2
        close(found[b], expected)


@pytest.mark.parametrize("agg", ["max", "mean"])
@pytest.mark.parametrize("count", [4, 10])
def test_dup_strided(agg: str, count: int) -> None:
    x = tokens(2, 21)
    found = bare.scored(Spec("dup", {"reference": "strided", "agg": agg, "count": count}), x)
    places = [int((i + 0.5) * 21 / count) for i in range(count)]
    expected = -aggregate(cosines(x, x[:, places]), agg)
    expected[:, places] = 2
    close(found, expected.astype(np.float32))


@pytest.mark.parametrize("agg", ["max", "mean"])
@pytest.mark.parametrize(
    ("grid", "side"), [((4, 6), 2), ((5, 7), 2), ((6, 6), 3), ((2, 4, 4), 2), ((1, 1), 2)]
)
def test_dup_windows(agg: str, grid: tuple[int, ...], side: int) -> None:
    x = tokens(2, int(np.prod(grid)))
    given = {"reference": "window", "agg": agg, "side": side}
    found = bare.scored(Spec("dup", given), x, grid=grid)
    where = np.stack(np.unravel_index(np.arange(x.shape[1]), grid), 1)
    where[:, -2:] //= side
    cosine = cosines(x, x)
    expected = np.ones(found.shape, np.float32)
    for j in range(x.shape[1]):
        same = [i for i in range(x.shape[1]) if i != j and (where[i] == where[j]).all()]
        if same:
            expected[:, j] = -aggregate(cosine[:, j, same], agg)
    close(found, expected)


@pytest.mark.parametrize("frames", [4, 8, 6])
def test_dup_frames(frames: int) -> None:
    x = tokens(2, frames * 6)
    found = bare.scored(Spec("dup", {"reference": "frame"}), x, grid=(frames, 2, 3))
    each = x.reshape(2, frames, 6, -1)
    unit = each / np.linalg.norm(each, axis=-1, keepdims=True)
    expected = np.full((2, frames, 6), 2, np.float32)
    for later, before in ((1, 0), (2, 0), (3, 2)):
        for f in range(later, frames, 4):
            expected[:, f] = -(unit[:, f] * unit[:, f - later + before]).sum(-1)
    close(found, expected.reshape(2, -1))


BY_STREAM = (
    Spec("norm"),
    Spec("energy", {"metric": "x"}),
    Spec("energy", {"metric": "x", "form": "paper"}),
    Spec("dup"),
    Spec("dup", {"reference": "strided", "agg": "mean"}),
    Spec("dup", {"reference": "window"}),
    Spec("dup", {"reference": "window", "agg": "mean"}),
    Spec("window_penalty", {"score": {"name": "norm"}}),
    *(
        Spec("sum", {"terms": [{"score": {"name": "norm"}, "norm": norm}]})
        for norm in ("max", "minmax", "l2", "softmax")
    ),
    Spec("product", {"terms": [{"score": {"name": "norm"}, "power": -2}]}),
)


@pytest.mark.parametrize("spec", BY_STREAM, ids=lambda s: str(s.to_json()))
def test_constants_and_large_numbers(spec: Spec) -> None:
    """No NaN of zeros, of equal tokens, of |x| = 300; equal tokens get equal scores."""
    for x in (
        np.zeros((2, 16, 8)),
        np.full((2, 16, 8), 300.0),
        -np.full((2, 16, 8), 300.0),
        300 * np.sign(tokens(2, 16)),
        np.full((2, 16, 8), 1e-30),
    ):
        found = bare.scored(spec, x, grid=(4, 4))
        assert np.isfinite(found).all()
        if (x == x[0, 0]).all() and spec.name in ("norm", "energy", "sum", "product"):
            assert (found == found[0, 0]).all()


ON_MODELS = (
    *({"name": "cls", "agg": a, "value": v} for a, v in (("rms", "none"), ("sum", "l2"))),
    {"name": "cls", "weight": "context"},
    {"name": "cls", "heads": "joined", "value": "l1"},
    {"name": "colsum", "agg": "max", "diagonal": True},
    {"name": "pagerank"},
    {"name": "value_mass"},
    {"name": "rowmean"},
    {"name": "energy"},
    {"name": "norm", "of": "v", "p": 1},
)


def test_constant_and_large_images() -> None:
    """The same for scores of attention, all at once."""
    terms = [{"score": s, "norm": n} for s in ON_MODELS for n in ("none",)]
    for x in (np.zeros((2, 3, 32, 32), np.float32), np.full((2, 3, 32, 32), 300, np.float32)):
        assert np.isfinite(scored(Spec("sum", {"terms": terms}), x)).all()
        shares = [{"score": s, "norm": "minmax"} for s in ON_MODELS]
        assert np.isfinite(scored(Spec("sum", {"terms": shares}), x)).all()


@pytest.mark.parametrize("keep", [1, 3, 8, 13])
def test_static_strided_is_even(keep: int) -> None:
    x = tokens(1, 29)
    found = bare.scored(Spec("static", {"keep": keep}), x)
    assert found.shape == (1, 29)
    best = np.sort(np.argsort(-found[0], kind="stable")[:keep])
    assert best.tolist() == [int((i + 0.5) * 29 / keep) for i in range(keep)]
    # Without it any number is spread: no gap is three times another.
    best = np.sort(np.argsort(-bare.scored(Spec("static"), x)[0], kind="stable")[:keep])
    assert keep == 1 or np.diff(best).max() <= 3 * np.diff(best).min()


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("grid", [(5, 4), (2, 3, 3)])
def test_static_radial(norm: str, grid: tuple[int, ...]) -> None:
    found = bare.scored(
        Spec("static", {"pattern": "radial", "norm": norm}),
        tokens(1, int(np.prod(grid))),
        grid=grid,
    )[0]
    h, w = grid[-2:]
    apart = [(abs(i - (h - 1) / 2), abs(j - (w - 1) / 2)) for i in range(h) for j in range(w)]
    of = {"l1": sum, "linf": max, "l2": lambda d: float(np.hypot(*d))}[norm]
    distance = np.array([of(d) for d in apart] * (grid[0] if len(grid) == 3 else 1))
    assert (np.argsort(-found, kind="stable") == np.argsort(distance.round(9), kind="stable")).all()


def test_static_random_is_seeded() -> None:
    x = tokens(1, 16)
    one, two = (bare.scored(Spec("static", {"pattern": "random", "seed": s}), x)[0] for s in (1, 2))
    assert sorted(one) == sorted(two) == sorted((np.arange(16) + 1).astype(np.float32) / 16)
    assert (one != two).any()
    again = bare.scored(Spec("static", {"pattern": "random", "seed": 1}), x)[0]
    assert (one == again).all()


@pytest.mark.parametrize("pattern", ["strided", "radial", "random"])
def test_static_follows_its_tokens(pattern: str) -> None:
    spec = Spec("static", {"pattern": pattern})
    whole = bare.scored(spec, tokens(1, 16), grid=(4, 4))[0]
    index = np.array([[0, 3, 7, 15], [5, 6, -1, 9]])
    found = bare.scored(spec, tokens(2, 4), grid=(4, 4), index=index, patches=16, positioned=False)
    assert found.tolist() == np.where(index < 0, 0, whole[index]).tolist()
    # In a model: what is left after two steps is what one step leaves.
    steps: list[Step] = [(f"attn:{i}", spec, "topk", k) for i, k in ((0, 9), (2, 4))]
    assert (kept(steps, images(2)) == kept([("attn:2", spec, "topk", 4)], images(2))).all()


def test_static_around_a_block() -> None:
    """All tokens are there, however many ran through the block before."""
    spec = Spec("static", {"pattern": "random"})
    before: list[Step] = [("around:1", Spec("norm"), "bypass", 5)]
    assert kept_around(before, spec) == kept_around([], spec)


def kept_around(before: list[Step], spec: Spec) -> list[float]:
    """The sum of a constant and a score shows the constant."""
    whole = Spec("sum", {"terms": [{"score": spec.to_json()}]})
    return scored(whole, images(1), "around:2", before=before)[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec("dup", {"reference": "window"}), "still are a grid"),
        (Spec("window_penalty", {"score": {"name": "norm"}}), "still are a grid"),
        (Spec("static", {"pattern": "radial"}), "still are a grid"),
        (Spec("dup", {"count": 0}), "is less than 1"),
        (Spec("dup", {"p": 3}), "is not 1 or 2"),
    ],
)
def test_refusals(spec: Spec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bare.scored(spec, tokens(1, 16))


def test_windows_need_every_token() -> None:
    before: list[Step] = [("attn:0", Spec("norm"), "topk", 9)]
    with pytest.raises(UsageError, match="still are a grid"):
        scored(Spec("dup", {"reference": "window"}), images(1), before=before)
    with pytest.raises(UsageError, match="needs a video's frames"):
        scored(Spec("dup", {"reference": "frame"}), images(1))
    assert VitSpec(depth=3, pool="none") == SPEC
