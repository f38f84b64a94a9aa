"""Timing: interleaved, and honest about its spread."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tcompile.errors import UsageError
from tcompile.timing import bench_models, interleave, speedup, summarise
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
    assert (found.threads, found.batch, found.rounds) == (1, 1, 15)
    document = found.to_json()
    assert document["kind"] == "measured"
    assert "ONNX Runtime" in document["runtime"]
    assert document["machine"]


def test_too_few_rounds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 5"):
        bench_models(tmp_path / "a", tmp_path / "b", rounds=2)
