"""What a build says: eight lines, all of it with -v, nothing with --quiet; how long it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tcompile.cli.progress import _Left
from tests.support.command import Command

ASKED = ("--target", "cpu", "--method", "topk", "--keep", "0.5", "--force", "--threads", "1")


def test_a_build_ends_in_eight_lines(
    tcompile: Command, vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tcompile("build", vit, *ASKED)
    lines = shown.out.splitlines()
    said = [line for line in lines if line and not line.startswith(" ")]  # not what is wrapped
    assert len(said) <= 8
    names = [line.split("  ")[0] for line in lines if "  " in line]
    assert names[0] == "speed, measured"
    assert {"output logits", "work", "report"} <= set(names)
    assert f"{Path('vit-cpu').resolve()}/report.html (tcompile view" in shown.out
    told = tcompile("build", vit, *ASKED, "-v")
    for name in ("tokens ", "memory, predicted ", "dense, measured ", "token ops ", "files "):
        assert name in told.out
        assert name not in shown.out
    # A narrow terminal: each row becomes a few lines, and no name is broken.
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    narrow = tcompile("build", vit, *ASKED).out
    assert "speed, measured" in narrow
    assert "output logits" in narrow
    assert "\x1b[" not in narrow


def test_quiet_says_only_what_is_wrong(tcompile: Command, vit: Path) -> None:
    said = tcompile("build", vit, *ASKED, "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert Path("vit-cpu/report.html").exists()
    before = sys.stdout
    told = tcompile("build", vit, *ASKED, "-q", "--json")
    assert told.json()["emitted"] == "reduced"
    assert tcompile("-q", "targets", "cpu", "--json").json()["name"] == "cpu"
    assert tcompile("targets", "-q").out == ""
    assert sys.stdout is before
    refused = tcompile("build", "none.onnx", *ASKED, "-q")
    assert (refused.code, refused.out) == (2, "")
    assert "none.onnx: no such file" in refused.err
    assert tcompile("targets").out


def test_a_step_that_says_how_far_it_is_says_how_long_it_takes() -> None:
    now = [0.0]
    left = _Left(lambda: now[0])
    assert left.of("calibrating: 0% (tome)") == "calibrating: 0% (tome)"
    now[0] = 5.0
    assert left.of("calibrating: 10% (evit)") == "calibrating: 10% (evit), about 45 s left"
    now[0] = 100.0
    assert left.of("calibrating: 20% (evit)") == "calibrating: 20% (evit), about 7 min left"
    assert left.of("measuring") == "measuring"
    assert left.of("running: 40%, about 9 s left") == "running: 40%, about 9 s left"
    # Another step begins anew.
    assert left.of("profiling: 50 %") == "profiling: 50 %"
    now[0] = 110.0
    assert left.of("profiling: 75 %") == "profiling: 75 %, about 10 s left"
    assert left.of("profiling: 100 %") == "profiling: 100 %"
