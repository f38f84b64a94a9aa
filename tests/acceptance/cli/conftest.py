from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.tiny_vit import save_tiny_vit


@pytest.fixture
def tcompile(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line; what it does to logging and warnings is undone."""
    with warnings.catch_warnings():
        yield Command(capsys)
    logging.disable(logging.NOTSET)


@pytest.fixture
def vit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, `vit.onnx`, alone in the current directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return save_tiny_vit(Path("vit.onnx"))
