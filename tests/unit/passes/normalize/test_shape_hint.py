"""The `--shape` hint, read off files of many kinds; each hint is what the file can be read with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tcompile.core.errors import ModelError
from tcompile.models.onnx_vit import GraphWriter, VitSpec, build_vit, random_weights
from tcompile.passes.normalize import normalize

ROW = VitSpec(image=48, patch=12, depth=1)


def freed(model: onnx.ModelProto, *dims: int | str) -> onnx.ModelProto:
    image = model.graph.input[0].type.tensor_type.shape
    del image.dim[:]
    for dim in dims:
        image.dim.add(**{"dim_value" if isinstance(dim, int) else "dim_param": dim})
    return model


def vit(spec: VitSpec, *dims: int | str) -> onnx.ModelProto:
    batch = dims[0] if isinstance(dims[0], int) else None
    return freed(build_vit(spec, random_weights(spec), batch=batch), *dims)


def hint(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """What is said of a model, which can then be read."""
    with pytest.raises(ModelError, match="is dynamic") as error:
        normalize(model)
    shapes = {}
    for option in error.value.hint.removeprefix("say --shape ").split(" --shape "):
        name, _, dims = option.partition("=")
        shapes[name] = [int(d) if d.isdigit() else d for d in dims.split(",")]
    normalize(model, shapes=shapes)
    return shapes


@pytest.mark.parametrize(
    ("spec", "dims", "want"),
    [
        (VitSpec(depth=1), ("batch", 3, "h", "w"), ["batch", 3, 32, 32]),
        (VitSpec(depth=1), (2, 3, "h", "w"), [2, 3, 32, 32]),
        (VitSpec(depth=1), ("n", "c", "h", "w"), ["n", 3, 32, 32]),
        (VitSpec(depth=1), ("n", 3, 32, "w"), ["n", 3, 32, 32]),
        (VitSpec(depth=1), ("n", 3, "h", 16), ["n", 3, 64, 16]),
        (VitSpec(depth=1, prefix=0, pool="avg"), ("n", 3, "h", "w"), ["n", 3, 32, 32]),
        (VitSpec(depth=1, prefix=5), ("n", 3, "h", "w"), ["n", 3, 32, 32]),
        (ROW, ("n", 3, "h", "w"), ["n", 3, 48, 48]),
    ],
)
def test_sizes_of_the_position_table(
    spec: VitSpec, dims: Sequence[int | str], want: list[int | str]
) -> None:
    assert hint(vit(spec, *dims)) == {"image": want}


def test_layout_and_size_of_frames_that_are_resized_inside() -> None:
    model = vit(VitSpec(depth=1), 1, "h", "w", 3)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    conv.input[0] = "planes"
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[1,H,W,3] image) => (float planes) {
        scaled = Mul (image, scale) turned = Transpose <perm = [0, 3, 1, 2]> (scaled)
        s = Shape <start = 0, end = 2> (turned) side = Constant <value_ints = [32, 32]> ()
        sizes = Concat <axis = 0> (s, size) planes = Resize (turned, , , sizes) }"""
    nodes = onnx.parser.parse_model(text).graph.node
    kept = [n for n in nodes if n.op_type != "Constant"] + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name, value in (("size", np.asarray([32, 32])), ("scale", np.asarray(2, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    assert hint(model) == {"image": [1, 32, 32, 3]}


def test_a_table_of_a_grid_that_is_not_square() -> None:
    model = vit(VitSpec(depth=1), "n", 3, "h", "w")
    table = next(t for t in model.graph.initializer if t.name == "pos_embed")
    table.CopyFrom(numpy_helper.from_array(np.ones((1, 33, 32), np.float32), "pos_embed"))
    for tensor in model.graph.initializer:
        sizes = numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.INT64 and 17 in sizes.reshape(-1):
            changed = np.where(sizes == 17, 33, sizes)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        elif tensor.data_type == onnx.TensorProto.INT64 and 16 in sizes.reshape(-1):
            changed = np.where(sizes == 16, 32, sizes)
            keep = list(sizes.reshape(-1)) == [0, 17, 2, 16]
            tensor.CopyFrom(tensor if keep else numpy_helper.from_array(changed, tensor.name))
    assert hint(model) == {"image": ["n", 3, 32, 64]}


def test_texts_beside_images() -> None:
    """Both are bound; texts to as many as their table of positions has."""
    writer = GraphWriter(
        {"words": np.ones((50, 8), np.float32), "places": np.ones((12, 8), np.float32)}
    )
    told = writer.op("Gather", writer.weight("words"), "ids", axis=0)
    placed = writer.op("Add", told, writer.weight("places"))
    model = vit(VitSpec(depth=1), "n", 3, "h", "w")
    for node in writer.nodes:
        node.name = f"text_{node.name}"
        node.output[0] = f"text_{node.output[0]}"
        node.input[:] = [f"text_{n}" if n.startswith("gather") else n for n in node.input]
    model.graph.node.extend(writer.nodes)
    for name, array in writer.initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    value = onnx.helper.make_tensor_value_info
    model.graph.input.append(value("ids", onnx.TensorProto.INT64, ["m", "length"]))
    model.graph.output.append(value(f"text_{placed}", onnx.TensorProto.FLOAT, None))
    assert hint(model) == {"image": ["n", 3, 32, 32], "ids": ["m", 12]}


def test_no_hint_of_a_size_where_none_fits() -> None:
    body = "y = MatMul (x, w)"
    text = (
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[N,W] x) => (float[N,M] y) {{ {body} }}'
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5000, 3), np.float32), "w"))
    with pytest.raises(ModelError, match=r"dim 1 \('W'\).*bind it with --shape x=DIMS"):
        normalize(model)
