"""Explicit dims in every Reshape, and the batch freed again after folding with a sentinel."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.propagate import propagate
from tcompile.errors import ModelError
from tcompile.ir import BATCH_SENTINEL, int_to_dim, ints, is_const, large, shape


def explicit_reshapes(graph: gs.Graph) -> None:
    """Give each Reshape a target of its own with literal dims (shared ones would be traps)."""
    for node in graph.nodes:
        if node.op == "Reshape":
            set_target(node, [int(d) for d in node.outputs[0].shape])


def set_target(node: gs.Node, dims: list[int]) -> None:
    """Replace the target of a Reshape; 0 copies the dim of the input, −1 is inferred."""
    node.attrs.pop("allowzero", None)
    name = f"{node.outputs[0].name}/shape"
    node.inputs[1] = gs.Constant(name, np.asarray(dims, dtype=np.int64))


def free_batch(graph: gs.Graph) -> None:
    """Turn the sentinel back into a symbolic batch.

    Reshape targets get 0 or −1 there; integer vectors that hold the sentinel are computed from the
    input at run time; shapes of tensors become `batch` or `batch*K`.

    Raises:
        ModelError: the batch cannot be followed through some op.
    """
    facts = propagate(graph)
    sized: dict[tuple[int, ...], gs.Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "Reshape":
            _free_reshape(node, facts.of(node.inputs[0]), facts.of(node.outputs[0]))
        for i, tensor in enumerate(node.inputs):
            if node.op == "Reshape" and i == 1:
                continue
            if is_const(tensor) and not large(tensor) and np.dtype(tensor.dtype).kind == "i":
                values = tuple(ints(tensor))
                if any(v and v % BATCH_SENTINEL == 0 for v in values):
                    if len(tensor.shape) != 1:
                        raise _lost(node)
                    if values not in sized:
                        sized[values] = _runtime_vector(graph, values)
                    node.inputs[i] = sized[values]
    for tensor in graph.tensors().values():
        if not is_const(tensor) and tensor.shape is not None:
            tensor.shape = [int_to_dim(int(d)) for d in tensor.shape]
    graph.toposort()


def _lost(node: gs.Node) -> ModelError:
    return ModelError(
        f"the free batch cannot be followed through {node.op} '{node.name}'",
        hint="export with a fixed batch",
    )


def _free_reshape(node: gs.Node, before: ax.Axes, after: ax.Axes) -> None:
    dims = [int(d) for d in node.outputs[0].shape]
    batched = [i for i, a in enumerate(after) if ax.has_batch(a)]
    loose = [i for i, d in enumerate(dims) if d % BATCH_SENTINEL == 0 and d]
    if batched != loose or len(batched) > 1:
        raise _lost(node)
    for i in batched:
        dims[i] = 0 if i < len(before) and before[i] == after[i] else -1
    if 0 in (int(d) for d in node.outputs[0].shape):
        raise _lost(node)
    set_target(node, dims)


def _runtime_vector(graph: gs.Graph, values: tuple[int, ...]) -> gs.Tensor:
    """The vector with the sentinel's place taken by the first input's first dim."""
    source = next(t for t in graph.inputs if shape(t)[:1] == (BATCH_SENTINEL,))
    tag = "x".join(map(str, values)).replace(str(BATCH_SENTINEL), "batch")
    dims = gs.Variable(f"tc_dims_{tag}", np.int64, [len(source.shape)])
    graph.nodes.append(gs.Node("Shape", f"tc_dims_{tag}", {}, [source], [dims]))
    first = gs.Variable(f"tc_batch_{tag}", np.int64, [1])
    zero = gs.Constant(f"tc_zero_{tag}", np.asarray([0], dtype=np.int64))
    graph.nodes.append(gs.Node("Gather", f"tc_batch_{tag}", {"axis": 0}, [dims, zero], [first]))
    parts: list[gs.Tensor] = []
    for i, number in enumerate(values):
        factor, rest = divmod(number, BATCH_SENTINEL)
        if rest or not number:
            parts.append(gs.Constant(f"tc_{tag}_{i}", np.asarray([number], dtype=np.int64)))
        elif factor == 1:
            parts.append(first)
        else:
            scale = gs.Constant(f"tc_{tag}_{i}", np.asarray([factor], dtype=np.int64))
            product = gs.Variable(f"tc_{tag}_{i}_product", np.int64, [1])
            graph.nodes.append(gs.Node("Mul", f"tc_{tag}_{i}", {}, [first, scale], [product]))
            parts.append(product)
    out = gs.Variable(f"tc_shape_{tag}", np.int64, [len(values)])
    graph.nodes.append(gs.Node("Concat", f"tc_shape_{tag}", {"axis": 0}, parts, [out]))
    return out


def check_known(graph: gs.Graph) -> None:
    """Every shape must be known by now.

    Raises:
        ModelError: naming the first node whose output shape is not.
    """
    for node in graph.nodes:
        for out in node.outputs:
            if not out.is_empty() and out.shape is None:
                if node.domain:
                    raise ModelError(
                        f"{node.op} '{node.name}' is an operator of '{node.domain}', which "
                        "tcompile does not know",
                        hint="give it the model as exported, before a runtime optimised it",
                    )
                raise ModelError(
                    f"the output shape of {node.op} '{node.name}' is not known at compile time",
                    hint="tcompile needs a static token count; export with a fixed image size",
                )
