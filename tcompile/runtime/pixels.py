"""The inputs that hold pixels from 0 to 255: floats that a model scales by numbers of that size.

`(x - 127.5) / 127.5` or `x / 255` at the front of a file says that noise around 0 is no image to
it: all patches would be the same, and what differs between them lost in the rounding of fp16.
"""

from __future__ import annotations

import numpy as np
import onnx

from tcompile.core.op_traits import MOVES

#: Values that pass on as they are.
_MOVES = MOVES | {"Cast", "Resize", "Pad"}
#: An offset or divisor from here on is one of pixels to 255; no mean or deviation of 0 to 1 is.
_LARGE = 8.0
#: Values of a constant at most: a number for each colour.
_FEW = 16


def pixel_inputs(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the float inputs whose first arithmetic is scaling by a number of pixel size."""
    constants = {t.name: t for t in model.graph.initializer if np.prod(t.dims) <= _FEW}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            value = node.attribute[0].t
            if np.prod(value.dims) <= _FEW:
                constants[node.output[0]] = value
    found = set()
    for tensor in model.graph.input:
        if tensor.type.tensor_type.elem_type in floats and tensor.name not in constants:
            pending, seen = [tensor.name], {tensor.name}
            while pending:
                for node in users.get(name := pending.pop(), []):
                    if node.op_type in _MOVES and node.input[0] == name:
                        new = [o for o in node.output if o not in seen]
                        pending += new
                        seen |= set(new)
                    elif _scales(node, name, constants):
                        found.add(tensor.name)
    return frozenset(found)


def _scales(node: onnx.NodeProto, name: str, constants: dict[str, onnx.TensorProto]) -> bool:
    others = [n for n in node.input if n != name]
    if len(others) != 1 or others[0] not in constants:
        return False
    if constants[others[0]].data_location == onnx.TensorProto.EXTERNAL:
        return False
    size = np.abs(onnx.numpy_helper.to_array(constants[others[0]]).astype(np.float64))
    if node.op_type in ("Sub", "Add"):
        return float(size.max(initial=0)) >= _LARGE
    if node.op_type == "Div" and node.input[0] == name:
        return float(size.min(initial=np.inf)) >= _LARGE
    return node.op_type == "Mul" and 0 < float(size.max(initial=0)) <= 1 / _LARGE
