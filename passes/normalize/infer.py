"""Shape inference on the skeleton of a graph (no weights are copied)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.errors import ModelError
from tcompile.core.graph import (
    attr,
    free_factors,
    free_names,
    int_to_dim,
    is_const,
    is_free,
    settled,
    shape,
    skeleton,
    tensors_of,
)
from tcompile.core.well_formed import without_weights
from tcompile.passes.normalize.batch_values import HINT, Values, batch_values


def check(graph: gs.Graph) -> None:
    """Hold the graph against ONNX's own rules, its large weights left out.

    Raises:
        InvalidGraphError: unknown operators, inputs or attributes that one does not have, or
            tensors that nothing makes.
    """
    try:
        model = skeleton(graph)
        for output in model.graph.output:  # the rules want a type there; any will do
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            output.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = str(error).partition("==> Context")[0]
        raise InvalidGraphError(
            f"not a valid ONNX graph: {reason}", hint="export it again"
        ) from error


class InvalidGraphError(ModelError):
    """A graph, as it was imported, that ONNX's checker does not accept."""


def file_fault(model: onnx.ModelProto) -> str | None:
    """Return what ONNX's checker finds wrong with a file, its large weights left out; None: it
    accepts it."""
    bare = without_weights(model)
    unshaped = [v for v in bare.graph.output if not v.type.tensor_type.HasField("shape")]
    try:
        onnx.shape_inference.infer_shapes(bare, strict_mode=True)
        for value in unshaped:  # the checker wants a shape there, runtimes do not
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(bare)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return _in_words(error).partition("==> Context")[0]
    return None


class ContradictionError(ModelError):
    """Shapes that contradict each other.

    Attributes:
        reason: what ONNX's shape inference says.
        names: free dims that meet where they do, if there are several: they may have to be one.
    """

    def __init__(self, reason: str, names: Sequence[str]) -> None:
        super().__init__(f"its shapes contradict each other: {reason}")
        self.reason, self.names = reason, tuple(names)


def infer(
    graph: gs.Graph, *, symbolic: bool = False, doubts: list[ContradictionError] | None = None
) -> Values:
    """Write shape and dtype of every tensor that inference can tell; others get None.

    Args:
        symbolic: write a dim that holds a free batch as the string it stands for.
        doubts: takes a contradiction in place of raising it: it may lie in a branch that is not
            taken, or go once more is folded. What lies behind it gets None.

    Returns:
        What depends on the batch alone, at the primes that stand for free dims.

    Raises:
        ContradictionError: shapes contradict each other.
    """
    known = batch_values(graph)
    infos = _infos(graph, skeleton(graph, known), doubts)
    for tensor in tensors_of(graph).values():
        if is_const(tensor) or any(tensor is t for t in graph.inputs):
            continue
        if tensor.name in known:
            tensor.shape = list(known[tensor.name].shape)
            tensor.dtype = known[tensor.name].dtype
            continue
        info = infos.get(tensor.name)
        dims = None if info is None else _dims(info)
        tensor.shape = [int_to_dim(d) for d in dims] if symbolic and dims is not None else dims
        if info is not None and info.type.tensor_type.elem_type:
            tensor.dtype = _dtype(info.type.tensor_type.elem_type)
    if len(free_names(graph)) > 1:
        check_meetings(graph)
    return known


def _infos(
    graph: gs.Graph, model: onnx.ModelProto, doubts: list[ContradictionError] | None = None
) -> dict[str, onnx.ValueInfoProto]:
    """Return what inference says of each tensor.

    Raises:
        ContradictionError: shapes contradict each other, and `doubts` does not take it.
    """
    found, error = _inferred(model)
    if error is not None:
        reason = _in_words(error)
        several = len(free_names(graph)) > 1
        fault = ContradictionError(reason, _meeting(model) if several else ())
        if doubts is None:
            raise fault from error
        doubts.append(fault)
    return {v.name: v for v in (*found.graph.value_info, *found.graph.output)}


#: How ONNX names a node and says what is wrong there.
_FAULT = re.compile(r"\(op_type:(\w+)(?:, node name: (.*?))?\): (?:\[\w+\] )?(.*)")


def _in_words(error: Exception) -> str:
    """The first fault; those after it are mostly its consequences."""
    lines = [s for s in str(error).splitlines() if s.strip()]
    found = _FAULT.search(lines[0]) if lines else None
    if found is None:
        return lines[0] if lines else ""
    return f"{found[3]} at {found[1]} '{found[2] or ''}'"


