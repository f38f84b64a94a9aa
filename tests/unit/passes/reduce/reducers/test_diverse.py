"""`diverse`: VisPruner's rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.reducing import problem, reduced
from tests.unit.passes.reduce.reducers.given import (
    CASES,
    Tokens,
    best,
    check,
    cosines,
    sane,
    score_of,
    tokens,
)


def chosen(t: Tokens, n: int, keep: int, given: dict[str, Any]) -> list[int]:
    order = np.argsort(-score_of(t, n), kind="stable").tolist()
    important = int(given.get("important", 0.5) * keep)
    f = t.metric[n] if given.get("metric") == "keys" else t.patches[n]
    left, target = order[important:] if important < keep else [], keep - important
    most = given.get("step", 8)
    if "rounds" in given:
        most = -(-(t.count - keep) // given["rounds"])
    while len(left) > target:
        even, odd = left[0::2], left[1::2]
        drop = best(cosines(f[even], f[odd]).max(1), min(most, len(left) - target, len(left) // 2))
        gone = {even[i] for i in drop}
        left = [j for j in left if j not in gone]
    return sorted(order[:important] + left)


@CASES
@pytest.mark.parametrize(
    ("keep", "given"),
    [
        (12, {}),
        (7, {"step": 3}),
        (20, {"important": 0.25, "rounds": 2}),
        (2, {"important": 0.0, "step": 30}),
        (9, {"important": 1.0}),
        (9, {"metric": "keys", "step": 1}),
    ],
)
def test_formula(keep: int, given: dict[str, Any], batch: int, prefix: int, sized: bool) -> None:
    t = tokens(24, batch, prefix, sized=sized)
    found = reduced("diverse", t, keep, **given)
    sane(t, found, keep)
    for n in range(batch):
        kept = chosen(t, n, keep, given)
        owner = cosines(t.patches[n], t.patches[n][kept]).argmax(1)
        owner[kept] = np.arange(keep)
        check(t, found, n, t.patches[n][kept], kept, owner)
        np.testing.assert_array_equal(found.local[n], kept)


@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
def test_ties(value: float) -> None:
    x = np.full((2, 25, 4), value, np.float32)
    t = Tokens(x, x, np.full((2, 24), value, np.float32), prefix=1)
    found = reduced("diverse", t, 9, half=True)
    sane(t, found, 9)


def test_what_is_impossible() -> None:
    assert "rounds=16" in problem("diverse", 3000, 100)
    assert problem("diverse", 3000, 100, rounds=16) == ""
    assert "4096" in problem("diverse", 4096, 3000, rounds=16)
    assert problem("diverse", 4096, 3000, important=1.0) == ""
