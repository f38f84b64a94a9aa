"""A machine's own pace is taken out of times, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.profiling.detrend import detrended

PARTS = {"attention": 2.0, "mlp": 5.0, "step": 0.3, "head": 0.1, "dense": 40.0}


def wandering(second: float) -> float:
    """Slow by a half for half of the runs, by turns of some tenths of a second."""
    return 1.5 if second % 0.7 < 0.42 else 1.0


def measured(
    pace: object, rounds: int = 40, seed: int = 0, noise: float = 0.0
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Rounds of all parts in an order drawn anew; what takes x ms takes x · pace(second)."""
    rng, now = np.random.default_rng(seed), 0.0
    times: dict[str, list[float]] = {k: [] for k in PARTS}
    when: dict[str, list[float]] = {k: [] for k in PARTS}
    for _ in range(rounds):
        for name in rng.permutation(list(PARTS)):
            ms = PARTS[name] * pace(now) * np.exp(noise * rng.standard_normal())  # type: ignore[operator]
            times[name].append(ms)
            when[name].append(now)
            now += ms / 1e3
    return times, when


@pytest.mark.parametrize("seed", range(5))
def test_a_pace_that_wanders_leaves_the_ratios(seed: int) -> None:
    times, when = measured(wandering, 80, seed, 0.02)
    found = {k: float(np.median(v)) for k, v in detrended(times, when).items()}
    for name, ms in PARTS.items():
        assert found[name] / found["dense"] == pytest.approx(ms / 40, rel=0.02)


def test_ratios_of_plain_medians_would_not_do() -> None:
    """The test above can fail: what is told apart is told apart by the correction."""
    off = []
    for seed in range(5):
        times, _ = measured(wandering, 80, seed, 0.02)
        dense = np.median(times["dense"])
        off += [abs(np.median(times[k]) / dense * 40 / ms - 1) for k, ms in PARTS.items()]
    assert max(off) > 0.1


@pytest.mark.parametrize(("pace", "seed"), [(0.2, 0), (1.0, 1), (5.0, 2)])
def test_a_steady_machine_is_left_alone(pace: float, seed: int) -> None:
    times, when = measured(lambda t: pace, 5, seed)
    found = detrended(times, when)
    for name in PARTS:
        np.testing.assert_allclose(found[name], times[name], rtol=1e-9)


def test_parts_that_began_later_are_compared_with_those_beside_them() -> None:
    """Token counts that are added once the machine has become slower."""
    times, when = measured(lambda t: 1.0 if t < 1.0 else 1.4, 60)
    late = [i for i, t in enumerate(when["step"]) if t > 1.0]
    times["step"], when["step"] = ([v[i] for i in late] for v in (times["step"], when["step"]))
    found = detrended(times, when)
    assert np.median(found["step"]) / np.median(found["mlp"]) == pytest.approx(0.06, rel=0.01)


def test_the_whole_keeps_its_length() -> None:
    """Times stay milliseconds: the median pace is 1."""
    times, when = measured(lambda t: 2.0 if t % 1 < 0.3 else 1.0, 60)
    assert np.median(detrended(times, when)["dense"]) == pytest.approx(40.0, rel=0.02)


def test_one_part_and_none() -> None:
    assert detrended({"a": [1.0, 2.0]}, {"a": [0.0, 1.0]}) == {"a": [1.0, 2.0]}
    assert detrended({}, {}) == {}
    assert detrended({"a": [1.0], "b": []}, {"a": [0.0], "b": []}) == {"a": [1.0], "b": []}
