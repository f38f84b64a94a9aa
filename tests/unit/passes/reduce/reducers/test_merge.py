"""`merge`: every variant against its formula, written out in loops over tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.reducing import Array, Reduced, Tokens, problem, reduced


def tokens(
    count: int, batch: int = 3, prefix: int = 0, seed: int = 0, *, sized: bool = False, **kw: Any
) -> Tokens:
    rng = np.random.default_rng(seed)
    total = prefix + count
    return Tokens(
        rng.normal(size=(batch, total, 6)).astype(np.float32),
        rng.normal(size=(batch, total, 4)).astype(np.float32),
        rng.random((batch, count), np.float32),
        rng.integers(1, 9, (batch, count)).astype(np.float32) if sized else None,
        prefix,
        **kw,
    )


def first_best(values: Array, r: int) -> list[int]:
    """The r largest, ties to the lower index."""
    return [int(i) for i in np.argsort(-values, kind="stable")[:r]]


def split(name: str, score: Array, r: int, grid: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return which tokens may merge into which."""
    count = len(score)
    ranks = [int(i) for i in np.argsort(score, kind="stable")]  # most energetic first
    if name == "alternate":
        return list(range(0, count, 2)), list(range(1, count, 2))
    if name == "energy":
        return ranks[0::2], ranks[1::2]
    if name == "protected":
        return ranks[: 2 * r][0::2], ranks[: 2 * r][1::2]
    if name == "halves":
        return ranks[: count // 2], ranks[count // 2 :]
    h, w = grid
    corners = [y * w + x for y in range(0, h - h % 2, 2) for x in range(0, w - w % 2, 2)]
    return [i for i in range(count) if i not in corners], corners


def edge(f: Array, score: Array, size: Array, i: int, j: int, given: dict[str, Any]) -> float:
    """The similarity of token i, which would leave, and token j."""
    cos = f[i] @ f[j] / np.linalg.norm(f[i]) / np.linalg.norm(f[j])
    if given.get("criteria") == "mctf":
        information, small = (1 / score) / (1 / score).max(), (1 / size) / (1 / size).max()
        cos = (cos + 1) / 2 * (information[i] * information[j]) ** (1 / 20)
        cos *= (small[i] * small[j]) ** (1 / 40)
    return float(cos - given.get("penalty", 0.0) * score[i])


def expected(t: Tokens, n: int, keep: int, given: dict[str, Any]) -> tuple[Array, ...]:
    """Features, places, sizes and owners of sample n, in float64."""
    x = t.patches[n].astype(np.float64)
    f = (x if given.get("metric") == "x" else t.metric[n]).astype(np.float64)
    assert t.score is not None
    score = t.score[n].astype(np.float64)
    size = np.ones(t.count) if t.size is None else t.size[n].astype(np.float64)
    how, r = given.get("split", "alternate"), t.count - keep
    a, b = split(how, score, r, t.grid)
    edges = np.array([[edge(f, score, size, i, j, given) for j in b] for i in a])
    into = list(range(t.count))
    there = r // 2 if given.get("bidirectional") else r
    gone = first_best(edges.max(1), there)
    for i in gone:
        into[a[i]] = b[int(edges[i].argmax())]
    if there < r:
        left = [i for i in range(len(a)) if i not in gone]
        back = edges[left].T
        for j in first_best(back.max(1), r - there):
            into[b[j]] = a[left[int(back[j].argmax())]]
    into = [into[into[i]] for i in range(t.count)]
    stay = [i for i in range(t.count) if into[i] == i]
    if how == "alternate":
        stay = sorted(stay, key=lambda i: (i % 2, i))
    rows = [combined(x, score, size, i, into, given.get("combine", "mean")) for i in stay]
    sums = [size[[j for j in range(t.count) if into[j] == i]].sum() for i in stay]
    return np.array(rows), np.array(stay), np.array(sums), np.array([stay.index(i) for i in into])


def combined(x: Array, score: Array, size: Array, i: int, into: list[int], how: str) -> Array:
    """Return what becomes of the group of token i."""
    group = [j for j in range(len(into)) if into[j] == i]
    if how == "drop":
        return x[i]
    weight = {"plain": np.ones(len(x)), "score": score * size}.get(how, size)
    mean = np.asarray((weight[group, None] * x[group]).sum(0) / weight[group].sum())
    if how != "mlerp":
        return mean
    return mean / np.linalg.norm(mean) * np.linalg.norm(x[group], axis=1).max()


def check(t: Tokens, keep: int, **given: Any) -> Reduced:
    """Run it and compare with the formula."""
    found = reduced("merge", t, keep, **given)
    np.testing.assert_array_equal(found.x[:, : t.prefix], t.x[:, : t.prefix])
    for n in range(len(t.x)):
        rows, stay, sizes, owner = expected(t, n, keep, given)
        np.testing.assert_allclose(found.x[n, t.prefix :], rows, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(found.index[n], stay)
        np.testing.assert_array_equal(found.owner[n], owner)
        if given.get("sizes", True):
            np.testing.assert_allclose(found.size[n], sizes)
    np.testing.assert_array_equal(found.index, found.local)
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    "tome": {},
    "tome-x": {"metric": "x"},
    "plain": {"combine": "plain"},
    "tofu-drop": {"combine": "drop"},
    "tofu-mlerp": {"combine": "mlerp"},
    "turbo": {"penalty": 3.0},
    "pitome-bsm": {"split": "energy"},
    "pitome": {"split": "protected"},
    "zero-tprune": {"split": "halves", "combine": "drop", "sizes": False},
    "score": {"combine": "score"},
    "mctf": {"criteria": "mctf", "combine": "score", "bidirectional": True},
    "both-mlerp": {"bidirectional": True, "combine": "mlerp"},
    "both-energy": {"bidirectional": True, "split": "energy"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("count", "r", "batch", "prefix", "sized"),
    [(16, 5, 3, 1, False), (17, 7, 1, 5, True), (12, 1, 3, 0, True)],
)
def test_every_variant(name: str, count: int, r: int, batch: int, prefix: int, sized: bool) -> None:
    t = tokens(count, batch, prefix, seed=count, sized=sized)
    found = check(t, count - r, **VARIANTS[name])
    if VARIANTS[name].get("sizes", True):
        whole = np.full(batch, count) if t.size is None else t.size.sum(1)
        np.testing.assert_allclose(found.size.sum(1), whole)


@pytest.mark.parametrize("name", ["tome", "turbo", "pitome", "pitome-bsm", "zero-tprune", "mctf"])
@pytest.mark.parametrize(("count", "both"), [(16, 15), (17, 16), (2, 1)])
def test_as_many_as_can(name: str, count: int, both: int) -> None:
    """Half of the tokens; both ways, all but one."""
    most = both if name == "mctf" else count // 2
    given = VARIANTS[name]
    check(tokens(count), count - most, **given)
    why = problem("merge", count, count - most - 1, **given)
    assert f"at most {most} of {count}" in why


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (2, 2)])
@pytest.mark.parametrize("r", [1, 3])
def test_grid(grid: tuple[int, int], r: int) -> None:
    count = grid[0] * grid[1]
    given = {"split": "grid", "metric": "x", "combine": "plain", "sizes": False}
    found = check(tokens(count, prefix=1, grid=grid), count - r, **given)
    assert not found.size.size
    assert not found.prop_attn


