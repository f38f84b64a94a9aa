"""Deliberate mistakes, written into a reduced graph.

Each function takes the reduced model (and some the dense one) and changes it in place, as a faulty
pass would have left it. A mutant that finds nothing to change raises LookupError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

Mutant = Callable[[onnx.ModelProto], None]


# ---- surgery -------------------------------------------------------------------------------------


def _nodes(model: onnx.ModelProto, op: str, scope: str = "") -> list[onnx.NodeProto]:
    """Nodes of an op type, the names of whose tcompile scope contain `scope`."""
    found = [
        node
        for node in model.graph.node
        if node.op_type == op and scope in node.name and node.name.startswith("tcompile/")
    ]
    if not found:
        raise LookupError(f"no {op} in the scope '{scope}'")
    return found


def _replace(
    nodes: list[onnx.NodeProto] | onnx.ModelProto, tensor: str, op: str, *inputs: str
) -> None:
    """Let every consumer of `tensor` read op(*inputs) instead; inputs may name `tensor` itself."""
    graph = nodes.graph.node if isinstance(nodes, onnx.ModelProto) else nodes
    changed = f"{tensor}__mutant"
    for node in graph:
        for i, name in enumerate(node.input):
            if name == tensor:
                node.input[i] = changed
    at = next(i for i, node in enumerate(graph) if tensor in node.output)
    graph.insert(at + 1, helper.make_node(op, list(inputs) or [tensor], [changed]))


def _ones(model: onnx.ModelProto, tensor: str) -> None:
    _replace(model, tensor, "Div", tensor, tensor)


def _body(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    for function in model.functions:
        if function.name == name:
            return function
    raise LookupError(f"the model does not call {name}")


def _constant(model: onnx.ModelProto, values: list[int]) -> str:
    name = f"mutant_constant_{len(model.graph.initializer)}"
    tensor = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
    model.graph.initializer.append(tensor)
    return name


def _values(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    return None


# ---- shapes --------------------------------------------------------------------------------------


def missed_fixes(
    reduced: onnx.ModelProto, dense: onnx.ModelProto
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every integer constant that reducing changed (shapes, bounds, split lengths), as it was.

    One copy of the reduced model for each, with the name of the node whose fix is missed.
    """
    before = {node.name: node for node in dense.graph.node}
    for at, node in enumerate(reduced.graph.node):
        old = before.get(node.name)
        if old is None or old.op_type != node.op_type:
            continue
        for slot, (was, now) in enumerate(zip(old.input, node.input, strict=False)):
            then, today = _values(dense, was), _values(reduced, now)
            if then is None or today is None or then.dtype != np.int64:
                continue
            if node.op_type == "Slice" and slot == 2 and (then >= today).all():
                continue  # an end beyond the end is cut to it: no mistake
            if then.shape != today.shape or (then != today).any():
                copy = onnx.ModelProto()
                copy.CopyFrom(reduced)
                del copy.graph.value_info[:]
                copy.graph.node[at].input[slot] = _constant(copy, then.ravel().tolist())
                yield f"{node.op_type} {node.name}", copy


# ---- choosing ------------------------------------------------------------------------------------


def unsorted(model: onnx.ModelProto) -> None:
    """Kept tokens by falling score, not in their order."""
    body = _body(model, "TcTopKTokens")
    final = next(node for node in body.node if "index" in node.output)
    final.CopyFrom(helper.make_node("Identity", ["chosen"], ["index"]))


def worst_kept(model: onnx.ModelProto) -> None:
    """The least attended tokens stay."""
    for node in _nodes(model, "TcTopKTokens"):
        if f"{node.input[0]}__mutant" not in node.input:
            _replace(model, node.input[0], "Neg")
            return


def wrong_prefix(model: onnx.ModelProto) -> None:
    """Scores are cut one token too early, as if the prefix were one shorter."""
    (top, *_) = _nodes(model, "TcTopKTokens")
    cut = next(node for node in model.graph.node if top.input[0] in node.output)
    for slot in (1, 2):
        value = _values(model, cut.input[slot])
        if value is None:
            raise LookupError(f"{cut.name} has no constant bounds")
        cut.input[slot] = _constant(model, (value - 1).ravel().tolist())


