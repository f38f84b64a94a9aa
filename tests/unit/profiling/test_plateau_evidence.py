"""Plateaus are claimed where steps rise out of the noise, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tcompile.profiling.curve import Curve, Figure
from tcompile.profiling.plateaus import step_evidence
from tcompile.profiling.profile import MeasuredProfile, ModelledProfile, Profile, Subject, from_json
from tests.support.profiling import CONDITIONS

COUNTS = (*range(8, 197, 16), 197)
SUBJECT = Subject("vit.onnx", 197, 1, 12)


def smooth(n: int) -> float:
    return 1 + 0.1 * n + 2e-5 * n * n


def quadratic(n: int) -> float:
    """Most of it attention."""
    return 1 + 0.01 * n + 1e-3 * n * n


def stairs(n: int) -> float:
    return 4.0 * -(-n // 64)


def curve(
    time: Callable[[int], float],
    noise: float = 0.0,
    *,
    seed: int = 0,
    counts: tuple[int, ...] = COUNTS,
) -> Curve:
    """Seven runs at each count, log-normal around what they are of."""
    rng = np.random.default_rng(seed)
    return Curve.of(
        (n, Figure.of((time(n) * np.exp(noise * rng.normal(size=7))).tolist())) for n in counts
    )


def profile(*curves: Curve) -> Profile:
    return MeasuredProfile(CONDITIONS, SUBJECT, {}, {f"half{i}": c for i, c in enumerate(curves)})


def test_a_staircase_is_claimed_where_its_steps_exceed_the_spread() -> None:
    quiet = profile(curve(stairs, 0.02), curve(stairs, 0.02, seed=1))
    assert (quiet.claims_plateaus, quiet.why_no_plateaus) == (True, "")
    for seed in range(20):
        loud = profile(curve(stairs, 0.6, seed=seed), curve(stairs, 0.6, seed=99 - seed))
        assert not loud.claims_plateaus
        assert "measured on a busy machine?" in loud.why_no_plateaus


def test_a_fall_tells_of_noise_that_quartiles_do_not() -> None:
    """A curve that was seen: each count with little spread, but 72 tokens slower than 88."""
    times = {8: 30, 40: 74, 72: 123, 88: 112, 104: 141, 136: 190, 197: 280}
    found = Curve.of((n, Figure(ms, ms * 0.99, ms * 1.01, 7)) for n, ms in times.items())
    made = profile(found)
    assert not made.claims_plateaus
    assert made.why_no_plateaus == (
        "spread 8.9 % exceeds the largest step "
        f"{100 * step_evidence([found]).step:.2g} %: measured on a busy "
        "machine?"
    )


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.09])
def test_a_smooth_curve_has_no_plateaus_and_a_staircase_has(noise: float) -> None:
    """By chance alone a smooth curve shows a step now and then; a fine one hardly more often."""

    def claims(time: Callable[[int], float], counts: tuple[int, ...] = COUNTS) -> int:
        made = (profile(curve(time, noise, seed=seed, counts=counts)) for seed in range(40))
        return sum(one.claims_plateaus for one in made)

    for time in (smooth, quadratic):
        assert claims(time) <= 3
        assert claims(time, (*range(8, 197, 8), 197)) <= 4
    assert claims(stairs) == 40


def test_quartiles_alone_are_enough_to_claim_nothing() -> None:
    wide = Curve.of((n, Figure(stairs(n), 0.2 * stairs(n), 1.7 * stairs(n), 7)) for n in COUNTS)
    assert profile(wide).why_no_plateaus.startswith("spread 375 % exceeds the largest step 37 %")


def test_one_cliff_in_a_smooth_curve_is_a_step() -> None:
    assert profile(curve(lambda n: smooth(n) + (6 if n > 128 else 0), 0.01)).claims_plateaus


def test_few_counts_show_no_step() -> None:
    for counts in ((197,), (99, 197)):
        made = profile(curve(stairs, counts=counts))
        assert f"at {len(counts)} token counts" in made.why_no_plateaus
    # Parts are held together at the counts that all of them have.
    apart = profile(curve(stairs, counts=(8, 24, 40)), curve(stairs, counts=(72, 136, 197)))
    assert not apart.claims_plateaus
    # What was timed at one count alone does not matter: the dense form of a half, say.
    assert profile(curve(stairs, 0.02), curve(stairs, counts=(197,))).claims_plateaus


def test_a_model_of_a_device_has_no_noise() -> None:
    falling = Curve.of([(8, Figure.modelled(2.0)), (16, Figure.modelled(1.0))])
    made = ModelledProfile(CONDITIONS, SUBJECT, {}, {"half": falling})
    assert made.claims_plateaus
    assert made.halves["half"].fit.tolist() == [2.0, 1.0]


def test_files_written_before_tell_it_too() -> None:
    """It is derived from the points: nothing in the file says so."""
    document = profile(curve(smooth, 0.09)).to_json()
    assert not any("plateau" in key for key in document)
    again = from_json(document)
    assert not again.claims_plateaus
    assert again.halves["half0"].fit.tolist() == sorted(again.halves["half0"].fit)