def test_grid_of_cells_and_frames() -> None:
    """Two frames of 2 x 6 in cells of 2 x 3: four destinations, all over the video."""
    t = tokens(24, grid=(2, 2, 6))
    found = reduced("merge", t, 4, split="grid", sx=3, sy=2)
    np.testing.assert_array_equal(found.index, [[0, 3, 12, 15]] * 3)


@pytest.mark.parametrize("opset", [17, 20])
def test_opsets(opset: int) -> None:
    for given in VARIANTS.values():
        one = reduced("merge", tokens(9), 6, opset=opset, **given)
        np.testing.assert_array_equal(one.x, reduced("merge", tokens(9), 6, **given).x)


def test_sizes_of_earlier_merges() -> None:
    """Where this step counts nothing, they go with their tokens."""
    t = tokens(10, sized=True)
    found = reduced("merge", t, 7, combine="drop", sizes=False)
    assert t.size is not None
    np.testing.assert_array_equal(found.size, np.take_along_axis(t.size, found.index, 1))
    assert not found.prop_attn


@pytest.mark.parametrize("name", VARIANTS)
def test_after_a_merge(name: str) -> None:
    """Index and owner go back to the first tokens: 12 of which 10 are left, in another order."""
    rng = np.random.default_rng(5)
    index = np.stack([rng.permutation(12)[:10] for _ in range(3)])
    owner = rng.integers(0, 10, (3, 12))
    for n in range(3):
        owner[n, index[n]] = np.arange(10)
    t = tokens(10, sized=True)
    alone = reduced("merge", t, 7, **VARIANTS[name])
    again = Tokens(t.x, t.keys, t.score, t.size, index=index, owner=owner)
    found = reduced("merge", again, 7, **VARIANTS[name])
    np.testing.assert_array_equal(found.index, np.take_along_axis(index, alone.index, 1))
    np.testing.assert_array_equal(found.owner, np.take_along_axis(alone.owner, owner, 1))
    np.testing.assert_array_equal(found.local, alone.index)


