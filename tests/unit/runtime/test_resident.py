"""Memory of a process that runs a model alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tcompile.runtime import resident
from tcompile.runtime.resident import measure_resident
from tcompile.targets.backends.cpu import ORT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")


def _model(path: Path, width: int) -> Path:
    """A table of `width` MiB that is added to an input of as many."""
    dims = [1, 256, 1024, width]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [onnx.numpy_helper.from_array(np.ones(dims, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def test_a_larger_model_takes_as_much_more(tmp_path: Path) -> None:
    small, large = (
        measure_resident(_model(tmp_path / f"{width}.onnx", width), ORT, threads=1)
        for width in (1, 40)
    )
    assert small is not None
    assert large is not None
    # Weights once at least; the input was there before, and outputs may be gone.
    assert large.running - small.running > 39 << 20
    assert large.peak - small.peak > 2 * (39 << 20)
    assert large.running < large.peak


def test_what_cannot_be_measured_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _model(tmp_path / "m.onnx", 1)
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "none")
    assert measure_resident(path, ORT, threads=1) is None
