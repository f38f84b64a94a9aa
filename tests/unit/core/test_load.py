"""Corrupt and hostile files: one line that names file and fault, nothing read that should not be.

What `load` lets through because it is well-formed, the normal form holds against ONNX's rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tcompile.core.load as loading
from tcompile import pipeline
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.load import load
from tests.support.bombs import BOMBS
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

Damage = Callable[[onnx.ModelProto], None]


def vit() -> onnx.ModelProto:
    return build_vit(VitSpec(), random_weights(VitSpec()))


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        pipeline.reduce(path, keep=0.5, method="topk")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def few_values(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.float_data.extend([1.0, 2.0])


def huge_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[0] = 1 << 40


def negative_dims(model: onnx.ModelProto) -> None:
    dims = model.graph.initializer[0].dims
    dims[0], dims[1] = -dims[0], -dims[1]


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def same_name(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].name = model.graph.initializer[0].name


def cycle(model: onnx.ModelProto) -> None:
    node(model, "Concat").input[0] = model.graph.node[-5].output[0]


def nobody_makes(model: onnx.ModelProto) -> None:
    node(model, "Softmax").input[0] = "nowhere"


def made_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(node(model, "Concat"))


def too_many_inputs(model: onnx.ModelProto) -> None:
    node(model, "MatMul").input.extend(["image", "image"])


def attribute_of_another_type(model: onnx.ModelProto) -> None:
    del node(model, "Softmax").attribute[:]
    node(model, "Softmax").attribute.append(helper.make_attribute("axis", "last"))


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "Erf").op_type = "Erff"


def other_domain(model: onnx.ModelProto) -> None:
    node(model, "Erf").domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def sequence_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def bfloat_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16


def constant_out_of_range(model: onnx.ModelProto) -> None:
    """Only evaluating it shows the fault."""
    stored = {"index": np.asarray([99]), "table": np.zeros((4, 32), np.float32)}
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "index"], ["row"], "pick"))
    norm = node(model, "LayerNormalization").output[0]
    model.graph.node.append(helper.make_node("Add", [norm, "row"], ["more"], "more"))
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 17, 32])
    model.graph.output.append(more)


def recursive_function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("F", ["x"], ["y"], domain="loc")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]
    model.functions.append(helper.make_function("loc", "F", ["x"], ["y"], body, opsets))
    model.opset_import.append(opsets[1])
    node(model, "Erf").domain, node(model, "Erf").op_type = "loc", "F"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (few_values, "hold 2 values, their shape .* needs 6144"),
        (huge_dims, "hold 0 values"),
        (negative_dims, "negative dim"),
        (unknown_type, "unknown type 99"),
        (same_name, "several weights named"),
        (cycle, "Cycle"),
        (nobody_makes, "nowhere"),
        (made_twice, "single static assignment"),
        (too_many_inputs, "input size 4 not in range"),
        (attribute_of_another_type, "Mismatched attribute type"),
        (unknown_operator, "No Op registered for Erff"),
        (other_domain, "operator of 'com.microsoft'"),
        (sequence_input, "input 'image' is not a tensor"),
        (bfloat_input, "input 'image' is not a tensor"),
        (constant_out_of_range, "out of data bounds"),
        (recursive_function, "recursive"),
        *BOMBS,
    ],
)
def test_damaged_graphs(
    tmp_path: Path, damage: Damage, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = vit()
    damage(model)
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    refused(path, words)
    assert "[C]" not in "".join(capfd.readouterr())


def elsewhere(name: str, place: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


def in_function(model: onnx.ModelProto, place: str) -> None:
    constant = helper.make_node("Constant", [], ["k"], value=elsewhere("k", place))
    body = [constant, helper.make_node("Mul", ["x", "k"], ["y"])]
    function = helper.make_function("loc", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("loc", 1))


def in_branch(model: onnx.ModelProto, place: str) -> None:
    empty = helper.make_graph([], "g", [], [], [elsewhere("k", place)])
    branches = {"then_branch": empty, "else_branch": empty}
    model.graph.node.append(helper.make_node("If", ["image"], ["z"], **branches))


def in_sparse(model: onnx.ModelProto, place: str) -> None:
    indices = numpy_helper.from_array(np.asarray([0]), "i")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=elsewhere("s", place), indices=indices, dims=[4])
    )


def in_graph(model: onnx.ModelProto, place: str) -> None:
    model.graph.initializer.append(elsewhere("w", place))


@pytest.mark.parametrize("hide", [in_graph, in_function, in_branch, in_sparse])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("../secret", "outside the model's folder"),
        ("/etc/hostname", "outside the model's folder"),
        ("", "outside the model's folder"),
        ("a\0b", "whose name no file system allows"),
        ("a" * 5000, "whose name no file system allows"),
        ("nothing", "is missing"),
    ],
)
def test_external_data_is_confined(
    tmp_path: Path, hide: Callable[[onnx.ModelProto, str], None], place: str, words: str
) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    model = vit()
    hide(model, place)
    path = tmp_path / "folder" / "bad.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    refused(path, words)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_as_external_data_are_refused(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "w.bin"
    onnx.save(vit(), str(path), save_as_external_data=True, location=data.name, size_threshold=0)
    data.rename(tmp_path / "real.bin")
    link(tmp_path / "real.bin", data)
    refused(path, "not links")


@pytest.mark.parametrize("suffix", [".json", ".txt", ".textproto", ".onnxtxt", ".onnxjson"])
def test_a_file_is_read_by_what_it_holds_not_by_its_name(tmp_path: Path, suffix: str) -> None:
    """onnx would pick a text format by the suffix, with errors of its own."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(vit().SerializeToString())
    assert load(path).graph.node
    path.write_text('{"schema": 1}')
    refused(path, "not an ONNX file")


