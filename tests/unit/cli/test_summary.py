"""What a build says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tcompile.artifact.directory import PAGE
from tcompile.cli.summary import print_summary
from tests.support.artifacts import make_artifact
from tests.support.tiny_vit import save_tiny_vit


def test_the_command_that_opens_the_report_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = save_tiny_vit(tmp_path / "vit.onnx")
    folder = Path("it's mine")
    make_artifact(folder, source, engine=lambda made: (made / PAGE).write_text("<p>"))
    print_summary(folder)
    said = " ".join(capsys.readouterr().out.split())
    command = said.partition(f"{PAGE} (")[2].partition(")")[0]
    assert shlex.split(command) == ["tcompile", "view", str(folder)]
