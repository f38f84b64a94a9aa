"""`--seconds` bounds the whole command, on a clock that only opening, running and reading move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.analysis.flops import node_flops
from tcompile.api import profile as api
from tcompile.passes.stages import Analysed
from tcompile.profiling import runtimes
from tcompile.profiling.measure import Effort, _spread, measure
from tcompile.profiling.profile import MeasuredProfile
from tcompile.profiling.sessions import Session, Workload, WorkloadId, rounds
from tests.support.profiling import Clock, FakeRuntime, method, tiny
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(image=64, depth=2)  # 65 tokens


def flops(graph: gs.Graph) -> float:
    return 1e-5 * sum(node_flops(n) for n in graph.nodes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    return tiny(tmp_path_factory.mktemp("budget"), SPEC)


def profile_run(
    model: Analysed,
    seconds: float,
    *,
    opening: float,
    call: float,
    methods: Sequence[str] = ("topk",),
) -> tuple[MeasuredProfile, float]:
    """A profile and the seconds that it took."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        clock.install(patched)
        made = measure(
            model.graph,
            model.analysis,
            [method(model, text) for text in methods],
            FakeRuntime(clock, flops, call, opening=opening),
            source="x",
            effort=Effort(seconds=seconds),
        )
    return made, clock.now


def counts(made: MeasuredProfile) -> int:
    return max(len(c.counts) for c in made.halves.values())


@pytest.mark.parametrize(
    ("opening", "call", "least", "methods"),
    [
        (0.5, 20.0, 25, ("topk",)),
        (1.0, 100.0, 60, ("topk",)),
        (0.01, 500.0, 100, ("topk",)),
        (3.0, 1.0, 110, ("topk", "tome")),
    ],
)
def test_no_more_seconds_than_asked_for(
    model: Analysed, opening: float, call: float, least: int, methods: tuple[str, ...]
) -> None:
    """Slow to open, slow to run, or both; from a budget that just suffices upwards."""
    found = []
    for seconds in (least, 2 * least):
        made, took = profile_run(model, seconds, opening=opening, call=call, methods=methods)
        assert took <= seconds
        assert set(made.reducers) == set(methods)
        found.append((counts(made), sum(len(r.points) for r in made.reducers.values())))
    assert found == sorted(found)
    if opening >= 0.5:
        assert found[0] < found[-1], "more time, more counts and steps"


def test_what_is_measured_in_any_case(model: Analysed) -> None:
    made, took = profile_run(model, 1.0, opening=2.0, call=10.0)
    assert took > 1.0
    assert counts(made) == 4, "three and the dense model's"
    assert next(iter(made.halves.values())).counts == (2, 32, 56, 65)
    assert len(made.reducers["topk"].points) == 2
    assert made.dense is not None
    assert made.dense.runs == 2
    assert made.conditions.note == "9 token counts and steps were left out for want of time"


def test_with_time_enough_nothing_is_left_out(model: Analysed) -> None:
    made, took = profile_run(model, 1e9, opening=1.0, call=0.5)
    assert made.conditions.note == ""
    assert counts(made) >= 7
    assert len(made.reducers["topk"].points) >= 6
    assert took < 1000


def test_the_time_that_is_left_is_used(model: Analysed) -> None:
    """Rounds go on to the end: one more would not have fitted."""
    made, took = profile_run(model, 60, opening=0.5, call=50.0)
    assert took > 0.8 * 60
    assert made.dense is not None
    assert made.dense.runs >= 3


@pytest.mark.parametrize("reading", [0.0, 5.0, 20.0])
def test_reading_and_planning_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: float
) -> None:
    clock, real = Clock(), pipeline.read

    def slow(*given: Any, **named: Any) -> Analysed:
        clock.now += reading
        return real(*given, **named)

    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    clock.install(monkeypatch)
    monkeypatch.setattr(pipeline, "read", slow)
    fake = FakeRuntime(clock, flops, 50.0, opening=0.25)
    monkeypatch.setattr(runtimes, "runtime_for", lambda target, **named: fake)
    made = api.profile(path, target="cpu", methods=["topk"], seconds=60)
    assert made.profile.kind == "measured"
    assert 45 < clock.now <= 60


def test_rounds_end_before_the_deadline_once_all_had_two(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.install(monkeypatch)

    def take(seconds: float) -> Any:
        def run() -> None:
            clock.now += seconds

        return run

    first, second = (Session([Workload(WorkloadId("half", name, 8), take(1.0))]) for name in "ab")
    # A round takes four seconds: each runs without the clock, and with it.
    assert rounds([first], 7, least=0.0, seed=0, deadline=0.0) == 2
    assert rounds([first], 7, least=0.0, seed=0, deadline=0.0) == 0
    assert rounds([first, second], 7, least=0.0, seed=0, deadline=0.0) == 2
    start = clock.now
    assert rounds([first, second], 7, least=0.0, seed=0, deadline=start + 9, expected=4.0) == 2
    assert clock.now <= start + 9
    assert rounds([first, second], 3, least=0.0, seed=0, deadline=1e9) == 3


def test_the_first_counts_tell_most() -> None:
    assert _spread([8, 40, 72, 104, 136, 168]) == [8, 168, 72, 40, 104, 136]
    assert _spread([5]) == [5]
    assert sorted(_spread(list(range(1, 20)))) == list(range(1, 20))
