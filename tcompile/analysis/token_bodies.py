"""Bodies of token ops as graphs with shapes, to count and to price what they do."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import value
from tcompile.plugins.ops import find_op

#: Any that all bodies can be written in; products do not depend on it.
_OPSET = 18
#: ONNX element type and dims of each input.
Inputs = tuple[tuple[int, tuple[int, ...]], ...]
Numbers = tuple[tuple[str, int], ...]


def numbers_of(call: gs.Node) -> Numbers:
    """Return the attributes of a call of a token op, all of which are whole numbers."""
    return tuple((k, int(value(v)[0])) for k, v in sorted(call.attrs.items()))


@lru_cache(maxsize=4096)
def token_op_body(op: str, inputs: Inputs, numbers: Numbers) -> gs.Graph:
    """Return the body of a token op from i0, i1, … to o0, o1, …, every shape inferred.

    Nodes are named by operator and place. The graph is shared: it must not be changed.
    """
    spec = find_op(op)
    sources = [
        onnx.helper.make_tensor_value_info(f"i{i}", dtype, dims)
        for i, (dtype, dims) in enumerate(inputs)
    ]
    results = [onnx.helper.make_empty_tensor_value_info(f"o{i}") for i in range(len(spec.outputs))]
    call = onnx.helper.make_node(
        op, [v.name for v in sources], [v.name for v in results], domain=DOMAIN
    )
    for key, number in numbers:
        tensor = onnx.numpy_helper.from_array(np.asarray([number], np.int64), key)
        call.attribute.append(onnx.helper.make_attribute(key, tensor))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], op, sources, results),
        functions=[spec.function(_OPSET)],
        opset_imports=[onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
    )
    inlined = onnx.inliner.inline_local_functions(model)
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(inlined, data_prop=True))
    for i, node in enumerate(graph.nodes):
        node.name = f"{node.op}_{i}"
    return graph
