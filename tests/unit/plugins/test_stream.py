"""Bodies for a CPU, in ONNX Runtime, against what the token ops in whose place they are mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.cases import Case
from tcompile.plugins.ops import MATCH_STREAM, MERGE_STREAM, MERGE_WHOLE
from tcompile.plugins.spec import TokenOp
from tests.unit.plugins.test_ops import run

Drawn = tuple[np.random.Generator, int, int, int, int, int]


@pytest.fixture(params=range(8))
def drawn(request: pytest.FixtureRequest) -> Drawn:
    """A generator; batch, prefix, patches, pairs that merge, width."""
    rng = np.random.default_rng(request.param)
    patches = int(rng.integers(3, 40))
    pairs = int(rng.integers(1, patches - patches // 2))
    return rng, int(rng.integers(1, 3)), request.param % 4, patches, pairs, int(rng.integers(1, 9))


def counts(drawn: Drawn) -> dict[str, int]:
    _, _, prefix, patches, pairs, _ = drawn
    half = patches - patches // 2
    return {"prefix": prefix, "r": pairs, "half": half, "rest": half - pairs}


def call(op: TokenOp, numbers: dict[str, int], *inputs: np.ndarray[Any, Any]) -> Case:
    return Case(op, inputs, numbers, {}, "", (0, 0))


def floats(rng: np.random.Generator, *dims: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(dims).astype(np.float32)


def test_a_match_is_the_one_behind_the_prefix(drawn: Drawn) -> None:
    rng, batch, prefix, patches, _, width = drawn
    numbers = counts(drawn) | {"first_odd": prefix + 1}
    case = call(MATCH_STREAM, numbers, floats(rng, batch, prefix + patches, width))
    for opset in (16, 18):
        have, want = run(case, opset), MATCH_STREAM.reference(*case.inputs, **numbers)
        for one, other in zip(have, want, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_row_of_zeros_is_like_nothing() -> None:
    metric = np.array([[[9], [-1], [1], [0], [1]]], np.float32)  # a prefix, even, odd, even, odd
    numbers = {"prefix": 1, "first_odd": 2, "r": 1, "half": 2, "rest": 1}
    keep, source, target = run(call(MATCH_STREAM, numbers, metric), 18)
    # To the one odd place -1 has a cosine of -1, and so it has to the other; zeros have 0.
    assert (keep.tolist(), source.tolist(), target.tolist()) == ([[0]], [[1]], [[0]])


def test_a_merge_is_the_one_behind_the_prefix(drawn: Drawn) -> None:
    rng, batch, prefix, patches, pairs, width = drawn
    half, odd = patches - patches // 2, patches // 2
    order = np.stack([rng.permutation(half) for _ in range(batch)])
    keep, source = np.sort(order[:, pairs:]), order[:, :pairs]
    target = rng.integers(0, odd, (batch, pairs))
    size = rng.integers(1, 5, (batch, prefix + patches)).astype(np.float32)
    fixed = [prefix + 1 + 2 * np.arange(odd), np.arange(prefix + patches - pairs)[:, None]]
    op = MERGE_STREAM if prefix else MERGE_WHOLE
    front = [np.arange(prefix)] if prefix else []
    inputs = (floats(rng, batch, prefix + patches, width), size, keep, source, target)
    numbers = {"prefix": prefix, "own": prefix + half - pairs}
    case = call(op, numbers, *inputs, *fixed, *front)
    have, want = run(case, 16), op.reference(*case.inputs, **numbers)
    np.testing.assert_allclose(have[0], want[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(have[1], want[1])
    alone = np.ones(have[0].shape[:2], bool)  # nothing merged into these, so they are as they were
    np.put_along_axis(alone, prefix + half - pairs + target, False, axis=1)
    front, odds = np.arange(prefix), prefix + 1 + 2 * np.arange(odd)
    rows = np.stack([np.concatenate([front, prefix + 2 * k, odds]) for k in keep])
    before = np.take_along_axis(inputs[0], rows[..., None], axis=1)
    np.testing.assert_array_equal(have[0][alone], before[alone])
