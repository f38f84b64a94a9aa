"""Requests that are allowed, and those that are refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.planning.method_schedule import schedule_for
from tcompile.planning.request import Request
from tests.support.planted import Planted, method, model

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "negative latency": ({"latency": -1}, "--latency", "-1 is not a budget: it is in ms"),
    "no latency": ({"latency": 0}, "--latency", "not a budget"),
    "endless latency": ({"latency": float("inf")}, "--latency", "not a budget"),
    "latency nan": ({"latency": float("nan")}, "--latency", "not a budget"),
    "latency in words": ({"latency": "6"}, "--latency", "'6' is not a number"),
    "latency true": ({"latency": True}, "--latency", "not a number"),
    "all dropped": ({"max_drop": 1.0, "calibration": "x"}, "--max-drop", "less than 1"),
    "none dropped": ({"max_drop": 0.0, "calibration": "x"}, "--max-drop", "more than 0"),
    "drop unseen": ({"max_drop": 0.1}, "--max-drop", "needs images"),
    "pomt unseen": ({"objective": "pomt"}, "--objective pomt", "say --calibration"),
    "pomt and keep": (
        {"objective": "pomt", "calibration": "x", "keep": 0.5},
        "--objective pomt",
        "picks the count by itself",
    ),
    "pomt and latency": (
        {"objective": "pomt", "calibration": "x", "latency": 5},
        "--objective pomt",
        "picks the count by itself",
    ),
    "pomt and drop": (
        {"objective": "pomt", "calibration": "x", "max_drop": 0.1},
        "--objective pomt",
        "picks the count by itself",
    ),
    "keep and schedule": ({"keep": 0.5, "schedule": "s"}, "--schedule", "--keep and --schedule"),
    "latency and schedule": ({"latency": 5, "schedule": "s"}, "--schedule", "--latency"),
    "objective and schedule": ({"objective": "loss", "schedule": "s"}, "--schedule", "--objective"),
    "drop and schedule": (
        {"max_drop": 0.1, "calibration": "x", "schedule": "s"},
        "--schedule",
        "--max-drop",
    ),
    "images and schedule": ({"calibration": "x", "schedule": "s"}, "--calibration", "a schedule"),
    "images, schedule and rule": (
        {"calibration": "x", "schedule": "s", "outputs": "restored", "restore": "stale"},
        "--calibration",
        "or --restore",
    ),
    "rule of reduced outputs": ({"restore": "stale"}, "--restore", "say --outputs restored"),
    "unknown rule": (
        {"restore": "zero", "outputs": "restored"},
        "--restore",
        "owner, nearest, similar, interpolate, stale",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    asked, where, words = REFUSED[what]
    with pytest.raises(UsageError) as error:
        Request(**asked)
    assert error.value.where == where
    assert words in str(error.value)
    assert "\n" not in error.value.one_line()


@pytest.mark.parametrize(
    ("asked", "solved"),
    [
        ({"keep": 0.5}, True),
        ({}, True),
        ({"keep": 0.5, "method": "auto:x=1"}, True),
        ({"keep": 0.5, "method": "topk"}, False),
        ({"method": "tome:r=3"}, False),
        ({"latency": 5.0, "method": "topk"}, True),
        ({"max_drop": 0.5, "calibration": "x", "method": "topk"}, True),
        ({"keep": 0.5, "objective": "loss", "method": "topk"}, True),
        ({"keep": 0.5, "calibration": "x", "method": "fitprune"}, False),
        ({"schedule": "s.json"}, False),
    ],
)
def test_what_the_planner_is_for(asked: dict[str, Any], solved: bool) -> None:
    assert Request(**asked).solved == solved


def test_unknown_options_are_a_bug_of_the_caller() -> None:
    with pytest.raises(TypeError, match="kep"):
        Request.of({"kep": 0.5})
    with pytest.raises(TypeError, match="kep, tokens"):
        pipeline.plan("m.onnx", tokens=1, kep=2)  # type: ignore[call-arg]
    assert Request.of({"keep": 0.5}) == Request(keep=0.5)


def test_auto_has_no_parameters_and_needs_a_budget() -> None:
    path = model().source
    for asked, words in (
        ({"keep": 0.5, "method": "auto:x=1"}, "auto has no parameters"),
        ({}, "no budget given"),
        ({"method": "topk"}, "no budget given"),
        ({"keep": 1.5}, "outside"),
        ({"latency": 5, "keep": "most"}, "is not a number"),
        ({"latency": 5, "method": "bypass"}, "cannot be planned"),
    ):
        with pytest.raises(UsageError, match=words):
            pipeline.plan(path, **asked)  # type: ignore[arg-type]


def test_a_named_method_goes_by_its_own_schedule() -> None:
    path = model().source
    made = pipeline.plan(path, keep=0.5, method="topk")
    assert [(r.site, r.keep) for r in made.reductions] == [("attn:0", 8)] or made.final == 8
    assert made == schedule_for(pipeline.read(path), 0.5, "topk")


def test_objective_alone_has_a_named_method_solved() -> None:
    """`--objective loss --method topk --keep`: its sites and counts are solved, not its own."""
    given = model()
    profile = Planted().profile(given, [method(given, "topk")])
    made = pipeline.price(given.source, keep=0.5, method="topk", objective="loss", profile=profile)
    assert made.planned is not None
    assert isinstance(made.schedule, Schedule)
    assert made.schedule.method == "topk"
