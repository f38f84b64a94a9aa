"""Budgets of tokens and latency on real models with planted latencies, against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import Any

import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.passes.stages import Analysed
from tcompile.planning.optimise.prior import prior_loss
from tcompile.planning.options.budgets import Budget, best_of_all, usual_plan
from tcompile.planning.options.method_tables import Losses, MethodTables, method_tables, methods_for
from tcompile.planning.request import Asked, Request
from tcompile.planning.solve import plan_report
from tcompile.planning.solve.plan_report import PlanReport
from tcompile.planning.solve.solve import solve_request
from tests.support.planted import STEM, Planted, method, model
from tests.support.tiny_vit import VitSpec

PLANTED = Planted()
DEEP = VitSpec(depth=6)


def planned(
    given: Analysed, planted: Planted = PLANTED, kind: str = "measured", **asked: Any
) -> PlanReport:
    """The answer of the planner to planted latencies."""
    request = Request(**asked)
    methods = methods_for(given, request, calibrated=False)
    profile = planted.profile(given, methods, kind=kind)
    return solve_request(given, request, methods, profile, lambda _: None)


def every(given: Analysed, name: str, planted: Planted) -> Iterator[tuple[float, float, int]]:
    """(ms, loss, tokens that leave) of all that a pruning method could do, one step a block."""
    shape = given.analysis.shape
    loss = prior_loss("prune", tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks)
    least = method(given, name).sites[0].least

    def walk(block: int, tokens: int, ms: float, lost: float) -> Iterator[tuple[float, float, int]]:
        if block == shape.blocks:
            yield ms + planted.head(tokens), lost, tokens
            return
        ms += planted.half("attn", tokens)
        for after in range(least, tokens + 1):
            site, step = f"attn:{block}", planted.step(tokens) if after < tokens else 0.0
            more = float(loss(site, tokens, after)) if after < tokens else 0.0  # type: ignore[arg-type]
            yield from walk(block + 1, after, ms + step + planted.half("mlp", after), lost + more)

    yield from walk(0, shape.tokens, STEM, 0.0)


@pytest.fixture(scope="module")
def wholes() -> list[tuple[float, float, int]]:
    return list(every(model(), "topk", PLANTED))


@pytest.mark.parametrize("share", [0.95, 0.9, 0.8, 0.65, 0.5, 0.45])
def test_a_budget_of_latency_is_met_at_the_least_loss(
    share: float, wholes: list[tuple[float, float, int]]
) -> None:
    given = model()
    budget = share * PLANTED.dense(given)
    fits = [w for w in wholes if w[0] <= budget + 1e-9]
    found = planned(given, latency=budget, method="topk")
    lost = min(w[1] for w in fits)
    assert found.plan.loss == pytest.approx(lost)
    best = min(w[0] for w in fits if w[1] <= lost + 1e-9)
    assert found.plan.latency_ms == pytest.approx(best)
    assert PLANTED.latency(given, found.schedule) == pytest.approx(best)
    assert found.plan.dense_ms == pytest.approx(PLANTED.dense(given))


@pytest.mark.parametrize(("share", "keep"), [(0.9, 0.75), (0.8, 0.65), (0.7, 0.5), (5.0, 0.5)])
def test_latency_bounds_where_tokens_leave(
    share: float, keep: float, wholes: list[tuple[float, float, int]]
) -> None:
    """--keep says how many leave, and that they leave early enough to be worth it; a latency may
    ask for more, and one that everything meets changes nothing."""
    given = model()
    least = ceil(keep * 16) + 1
    usual = PLANTED.latency(given, method(given, "topk").schedule([_place("attn:0", least - 1)]))
    budget = min(share * PLANTED.dense(given), usual * 1.03)
    fits = [w for w in wholes if w[0] <= budget + 1e-9 and w[2] == least]
    found = planned(
        given, latency=share * PLANTED.dense(given), keep=keep, exact=True, method="topk"
    )
    assert found.plan.final == least
    assert found.plan.loss >= min(w[1] for w in fits) - 1e-9
    assert found.plan.latency_ms <= budget
    if share > 1:
        alone = planned(
            given, keep=keep, exact=True, latency=10 * PLANTED.dense(given), method="topk"
        )
        assert found.plan == alone.plan


def test_what_cannot_be_met_names_the_nearest(wholes: list[tuple[float, float, int]]) -> None:
    given = model()
    fastest = min(w[0] for w in wholes)
    with pytest.raises(UsageError) as error:
        planned(given, latency=0.9 * fastest, method="topk")
    assert f"{fastest:.4g} ms" in str(error.value)
    assert "\n" not in error.value.one_line()
    bounded = min(w[0] for w in wholes if w[2] >= 13)
    with pytest.raises(UsageError) as error:
        planned(given, latency=0.95 * bounded, keep=0.75, method="topk")
    assert f"{bounded:.4g} ms" in str(error.value)


def test_a_budget_that_dense_meets_takes_no_step() -> None:
    found = planned(model(), latency=1000, method="topk")
    assert found.schedule.reductions == ()
    assert (found.outcome.emitted, found.outcome.reason) == ("dense", "budget")
    first, second = found.outcome.summary()
    ms = f"{PLANTED.dense(model()):.4g} ms"
    assert first == f"this is the dense model: its {ms} (measured) are within what was asked"
    assert second == "asked at most 1000 ms, kept 1.00 (16 of 16 patch tokens)"


@pytest.mark.parametrize("tile", [3, 4, 6])
@pytest.mark.parametrize("keep", ["0.3", "0.5", "0.7"])
def test_keep_is_no_slower_and_loses_no_more_than_the_usual(keep: str, tile: int) -> None:
    given, planted = model(DEEP), Planted(tile=tile)
    found = planned(given, planted, keep=keep, method="topk")
    shape = given.analysis.shape
    final = ceil(float(keep) * shape.patches) + 1
    assert final <= found.plan.final <= 1 + max((final - 1) * 11 // 10, final - 1)
    one = method(given, "topk")
    usual = one.schedule([_place("attn:1", final - 1)])
    usual_ms = planted.latency(given, usual) * (1 + plan_report.EPS["measured"])
    assert planted.latency(given, found.schedule) <= usual_ms
    loss = prior_loss("prune", tokens=shape.tokens, prefix=1, blocks=6)
    assert found.plan.loss <= float(loss("attn:1", shape.tokens, final)) + 1e-9  # type: ignore[arg-type]


def _place(site: str, keep: int) -> Any:
    from tcompile.methods.schedulers import Place

    return Place(site, keep)


def test_keep_snaps_up_to_the_end_of_a_step() -> None:
    """Stairs of 4 tokens, nothing else that counts: 11 tokens take as long as 12 do."""
    given = model()
    planted = replace(Planted(), launch=0.0, each=0.0)
    profile_of_head = planted.head
    assert profile_of_head(12) - profile_of_head(11) < 0.02 * planted.dense(given)
    found = planned(given, planted, keep=10 / 16)
    assert all(step.after in (12, 16) for step in found.plan.steps)
    assert found.plan.final == 12
    (plateau, *_) = found.plateaus[-1:]
    assert (plateau.first, plateau.last) == (9, 12)


def test_keep_reduces_where_the_next_step_lies_below() -> None:
    """On stairs of 12 of 17 tokens, 14 are no faster; 12 are, and that is said."""
    given, planted = model(), Planted(tile=12)
    found = planned(given, planted, keep="0.8", method="auto")
    assert 13 <= found.schedule.final <= 14
    (note,) = (n for n in found.schedule.notes if "profile predicts" in n)
    assert f"{found.plan.latency_ms:.4g} ms reduced, {found.plan.dense_ms:.4g} ms dense" in note
    assert "what a profile can tell; measure on the device" in note
    assert "with 12 tokens (--keep 0.68) it would take" in note
    again = planned(given, planted, keep="0.68", method="topk", exact=True)
    assert again.schedule.final == 11
    said = note.rsplit("it would take ", 1)[1].split(" ms")[0]
    one = method(given, "evit").schedule([_place("attn:0", 11)])
    assert float(said) == pytest.approx(planted.latency(given, one), rel=1e-3)


@pytest.mark.parametrize("kind", ["measured", "modelled"])
@pytest.mark.parametrize("launch", [1.5, 100.0])
def test_a_prediction_is_a_note(kind: str, launch: float) -> None:
    """Reducers cost more than they save, by what a profile tells: reduced all the same, in the
    usual place, since no prediction says of a better one."""
    given = model(DEEP)
    found = planned(given, Planted(tile=20, launch=launch), kind, keep="0.5")
    assert found.plan.latency_ms > found.plan.dense_ms
    assert [s.site for s in found.plan.steps] == ["attn:1"]
    assert found.outcome.emitted == "reduced"
    (note,) = (n for n in found.schedule.notes if "profile predicts" in n)
    assert note.startswith(f"a {kind} profile predicts")
    assert ("slower by more than" in note) == (launch == 100.0)
    assert "it would take" not in note


@pytest.mark.parametrize("name", ["topk", "tome", "as-vit"])
@pytest.mark.parametrize("final", [3, 6, 9, 17])
def test_the_usual_plan(name: str, final: int) -> None:
    """One step at a quarter of the depth, or as many as halving takes."""
    given = model(DEEP)
    one = _option(given, name)
    plan = usual_plan(one, final)
    kind = "block" if name == "as-vit" else "attn"
    if name != "tome":
        steps = [(f"{kind}:1", 17, final)] if final < 17 else []
    else:
        patches = {3: [8, 4, 2], 6: [8, 5], 9: [8], 17: []}[final]
        steps, before = [], 17
        for i, left in enumerate(patches):
            steps.append((f"attn:{1 + i}", before, left + 1))
            before = left + 1
    assert [(s.site, s.before, s.after) for s in plan.steps] == steps


def _option(given: Analysed, name: str, lost: float = 1.0, launch: float = 0.25) -> MethodTables:
    one = method(given, name)
    profile = Planted(launch=launch).profile(given, [one])
    shape = given.analysis.shape
    prior = prior_loss("prune", tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks)

    def losses(of: Any) -> Losses:
        return lambda s, n, k: lost * prior(s, n, k), "planted"

    return method_tables(given.graph, one, profile, losses, least=None, eps=0.02)


def test_of_several_methods_the_one_that_loses_least() -> None:
    given = model()
    options = [
        _option(given, n, lost, launch)
        for n, lost, launch in (("topk", 3.0, 0.1), ("evit", 1.0, 0.4), ("tome", 2.0, 0.2))
    ]
    budget = Budget(None, 0.7 * PLANTED.dense(given), 0.02, 0.02)
    best, each = best_of_all(options, budget)
    assert best.option.method.text == "evit"
    assert [c.option.method.text for c in each] == ["topk", "evit", "tome"]
    assert best.plan.loss == min(c.plan.loss for c in each)
    assert best.plan.latency_ms > min(c.plan.latency_ms for c in each), "or this shows nothing"
    with_keep, _ = best_of_all(options, Budget(9, None, 0.02, 0.02))
    assert with_keep.option.method.text == "evit"


def test_a_method_that_cannot_is_left_out() -> None:
    """Two blocks let `tome` halve twice; `topk` alone comes down to 3 tokens of 17."""
    given = model(VitSpec(depth=2))
    options = [_option(given, n) for n in ("tome", "topk")]
    fastest = min(w[0] for w in every(given, "topk", PLANTED))
    best, each = best_of_all(options, Budget(None, fastest + 0.01, 0.0, 0.02))
    assert best.option.method.text == "topk"
    assert len(each) == 1
    with pytest.raises(UsageError):
        best_of_all(options, Budget(None, 0.1, 0.02, 0.02))


def test_what_the_answer_tells() -> None:
    given = model()
    found = planned(given, kind="modelled", keep=0.5)
    assert "planned from a modelled profile, not from a measurement" in found.schedule.notes
    assert (found.kind, found.band) == ("modelled", plan_report.BAND["modelled"])
    assert found.schedule.method == "tome"
    document = found.to_json()
    assert document["budget"] == {"keep": 0.5}
    assert "declined" not in document
    assert document["predicted_ms"] == pytest.approx(PLANTED.latency(given, found.schedule))
    assert [(p.precision, p.dense) for p in found.front][-1] == ("fp32", True)
    for a, b in zip(found.front, found.front[1:], strict=False):
        assert a.latency_ms < b.latency_ms
        assert a.loss is not None
        assert b.loss is not None
        assert a.loss > b.loss
    (chosen,) = (p for p in found.front if p.chosen)
    assert (chosen.latency_ms, chosen.loss) == (found.plan.latency_ms, found.plan.loss)
    assert (chosen.method, chosen.patches) == ("tome", found.schedule.final)
    curve = dict(found.curve)
    halves = sum(PLANTED.half(r, 9) for r in ("attn", "mlp")) * 3
    assert curve[9] == pytest.approx(STEM + halves + PLANTED.head(9))
    measured = planned(given, keep=0.5)
    assert not any("modelled" in note for note in measured.schedule.notes)


def test_through_the_api() -> None:
    given = model()
    one = method(given, "topk")
    profile = PLANTED.profile(given, [one])
    budget = 0.7 * PLANTED.dense(given)
    asked: Asked = {"latency": budget, "method": "topk", "profile": profile, "calibration": "none"}
    made = pipeline.plan(given.source, **asked)
    assert isinstance(made, Schedule)
    assert made == planned(given, latency=budget, method="topk").schedule
    assert PLANTED.latency(given, made) <= budget
    priced = pipeline.price(given.source, **asked)
    assert priced.planned is not None
    assert "prior" in priced.planned.losses
    seen = pipeline.price(given.source, **{**asked, "calibration": None}).planned
    assert seen is not None
    assert "procedural scenes" in seen.losses
    assert seen.plan.latency_ms <= budget
    assert priced.planned.plan.latency_ms == pytest.approx(PLANTED.latency(given, made))
    dense = pipeline.plan(given.source, keep=1)
    assert dense.reductions == ()
