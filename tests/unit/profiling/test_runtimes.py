"""The GPU runtime up to the engine, and what it says where there is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.profiling import runtimes
from tcompile.profiling.partition import subgraph
from tcompile.profiling.runtimes import runtime_for
from tcompile.profiling.structure import partition_at
from tcompile.targets import load_target
from tests.support.profiling import method, tiny


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_DEVICES", ("/nowhere/nvidia0",))


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A machine whose driver tells these facts."""
    (tmp_path / "nvidia0").touch()
    facts = {"name": "GPU", "compute_cap": "8.9", "driver_version": "1.2"}
    monkeypatch.setattr(runtimes, "_DEVICES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setattr(runtimes, "_smi", lambda: facts)
    return facts


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["rtx-4090", "jetson-orin-nano", "t4"])
def test_without_a_gpu_it_says_so(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: .*no NVIDIA GPU.*--modelled"):
        runtime_for(load_target(name))


@pytest.mark.usefixtures("a_gpu")
def test_another_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"8\.9, not 7\.5.*--modelled"):
        runtime_for(load_target("t4"))
    with pytest.raises(UsageError, match="not a Jetson"):
        runtime_for(load_target("jetson-orin-nano"))


@pytest.mark.usefixtures("a_gpu")
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match=r"tensorrt-rtx.*pip install.*--modelled"):
        runtime_for(load_target("rtx-4090"))


def test_a_precision_it_does_not_have() -> None:
    with pytest.raises(UsageError, match="int4"):
        runtime_for(load_target("rtx-4090"), precision="int4")


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """A half and a step of a model, by role."""
    model = tiny(tmp_path, batch=None)
    found = partition_at(model.graph, method(model, "tome"), 10)
    return {p.role: subgraph(found.graph, p) for p in found.parts}


def test_fp16_parts_have_no_casts_where_they_were_cut(parts: dict[str, Any]) -> None:
    lowered = runtimes.part_for(parts["mlp"], load_target("rtx-4090"), "fp16")
    assert [np.dtype(t.dtype) for t in (*lowered.inputs, *lowered.outputs)] == [np.float16] * 2
    assert lowered.nodes[0].op != "Cast"
    assert lowered.nodes[-1].op != "Cast"
    full = runtimes.part_for(parts["mlp"], load_target("rtx-4090"), "fp32")
    assert {np.dtype(t.dtype) for t in (*full.inputs, *full.outputs)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("role", ["attn", "mlp", "reducer"])
def test_parts_build_without_a_gpu(parts: dict[str, Any], tmp_path: Path, role: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    runtime = runtimes.GpuRuntime(load_target("rtx-4090"), batch=2, precision="fp16")
    folder = tmp_path / "engine"
    folder.mkdir()
    assert len(runtime.build(parts[role], folder / "part.onnx")) > 1000
    assert not list(folder.iterdir())


def test_conditions_are_what_the_driver_tells(a_gpu: dict[str, str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    runtime = runtime_for(load_target("rtx-4090"), batch=4)
    told = runtime.conditions()
    assert (told.device, told.precision, told.batch) == ("GPU", "fp16", 4)
    assert told.software["driver"] == a_gpu["driver_version"]
    assert told.date