@pytest.mark.parametrize("name", [*VARIANTS, "tomesd"])
@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
def test_constant_tokens(name: str, value: float) -> None:
    """Ties everywhere: no NaN, no token twice, every owner a token that is there."""
    x, score = np.full((2, 17, 4), value, np.float32), np.full((2, 16), value, np.float32)
    t = Tokens(x, x, score, None, prefix=1, grid=(4, 4))
    found = reduced("merge", t, 11, **VARIANTS.get(name, {"split": "grid", "combine": "plain"}))
    np.testing.assert_allclose(found.x, value, rtol=1e-6)
    for index, owner in zip(found.index, found.owner, strict=True):
        assert len(set(index.tolist()) & set(range(16))) == 11
        assert set(owner.tolist()) == set(range(11))
        np.testing.assert_array_equal(owner[index], np.arange(11))
    if found.size.size:
        np.testing.assert_array_equal(found.size.sum(1), [16, 16])


@pytest.mark.parametrize("name", ["tome", "pitome-bsm", "tofu-mlerp", "mctf"])
@pytest.mark.parametrize("half", [False, True])
def test_large_tokens_that_stand_for_many(name: str, half: bool) -> None:
    """|x| = 300 times a size above 218 is beyond fp16, in which the rest of the graph may be."""
    rng = np.random.default_rng(3)
    signs = np.sign(rng.normal(size=6))
    x = (300 * signs + rng.normal(size=(3, 16, 6))).astype(np.float32)
    keys = rng.normal(size=(3, 16, 4)).astype(np.float32)
    t = Tokens(x, keys, tokens(16).score, rng.integers(219, 400, (3, 16)).astype(np.float32))
    if not half:
        check(t, 9, **VARIANTS[name])
    found = reduced("merge", t, 9, half=half, **VARIANTS[name])
    np.testing.assert_allclose(found.x, np.tile(300 * signs, (3, 9, 1)), atol=5)
    assert t.size is not None
    np.testing.assert_array_equal(found.size.sum(1), t.size.sum(1))


@pytest.mark.parametrize("name", [*VARIANTS, "tomesd"])
def test_in_segments(name: str) -> None:
    """The same in each third of the tokens, the prefix aside."""
    given = VARIANTS.get(name, {"split": "grid", "combine": "plain", "metric": "x"})
    t = tokens(36, batch=2, prefix=1, sized=True, grid=(3, 4, 3))
    assert t.score is not None
    assert t.size is not None
    third = Tokens(
        t.patches.reshape(6, 12, 6),
        t.metric.reshape(6, 12, 4),
        t.score.reshape(6, 12),
        t.size.reshape(6, 12),
        grid=(4, 3),
    )
    whole = reduced("merge", t, 27, segments=3, **given)
    alone = reduced("merge", third, 9, **given)
    np.testing.assert_array_equal(whole.x[:, 1:], alone.x.reshape(2, 27, 6))
    np.testing.assert_array_equal(whole.x[:, :1], t.x[:, :1])
    np.testing.assert_array_equal(whole.size, alone.size.reshape(2, 27))
    for what, step in (("index", 12), ("local", 12), ("owner", 9)):
        shifted = getattr(alone, what).reshape(2, 3, -1) + step * np.arange(3)[:, None]
        np.testing.assert_array_equal(getattr(whole, what), shifted.reshape(2, -1))


def test_opposite_tokens_have_no_mean_direction() -> None:
    x = np.tile(np.array([[[1.0, 0], [-1.0, 0]]], np.float32), (1, 2, 1))
    found = reduced("merge", Tokens(x, np.abs(x)), 2, combine="mlerp")
    assert np.isfinite(found.x).all()


