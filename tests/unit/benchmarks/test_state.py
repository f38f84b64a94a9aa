"""A benchmark goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.state import State


def test_results_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    first = State(path)
    assert first.get({"a": 1, "b": 2}, lambda: {"found": (1, 2)}) == {"found": [1, 2]}
    # Stopped in the middle of a line.
    with path.open("a") as file:
        file.write('{"key": "abc", "va')
    again = State(path)
    assert again.has({"b": 2, "a": 1})
    assert not again.has({"a": 1})
    assert again.get({"b": 2, "a": 1}, lambda: pytest.fail("made again")) == {"found": [1, 2]}
    again.get({"c": 3}, lambda: 3)
    assert State(path).get({"c": 3}, lambda: pytest.fail("made again")) == 3
