"""Fixtures that acceptance tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcompile import pipeline


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods go on from one reading of a file, as the attempts of a build do."""
    read, last = pipeline.read, dict[str, Any]()

    def remembered(model: str | Path, **asked: Any) -> Any:
        how = sorted((name, value) for name, value in asked.items() if value is not None)
        key = f"{model} {Path(model).stat().st_mtime_ns} {how}"
        if key not in last:
            last.clear()
            last[key] = read(model, **asked)
        return last[key]

    monkeypatch.setattr(pipeline, "read", remembered)