def test_a_link_out_of_the_folder_is_named_as_one(tmp_path: Path) -> None:
    """The layout of a hub's cache: files are links into another folder."""
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    path, data = folder / "m.onnx", folder / "w.bin"
    onnx.save(vit(), str(path), save_as_external_data=True, location=data.name, size_threshold=0)
    data.rename(blobs / "real.bin")
    data.symlink_to(blobs / "real.bin")
    refused(path, "is a link out of the model's folder")


def test_text_that_is_no_text(tmp_path: Path) -> None:
    model = vit()
    name = node(model, "Softmax").name.encode()
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString().replace(name, b"\xff" * len(name)))
    refused(path, "valid|ONNX")


def test_an_old_format_version_is_raised_for_the_functions(tmp_path: Path) -> None:
    model = vit()
    model.ir_version = 6
    path = tmp_path / "old.onnx"
    onnx.save(model, str(path))
    assert pipeline.reduce(path, keep=0.5, method="topk").graph.ir_version == 8


def save_beside(path: Path, model: onnx.ModelProto, **fields: Any) -> onnx.TensorProto:
    """Put the first weight into a file beside; returns it."""
    weight = model.graph.initializer[0]
    data = weight.raw_data
    (path.parent / "w.bin").write_bytes(data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in {"location": "w.bin", **fields}.items():
        weight.external_data.add(key=key, value=str(text))
    return weight


def test_external_data_is_measured_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.onnx"
    model = vit()
    weight = save_beside(path, model)
    path.write_bytes(model.SerializeToString())
    assert load(path).graph.initializer[0].raw_data  # no length: the rest of the file
    weight.dims[0] *= 2
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(onnx, "load_external_data_for_model", None)
    refused(path, "hold 24576 bytes, their shape .* needs 49152")


def test_external_data_that_is_used_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_SMALL", 0)
    path, model = tmp_path / "v.onnx", vit()
    weight = save_beside(path, model)
    for i in range(loading._SHARED):
        copy = model.graph.initializer.add()
        copy.CopyFrom(weight)
        copy.name = f"copy {i}"
    path.write_bytes(model.SerializeToString())
    refused(path, "its 5 tensors of external data would take 120 KiB: they overlap .* of 24 KiB")


@pytest.mark.parametrize(
    "start",
    [
        b"",
        bytes(64),
        b"PK\3\4" + bytes(60),
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        b"\x7fELF" + bytes(60),
        b'{"a": 1}',
        b"\x08\x08\x3a\xff\xff\xff\xff\x07",  # a graph that is longer than the file
        b"\x08\x08\x3a\x04\x50\x01\x00\x00",  # a graph with a field that graphs do not have
    ],
)
def test_what_is_not_a_model_is_not_read(
    tmp_path: Path, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.onnx"
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + (3 << 30 if len(start) >= 60 else 0))  # a hole, no disk
    monkeypatch.setattr(onnx, "load_model", None)
    with pytest.raises(ModelError, match="not an ONNX file, or truncated"):
        load(path)


def test_models_have_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "v.onnx"
    path.write_bytes(vit().SerializeToString())
    with path.open("r+b") as stream:  # one more field: a text of two gibibytes
        stream.seek(0, 2)
        stream.write(b"\x32\x80\x80\x80\x80\x08")
        stream.truncate(stream.tell() + (1 << 31))
    with pytest.raises(ModelError, match=r"has 2 GiB, and no ONNX file has more"):
        load(path)


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    path.write_bytes(vit().SerializeToString())
    with pytest.raises(UsageError, match=r"udcff\.onnx: has a name that is not Unicode"):
        load(path)
    spaced = tmp_path / "a\u3000b é.onnx"
    spaced.write_bytes(vit().SerializeToString())
    assert load(spaced).graph.node
