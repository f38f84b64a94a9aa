"""Explicit dims in every Reshape, and free dims again where primes stood for them."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.propagate import propagate
from tcompile.core.errors import ModelError
from tcompile.core.graph import free_factors, int_to_dim, is_const, is_free, shape, tensors_of
from tcompile.core.node_order import toposort
from tcompile.passes.normalize.batch_values import HINT, DimVectors
from tcompile.passes.normalize.infer import ContradictionError


def explicit_reshapes(graph: gs.Graph) -> None:
    """Give each Reshape a target of its own with literal dims (shared ones would be traps).

    Raises:
        ContradictionError: one takes another number of values than it gives, whatever the batch:
            inference does not count them.
    """
    for node in graph.nodes:
        if node.op == "Reshape":
            takes, gives = (free_factors(prod(shape(t))) for t in (node.inputs[0], node.outputs[0]))
            if takes[0] == gives[0] and takes[1] != gives[1]:
                raise ContradictionError(
                    f"Reshape '{node.name}' takes {takes[1]} values of each image and gives "
                    f"{gives[1]}",
                    takes[0],
                )
            set_target(node, [int(d) for d in node.outputs[0].shape])


def set_target(node: gs.Node, dims: list[int]) -> None:
    """Replace the target of a Reshape; 0 copies the dim of the input, −1 is inferred."""
    node.attrs.pop("allowzero", None)
    name = f"{node.outputs[0].name}/shape"
    node.inputs[1] = gs.Constant(name, np.asarray(dims, dtype=np.int64))


def free_batch(graph: gs.Graph, vectors: DimVectors) -> None:
    """Turn the primes that stand for free dims back into these.

    Reshape targets get 0 or −1 there, or where that does not do are computed from the inputs at run
    time; shapes of tensors become `batch` or `batch*K`.

    Raises:
        ModelError: the batch cannot be followed through some op.
    """
    facts = propagate(graph)
    for node in list(graph.nodes):
        if node.op == "Reshape":
            if prod(shape(node.inputs[0])) != prod(shape(node.outputs[0])):
                raise ModelError(
                    f"Reshape '{node.name}' fits one size of the batch, and the batch is free",
                    hint=HINT,
                )
            _free_reshape(node, facts.of(node.inputs[0]), facts.of(node.outputs[0]), vectors)
    for tensor in tensors_of(graph).values():
        if not is_const(tensor) and tensor.shape is not None:
            tensor.shape = [int_to_dim(int(d)) for d in tensor.shape]
    toposort(graph)


def _lost(node: gs.Node) -> ModelError:
    return ModelError(
        f"the free batch cannot be followed through {node.op} '{node.name}'", hint=HINT
    )


def _free_reshape(node: gs.Node, before: ax.Axes, after: ax.Axes, vectors: DimVectors) -> None:
    dims = [int(d) for d in node.outputs[0].shape]
    batched = [i for i, a in enumerate(after) if ax.has_batch(a)]
    loose = [i for i, d in enumerate(dims) if is_free(d)]
    if batched != loose:
        raise _lost(node)
    moved = [i for i in batched if i >= len(before) or before[i] != after[i]]
    if len(moved) > 1:
        node.attrs.pop("allowzero", None)
        node.inputs[1] = vectors.vector(dims)
        return
    if batched and 0 in dims:
        raise _lost(node)
    for i in batched:
        dims[i] = -1 if i in moved else 0
    set_target(node, dims)


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