def test_what_is_impossible() -> None:
    def why(count: int, keep: int, grid: tuple[int, ...] = (), **given: Any) -> str:
        return problem("merge", count, keep, grid, **given)

    assert why(17, 9) == ""
    assert "at most 8 of 17" in why(17, 8)
    assert why(17, 9, split="protected") == ""
    assert "at most 8" in why(17, 8, split="protected")
    assert why(17, 9, split="halves") == ""
    assert "at most 8" in why(17, 8, split="halves")
    assert why(16, 1, bidirectional=True) == ""
    # 8 in A and 7 in B, or, by the reference's count behind CLS, the other way round.
    assert why(15, 1, bidirectional=True) == ""
    assert "at most 13" in why(15, 1, bidirectional=True, parity="reference")
    grid = {"split": "grid", "bidirectional": True}
    assert why(16, 8, (4, 4), **grid) == ""
    assert "at most 8" in why(16, 7, (4, 4), **grid)
    assert why(16, 4, (4, 4), split="grid") == ""
    assert "at most 12" in why(16, 3, (4, 4), split="grid")
    assert "grid" in why(16, 12, split="grid")
    assert "grid" in why(16, 12, (16,), split="grid")
    assert "grid" in why(16, 12, (4, 4), split="grid", sx=5)
    assert "bidirectional" in why(16, 12, split="protected", bidirectional=True)
    assert why(4096, 3900) == ""
    assert "3900" in why(4096, 3900, parity="reference")
    assert "3900" in why(4096, 3900, combine="drop")
    assert "4096" in why(4096, 3000, split="energy")
    assert why(4096, 3000, split="protected") == ""


def test_what_it_is_by_its_parameters() -> None:
    from tcompile.core.schedule import Spec
    from tcompile.passes.reduce.reducers import needs_score, traits_of

    scored = {n for n, given in VARIANTS.items() if needs_score(Spec("merge", given))}
    assert scored == {
        "turbo",
        "pitome-bsm",
        "pitome",
        "zero-tprune",
        "score",
        "mctf",
        "both-energy",
    }
    assert traits_of(Spec("merge", VARIANTS["zero-tprune"])) == frozenset()
    assert traits_of(Spec("merge", VARIANTS["tofu-drop"])) == {"merge"}


def test_tome_stays_on_strided_slices() -> None:
    found = reduced("merge", tokens(16), 12)
    assert {"TcMatchTokens", "TcMergeTokens"} <= set(found.ops)
    assert "TcMatchAllTokens" in reduced("merge", tokens(16), 8).ops


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("count", [16, 17])
def test_parity_of_the_reference(prefix: int, count: int) -> None:
    """Against ToMe's step on the whole sequence: row of CLS −inf, column of dist −inf, order
    [unmerged A | B], with a distillation token [A0, B0, other A, other B]."""
    t, r = tokens(count, prefix=prefix, sized=True), 5
    found = reduced("merge", t, count - r, parity="reference")
    assert t.size is not None
    for n in range(3):
        x, keys = t.x[n].astype(np.float64), t.keys[n].astype(np.float64)
        size = np.concatenate([np.ones(prefix), t.size[n]])
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        edges = unit[0::2] @ unit[1::2].T
        edges[0] = -np.inf
        if prefix == 2:
            edges[:, 0] = -np.inf
        order = np.argsort(-edges.max(1), kind="stable")
        gone, left = order[:r], np.sort(order[r:])
        total = size[1::2].copy()
        summed = x[1::2] * total[:, None]
        for i in gone:
            summed[edges[i].argmax()] += x[0::2][i] * size[0::2][i]
            total[edges[i].argmax()] += size[0::2][i]
        others = summed / total[:, None]
        rows = [*x[0::2][left], *others]
        if prefix == 2:
            rows = [rows[0], others[0], *x[0::2][left[1:]], *others[1:]]
        np.testing.assert_allclose(found.x[n], rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("count", "keep", "fits"), [(7800, 3900, True), (7800, 4000, False)])
def test_only_what_is_sorted_counts_for_topk(count: int, keep: int, fits: bool) -> None:
    """TensorRT's TopK takes 3840; where all 3900 tokens of A merge, none of them is chosen."""
    assert ("TopK" in problem("merge", count, keep)) is not fits
