"""Plans by latency and loss: what another one beats is left out, rivals and the chosen one stay."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tcompile.planning.front import FrontPlan, front_of, front_table


def of(ms: float, loss: float | None, **more: object) -> FrontPlan:
    given = {"precision": "fp32", "method": "tome", "patches": 100, "seen_in": "fp32", "images": 8}
    return FrontPlan(latency_ms=ms, loss=loss, **{**given, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(10))
def test_it_is_what_no_other_beats(seed: int) -> None:
    rng = random.Random(seed)
    plans = [of(rng.randrange(9), rng.randrange(9), patches=i) for i in range(10)]
    pairs = [(p.latency_ms, p.loss or 0.0) for p in plans]
    best = {
        (ms, loss)
        for ms, loss in pairs
        if not any(a <= ms and b <= loss and (a, b) != (ms, loss) for a, b in pairs)
    }
    found = front_of(plans)
    assert {(p.latency_ms, p.loss) for p in found} == best
    assert [p.latency_ms for p in found] == sorted(p.latency_ms for p in found)


def test_rivals_and_the_chosen_one_stay() -> None:
    """Two precisions: a dense int8 that was not run beats no one, and is not beaten."""
    plans = [
        of(10, 0.0, method="dense", seen_in=None),
        of(6, None, method="dense", precision="int8", seen_in=None),
        of(5, 0.3, chosen=True),
        of(5, 0.2, precision="int8"),
        of(7, 0.2, patches=1),
    ]
    found = front_of(plans)
    assert [(p.latency_ms, p.beaten, p.dense) for p in found] == [
        (5, True, False),
        (5, False, False),
        (6, False, True),
        (10, False, True),
    ]
    known = replace(plans[1], loss=0.1, seen_in="int8")
    found = front_of([*plans, known])
    assert sum(p.dense for p in found) == 2
    assert known in found


def test_a_loss_in_its_own_precision_counts() -> None:
    guessed = of(5, 0.2, precision="int8", chosen=True)
    run = replace(guessed, loss=0.4, seen_in="int8", chosen=False)
    for order in ([guessed, run], [run, guessed]):
        assert front_of(order) == (replace(run, chosen=True),)


def test_the_dense_model_is_there_once_a_precision() -> None:
    """Whole, and summed up from its parts, it takes another time."""
    plans = [of(10 + i, 0.0, method="dense", seen_in=None, patches=196) for i in range(2)]
    assert [p.latency_ms for p in front_of(plans)] == [10]


def test_long_fronts_are_thinned_from_end_to_end() -> None:
    plans = [of(ms, 100 - ms, patches=ms, chosen=ms == 50) for ms in range(1, 101)]
    found = front_of(plans)
    assert len(found) == 13
    assert [found[0].latency_ms, found[-1].latency_ms] == [1, 100]
    assert any(p.chosen for p in found)


def test_the_table_says_where_a_loss_was_seen() -> None:
    _, rows = front_table(
        front_of([of(5, 0.25, chosen=True), of(9, None, method="dense", seen_in=None)])
    )
    assert rows == [
        ["fp32", "tome", "100", "5 ms", "0.25", "fp32, 8 images", "chosen"],
        ["fp32", "dense", "100", "9 ms", "not run", "", ""],
    ]
