"""The benchmark of peers, on the small trained model, in two rounds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import peers
from tcompile.api.demo import write_glyphs
from tcompile.models.glyphs import load
from tcompile.targets.backends.openvino import has_bf16


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> peers.Model:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no compiler\nbehind it")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(peers, "_PAUSE", 0.0)
    monkeypatch.setattr(peers, "_IMAGES", 2)
    path = tmp_path / "glyphs.onnx"
    write_glyphs(path)
    return peers.Model("glyphs", load, lambda _: path, r=10)


def test_every_way_to_run_a_model(model: peers.Model, tmp_path: Path) -> None:
    found = peers.measured(model, tmp_path, None, 2)
    rows = {(row["who"], row["tokens"]): row for row in found["rows"]}
    tokens = dict.fromkeys(t for _, t in rows)
    every = ["dense", "dense, as written", "tome:r=10, 136 patches left"]
    assert list(tokens)[:3] == every
    for who in ("ONNX Runtime, fp32", "ONNX Runtime, int8 static", "OpenVINO, int8 static"):
        assert all(rows[who, t]["ms"] > 0 for t in every)
    assert (("OpenVINO, bf16", "dense") in rows) == has_bf16()
    near = {k: v["cosine"] for k, v in rows.items() if v["cosine"] is not None}
    assert near["PyTorch, fp32, eager", "dense"] == pytest.approx(1, abs=1e-6)
    assert near["OpenVINO, fp32", "dense"] == pytest.approx(1, abs=1e-6)
    assert 0.9 < near["ONNX Runtime, int8 dynamic", "dense"] < 1 - 1e-7
    reduced = "tome:r=10, 136 patches left"
    assert near["OpenVINO, fp32", reduced] == pytest.approx(
        near["ONNX Runtime, fp32", reduced], abs=1e-4
    )
    assert rows["PyTorch, fp32, compiled", "dense"]["why"] == "no compiler"
    assert rows["official ToMe, PyTorch eager", "r=10"]["why"] == "no checkout was given, --tome"
    assert 1.1 < found["ideal"] < 2


def test_the_page(
    model: peers.Model,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peers, "MODELS", (model,))
    row = peers.Row(
        "OpenVINO, bf16", "dense, as written", 2.0, 1.9, 2.1, (3.0, 2.8, 3.2), 0.99995, 0.9998
    )
    reduced = "tome:r=10, 136 patches left"
    short = peers.Row("OpenVINO, bf16", reduced, 1.0, 1, 1, (6.0, 5, 7), 0.99, 0.98)
    lost = peers.Row("official ToMe, PyTorch eager", "r=10", why="no checkout was given, --tome")
    made = {"samples": "8 scenes", "ideal": 1.7, "method": "tome:r=10", "trained": False}
    runs: list[int] = []

    def measured(*_: Any) -> dict[str, Any]:
        runs.append(1)
        return {**made, "rows": [peers.asdict(r) for r in (row, short, lost)]}

    monkeypatch.setattr(peers, "measured", measured)
    asked = ["x", "--models", "glyphs", "--work", str(tmp_path), "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", asked)
    peers.main()
    peers.main()
    assert len(runs) == 1
    text = capsys.readouterr().out
    assert "Random weights" in text
    cells = ("OpenVINO, bf16", reduced, "1", "6.00 [5.00, 7.00]", "2.00", "0.9900", "0.980")
    assert f"| {' | '.join(cells)} |" in text
    assert "not there: no checkout was given, --tome" in text
    assert (tmp_path / "peers.md").read_text() in text
