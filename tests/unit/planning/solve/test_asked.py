"""Plans keep what was asked: counts, reasons, and the words that say so."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tcompile.methods.method import Method
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.optimise.tables import Tables
from tcompile.planning.options.budgets import Budget, best_of_all
from tcompile.planning.options.method_tables import MethodTables, methods_for
from tcompile.planning.options.outcome import Outcome, Share, share_text
from tcompile.planning.request import Request
from tcompile.planning.solve import plan_report
from tcompile.planning.solve.outcomes import fixed_outcome, solved_outcome
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport, prediction_note
from tcompile.planning.solve.solve import schedule_for_request, solve_request
from tcompile.profiling.profile import MeasuredProfile, Profile
from tcompile.targets import list_targets, load_target
from tests.support.planted import Planted, method, model
from tests.support.tiny_vit import VitSpec
from tests.unit.methods.test_method import grouped_vit

#: 64 patches and CLS: a tenth of those that stay is a few.
WIDE = VitSpec(image=64, patch=8, depth=4)
GPUS = [t.name for t in list_targets() if not t.on_cpu]
#: What is asked of a device does not depend on how losses are told; two are planned on images.
ON_SCENES = ("jetson-orin-nano", "rtx-4090")


def planned(
    given: Analysed,
    planted: Planted,
    kind: str = "measured",
    profile: Profile | None = None,
    **asked: Any,
) -> PlanReport:
    one = [method(given, "evit")] if "method" not in asked else None
    request = Request(**asked)
    methods = one or methods_for(given, request, calibrated=False)
    profile = profile or planted.profile(given, methods, kind=kind)
    if kind == "modelled":
        gpu = replace(profile.conditions, target="rtx-4090", threads=0)
        profile = replace(profile, conditions=gpu)
    return solve_request(given, request, methods, profile, lambda _: None)


@pytest.mark.parametrize("target", GPUS)
def test_every_target_reduces(target: str) -> None:
    """A model so small that no roofline has it any faster with fewer tokens."""
    device = load_target(target)
    unseen = {} if target in ON_SCENES else {"calibration": "none"}

    def plan(**asked: Any) -> PlanReport:
        request = Request(**asked, **unseen)
        made, chosen = schedule_for_request(model(WIDE), request, device, device.default_precision)
        assert isinstance(chosen, PlanReport)
        assert made == chosen.schedule
        return chosen

    found = plan(keep=0.6)
    assert found.plan.latency_ms > 0.95 * found.plan.dense_ms, "or this shows nothing"
    assert found.schedule.reductions
    kept = found.schedule.final
    assert 39 <= kept <= 42
    note = next(n for n in found.schedule.notes if "profile predicts" in n)
    assert note.startswith("a modelled profile predicts")
    assert "within the model's error; measure on the device" in note
    told = found.outcome.to_json()
    assert (told["emitted"], told["asked"]["patches"]) == ("reduced", 39)
    assert told["reason"] == ("asked" if kept == 39 else "plateau")
    line = f"asked 0.60 (39 of 64 patch tokens), kept {kept / 64:.2f} ({kept}), because "
    assert told["summary"][0].startswith(line)
    exact = plan(keep=0.6, exact=True)
    assert (exact.schedule.final, exact.outcome.reason) == (39, "exact")


@pytest.mark.parametrize("name", ["topk", "evit", "tome", "strided"])
def test_a_method_by_name_has_its_budget_and_a_modelled_latency(name: str) -> None:
    source = model(WIDE).source
    for exact in (False, True):
        made = pipeline.price(source, target="rtx-4090", keep=0.6, method=name, exact=exact)
        assert made.planned is None
        assert isinstance(made.chosen, FixedPlan)
        assert made.schedule.final == 39
        document = made.to_json()
        assert document["reason"] == ("exact" if exact else "asked")
        plan = document["plan"]
        assert plan["budget"] == {"keep": 0.6, **({"exact": True} if exact else {})}
        assert (plan["latency_kind"], plan["band"]) == ("modelled", 0.3)
        dense = pipeline.price(source, target="rtx-4090", keep=1, method=name).chosen
        assert isinstance(dense, FixedPlan)
        assert dense.modelled is not None
        # Of the same model, whatever the method does to it.
        assert plan["dense_ms"] == dense.modelled.dense_ms == dense.modelled.ms
        assert any(
            "predicted latency" in line and "profile: modelled" in line
            for line in made.chosen.lines()
        )
    asked: dict[str, Any] = {"keep": 0.6, "exact": True, "calibration": "none"}
    solved = pipeline.price(source, target="rtx-4090", **asked).planned
    assert solved is not None
    assert solved.plan.dense_ms == pytest.approx(plan["dense_ms"], rel=1e-6)


@pytest.mark.parametrize(
    ("tile", "kind"),
    [(1, "measured"), (1, "modelled"), (4, "modelled"), (8, "measured"), (24, "modelled")],
)
def test_more_only_where_it_is_free_and_a_tenth_at_most(tile: int, kind: str) -> None:
    given = model(replace(WIDE, depth=2))
    planted = Planted(tile=tile, launch=0.01, each=0.0)
    for asked in range(5, 64, 8):
        found = planned(given, planted, kind, keep=f"{asked}/64")
        kept = found.schedule.final
        assert asked <= kept <= max(asked * 11 // 10, asked)
        assert kept < 64
        level = planted.half("attn", asked + 1)
        assert planted.half("attn", kept + 1) == level, "a step is not free"
        assert (found.outcome.reason == "plateau") == (kept > asked)
        if tile == 1:
            assert kept == asked
        exact = planned(given, planted, kind, keep=f"{asked}/64", exact=True)
        assert (exact.schedule.final, exact.outcome.reason) == (asked, "exact")
    # It does take what is free: tiles end at 40 tokens, a tenth more than 39 lies beyond.
    if tile == 8:
        found = planned(given, planted, kind, keep="37/64")
        assert (found.schedule.final, found.outcome.reason) == (39, "plateau")
        assert found.outcome.why == (
            "37 to 39 patch tokens take the same time on cpu within "
            f"{plan_report.EPS[kind]:.0%} ({kind})"
        )


class Doubtful(MeasuredProfile):
    """A profile whose spread is larger than the steps it shows."""

    claims_plateaus = False
    why_no_plateaus = "its spread of 9 % exceeds its steps"


def test_a_profile_that_claims_no_plateau_gives_none_away() -> None:
    given = model(replace(WIDE, depth=2))
    planted = Planted(tile=8, launch=0.01, each=0.0)
    sure = planted.profile(given, [method(given, "evit")])
    doubted = Doubtful(**{f.name: getattr(sure, f.name) for f in fields(sure)})
    assert planned(given, planted, profile=sure, keep="37/64").schedule.final == 39
    found = planned(given, planted, profile=doubted, keep="37/64")
    assert (found.schedule.final, found.outcome.reason) == (37, "asked")
    assert found.outcome.summary() == (
        "asked 0.5781 (37 of 64 patch tokens), kept 0.58 (37), because that is what was asked; the "
        "profile claims no plateau: its spread of 9 % exceeds its steps",
    )


def test_a_hasty_look_at_a_cpu_gives_none_away() -> None:
    """A flat part of a modelled CPU follows from how busy the machine was in two seconds."""
    given = model(replace(WIDE, depth=2))
    planted = Planted(tile=8, launch=0.01, each=0.0)
    methods = [method(given, "evit")]
    profile = planted.profile(given, methods, kind="modelled")
    assert profile.conditions.threads
    found = planned(given, planted, profile=profile, keep="37/64")
    assert (found.schedule.final, found.outcome.reason) == (37, "asked")
    assert "claims no plateau: it is modelled from a short look" in found.outcome.why


def grouped(tmp_path: Path) -> Method:
    """`topk` on 36 patches that leave in groups of 4."""
    path = tmp_path / "groups.onnx"
    onnx.save(grouped_vit(VitSpec(image=48, prefix=0, pool="none", depth=2)), str(path))
    return method(read(path), "topk")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tile", [1, 100])
def test_the_nearest_count_that_the_model_allows(tmp_path: Path, tile: int, exact: bool) -> None:
    """Rounded up to whole groups; whole groups more only within a tenth of what was asked."""
    one = grouped(tmp_path)
    counts = range(4, 37, 4)
    halves = [[float(ceil(n / tile)) for n in counts]] * 2
    tables = Tables.of(
        counts,
        0,
        attn_ms=halves,
        mlp_ms=halves,
        head_ms=[0.0] * 9,
        stem_ms=0.0,
        sites=one.sites,
        reducer_ms=lambda site, n, k: 0.001,
        loss=lambda site, n, k: 1.0 * (n - k),
    )
    profile = Planted().profile(model(), [method(model(), "topk")])
    given = MethodTables(one, tables, "planted")
    for asked in range(1, 33):
        request = Request(keep=f"{asked}/36", exact=exact)
        budget = Budget(asked, None, 0.02, 0.02, exact)
        best, _ = best_of_all([given], budget)
        outcome = solved_outcome(request, best, profile, budget)
        kept, least = best.plan.final, ceil(asked / 4) * 4
        free = not exact and tile == 100
        assert kept == max(least, asked * 11 // 10 // 4 * 4 if free else 0)
        if kept > least:
            assert outcome.reason == "plateau"
        elif least > asked:
            assert outcome.reason == "groups"
            assert outcome.why == "patches leave in groups of 4"
        else:
            assert outcome.reason == ("exact" if exact else "asked")


@pytest.mark.parametrize("exact", [False, True])
def test_a_method_by_name_says_why_it_is_not_what_was_asked(exact: bool) -> None:
    def told(kept: int, groups: dict[str, int], segments: int = 1, method: str = "topk") -> Outcome:
        steps = (Reduction("attn:0", Spec("cls"), Spec("topk"), kept),)
        made = Schedule(method, Shape(37, 1, 36, 2), steps)
        request = Request(keep=Fraction(13, 36), method=method, exact=exact)
        return fixed_outcome(request, made, groups, segments)

    assert told(16, {"attn:0": 4}).why == "patches leave in groups of 4"
    whole = told(18, {"attn:0": 6}, segments=3)
    assert whole.reason == "groups"
    assert whole.why == "patches leave 6 at a time, as many from each of 3 segments"
    own = told(15, {}, method="dart")
    assert (own.reason, own.why) == (
        "method",
        "dart cannot come closer: it goes by counts of its own",
    )
    assert told(13, {}).reason == ("exact" if exact else "asked")


def test_a_share_that_rounds_to_all() -> None:
    given = model(WIDE)
    found = planned(given, Planted(), keep=0.999)
    assert (found.outcome.emitted, found.outcome.reason) == ("dense", "asked")
    assert found.outcome.summary() == (
        "this is the dense model: all patch tokens were asked for",
        "asked 0.999 (64 of 64 patch tokens), kept 1.00 (64)",
    )
    # Free up to the last token, and still not all of them.
    found = planned(given, Planted(tile=100, rise=10.0), keep="63/64")
    assert (found.outcome.emitted, found.schedule.final) == ("reduced", 63)


def test_fewer_than_a_method_can_keep() -> None:
    """`evit` keeps two at least, one of them fused; so few sites let `tome` halve only twice."""
    found = planned(model(WIDE), Planted(), keep="1/64", exact=True)
    assert (found.schedule.final, found.outcome.reason) == (2, "method")
    assert found.outcome.why == "evit can keep no fewer here"
    two = model(VitSpec(depth=2))
    with pytest.raises(UsageError, match="tome cannot come down to 2 patch tokens: 4 are the few"):
        planned(two, Planted(), keep=0.1, latency=1000, method="tome")
    assert planned(two, Planted(), keep=0.25, latency=1000, method="tome").schedule.final == 4


def test_exact_needs_a_share() -> None:
    given: tuple[dict[str, Any], ...] = ({"latency": 5.0}, {"method": "tome:r=2"}, {})
    for asked in given:
        with pytest.raises(UsageError, match="none is given"):
            Request(exact=True, **asked)


@pytest.mark.parametrize(
    ("asked", "reason", "line"),
    [
        (
            {"method": "tome:r=3"},
            "method",
            "asked tome:r=3, kept 0.81 (52 of 64 patch tokens), because "
            "those are the counts of tome",
        ),
        ({"method": "tome:r=0"}, "method", "this is the dense model: no token leaves"),
        (
            {"method": "bypass", "keep": 0.5},
            "method",
            "asked 0.50 (32 of 64 patch tokens), kept 1.00 (64), because with bypass all "
            "come back; "
            "32 are left in between",
        ),
        ({"keep": 1}, "asked", "this is the dense model: all patch tokens were asked for"),
        (
            {"schedule": True},
            "schedule",
            "asked the schedule given, kept 0.31 (20 of 64 patch tokens), because "
            "the schedule says",
        ),
        ({"latency": 1000.0}, "budget", "this is the dense model: its "),
    ],
)
def test_what_else_is_asked(asked: dict[str, Any], reason: str, line: str) -> None:
    given = model(WIDE)
    if "schedule" in asked:
        asked = {"schedule": pipeline.plan(given.source, keep="20/64", method="topk")}
    made = pipeline.price(given.source, target="jetson-orin", **asked)
    outcome = made.chosen.outcome
    assert outcome.reason == reason
    assert outcome.summary()[0].startswith(line)
    assert outcome.emitted == ("reduced" if made.schedule.reductions else "dense")
    assert outcome.kept == Share.kept(made.schedule.final, 64)
    again = Schedule.from_json(made.to_json())
    assert again == made.schedule, "what plan prints is still a schedule"


def test_predictions_in_words() -> None:
    assert prediction_note("modelled", 0.9, 1.0) == ""
    assert prediction_note("measured", 0.97, 1.0) == ""
    assert prediction_note("modelled", 0.5547, 0.5498) == (
        "a modelled profile predicts 0.5547 ms reduced, 0.5498 ms dense: within the model's error; "
        "measure on the device"
    )
    assert "slower by more than the model's error, 30%" in prediction_note("modelled", 2, 1)
    assert "within what a profile can tell" in prediction_note("measured", 0.99, 1.0)


def test_shares_as_they_were_typed() -> None:
    texts = {0.6: "0.60", 0.625: "0.625", 1: "1.00", 0.05: "0.05", 1 / 3: "0.3333", 0.999: "0.999"}
    assert {k: share_text(k) for k in texts} == texts
    made = Outcome("reduced", "plateau", "it is free", Share.kept(122, 196), Share(0.6, 118, 196))
    assert made.summary() == (
        "asked 0.60 (118 of 196 patch tokens), kept 0.62 (122), because it is free",
    )
