"""The benchmark of `evaluate` on many images sees its progress."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import evaluate


def test_memory_is_looked_at_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "--work", str(tmp_path), "--images", "80", "--slack", "1000"]
    monkeypatch.setattr(sys, "argv", asked)
    monkeypatch.setattr(evaluate, "_DRAWN", 40)
    assert evaluate.main() == 0
    *steps, last = capsys.readouterr().out.splitlines()
    assert all(step.endswith(" MiB") for step in steps)
    assert len(steps) >= 2
    assert last.startswith("80 images: top-1 ")
