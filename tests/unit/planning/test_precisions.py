"""Precision and tokens against one budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.planning import precisions
from tcompile.planning.precisions import best_precision, check_weighable
from tcompile.planning.request import NO_METHOD, Request
from tcompile.planning.search.evidence import evidence_for
from tcompile.planning.solve.on_images import Rounding, Trial
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport
from tcompile.planning.solve.solve import schedule_for_request
from tcompile.profiling.profile import Profile
from tcompile.targets import load_target
from tcompile.targets.backends import openvino
from tcompile.targets.backends.openvino import has_bf16
from tests.support.planted import Planted, method, model
from tests.support.tiny_vit import VitSpec, save_outlying_vit

FP32 = Planted(tile=1, launch=0.0, each=0.0)


def profile_in(precision: str, planted: Planted, target: str = "cpu") -> Profile:
    made = planted.profile(model(), [method(model(), "topk")])
    conditions = replace(made.conditions, precision=precision, target=target)
    return replace(made, conditions=conditions)


def weigh(
    request: Request, int8: Planted, target: str = "cpu", bf16: Planted = FP32
) -> tuple[str, PlanReport, str]:
    """The choice for planted latencies: precision, its plan, the note."""
    device = load_target(target)
    each = {"fp32": FP32, "int8": int8, "bf16": bf16}
    profiles = {name: profile_in(name, planted, target) for name, planted in each.items()}

    def plan(precision: str) -> tuple[Schedule, PlanReport | FixedPlan]:
        asked = replace(request, profile=profiles[precision])
        return schedule_for_request(model(), asked, device, precision)

    request = replace(request, calibration_level="coarse")
    best, note = best_precision(model(), request, device, plan, lambda _: None)
    return best.precision, best.planned, note


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_int8_that_is_much_faster_keeps_all_tokens(share: float) -> None:
    budget = share * FP32.dense(model())
    precision, planned, note = weigh(Request(latency=budget), replace(FP32, rise=FP32.rise / 5))
    assert precision == "int8"
    assert not planned.plan.steps
    assert planned.plan.latency_ms <= budget
    assert note.startswith("precision int8 is taken: fp32 with ")
    assert "; int8 with all tokens takes " in note
    (chosen,) = (p for p in planned.front if p.chosen)
    assert (chosen.precision, chosen.dense, chosen.seen_in) == ("int8", True, "int8")
    assert chosen.loss is not None
    assert 0 < chosen.loss < 0.1
    fp32 = [p for p in planned.front if p.precision == "fp32"]
    assert [p.loss for p in fp32 if p.dense] == [0.0]
    assert "measured on 12 procedural scenes (seed 1" in note


@pytest.mark.parametrize("there", [True, False])
def test_all_three_are_weighed_in_openvino(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if there and not has_bf16():
        pytest.skip("this processor has no bf16")
    monkeypatch.setattr(openvino, "has_bf16", lambda: there)
    budget = 0.5 * FP32.dense(model())
    faster, slower = (replace(FP32, rise=FP32.rise * by) for by in (0.2, 1.3))
    chosen, _, note = weigh(Request(latency=budget), slower, "cpu-openvino", bf16=faster)
    if there:
        assert chosen == "bf16"
        assert "bf16 with all tokens takes" in note
        assert "int8 with" in note
    else:
        assert chosen == "fp32"
        assert "bf16 is out: this processor has no bf16" in note


def test_int8_that_is_no_faster_is_not_taken() -> None:
    """It loses what as many tokens lose, and what rounding loses besides."""
    budget = 0.8 * FP32.dense(model())
    precision, planned, note = weigh(Request(latency=budget), replace(FP32, rise=FP32.rise * 1.3))
    assert precision == "fp32"
    assert planned.plan.steps
    assert "int8 with" in note


def test_where_only_one_precision_is_fast_enough() -> None:
    budget = 0.05 * FP32.dense(model())
    precision, planned, note = weigh(Request(latency=budget), replace(FP32, rise=FP32.rise / 50))
    assert precision == "int8"
    assert planned.plan.latency_ms <= budget
    assert "fp32 is out: no plan" in note
    assert {p.precision for p in planned.front} == {"int8"}
    with pytest.raises(UsageError):
        weigh(Request(latency=budget), FP32)


def test_a_plan_that_dense_int8_is_faster_than_is_out() -> None:
    """Within nearly all of the time fp32 loses next to nothing, and is slower all the same."""
    budget = 0.97 * FP32.dense(model())
    precision, planned, note = weigh(Request(latency=budget), replace(FP32, rise=FP32.rise / 5))
    assert precision == "int8"
    assert not planned.plan.steps
    assert "fp32 is out: slower than the dense model in int8, which takes" in note


def test_dense_fp32_within_the_latency_is_taken() -> None:
    """It loses nothing, and that is what was asked for."""
    budget = 1.5 * FP32.dense(model())
    precision, planned, note = weigh(Request(latency=budget), replace(FP32, rise=FP32.rise / 5))
    assert precision == "fp32"
    assert not planned.plan.steps
    assert "is out" not in note


def test_one_that_loses_too_much_puts_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "HARDLY", 0.0)
    budget = 0.97 * FP32.dense(model())
    _, _, note = weigh(Request(latency=budget), replace(FP32, rise=FP32.rise / 5))
    assert "is out" not in note


def test_a_profile_is_of_one_precision() -> None:
    given = profile_in("fp32", FP32)
    asked = Request(latency=0.6 * FP32.dense(model()), profile=given, calibration_level="coarse")
    with pytest.raises(UsageError, match="is of fp32, and what is planned is int8"):
        schedule_for_request(model(), asked, load_target("cpu"), "int8")


def test_a_drop_is_shown_of_dense_int8_too(tmp_path: Path) -> None:
    """Weights with outliers, so that int8 loses more than it may, with all tokens as with fewer."""
    given = pipeline.read(save_outlying_vit(tmp_path / "vit.onnx", VitSpec()))
    evidence = evidence_for(given, Request(keep=0.5))
    assert evidence is not None
    rounding = Rounding(load_target("cpu"), "int8")
    trial = Trial(given, evidence.fit, "reduced", lambda _: None, rounding)
    with pytest.raises(UsageError, match="dense int8 alone lost"):
        trial.dense_drop(0.01, 0.9)
    assert trial.dense_drop(1.0, 0.9) is not None
    if has_bf16():
        in_bf16 = replace(trial, rounding=Rounding(load_target("openvino"), "bf16"))
        rounded = in_bf16.run(Schedule(NO_METHOD, given.analysis.shape, ()))["logits"]
        assert 0 < abs(rounded - trial.dense["logits"]).max() < abs(rounded).max()
    assert replace(trial, rounding=None).dense_drop(0.01, 0.9) is None


def test_what_cannot_be_weighed_is_refused() -> None:
    check_weighable(load_target("cpu"), Request(latency=5.0))
    with pytest.raises(UsageError, match="cannot be measured in several precisions"):
        check_weighable(load_target("rtx-4090"), Request(latency=5.0))
    with pytest.raises(UsageError, match="against a latency or a drop"):
        check_weighable(load_target("cpu"), Request(keep=0.6))
    with pytest.raises(UsageError, match="only seen on images"):
        weigh(Request(latency=5.0, calibration="none"), FP32)
