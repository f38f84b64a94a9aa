"""The comparison of methods on a handful of scenes: figures, what is missing, going on."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import methods, methods_given
from benchmarks.methods_given import families
from benchmarks.methods_page import Results, Row, answers, front, write_table
from benchmarks.methods_plot import plot

SETTINGS = methods.Settings(scenes=20, rounds=5, batch=1, threads=1, machine="here")


def test_a_small_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(methods_given, "SCENES", 40)
    methods.run(["topk"], ["1.0"], SETTINGS, tmp_path)
    results = methods.run(["topk", "tnt", "dycoke"], ["0.5"], SETTINGS, tmp_path)
    rows = {row.method: row for row in results.rows if row.keep == "0.5"}
    (whole,) = (row for row in results.rows if row.keep == "1.0")
    assert (whole.tokens, whole.agreement, whole.flops, whole.nodes) == (196, 1.0, 1.0, 0)
    assert whole.top1 == results.dense_top1
    for method in ("topk", "tnt"):
        half = rows[method]
        assert half.tokens == 98
        assert 0.3 < half.flops < 0.9
        assert half.nodes > 0 < half.added < 0.1
        assert half.speedup is not None
        assert half.speedup["lower"] <= half.speedup["ratio"] <= half.speedup["upper"]
    # A head that knows where the ink is does better than a coin.
    assert rows["tnt"].agreement > 0.5
    assert "video" in rows["dycoke"].missing

    text = write_table(results, ["1.0", "0.5"], families(), tmp_path)
    plot(results, results.rows, families(), tmp_path)
    assert "| topk | prune | " in text
    assert "- `dycoke` at " in text
    assert len(list(csv.DictReader((tmp_path / "methods.csv").open()))) == len(results.rows)
    for name in ("methods.png", "methods.svg"):
        assert (tmp_path / name).stat().st_size > 5000

    # Times alone are measured again where the graphs are still the same.
    asked: list[Path] = []
    answered = methods.answered

    def asking(path: Path, given: methods.Settings) -> methods.Model:
        asked.append(path)
        return answered(path, given)

    monkeypatch.setattr(methods, "answered", asking)
    (tmp_path / "anew").mkdir()
    known = answers(tmp_path / "methods.json", 20)
    assert answers(tmp_path / "methods.json", 21) == []
    anew = methods.run(["topk"], ["0.5"], replace(SETTINGS, rounds=6), tmp_path / "anew", known)
    assert [path.name for path in asked] == ["dense.onnx"]
    assert anew.rows[0].top1 == rows["topk"].top1
    assert anew.rows[0].speedup is not None

    # What is there is not measured again, unless the settings are others.
    monkeypatch.setattr(methods, "measure", lambda *_: pytest.fail("measured again"))
    again = methods.run(["topk"], ["0.5"], SETTINGS, tmp_path)
    assert [row.line() for row in again.rows] == [row.line() for row in results.rows]
    other = asdict(replace(SETTINGS, scenes=21))
    assert not Results.read(tmp_path / "methods.json", other).rows
    assert json.loads((tmp_path / "methods.json").read_text())["kind"] == "measured"


def test_the_front_is_what_no_other_beats() -> None:
    def row(method: str, faster: float, top1: float) -> Row:
        return Row(method, "0.5", top1=top1, speedup={"ratio": faster})

    rows = [row("a", 1.0, 0.9), row("b", 2.0, 0.8), row("c", 1.5, 0.8), row("d", 1.5, 0.85)]
    assert [one.method for one in front(rows, 0.89)] == ["b", "d", "a"]
    # No faster than the dense model, and no more accurate.
    assert [one.method for one in front(rows, 0.9)] == ["b", "d"]
    assert front([], 0.9) == []
