"""Legal oddities are spelled plainly; what breaks ONNX's rules is named, with its node."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcompile import pipeline
from tcompile.core.errors import ModelError
from tcompile.core.load import load
from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights
from tcompile.runtime.signature import signature
from tests.support.onnx_models import to_onnx

SPEC = VitSpec(depth=2)
WEIGHTS = random_weights(SPEC)
Odd = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def saved(odd: Odd, path: Path) -> Path:
    model = build_vit(SPEC, WEIGHTS)
    odd(model)
    path.write_bytes(model.SerializeToString())
    return path


def sparse(array: np.ndarray, name: str, *, flat: bool) -> onnx.SparseTensorProto:
    kept = np.argwhere(array)
    index = np.ravel_multi_index(tuple(kept.T), array.shape) if flat else kept
    values = numpy_helper.from_array(array[tuple(kept.T)], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(index, "i"), array.shape)


def pruned(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Take a weight out of the model, its small values made 0."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[np.abs(array) < 0.1] = 0
    model.graph.initializer.remove(tensor)
    return array


def sparse_weights(model: onnx.ModelProto) -> None:
    for name, flat in (("patch_embed.proj.weight", False), ("pos_embed", True)):
        model.graph.sparse_initializer.append(sparse(pruned(model, name), name, flat=flat))


def sparse_constant(model: onnx.ModelProto) -> None:
    value = sparse(pruned(model, "pos_embed"), "", flat=True)
    made = helper.make_node("Constant", [], ["pos_embed"], sparse_value=value)
    model.graph.node.insert(0, made)


def output_that_is_a_weight(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("pos_embed", 1, [1, 17, 32]))


def output_that_is_a_number(model: onnx.ModelProto) -> None:
    """CLIP's logit_scale."""
    scale = numpy_helper.from_array(np.asarray(4.6, np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["scale"], value=scale))
    model.graph.output.append(helper.make_tensor_value_info("scale", 1, []))


def output_without_a_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].ClearField("type")


def names_of_classes(model: onnx.ModelProto) -> None:
    texts = [f"class {i}".encode() for i in range(SPEC.classes)]
    table = helper.make_tensor("names", TensorProto.STRING, [SPEC.classes], texts)
    best = helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0)
    made = helper.make_node("Constant", [], ["names"], value=table)
    model.graph.node.extend([best, made, helper.make_node("Gather", ["names", "best"], ["name"])])
    model.graph.output.append(helper.make_tensor_value_info("name", TensorProto.STRING, [1]))


def weight_that_numpy_lacks(model: onnx.ModelProto) -> None:
    """bfloat16, which ONNX Runtime reads."""
    bias = next(t for t in model.graph.initializer if t.name == "pos_embed")
    wide = numpy_helper.to_array(bias)
    bits = (wide.view(np.uint32) >> 16).astype(np.uint16)
    small = helper.make_tensor("small", TensorProto.BFLOAT16, wide.shape, bits.tobytes(), raw=True)
    model.graph.initializer.remove(bias)
    model.graph.initializer.append(small)
    model.graph.node.insert(0, helper.make_node("Cast", ["small"], ["pos_embed"], to=1))


def functions_of_one_name(model: onnx.ModelProto) -> None:
    """Two overloads, with another number of inputs each."""
    model.ir_version = 10
    opsets = [helper.make_opsetid("", 18)]
    for overload, inputs in (("a", ["x"]), ("b", ["x", "y"])):
        body = [helper.make_node("Sum", inputs, ["z"])]
        made = helper.make_function("own", "F", inputs, ["z"], body, opsets)
        made.overload = overload
        model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("own", 1))
    call = helper.make_node("F", ["pos_embed"], ["table"], domain="own")
    call.overload = "a"
    for node in model.graph.node:
        node.input[:] = ["table" if n == "pos_embed" else n for n in node.input]
    model.graph.node.insert(0, call)


@pytest.mark.parametrize(
    "odd",
    [
        sparse_weights,
        weight_that_numpy_lacks,
        functions_of_one_name,
        sparse_constant,
        output_that_is_a_weight,
        output_that_is_a_number,
        output_without_a_type,
        names_of_classes,
    ],
)
def test_legal_files_are_read_as_they_are_meant(odd: Odd, tmp_path: Path) -> None:
    path = saved(odd, tmp_path / "odd.onnx")
    read = pipeline.read(path)
    assert len(read.analysis.blocks) == SPEC.depth
    assert all(t.dtype for t in signature(path).outputs)
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)

    def run(model: onnx.ModelProto) -> list[np.ndarray]:
        session = ort.InferenceSession(model.SerializeToString())
        return [np.asarray(a) for a in session.run(None, {"image": image})]

    source = onnx.load(path)
    if odd is output_without_a_type:  # which ONNX Runtime does not take
        source.graph.output[0].CopyFrom(build_vit(SPEC, WEIGHTS).graph.output[0])
    for want, have in zip(run(source), run(to_onnx(read.graph)), strict=True):
        if want.dtype.kind == "f":
            np.testing.assert_allclose(have, want, atol=1e-5)
        else:
            assert (have == want).all()


def bad_index(model: onnx.ModelProto) -> None:
    sparse_weights(model)
    index = model.graph.sparse_initializer[1].indices
    index.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(index) + 100, "i"))


def endless(model: onnx.ModelProto) -> None:
    one = numpy_helper.from_array(np.ones(1, np.float32), "bomb")
    at = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(one, at, [1 << 40]))


def declared_otherwise(model: onnx.ModelProto) -> None:
    attribute = node(model, "Softmax").attribute[0]
    attribute.ClearField("i")
    attribute.s = b"last"


def called_with_more(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Erf", ["x"], ["y"])]
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], body, opsets[:1]))
    model.opset_import.append(opsets[1])
    erf = node(model, "Erf")
    erf.op_type, erf.domain = "F", "own"
    erf.input.append("image")


def calls_inside_with_more(model: onnx.ModelProto) -> None:
    called_with_more(model)
    del node(model, "F").input[1]
    own = helper.make_opsetid("own", 1)
    inner = deepcopy(model.functions[0])
    inner.name = "G"
    model.functions.append(inner)
    model.functions[0].opset_import.append(own)
    del model.functions[0].node[:]
    model.functions[0].node.append(helper.make_node("G", ["x", "x"], ["y"], "in", domain="own"))


def in_segments(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.end = 5


def of_no_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 99


def a_sequence(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("SequenceConstruct", ["image"], ["all"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("all", 1, None))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (bad_index, "indices of the sparse weights 'pos_embed'"),
        (endless, "more than 2 GiB"),
        (declared_otherwise, "'axis' of Softmax 'softmax_18' is declared INT and holds s"),
        (called_with_more, "has 2 inputs, its function 'F' 1"),
        (calls_inside_with_more, "G 'in' has 2 inputs, its function 'G' 1"),
        (in_segments, "stored in segments"),
        (of_no_type, "'logits' is of unknown type 99"),
        (a_sequence, "output 'all' is a sequence"),
    ],
)
def test_what_breaks_the_rules_is_named(odd: Odd, words: str, tmp_path: Path) -> None:
    path = saved(odd, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=words) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_type_that_there_is_not_is_forgotten_where_it_says_nothing(tmp_path: Path) -> None:
    def odd(model: onnx.ModelProto) -> None:
        model.graph.value_info.add(name="erf_29").type.tensor_type.elem_type = 99

    assert pipeline.read(saved(odd, tmp_path / "odd.onnx"))
