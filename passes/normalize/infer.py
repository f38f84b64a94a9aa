"""Shape inference on the skeleton of a graph (no weights are copied)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.errors import ModelError
from tcompile.ir import int_to_dim, is_const, skeleton


def check(graph: gs.Graph) -> None:
    """Hold the graph against ONNX's own rules, its large weights left out.

    Raises:
        ModelError: unknown operators, inputs or attributes an operator does not have, tensors that
            nothing makes.
    """
    try:
        model = skeleton(graph)
        for output in model.graph.output:  # the rules want a type there; any will do
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            output.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = str(error).partition("==> Context")[0]
        raise ModelError(f"not a valid ONNX graph: {reason}", hint="export it again") from error


def infer(graph: gs.Graph, *, symbolic: bool = False) -> None:
    """Write shape and dtype of every tensor that inference can tell; others get None.

    Args:
        symbolic: write a dim that holds the batch sentinel as the string it stands for.

    Raises:
        ModelError: shapes contradict each other.
    """
    try:
        model = onnx.shape_inference.infer_shapes(skeleton(graph), strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        # The first fault; those after it are mostly its consequences.
        reason = next((s for s in str(error).splitlines() if s.strip()), "")
        raise ModelError(
            f"its shapes contradict each other: {reason}", hint="the export is broken"
        ) from error
    infos = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    for tensor in graph.tensors().values():
        if is_const(tensor) or any(tensor is t for t in graph.inputs):
            continue
        info = infos.get(tensor.name)
        tensor.shape = None if info is None else _dims(info, symbolic)
        if info is not None and info.type.tensor_type.elem_type:
            tensor.dtype = _dtype(info.type.tensor_type.elem_type)


def _dims(info: onnx.ValueInfoProto, symbolic: bool) -> list[int | str] | None:
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims: list[int | str] = []
    for dim in info.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            return None
        dims.append(int_to_dim(dim.dim_value) if symbolic else dim.dim_value)
    return dims


def _dtype(elem_type: int) -> object:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except KeyError:
        return elem_type
