"""Two profiles side by side, whatever they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcompile.profiling.compare import compare
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import MeasuredProfile, ModelledProfile, Profile, Subject
from tests.support.profiling import CONDITIONS


def curve(*points: tuple[int, float]) -> Curve:
    return Curve.of((n, Figure.modelled(ms)) for n, ms in points)


FIRST = MeasuredProfile(
    CONDITIONS,
    Subject("vit.onnx", 17, 1, 2),
    {"s": Figure.modelled(1.0)},
    {"a": curve((9, 2.0), (17, 4.0)), "m": curve((9, 1.0), (17, 2.0))},
    {"h": curve((17, 0.5))},
    {"topk": StepCost(((17, 9, Figure.modelled(0.5)),))},
    Figure.modelled(15.0),
)
SECOND = ModelledProfile(
    replace(CONDITIONS, device="another", date=""),
    Subject("vit.onnx", 17, 1, 2),
    {"s": Figure.modelled(2.0)},
    {"a": curve((5, 2.0), (13, 6.0), (17, 8.0)), "x": curve((9, 1.0))},
    {},
    {"topk": StepCost(((17, 9, Figure.modelled(0.25)),))},
    Figure.modelled(30.0),
)
USES = {"s": 1, "a": 2, "m": 2, "h": 1}


def test_ratios_by_count() -> None:
    rows = {(r.role, r.name): r for r in compare(FIRST, SECOND).rows}
    assert set(rows) == {("dense", ""), ("stem", "s"), ("half", "a"), ("steps", "topk")}
    found = [(r.tokens, r.first, r.second, r.ratio) for r in rows["half", "a"].ratios]
    assert found == [(9, 2.0, 4.0, 2.0), (13, 3.0, 6.0, 2.0), (17, 4.0, 8.0, 2.0)]
    assert rows["steps", "topk"].median == 0.5
    assert rows["dense", ""].median == 2.0


def test_parts_of_one_only_and_conditions() -> None:
    found = compare(FIRST, SECOND)
    assert found.alone == (2, 1)
    assert set(found.conditions) == {"kind", "device", "date"}
    assert found.conditions["kind"] == ("measured", "modelled")
    assert compare(FIRST, FIRST).conditions == {}
    assert all(row.median == 1.0 for row in compare(FIRST, FIRST).rows)


def test_closure_is_parts_over_the_whole() -> None:
    found = compare(FIRST, SECOND, USES)
    assert found.closure == (pytest.approx((1 + 2 * 4 + 2 * 2 + 0.5) / 15), None)
    assert compare(FIRST, SECOND).closure == (None, None)
    assert compare(replace(FIRST, dense=None), FIRST, USES).closure[0] is None


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (SECOND, FIRST), (FIRST, FIRST)])
def test_words_and_json(first: Profile, second: Profile) -> None:
    found = compare(first, second, USES)
    document = found.to_json()
    assert document["kinds"] == [first.kind, second.kind]
    assert len(document["parts"]) == len(found.rows)
    lines = found.lines()
    assert lines[0] == f"Compared: {second.kind} over {first.kind}"
    assert any("half a" in line for line in lines)


def test_nothing_in_common_is_said() -> None:
    other = MeasuredProfile(CONDITIONS, Subject("b.onnx", 33, 1, 2))
    found = compare(FIRST, other)
    assert found.rows == ()
    assert any("no part in common" in line for line in found.lines())
    assert "model's tokens" in found.conditions


def test_curves_that_do_not_overlap_and_times_of_zero() -> None:
    apart = replace(FIRST, halves={"a": curve((30, 1.0), (40, 2.0))})
    assert ("half", "a") not in {(r.role, r.name) for r in compare(FIRST, apart).rows}
    zero = replace(FIRST, stem={"s": Figure.modelled(0.0)})
    stem = next(r for r in compare(zero, FIRST).rows if r.role == "stem")
    assert stem.median is None
    assert not any("stem" in line for line in compare(zero, FIRST).lines())
