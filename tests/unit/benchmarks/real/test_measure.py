"""Cells are answered and timed, on the small model that comes with tcompile."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.real import measure, subjects
from benchmarks.real.__main__ import Settings, answered, cells, kinds_of, with_times
from benchmarks.real.figures import CLASSES_TASK
from benchmarks.real.measure import KEEP, LATENCY, ON_PHOTOS, ON_SCENES, PRIOR, Cell, Row
from benchmarks.real.subjects import NOISE, OWN, SCENES, Subject
from benchmarks.state import State
from tcompile.api.demo import write_glyphs


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("real")
    write_glyphs(folder / "glyphs.onnx")
    path = folder / "glyphs.onnx"
    return Subject("glyphs", (CLASSES_TASK,), path, folder, photos=False, count=6, scenes=3)


def test_rows_are_answered_and_timed_once(subject: Subject, tmp_path: Path) -> None:
    state = State(tmp_path / "state.jsonl")
    asked = [
        Cell("glyphs", "topk", KEEP, 0.6),
        Cell("glyphs", "dycoke", KEEP, 0.6),
        Cell("glyphs", "topk", KEEP, 1.0),
    ]
    rows = answered(subject, asked, [0.6], Settings(), state)
    reduced, missing, whole = rows
    assert {k: len(v) for k, v in reduced.figures["classes"].items()} == {
        OWN: 6,
        SCENES: 3,
        NOISE: 3,
    }
    assert reduced.flops > 1.3
    assert whole.flops == 1.0
    assert whole.figures == {"classes": {OWN: pytest.approx([1.0] * 6)}}
    assert "video" in missing.missing
    assert whole.tokens == 196
    timed = with_times(subject, rows[:2], 1, "here", state)
    assert timed[0].times is not None
    assert timed[0].times["ms"] > 0
    assert (timed[1].times, timed[1].share) == (None, None)
    again = State(tmp_path / "state.jsonl")
    before = len(again.known)
    assert answered(subject, asked, [0.6], Settings(), again) == rows
    assert with_times(subject, rows[:2], 1, "here", again) == timed
    assert len(again.known) == before


def test_every_budget_is_asked_of_auto(subject: Subject) -> None:
    assert cells(subject, ["tome"], [ON_SCENES], [0.6], [0.8]) == [
        Cell("glyphs", "tome", KEEP, 0.6)
    ]
    photos = replace(subject, photos=True)
    found = cells(photos, ["tome"], [ON_SCENES, ON_PHOTOS], [0.6], [])
    assert {(c.method, c.data) for c in found} == {
        *[("tome", ""), ("auto", ON_SCENES), ("auto", ON_PHOTOS)]
    }
    assert Cell("glyphs", "auto", LATENCY, 0.72, ON_PHOTOS) in found
    assert kinds_of(found[0], subject, [0.6]) == [OWN, SCENES, NOISE]
    assert kinds_of(found[0], subject, [0.4]) == [OWN]
    assert kinds_of(found[-1], subject, [0.6]) == [OWN]


def test_a_row_is_read_as_it_was_written() -> None:
    row = Row(Cell("saliency", "tome", KEEP, 0.6), ({"a": 1},), ("tome",), neighbours=0.5)
    assert Row.from_json(row.to_json()) == row
    assert asdict(row) == row.to_json()


def test_auto_never_sees_the_photos_that_it_is_judged_on(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "photos"
    given.mkdir()
    for i in range(6):
        (given / f"{i}.jpg").touch()
    monkeypatch.setattr(subjects, "photos", lambda cache: given)
    asked: list[dict[str, Any]] = []

    def price(path: Path, **options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(schedule=options)

    monkeypatch.setattr(measure, "price", price)
    monkeypatch.setattr(measure, "planned_dense_ms", lambda *_: 50.0)
    mine = replace(subject, cache=tmp_path, photos=True)
    first, second = measure.schedules_of(Cell("x", "auto", LATENCY, 0.72, ON_PHOTOS), mine, None)
    assert first["latency"] == pytest.approx(36)
    for rows, schedule in zip(mine.halves, (first, second), strict=True):
        seen = {int(p.stem) for p in schedule["calibration"].iterdir()}
        assert seen == set(range(6)) - set(rows)
    (scenes,) = measure.schedules_of(Cell("x", "auto", KEEP, 0.6, ON_SCENES), mine, "model")
    assert "calibration" not in scenes
    assert scenes["profile"] == "model"
    (prior,) = measure.schedules_of(Cell("x", "auto", KEEP, 0.6, PRIOR), mine, None)
    assert prior["calibration"] == "none"
