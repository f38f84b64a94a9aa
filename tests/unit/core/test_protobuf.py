"""Reading a model without its weights, and its weights once: the same as onnx reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcompile.core.errors import ModelError
from tcompile.core.load import load, read_structure
from tcompile.core.protobuf import read_thin
from tests.support.tiny_vit import VitSpec, build_vit, random_weights


def vit() -> onnx.ModelProto:
    return build_vit(VitSpec(), random_weights(VitSpec()))


def same(path: Path) -> None:
    read, known = load(path), onnx.load(path)
    assert read.SerializeToString(deterministic=True) == known.SerializeToString(deterministic=True)
    thin = read_structure(path)
    assert [n.SerializeToString() for n in thin.graph.node] == [
        n.SerializeToString() for n in known.graph.node
    ]
    for tensor, whole in zip(thin.graph.initializer, known.graph.initializer, strict=True):
        assert (tensor.name, tensor.data_type, tensor.dims) == (
            whole.name,
            whole.data_type,
            whole.dims,
        )
        small = len(whole.raw_data) < 4096
        assert tensor.raw_data == (whole.raw_data if small else b"")


def test_every_form_of_weights(tmp_path: Path) -> None:
    model = vit()
    more = np.arange(3_000, dtype=np.float32)
    model.graph.initializer.extend(
        [
            helper.make_tensor("floats", TensorProto.FLOAT, [3_000], more),
            helper.make_tensor("wholes", TensorProto.INT64, [2], [-1, 1 << 40]),
            helper.make_tensor("halves", TensorProto.FLOAT16, [2], [0.5, 2.0]),
            numpy_helper.from_array(more.astype(np.float64), "doubles"),
            helper.make_tensor("packed", TensorProto.INT4, [5], [1, -2, 3, 4, -5]),
            onnx.TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0]),
        ]
    )
    inside = helper.make_node("Constant", [], ["c"], "c", value=numpy_helper.from_array(more))
    model.graph.node.insert(0, inside)
    model.functions.append(
        helper.make_function(
            "loc",
            "F",
            ["x"],
            ["y"],
            [helper.make_node("Neg", ["x"], ["y"])],
            [helper.make_opsetid("", 17)],
        )
    )
    helper.set_model_props(model, {"a": "b" * 9_000})
    path = tmp_path / "v.onnx"
    path.write_bytes(model.SerializeToString())
    same(path)


def test_parts_add_up(tmp_path: Path) -> None:
    """A graph may come in parts, and its weights among them."""
    model, path = vit(), tmp_path / "v.onnx"
    last = onnx.ModelProto()
    last.graph.initializer.extend(model.graph.initializer[3:])
    last.graph.node.append(helper.make_node("Identity", ["image"], ["more"], "more"))
    del model.graph.initializer[3:]
    path.write_bytes(model.SerializeToString() + last.SerializeToString())
    same(path)


def test_fields_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "v.onnx"
    path.write_bytes(b"\xf2\x01\x03abc" + vit().SerializeToString())
    assert load(path).graph.node
    path.write_bytes(b"\xa2\x06\x03abc" + vit().SerializeToString())  # number 100
    with pytest.raises(ModelError, match="not an ONNX file"):
        load(path)


def test_a_file_that_ends_anywhere_is_not_a_model(tmp_path: Path) -> None:
    whole = vit().SerializeToString()
    path = tmp_path / "v.onnx"
    for end in range(0, len(whole) - 1, len(whole) // 50):
        path.write_bytes(whole[:end])
        with path.open("rb") as stream, pytest.raises(ValueError, match="cut off"):
            read_thin(stream, end + 1)


MEMORY = """
import resource, sys
from pathlib import Path
from tcompile.core.load import load, read_structure
from tcompile.runtime.token_outputs import showing_choice

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

path, before = Path(sys.argv[1]), most()
read_structure(path)
with showing_choice(path) as telling:
    assert telling != path
print((most() - before) / path.stat().st_size)
load(path)
print((most() - before) / path.stat().st_size)
"""


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """A file of 128 MiB: of its structure nothing to speak of, of the model the file once."""
    model, path = vit(), tmp_path / "large.onnx"
    sides = [1 << 10, 1 << 10]
    for i in range(32):
        tensor = model.graph.initializer.add(name=f"w{i}", data_type=TensorProto.FLOAT, dims=sides)
        tensor.raw_data = bytes(4 << 20)
    choose = helper.make_node("TcTopKTokens", ["scores"], ["index"], "choose", domain="tcompile")
    model.graph.node.append(choose)
    path.write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    structure, whole = map(float, done.stdout.split())
    assert structure < 0.2
    assert whole < 1.3