def rows_off_by_one(model: onnx.ModelProto) -> None:
    """The stream is gathered one row after the token that was chosen (round at the end)."""
    gathering = _nodes(model, "TcGatherTokens")[0]
    _shift(model, gathering.input[1])


def _shift(model: onnx.ModelProto, index: str) -> None:
    """Replace [B, K] `index` by max(index - 1, 0)."""
    one, zero = _constant(model, [1]), _constant(model, [0])
    _replace(model, index, "Sub", index, one)
    _replace(model, f"{index}__mutant", "Max", f"{index}__mutant", zero)


def logits_not_softmax(model: onnx.ModelProto) -> None:
    """The score is the mean logit."""
    (softmax, *_) = _nodes(model, "Softmax", "/score/")
    softmax.CopyFrom(helper.make_node("Identity", softmax.input, softmax.output, softmax.name))


def largest_head(model: onnx.ModelProto) -> None:
    """The score is the largest head's, not the heads' mean."""
    _nodes(model, "ReduceMean", "/score/")[0].op_type = "ReduceMax"


def largest_key(model: onnx.ModelProto) -> None:
    """ToMe's metric is the largest of the heads' keys, not their mean."""
    _nodes(model, "ReduceMean", "/merge/")[0].op_type = "ReduceMax"


# ---- fusing and merging --------------------------------------------------------------------------


def fused_renormalised(model: onnx.ModelProto) -> None:
    """The fused token is a weighted mean."""
    body = _body(model, "TcFuseTokens")
    final = next(node for node in body.node if "y" in node.output)
    final.output[0] = "sum"
    body.node.append(helper.make_node("ReduceSum", ["row"], ["total"], keepdims=1, axes=None))
    del body.node[-1].attribute[:]
    last = helper.make_node("Constant", [], ["last_axis"], value_ints=[-1])
    body.node.insert(0, last)
    body.node[-1].input.append("last_axis")
    body.node.append(helper.make_node("Div", ["sum", "total"], ["y"]))


def fused_forgotten(model: onnx.ModelProto) -> None:
    """The fused token is zero."""
    name = _nodes(model, "TcFuseTokens")[0].output[0]
    _replace(model, name, "Sub", name, name)


def fused_everything(model: onnx.ModelProto) -> None:
    """The fused token sums over the kept ones as well."""
    body = _body(model, "TcFuseTokens")
    row = next(node for node in body.node if "row" in node.output)
    row.input[0] = "weight"


def plain_mean(model: onnx.ModelProto) -> None:
    """Merging forgets how many tokens each stands for; the sizes themselves stay right."""
    body = _body(model, "TcMergeTokens")
    _replace(body.node, "weighted", "Identity", "leaving")
    _replace(body.node, "own", "Identity", "odd")
    hot = helper.make_node("Div", ["total", "total"], ["unit_total"])
    division = next(i for i, node in enumerate(body.node) if "merged" in node.output)
    body.node.insert(division, hot)
    columns = helper.make_node("ReduceSum", ["onehot", "column_axis"], ["arrivals"], keepdims=1)
    axis = helper.make_node("Constant", [], ["column_axis"], value_ints=[-1])
    count = helper.make_node("Add", ["unit_total", "arrivals"], ["members"])
    for extra in (count, columns, axis):
        body.node.insert(division + 1, extra)
    merged = next(node for node in body.node if "merged" in node.output)
    merged.input[1] = "members"


def other_half_merged(model: onnx.ModelProto) -> None:
    """The pairs that are least alike are merged."""
    body = _body(model, "TcMatchTokens")
    ordering = next(node for node in body.node if "order" in node.output)
    for attribute in ordering.attribute:
        if attribute.name == "largest":
            attribute.i = 0


# ---- sizes afterwards ----------------------------------------------------------------------------


def no_proportional_attention(model: onnx.ModelProto) -> None:
    """No attention counts a key as often as its size."""
    for node in _nodes(model, "Log"):
        _replace(model, node.output[0], "Sub", node.output[0], node.output[0])


