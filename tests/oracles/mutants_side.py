"""Deliberate mistakes with what joins the stream from the side: rotary rows, bias, masks.

As `mutants.py`: each changes a reduced model in place, as a faulty pass would have left it, and
raises LookupError where it finds nothing to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: Nodes that a reduction puts into its own place on the stream; the others serve a side input.
_OWN = re.compile(r"^tcompile/(attn_|block_|output)")
_GATHERS = ("Gather", "GatherND", "GatherElements", "TcGatherTokens")


def _side_gathers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that take rows of a side input by the index of the kept tokens, in the
    graph's order."""
    found = [
        node
        for node in model.graph.node
        if node.op_type in _GATHERS
        and node.name.startswith("tcompile/")
        and not _OWN.match(node.name)
    ]
    if not found:
        raise LookupError("no gathered side input")
    return found


def _chains(model: onnx.ModelProto) -> list[list[onnx.NodeProto]]:
    """The gathers of each side input, one for each of its token axes, from the table on."""
    gathers = _side_gathers(model)
    made = {name: node for node in model.graph.node for name in node.output}

    def before(node: onnx.NodeProto) -> onnx.NodeProto | None:
        above = made.get(node.input[0])
        while above is not None and above.name.startswith("tcompile/"):
            if above in gathers:
                return above
            above = made.get(above.input[0]) if above.input else None
        return None

    last = [node for node in gathers if not any(before(other) is node for other in gathers)]
    chains = []
    for node in last:
        chain = [node]
        while (above := before(chain[0])) is not None:
            chain.insert(0, above)
        chains.append(chain)
    return chains


def _constant(model: onnx.ModelProto, value: Sequence[int] | np.ndarray) -> str:
    name = f"mutant_side_{len(model.graph.initializer)}"
    tensor = numpy_helper.from_array(np.array(value, dtype=np.int64), name)
    model.graph.initializer.append(tensor)
    return name


def _count(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[int, int]:
    """Return which axis of a gather's index counts the tokens, and how many there are."""
    axis = {"GatherND": -2, "GatherElements": None}.get(node.op_type, -1)
    if axis is None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    shapes = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for info in (*shapes.graph.value_info, *shapes.graph.input):
        if info.name == node.input[1]:
            dims = info.type.tensor_type.shape.dim
            return axis % len(dims) - len(dims), dims[axis].dim_value
    raise LookupError(f"no shape for {node.input[1]}")


def _wire(model: onnx.ModelProto, node: onnx.NodeProto, *made: onnx.NodeProto) -> None:
    """Put nodes before `node` and let it read the last one's output as its index."""
    at = list(model.graph.node).index(node)
    node.input[1] = made[-1].output[0]
    for offset, new in enumerate(made):
        model.graph.node.insert(at + offset, new)


def _first_rows(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """The gather takes the first rows, as many as it should: 0, 1, 2, ..."""
    axis, count = _count(model, node)
    index, name = node.input[1], f"{node.output[0]}__first"
    shape = [1] * -axis
    shape[0] = count
    rows = _constant(model, np.arange(count).reshape(shape))
    zero = helper.make_node("Sub", [index, index], [f"{name}_zero"])
    _wire(model, node, zero, helper.make_node("Add", [f"{name}_zero", rows], [name]))


def _one_before(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """The gather takes the row before each one that it should (the first for the first)."""
    index, name = node.input[1], f"{node.output[0]}__before"
    less = helper.make_node("Sub", [index, _constant(model, [1])], [f"{name}_less"])
    floor = helper.make_node("Max", [f"{name}_less", _constant(model, [0])], [name])
    _wire(model, node, less, floor)


def rows_not_reindexed(model: onnx.ModelProto) -> None:
    """Every side input is cut to the number of tokens that are left."""
    for node in _side_gathers(model):
        _first_rows(model, node)


def one_block_not_reindexed(model: onnx.ModelProto) -> None:
    """Only the last of the side inputs is cut, not gathered."""
    for node in _chains(model)[-1]:
        _first_rows(model, node)


def prefix_off_by_one(model: onnx.ModelProto) -> None:
    """Rows are counted as if the prefix were one longer."""
    for node in _side_gathers(model):
        _one_before(model, node)


def _one_axis(which: int) -> Callable[[onnx.ModelProto], None]:
    def mutant(model: onnx.ModelProto) -> None:
        chains = [chain for chain in _chains(model) if len(chain) == 2]
        if not chains:
            raise LookupError("no side input with two token axes")
        for chain in chains:
            _first_rows(model, chain[which])

    return mutant


def first_axis_not_gathered(model: onnx.ModelProto) -> None:
    """Cut rows (or columns, as the compiler has it) of a table of pairs in place of a gather."""
    _one_axis(0)(model)


def second_axis_not_gathered(model: onnx.ModelProto) -> None:
    """The other axis of the two."""
    _one_axis(1)(model)


def fused_turned(model: onnx.ModelProto) -> None:
    """A fused token is turned as the first patch is, not left as it is."""
    made = {name: node for node in model.graph.node for name in node.output}
    choices = [made.get(node.input[1]) for node in _side_gathers(model)]
    found = [node for node in choices if node is not None and node.op_type == "Where"]
    if not found:
        raise LookupError("no row for tokens without a position")
    for node in found:
        node.input[1] = _constant(model, [0])


# ---- groups --------------------------------------------------------------------------------------


def _member_tables(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, int, np.ndarray]]:
    """Gathers at a site with a constant [G, g] or [G * g] of patches: node, slot and values."""
    constants = {
        t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64
    }
    found = []
    for node in model.graph.node:
        if node.op_type != "Gather" or not _OWN.match(node.name):
            continue
        for slot, name in enumerate(node.input):
            if name in constants:
                values = numpy_helper.to_array(constants[name])
                if values.size > 8 and (np.sort(values.ravel()) == np.arange(values.size)).all():
                    found.append((node, slot, values))
    if not found:
        raise LookupError("no table of groups")
    return found


def members_out_of_order(model: onnx.ModelProto) -> None:
    """The members of each kept group come in the wrong order."""
    tables = [entry for entry in _member_tables(model) if entry[2].ndim == 2]
    if not tables:
        raise LookupError("no table of members")
    for node, slot, values in tables:
        node.input[slot] = _constant(model, values[:, ::-1])


def groups_along_the_rows(model: onnx.ModelProto) -> None:
    """A group is taken for neighbours along the rows, in score and members."""
    for node, slot, values in _member_tables(model):
        node.input[slot] = _constant(model, np.arange(values.size).reshape(values.shape))


def best_member_decides(model: onnx.ModelProto) -> None:
    """A group's score is its best member's, not their mean."""
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and re.match(r"tcompile/\w+/topk/", node.name):
            node.op_type = "ReduceMax"
            return
    raise LookupError("no mean over members")
