"""Distances by kind of output, against what is said of them in words."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.planning.losses.distance import distance, unit

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(float), b.ravel().astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_of_classes_the_probability_that_moves() -> None:
    p, q = RNG.dirichlet(np.ones(4), 6), RNG.dirichlet(np.ones(4), 6)
    dense = {"logits": np.log(p) + 3, "patch_logits": normal(6, 5, 2)}
    reduced = {"logits": np.log(q) - 800, "patch_logits": normal(6, 5, 2)}
    moved = [
        max(sum(p[i, c] - q[i, c] for c in subset) for subset in _subsets(4)) for i in range(6)
    ]
    np.testing.assert_allclose(distance(dense, reduced), moved, atol=1e-12)
    assert unit(dense) == "class probability that moves"
    assert np.all(distance(dense, dense) == 0)


def _subsets(n: int) -> list[list[int]]:
    return [[c for c in range(n) if mask >> c & 1] for mask in range(1 << n)]


def test_of_several_classifiers_the_mean() -> None:
    a, b, c = normal(3, 5), normal(3, 5), normal(3, 5)
    both = distance({"x": a, "y": a}, {"x": b, "y": c})
    np.testing.assert_allclose(
        both, (distance({"x": a}, {"x": b}) + distance({"x": a}, {"x": c})) / 2
    )


def test_embeddings_by_cosine() -> None:
    a, b = normal(4, 8), normal(4, 8)
    found = distance({"image_embeds": a}, {"image_embeds": b})
    np.testing.assert_allclose(
        found, [1 - cosine(x, y) for x, y in zip(a, b, strict=True)], atol=1e-6
    )
    assert (
        unit({"image_embeds": a}) == "1 - cosine of embeddings, 1 - correlation of maps and tokens"
    )


def test_maps_by_correlation_which_sees_holes() -> None:
    dense = 5 + normal(2, 1, 8, 8)
    holes = dense.copy()
    holes[1, 0, :4] = 5.0
    found = distance({"map": dense}, {"map": holes})
    expected = np.corrcoef(dense[1].ravel(), holes[1].ravel())[0, 1]
    np.testing.assert_allclose(found, [0, 1 - expected], atol=1e-6)
    assert found[1] > 5 * (1 - cosine(dense[1], holes[1]))


@pytest.mark.parametrize("axis", [1, 2])
def test_dropped_tokens_by_the_kept_one_most_like_them(axis: int) -> None:
    dense, index = normal(2, 6, 3), np.array([[0, 2, 5, -1], [1, 2, 3, -1]])
    reduced = normal(2, 4, 3)
    expected = []
    for b in range(2):
        stands = [
            max(range(3), key=lambda k, b=b, i=i: cosine(dense[b, i], dense[b, index[b, k]]))  # type: ignore[misc]
            for i in range(6)
        ]  # The last row is fused: it stands for none.
        rows = reduced[b, stands]
        expected.append(1 - np.corrcoef(dense[b].ravel(), rows.ravel())[0, 1])
    outputs = {"tokens": reduced.swapaxes(1, axis), "token_index": index}
    found = distance({"tokens": dense.swapaxes(1, axis)}, outputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_merged_tokens_where_they_stand_for_others() -> None:
    dense, reduced = normal(1, 4, 3), normal(1, 2, 3)
    owner = np.array([[0, 1, 1, -1]])
    whole, rows = dense.copy(), reduced[:, [0, 1, 1, 1]].copy()
    whole[:, 3] = rows[:, 3] = 0
    expected = 1 - np.corrcoef(whole.ravel(), rows.ravel())[0, 1]
    found = distance({"tokens": dense}, {"tokens": reduced, "token_owner": owner})
    np.testing.assert_allclose(found, [expected], atol=1e-6)


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(UsageError, match="no output"):
        distance({"tokens": normal(1, 4, 3)}, {"tokens": normal(1, 2, 3)})
