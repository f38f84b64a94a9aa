"""The GPU benchmark without a GPU: predictions, rivals, the page, and the script on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import page, run
from benchmarks.gpu.work import Aim, Work, evit_step, one, tiny_works, tome_step, works
from tcompile.plugins.ops import OPS
from tests.unit.plugins.host_kernels import host_library

__all__ = ["host_library"]  # a fixture

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "benchmarks"


def test_bytes_and_operations_in_closed_form() -> None:
    gather = one("TcGatherTokens", "f16", B=8, T=4096, C=1024, K=2048)
    assert gather.bytes == 8 * 2048 * (2 * 1024 * 2 + 8)  # rows in and out, an index each
    assert gather.flops == 0
    top = one("TcTopKTokens", "f32", B=1, T=1370, k=685)
    assert top.bytes == 1370 * 4 + 685 * 8
    match = one("TcMatchTokens", "f16", B=2, T=577, D=64, r=23)
    assert match.flops == 2 * 2 * 289 * 288 * 64
    assert match.bytes == 2 * (577 * 64 * 2 + (289 + 23) * 8)
    step = tome_step("f16", B=1, T=577, C=1024, D=64, r=23)
    merge = one("TcMergeTokens", "f16", B=1, T=577, C=1024, r=23)
    assert merge.bytes == 577 * (2048 + 4) + 554 * (2048 + 4) + (289 + 23) * 8
    assert step.bytes == match.bytes // 2 + merge.bytes
    assert step.flops == match.flops // 2
    assert gather.floor(1e12, 1e12) == pytest.approx(gather.bytes / 1e12)
    assert match.floor(1e15, 1e12) == pytest.approx(match.flops / 1e12)
    fuse = one("TcFuseTokens", "f32", B=1, T=10, C=4, K=7)
    assert fuse.bytes == 3 * (4 * 4 + 4) + 7 * 8 + 4 * 4


def test_every_op_and_aim_of_the_issue_is_there() -> None:
    names = {op.name for op in OPS}
    for items in (works(), tiny_works("f16")):
        assert {c.op for w in items for c in w.calls} == names
        assert len({w.title for w in items}) == len(items)
    aims = {
        (w.name, tuple(w.shapes.get("x", w.shapes.get("scores", (0,)))), w.data)
        for w in works()
        if w.aim
    }
    for shape in (
        ("TcGatherTokens", (8, 4096, 1024), "f16"),
        ("TcMergeTokens", (8, 4096, 1024), "f16"),
        ("TcTopKTokens", (1, 1370), "f32"),
        ("ToMe step", (1, 577, 1024), "f16"),
    ):
        assert shape in aims
    assert any(w.name == "TcMatchTokens" and w.aim and w.aim.share == 0.6 for w in works())


def reference(work: Work) -> dict[str, Any]:
    """The results by the specifications' numpy."""
    held = {name: values for name, (values, _) in work.inputs().items()}
    for call in work.calls:
        made = call.spec.reference(*(held[n] for n in call.inputs), **call.numbers)
        held |= dict(zip(call.outputs, made, strict=True))
    return held


@pytest.mark.parametrize("work", tiny_works("f32"), ids=lambda w: w.name)
def test_rivals_do_the_same_work(work: Work) -> None:
    """What we are compared with computes what we compute: otherwise times say nothing."""
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.rivals import RIVALS

    given = {
        name: torch.from_numpy(np.ascontiguousarray(v)) for name, (v, _) in work.inputs().items()
    }
    got, want = RIVALS[work.name](given, work.sizes), reference(work)
    for name in work.results:
        np.testing.assert_allclose(got[name].numpy(), want[name], rtol=1e-4, atol=1e-5)


def test_inputs_are_legal_calls() -> None:
    for work in (*tiny_works("bf16"), evit_step("f16", B=1, T=9, C=3, K=4)):
        shapes = {name: v.shape for name, (v, _) in work.inputs().items()}
        for call in work.calls:
            if set(call.inputs) <= set(shapes):
                made = call.spec.shapes(tuple(shapes[n] for n in call.inputs), call.numbers)
                shapes |= dict(zip(call.outputs, made, strict=True))
        assert set(work.results) <= set(shapes)


