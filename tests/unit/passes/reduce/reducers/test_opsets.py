"""Reducers write what every opset from 17 on has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.reducing import reduced
from tests.unit.passes.reduce.reducers.given import Tokens, tokens

STEPS: dict[str, tuple[int, dict[str, Any]]] = {
    "fuse": (9, {"weights": "normalised"}),
    "topk": (12, {"unit": "row"}),
    "assign": (9, {"combine": "size_mean"}),
    "contextual": (9, {"contextual": 3}),
    "neighbours": (9, {}),
    "soft": (14, {"targets": 2}),
    "propagate": (14, {"sizes": True}),
    "pool": (6, {}),
    "lines": (16, {}),
    "windows": (18, {}),
    "diverse": (9, {}),
}


@pytest.mark.parametrize("name", STEPS)
def test_opsets(name: str) -> None:
    t = tokens(24, sized=True, grid=(4, 6))
    logits = np.random.default_rng(1).normal(size=(3, 2, 25, 25)).astype(np.float32)
    t = Tokens(t.x, t.keys, t.score, t.size, 1, grid=(4, 6), logits=logits)
    keep, given = STEPS[name]
    whole = reduced(name, t, keep, **given)
    for opset in (17, 20):
        one = reduced(name, t, keep, opset=opset, **given)
        np.testing.assert_allclose(one.x, whole.x, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(one.owner, whole.owner)
