"""Timing: interleaved, and honest about its spread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.runtime import timing
from tcompile.runtime.timing import bench_models, interleave, speedup, summarise
from tcompile.targets import load_target
from tests.support.tiny_vit import VitSpec, save_tiny_vit


def test_every_call_runs_once_a_round_in_changing_order() -> None:
    order: list[int] = []
    times = interleave([lambda: order.append(0), lambda: order.append(1)], rounds=40, warmup=0)
    assert [len(t) for t in times] == [40, 40]
    pairs = {tuple(order[i : i + 2]) for i in range(0, 80, 2)}
    assert pairs == {(0, 1), (1, 0)}


def test_times_are_milliseconds() -> None:
    (times,) = interleave([lambda: time.sleep(0.01)], rounds=5, warmup=0)
    assert 10 <= min(times) < 100


def test_speedup_and_interval() -> None:
    rng = np.random.default_rng(0)
    dense, reduced = 20 + rng.random(60), 10 + rng.random(60)
    found = speedup(dense.tolist(), reduced.tolist())
    assert found.lower < found.ratio < found.upper
    assert found.ratio == pytest.approx(1.95, abs=0.05)
    assert found.upper - found.lower < 0.1
    assert speedup(dense.tolist(), reduced.tolist()) == found


def test_summary() -> None:
    timing = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (timing.median, timing.lower, timing.upper) == (3, 2, 4)


def test_a_deeper_model_takes_longer(tmp_path: Path) -> None:
    deep = save_tiny_vit(tmp_path / "deep.onnx", VitSpec(depth=8, width=64))
    flat = save_tiny_vit(tmp_path / "flat.onnx", VitSpec(depth=1, width=64))
    found = bench_models(deep, flat, rounds=15, threads=1, flop_ideal=8.0)
    assert found.speedup.ratio > 1.5
    assert {name: len(times) for name, times in found.times.items()} == {"dense": 15, "reduced": 15}
    assert summarise(found.times["dense"]) == found.dense
    assert summarise(found.times["reduced"]) == found.reduced
    assert speedup(found.times["dense"], found.times["reduced"]) == found.speedup
    assert (found.threads, found.batch, found.rounds) == (1, 1, 15)
    document = found.to_json()
    assert document["kind"] == "measured"
    assert "ONNX Runtime" in document["runtime"]
    assert document["machine"]


def test_too_few_rounds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 5"):
        bench_models(tmp_path / "a", tmp_path / "b", rounds=2)


class Clock:
    """Times of both models by round, in place of running them; each round takes `seconds`."""

    def __init__(self, dense: Sequence[float], reduced: Sequence[float], seconds: float) -> None:
        self.times, self.seconds = (list(dense), list(reduced)), seconds
        self.now, self.asked = 0.0, list[int]()

    def interleave(
        self, calls: Any, *, rounds: int, warmup: int = 3, seed: int = 0
    ) -> list[list[float]]:
        self.asked.append(rounds)
        self.now += rounds * self.seconds
        return [[t.pop(0) for _ in range(rounds)] for t in self.times]

    def monotonic(self) -> float:
        return self.now


#: By round: as fast as each other, and twice as fast.
SAME, HALF = [10.0, 12.0] * 60, [5.0] * 120


@pytest.mark.parametrize(
    ("reduced", "most", "seconds", "asked"),
    [
        (HALF, 60, 0.1, [5]),
        (SAME, 60, 0.1, [5] * 12),
        (SAME, None, 0.1, [5]),
        (SAME, 13, 0.1, [5, 5, 3]),
        (SAME, 60, 3.0, [5, 5, 5]),  # No more are begun after 20 seconds.
        (SAME[:10] + HALF, 60, 0.1, None),
    ],
)
def test_rounds_go_on_while_it_is_not_sure(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reduced: list[float],
    most: int | None,
    seconds: float,
    asked: list[int] | None,
) -> None:
    clock = Clock(SAME, reduced, seconds)
    monkeypatch.setattr(timing, "interleave", clock.interleave)
    monkeypatch.setattr(timing.time, "monotonic", clock.monotonic)
    path = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))
    found = bench_models(path, path, rounds=5, most=most, threads=1)
    assert found.rounds == sum(clock.asked)
    if asked is not None:
        assert clock.asked == asked
    else:
        assert 10 < found.rounds < 60
        assert found.speedup.lower > 1
    if most is not None:
        assert found.rounds <= most


@pytest.mark.parametrize(
    ("reduced", "most", "seconds", "asked"),
    [
        (HALF, None, 0.0, [5]),
        (HALF, None, 2.0, [5] * 5),  # The first five rounds are not counted.
        (HALF, 8, 2.0, [5] * 5),
        (SAME, 27, 2.0, [*[5] * 5, 2]),
    ],
)
def test_rounds_last_as_long_as_they_are_asked_to(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reduced: list[float],
    most: int | None,
    seconds: float,
    asked: list[int],
) -> None:
    clock = Clock(SAME, reduced, 0.1)
    monkeypatch.setattr(timing, "interleave", clock.interleave)
    monkeypatch.setattr(timing.time, "monotonic", clock.monotonic)
    path = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))
    bench_models(path, path, rounds=5, most=most, seconds=seconds, threads=1)
    assert clock.asked == asked


@pytest.mark.parametrize(("reduced", "faster"), [(HALF, True), (SAME, False)])
def test_what_a_build_says_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reduced: list[float], faster: bool
) -> None:
    from tcompile.builder.checks import measure

    clock = Clock(SAME, reduced, 0.1)
    monkeypatch.setattr(timing, "interleave", clock.interleave)
    path = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))
    found = measure(path, path, load_target("cpu"))
    assert found.faster is faster
    assert bool(found.notes) is not faster
    assert [f.model for f in found.latency] == ["dense", "reduced"]
    assert (
        found.latency[1].note
        == f"{sum(clock.asked)} interleaved rounds, " + (found.latency[1].note.split(", ")[1])
    )


def test_dense_against_itself_is_not_measured_for_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tcompile.builder.checks import measure

    clock = Clock(SAME, SAME, 0.1)
    monkeypatch.setattr(timing, "interleave", clock.interleave)
    path = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))
    measure(path, path, load_target("cpu"), decide=False)
    assert sum(clock.asked) == 5
