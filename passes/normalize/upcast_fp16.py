"""Half precision in a source model becomes fp32: one form to analyse and reduce.

What goes back to fp16 is the target's affair (passes/lower/precision.py); scores, sizes and means
must be fp32 anyway. Inputs and outputs of the model keep their types, with casts behind them.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.graph import cast_node, is_const, producer, replace_uses, tensors_of, value

_HALF, _SINGLE = np.dtype(np.float16), np.dtype(np.float32)
_TO_SINGLE, _TO_HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
#: Attributes that name a type of tensor.
_TYPES = ("to", "dtype", "output_dtype", "softmax_precision")


def widen(graph: gs.Graph) -> bool:
    """Compute everything that was fp16 in fp32; needs about twice the memory. Whether any was."""
    halves = [t for t in tensors_of(graph).values() if t.dtype == _HALF]
    if not halves:
        return False
    _inside(graph)
    for tensor in graph.inputs:
        if tensor.dtype == _HALF:
            wide = gs.Variable(f"{tensor.name}/fp32", _SINGLE)
            replace_uses(tensor, wide)
            graph.nodes.insert(0, cast_node(tensor, wide, _TO_SINGLE))
    for tensor in graph.outputs:
        maker = producer(tensor)
        if tensor.dtype == _HALF and maker is not None:
            wide = gs.Variable(f"{tensor.name}/fp32", _SINGLE)
            replace_uses(tensor, wide)
            maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = wide
            graph.nodes.append(cast_node(wide, tensor, _TO_HALF))
    return True


def _inside(graph: gs.Graph) -> None:
    """Weights and type attributes, in branches too."""
    ends = {id(t) for t in (*graph.inputs, *graph.outputs)}
    for tensor in tensors_of(graph).values():
        if tensor.dtype != _HALF:
            continue
        if is_const(tensor):
            tensor.values = value(tensor).astype(_SINGLE)
        elif id(tensor) not in ends:
            tensor.dtype = _SINGLE
    for node in graph.nodes:
        for name, given in node.attrs.items():
            if isinstance(given, gs.Graph):
                _inside(given)
            elif name in _TYPES and given == _TO_HALF:
                node.attrs[name] = _TO_SINGLE
            elif isinstance(given, gs.Tensor) and is_const(given) and given.dtype == _HALF:
                given.values = value(given).astype(_SINGLE)
