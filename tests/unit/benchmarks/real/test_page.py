"""The page and the README's section, of figures that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real.measure import KEEP, LATENCY, ON_PHOTOS, ON_SCENES, Cell, Row
from benchmarks.real.page import page, published, ranks, within
from benchmarks.real.readme import BEGIN, END, section, write_section
from tcompile.core.errors import UsageError

SETTINGS = {"photos": 4, "scenes": 3, "rounds": 5, "machine": "here", "cores": 2, "keeps": [0.6]}


def row(method: str, share: float, mean: float, taken: float, **changes: Any) -> Row:
    given = {"budget": KEEP, "data": "", "scenes": mean, "noise": 1 - mean, **changes}
    cell = Cell("saliency", method, given["budget"], share, given["data"])
    own = [mean - 0.1, mean, mean, mean + 0.1]
    figures = {"own": own, "scenes": [given["scenes"]], "noise": [given["noise"]]}
    times = {"ratio": 1 / taken, "lower": 0.9, "upper": 1.1, "ms": 5.0, "load": 1.0}
    return Row(cell, ({},), (method,), 9, 1.5, {"saliency": figures}, times=times)


ROWS = [
    row("tome", 0.6, 0.8, 0.8),
    row("tome", 0.5, 0.7, 0.7),
    row("evit", 0.6, 0.6, 0.72),
    row("topk", 0.6, 0.5, 0.7),
    row("fopru", 0.6, 1.0, 1.0, noise=1.0),
    row("auto", 0.6, 0.85, 0.8, data=ON_SCENES),
    row("auto", 0.72, 0.75, 0.73, data=ON_SCENES, budget=LATENCY),
    row("auto", 0.72, 0.76, 0.78, data=ON_PHOTOS, budget=LATENCY),
    Row(Cell("saliency", "dycoke", KEEP, 0.6), missing="takes frames"),
]


def test_a_method_stands_for_its_best_row_within_a_latency() -> None:
    found = published(ROWS, SETTINGS)["rows"]
    best = within(found, "saliency", 0.72)
    assert [(r["method"], r["share"]) for r in best] == [
        ("auto", 0.72),
        ("auto", 0.72),
        ("tome", 0.5),
        ("evit", 0.6),
        ("topk", 0.6),
    ]


def test_ranks_are_of_presets_that_change_something() -> None:
    found = published(ROWS, SETTINGS)
    (one,) = found["ranks"]
    assert (one["task"], one["keep"], one["presets"]) == ("saliency", 0.6, 3)
    assert one["scenes"] == pytest.approx(1)
    assert one["noise"] == pytest.approx(-1)
    assert ranks([r for r in found["rows"] if r["method"] == "tome"]) == []


def test_page_and_readme_quote_the_same(tmp_path: Path) -> None:
    found = published(ROWS, SETTINGS)
    text = page(found)
    assert "| `tome` | 1.50 × | 0.80 | 0.8000 | 0.7150 | 0.7000 |" in text
    assert "| `evit` | 0.6000 (0.500) 0.72 |" in text
    assert "**over**" in text  # auto with photos took .78 where .72 was asked
    assert "| correlation of the map | 0.6 | 3 | 1.000 | -1.000 |" in text
    assert "busy" not in text
    assert "busy" in page({**found, "settings": {**SETTINGS, "cores": 0.4}})
    assert "- `dycoke` on saliency at keep 0.6: takes frames" in text
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_section(readme, found)
    assert readme.read_text() == f"before\n{BEGIN}\n{section(found)}\n{END}\nafter\n"
    assert "| `evit` | 0.6000 (0.500) 0.72 |" in section(found)
    assert "old" not in readme.read_text()
    readme.write_text("no place")
    with pytest.raises(UsageError, match="has no lines"):
        write_section(readme, found)


def test_the_readme_quotes_what_was_measured() -> None:
    root = Path(__file__).parents[4]
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    measured = root / "docs" / "benchmarks" / "real.json"
    if measured.exists():
        assert section(json.loads(measured.read_text(encoding="utf-8"))) in text