@pytest.mark.parametrize(
    ("aim", "ours", "expected"),
    [
        (None, 10.0, None),
        (Aim("", share=0.85), 10.0, True),
        (Aim("", share=0.85), 11.0, False),
        (Aim("", microseconds=8), 8.0, True),
        (Aim("", microseconds=8), 8.1, False),
        (Aim("", faster="eager", times=5), 20.0, True),
        (Aim("", faster="eager", times=5), 20.1, False),
        (Aim("", faster="nobody", times=5), 1.0, None),
    ],
)
def test_aims(aim: Aim | None, ours: float, expected: bool | None) -> None:
    work = replace(works()[0], aim=aim)
    row = {"ours_us": {"median": ours}, "floor_us": 9.0, "rivals": {"eager": {"median": 100.0}}}
    assert run.met(work, row) is expected


def test_the_page_is_current_or_measured() -> None:
    data = json.loads((DOCS / "gpu.json").read_text(encoding="utf-8"))
    text = (DOCS / "gpu.md").read_text(encoding="utf-8")
    if data["measured"]:
        assert text == page.measured(data)
    else:
        made = "python -m benchmarks.gpu.run --predict -o docs/benchmarks"
        assert text == page.prediction(), made
        assert data == json.loads(json.dumps(page.predicted_json())), made
        assert "No GPU was at hand" in text


@pytest.mark.heavy
def test_the_same_python_runs_on_the_host(host_library: Path) -> None:
    """Under sanitizers, on the library that the kernels' own tests build."""
    pytest.importorskip("torch")
    from benchmarks.gpu.host_build import preload

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.gpu.run",
            "--library",
            str(host_library),
            "--dry",
            "--cases",
            "3",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **preload()},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["correctness"] == {op.name: {"cases": 3, "wrong": []} for op in OPS}
    for row in found["rows"]:
        assert set(row["apart"].values()) == {0.0}, row["title"]
        assert "ours_us" not in row


def test_measuring_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `measure` and the page that comes of it, with a clock that stands still and numpy in
    place of kernels."""
    torch = pytest.importorskip("torch")

    from benchmarks.gpu import device, rivals

    class Numpy(device.Device):
        def __init__(self) -> None:
            self.gpu, self.where = False, torch.device("cpu")

        def prepare(self, op: Any, inputs: Any, numbers: Any, index: str = "i64") -> Any:
            made = op.reference(*(t.numpy() for t in inputs), **numbers)
            return SimpleNamespace(outputs=tuple(torch.from_numpy(np.array(m)) for m in made))

        def launch(self, ready: Any) -> None:
            launched.append(ready)

    launched: list[Any] = []

    def once(runs: Any) -> device.Times:
        for each in runs if isinstance(runs, list) else [runs]:
            each()
        return device.Times(2.0, 1.0, 3.0)

    def never(rival: Any) -> Any:
        def refuse(*_: Any) -> None:
            raise RuntimeError("no compiler")

        return refuse

    monkeypatch.setattr(device, "by_graph", once)
    monkeypatch.setattr(device, "by_stream", once)
    monkeypatch.setattr(rivals, "compiled", never)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1000)
    )
    rates = {"bandwidth": 1e9, "f32": 1e9, "f16": 1e12, "bf16": 1e12}
    item = tome_step("f32", Aim("5 x", faster="eager", times=5), B=1, T=33, C=24, D=8, r=6)
    row = run.measure(Numpy(), item, rates)
    assert row["copies"] >= 2
    assert len(launched) == 2 * (row["copies"] + 2)  # two calls: on every copy, launched, compared
    assert set(row["apart"].values()) == {0.0}
    assert row["met"] is False
    assert row["rivals"]["compile"] is None
    assert row["floor_us"] == pytest.approx(max(item.bytes, item.flops) / 1e3)
    about = dict.fromkeys(
        ("device", "capability", "driver", "torch", "cuda", "sanitizer", "date"), "x"
    )
    wrong = {"cases": 2, "wrong": ["TcX: y"]}
    text = page.measured(
        {"about": about, "rates": rates, "rows": [row], "correctness": {"TcX": wrong}}
    )
    assert "**Wrong on the device:** TcX: TcX: y" in text
    assert "| **no** |" in text
    assert "No GPU" not in text


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu" / "run.sh"
    done = subprocess.run(
        [str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere/python"},
    )
    assert done.returncode == 2
    assert done.stderr.strip() == ("run.sh: /nowhere/python has no torch or no numpy; set PYTHON")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *capability*) exit 1;; esac\n')
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    for program in (python, nvcc):
        program.chmod(0o755)
    for given, said in (("/nowhere/nvcc", "no nvcc found"), (str(nvcc), "torch sees no GPU here")):
        done = subprocess.run(
            [str(script)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "NVCC": given},
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