def _inferred(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, onnx.shape_inference.InferenceError | None]:
    """Return the model with shapes, and the contradiction that they hold.

    ONNX follows the values of small integers as if all of them were vectors, and so rejects sound
    sums of matrices ([n, 1] + [1, m]): a contradiction is one where it is so without values too.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True), None
    except onnx.shape_inference.InferenceError:
        pass
    error = None
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as found:
        error = found
    return onnx.shape_inference.infer_shapes(model, data_prop=True), error


def _meeting(model: onnx.ModelProto) -> list[str]:
    """The free dims of the inputs of the first node whose outputs cannot be inferred from them."""
    found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = found.graph
    dims = {
        v.name: _dims(v)
        for v in (*graph.input, *graph.value_info, *graph.output)
        if v.type.tensor_type.HasField("shape")
    }
    stored = {t.name for t in graph.initializer}
    for node in graph.node:
        read = [n for n in node.input if n and n not in stored]
        told = all(dims.get(n) is not None for n in read)
        if told and any(o and dims.get(o) is None for o in node.output):
            names = {n: None for r in read for d in dims[r] or () for n in free_factors(d)[0]}
            if len(names) > 1:
                return list(names)
    return []


#: Values of one tensor at most, for one image.
_MOST = 1 << 32


def check_sizes(graph: gs.Graph) -> None:
    """Refuse tensors that no machine holds: a few numbers in a file can ask for any size.

    Raises:
        ModelError: naming the first node that makes one.
    """
    for node in graph.nodes:
        for out in node.outputs:
            if not out.is_empty() and out.shape and prod(settled(d, 1) for d in out.shape) > _MOST:
                raise ModelError(
                    f"{node.op} '{node.name}' makes a tensor of "
                    f"{' × '.join(map(str, out.shape))} values, more than can be computed",
                    hint="export it for smaller inputs",
                )


def check_shapes(graph: gs.Graph) -> None:
    """Hold every shape against what inference says of other sizes of the free dims.

    A dim is fixed, or a free dim or a multiple of one. What is cut or filled up to a size that
    only looks so at one batch (`min(B, 8)`, `B // 2`) shows here.

    Raises:
        ModelError: naming the first node whose output has another shape.
    """
    names = free_names(graph)
    for start in (2, 3):
        sizes = {name: 2 + (start + i) % max(2, len(names)) for i, name in enumerate(names)}
        known = batch_values(graph, sizes)
        try:
            infos = _infos(graph, skeleton(graph, known, sizes))
        except ContradictionError as error:
            raise ModelError(
                f"its shapes do not hold for every size of the batch: {error.reason}", hint=HINT
            ) from error
        for node in graph.nodes:
            for out in node.outputs:
                if out.is_empty() or out.shape is None:
                    continue
                value, info = known.get(out.name), infos.get(out.name)
                dims = None if info is None else _dims(info)
                dims = list(value.shape) if value is not None else dims
                if dims is not None and dims != [settled(d, sizes) for d in out.shape]:
                    raise ModelError(
                        f"the shape of the output of {node.op} '{node.name}' depends on the size "
                        "of the batch otherwise than as a multiple of it",
                        hint=HINT,
                    )


def check_meetings(graph: gs.Graph) -> None:
    """Refuse free dims that meet where inputs of a node must agree but inference lets them pass.

    Raises:
        ContradictionError: naming the free dims that meet.
    """
    for node in graph.nodes:
        read = [t for t in node.inputs if not t.is_empty()]
        if any(t.shape is None for t in (*read, *node.outputs)):
            continue
        dims = [shape(t) for t in read]
        if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            fits = prod(dims[0]) == prod(shape(node.outputs[0]))
        elif node.op == "Attention":
            fits = len({d[0] for d in dims[:3]}) == 1
        elif node.op in ("GatherElements", "ScatterElements", "ScatterND") or (
            node.op == "GatherND" and attr(node, "batch_dims", 0)
        ):
            fits = not is_free(dims[0][0]) or all(d[0] in (1, dims[0][0]) for d in dims[1:] if d)
        elif node.op == "Einsum":
            fits = _letters_fit(str(attr(node, "equation")), dims)
        else:
            continue
        names = {n: None for d in dims for size in d for n in free_factors(size)[0]}
        if node.op == "Reshape":
            names |= {n: None for s in shape(node.outputs[0]) for n in free_factors(s)[0]}
        if not fits and len(names) > 1:
            raise ContradictionError(
                f"free dims {', '.join(names)} meet at {node.op} '{node.name}'", list(names)
            )


def _letters_fit(equation: str, dims: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether each letter of an Einsum has one size, or 1."""
    sizes: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, found in zip(terms, dims, strict=False):
        if "." in term:
            term, found = term.replace("...", ""), found[len(found) - len(term) + 3 :]
        for letter, size in zip(term, found, strict=False):
            known = sizes.get(letter, 1)
            if 1 not in (known, size) and known != size:
                return False
            sizes[letter] = max(known, size)
    return True


def _dims(info: onnx.ValueInfoProto) -> list[int] | None:
    """Its dims; None where one is not known."""
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    return [d.dim_value for d in dims] if all(d.HasField("dim_value") for d in dims) else None


def _dtype(elem_type: int) -> object:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except KeyError:
        return elem_type