def last_attention_not_proportional(model: onnx.ModelProto) -> None:
    """The last attention, or the attention pool, forgets the sizes."""
    name = _nodes(model, "Log")[-1].output[0]
    _replace(model, name, "Sub", name, name)


def plain_pooling(model: onnx.ModelProto) -> None:
    """The average over tokens counts each once."""
    for node in _nodes(model, "Unsqueeze", "ReduceMean/"):
        _ones(model, node.output[0])


# ---- side inputs and outputs ---------------------------------------------------------------------


def table_not_gathered(model: onnx.ModelProto) -> None:
    """A table with a row and a column for each token is cut to size, not gathered."""
    consumers = [node for node in model.graph.node if node.op_type in ("Add", "Attention")]
    made = {name: node for node in model.graph.node for name in node.output}
    for node in consumers:
        for slot, name in enumerate(node.input):
            gathered = made.get(name)
            if gathered is None or not gathered.name.startswith("tcompile/"):
                continue
            table = _table_behind(model, made, name)
            if table is not None:
                shapes = onnx.shape_inference.infer_shapes(model, data_prop=True)
                kept = _last_dim(shapes, name)
                bounds = [_constant(model, v) for v in ([0, 0], [kept, kept], [-2, -1])]
                cut = helper.make_node("Slice", [table, *bounds], [f"{name}__cut"])
                model.graph.node.insert(list(model.graph.node).index(node), cut)
                node.input[slot] = f"{name}__cut"
                return
    raise LookupError("no gathered table")


def _table_behind(model: onnx.ModelProto, made: dict[str, onnx.NodeProto], name: str) -> str | None:
    """The float constant of rank 3 or more that `name` was gathered from."""
    todo, seen = [name], set()
    while todo:
        tensor = todo.pop()
        value = _values(model, tensor)
        if value is not None and value.dtype == np.float32 and value.ndim >= 3:
            return tensor
        node = made.get(tensor)
        if node is not None and tensor not in seen and node.name.startswith("tcompile/"):
            seen.add(tensor)
            todo.extend(node.input)
    return None


def _last_dim(model: onnx.ModelProto, name: str) -> int:
    for info in model.graph.value_info:
        if info.name == name:
            return int(info.type.tensor_type.shape.dim[-1].dim_value)
    raise LookupError(f"no shape for {name}")


def index_off_by_one(model: onnx.ModelProto) -> None:
    """`token_index` names the neighbour of each token."""
    (final,) = [node for node in model.graph.node if "token_index" in node.output]
    _shift_before(model, final)


def owner_off_by_one(model: onnx.ModelProto) -> None:
    """`token_owner` names the neighbour of each owner."""
    (final,) = [node for node in model.graph.node if "token_owner" in node.output]
    _shift_before(model, final)


def _shift_before(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    _shift(model, node.input[0])


def blurred(model: onnx.ModelProto) -> None:
    """Weights of the tokens that stand for a dropped one fall half as fast with their likeness."""
    for node in _nodes(model, "Softmax", "output/"):
        twice = f"{node.input[0]}__half"
        at = list(model.graph.node).index(node)
        half = numpy_helper.from_array(np.array([0.5], np.float32), twice + "/factor")
        model.graph.initializer.append(half)
        model.graph.node.insert(at, helper.make_node("Mul", [node.input[0], half.name], [twice]))
        node.input[0] = twice


def nothing_changed(model: onnx.ModelProto) -> None:
    """A token that left is what it was then, whatever became of the others."""
    for node in _nodes(model, "Sub", "output/"):
        node.input[1] = node.input[0]


def not_itself(model: onnx.ModelProto) -> None:
    """A token that stays is given the rows of those like it, too."""
    _nodes(model, "Where", "output/")
    for node in _nodes(model, "Equal", "output/"):
        node.op_type = "Greater"


def farthest_owner(model: onnx.ModelProto) -> None:
    """A dropped token is owned by the kept one that is least like it."""
    body = _body(model, "TcNearestTokens")
    next(node for node in body.node if node.op_type == "ArgMax").op_type = "ArgMin"
