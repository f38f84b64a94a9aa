"""Deliberate mistakes with whole groups of patches, and with tokens that bypass a block.

As `mutants.py`: each changes a reduced model in place, as a faulty pass would have left it, and
raises LookupError where it finds nothing to change.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper


def _calls(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    found = [node for node in model.graph.node if node.op_type == op]
    if not found:
        raise LookupError(f"no {op}")
    return found


def _constant(model: onnx.ModelProto, value: np.ndarray) -> str:
    name = f"mutant_groups_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.int64), name))
    return name


def _read(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, *made: onnx.NodeProto) -> None:
    """Put nodes before `node` and let it read the last one's output in `slot`."""
    at = list(model.graph.node).index(node)
    node.input[slot] = made[-1].output[0]
    for offset, new in enumerate(made):
        model.graph.node.insert(at + offset, new)


# ---- groups --------------------------------------------------------------------------------------


def _table(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    """Change the table [G, g] that says which patches the chosen groups have."""

    def mutant(model: onnx.ModelProto) -> None:
        chosen = {node.output[0] for node in _calls(model, "TcTopKTokens")}
        values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Gather" and node.input[1] in chosen and node.input[0] in values:
                node.input[0] = _constant(model, change(values[node.input[0]]))
                return
        raise LookupError("no table of groups")

    return mutant


def groups_one_further(model: onnx.ModelProto) -> None:
    """The patches of each chosen group are those of the group after it."""
    _table(lambda table: np.roll(table, -1, axis=0))(model)


def members_backwards(model: onnx.ModelProto) -> None:
    """The patches of each group come in the opposite order."""
    _table(lambda table: table[:, ::-1])(model)


def members_of_neighbours(model: onnx.ModelProto) -> None:
    """The last patch of each group is the next group's."""

    def change(table: np.ndarray) -> np.ndarray:
        return np.concatenate([table[:, :-1], np.roll(table[:, -1:], -1, axis=0)], axis=1)

    _table(change)(model)


def groups_by_falling_score(model: onnx.ModelProto) -> None:
    """Groups leave the choice unsorted; their numbers are right."""
    for function in model.functions:
        if function.name == "TcTopKTokens":
            final = next(node for node in function.node if "index" in node.output)
            final.CopyFrom(helper.make_node("Identity", ["chosen"], ["index"]))
            return
    raise LookupError("no TcTopKTokens")


# ---- bypass --------------------------------------------------------------------------------------


def returned_one_before(model: onnx.ModelProto) -> None:
    """Every token that ran through the block returns to the place before its own."""
    node = _calls(model, "TcReturnTokens")[0]
    less = helper.make_node("Sub", [node.input[2], _constant(model, np.array([1]))], ["less"])
    floor = helper.make_node("Max", ["less", _constant(model, np.array([0]))], ["one_before"])
    _read(model, node, 2, less, floor)


def returned_in_front(model: onnx.ModelProto) -> None:
    """The tokens that ran through the block return to the first places, in their order."""
    node = _calls(model, "TcReturnTokens")[0]
    nothing = helper.make_node("Sub", [node.input[2], node.input[2]], ["nothing"])
    front = helper.make_node("Add", ["nothing", node.input[3]], ["in_front"])
    _read(model, node, 2, nothing, front)


def bypassed_zeroed(model: onnx.ModelProto) -> None:
    """The tokens that bypass a block are zero after it."""
    node = _calls(model, "TcReturnTokens")[0]
    _read(model, node, 0, helper.make_node("Sub", [node.input[0], node.input[0]], ["zeroed"]))


def last_return_forgotten(model: onnx.ModelProto) -> None:
    """The last block might as well not be there: what ran through it does not return."""
    node = _calls(model, "TcReturnTokens")[-1]
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], node.output, node.name))


def worst_run(model: onnx.ModelProto) -> None:
    """The tokens with the lowest scores run through the block."""
    node = _calls(model, "TcTopKTokens")[0]
    _read(model, node, 0, helper.make_node("Neg", [node.input[0]], ["worst"]))
