"""The program that makes docs/coverage.md."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.coverage.__main__ import Worker, read
from tests.coverage.measure import METHODS, Cell, Row, empty, measure
from tests.coverage.page import failures, page
from tests.coverage.rows import ALL, Ask, wanted
from tests.support.zoo_matrix import BY_ID, Variant


def ask(case_id: str, exporter: str = "torchscript") -> Ask:
    return Ask(ALL[case_id], Variant(exporter, ALL[case_id].attentions[0], 17, 1))


def row(case_id: str, **cells: Cell) -> Row:
    return empty(
        ask(case_id),
        cells={m: cells.get(m, Cell("compiled", error=1e-6, tolerance=1e-5)) for m in METHODS},
    )


def test_every_case_by_every_exporter() -> None:
    found = wanted()
    assert len({a.id for a in found}) == len(found)
    assert {a.case.id for a in found} == set(ALL)
    for case in BY_ID.values():
        exporters = {a.variant.exporter for a in found if a.case is case}
        assert exporters >= {*case.exporters, "dynamo", "torchscript"}


def test_the_page() -> None:
    why = "block {} attends within windows of 4 × 4 tokens (Reshape '{}')"
    text = page(
        [
            row("timm-vit", evit=Cell("refused", reason=why.format(0, "a"))),
            row("hf-vit", evit=Cell("refused", reason=why.format(1, "b"))),
            row("hf-beit", topk=Cell("compiled", "restored", 2e-6, 1e-5)),
            empty(ask("hf-dinov3"), export="cannot be exported: torchscript: no"),
        ]
    )
    assert "3 models" not in text
    assert "4 models, 4 exports" in text
    assert "| 1e-06 of 1e-05 | ✗ 1 | 1e-06 of 1e-05 |" in text
    assert text.count("attends within windows") == 1
    assert "| 2e-06 of 1e-05 ᴿ |" in text
    assert "cannot be exported: torchscript: no" in text
    assert "error" not in text.lower().replace("cannot be", "")
    assert "FAILED" not in text


def test_a_failure_is_not_hidden() -> None:
    rows = [
        row("timm-vit", tome=Cell("failed", reason="MismatchError: logits")),
        empty(ask("hf-vit"), failed="process ended with -11"),
        replace(row("hf-beit"), masked=Cell("failed", reason="MismatchError: masks")),
    ]
    assert len(failures(rows)) == 3
    assert "**3 FAILED**" in page(rows)


def test_a_row_is_measured(tmp_path: Path) -> None:
    found = measure(ask("timm-vit"), tmp_path)
    assert not found.failed
    assert {m: c.status for m, c in found.cells.items()} == dict.fromkeys(METHODS, "compiled")
    for cell in (*found.cells.values(), found.masked):
        assert cell is not None
        assert cell.error is not None
        assert cell.tolerance is not None
        assert 0 < cell.error <= cell.tolerance
    assert "attn:0–2" in found.legal


@pytest.mark.parametrize("stuck", [False, True])
def test_a_dead_worker_costs_one_row(
    stuck: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(worker: Worker, left: list[Ask]) -> None:
        """The first process dies or hangs, the second does all that is left."""
        started.append(len(left))
        worker.since = time.monotonic()
        code = "import time; time.sleep(60)" if stuck else "import sys; sys.exit(3)"
        if len(started) > 1:
            code = "pass"
            for one in left:
                worker.write(empty(one))
        worker.process = subprocess.Popen([sys.executable, "-c", code], text=True)

    monkeypatch.setattr(Worker, "start", start)
    monkeypatch.setattr("tests.coverage.__main__._PATIENCE", 0.5 if stuck else 60.0)
    asks = [ask("timm-vit"), ask("hf-vit"), ask("hf-beit")]
    worker = Worker(tmp_path, tmp_path, asks)
    until = time.monotonic() + 30
    while worker.step() and time.monotonic() < until:
        time.sleep(0.05)
    assert started == [3, 2]
    rows = [read(tmp_path / f"{a.id}.json") for a in asks]
    why = "took more than 0 s" if stuck else "process ended with 3"
    assert [r.failed for r in rows] == [why, "", ""]
