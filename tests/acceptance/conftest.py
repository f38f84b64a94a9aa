"""Fixtures that acceptance tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcompile import pipeline
from tcompile.api.demo import write_glyphs
from tcompile.pipeline import reading

#: The last reading of a file, by the file and what was asked.
_LAST: dict[str, Any] = {}


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods, and tests that follow each other, go on from one reading of a file, as the attempts
    of a build do."""
    read = pipeline.read

    def remembered(model: str | Path, **asked: Any) -> Any:
        how = sorted((name, value) for name, value in asked.items() if value is not None)
        key = f"{model} {Path(model).stat().st_mtime_ns} {how}"
        if key not in _LAST:
            _LAST.clear()
            _LAST[key] = read(model, **asked)
        return _LAST[key]

    for module in (pipeline, reading):
        monkeypatch.setattr(module, "read", remembered)


@pytest.fixture(scope="session")
def glyphs_reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`glyphs.onnx`, and builds of it: `tome`, in which tokens merge, and `topk`, in which they are
    dropped."""
    where = tmp_path_factory.mktemp("reports")
    write_glyphs(where / "glyphs.onnx")
    for method in ("tome", "topk"):
        pipeline.build(
            where / "glyphs.onnx",
            target="cpu",
            keep=0.6,
            method=method,
            force=True,
            threads=1,
            output=where / method,
        )
    return where
