"""Changes of spelling, of control flow, of inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.fuzz_draft import Draft


def insert_plain(d: Draft) -> str | None:
    """An op that keeps shapes; half of them keep values too."""
    edge = d.edge()
    if edge is None:
        return None
    one, half = d.constant(np.float32(1)), d.constant(np.float32(0.5))
    chains = {
        "Identity": lambda: [d.make("Identity", "@")],
        "Mul": lambda: [d.make("Mul", "@", half)],
        "Div": lambda: [d.make("Div", one, "@")],
        "Relu": lambda: [d.make("Relu", "@")],
        "Neg": lambda: [d.make("Neg", "@")],
        "Cast": lambda: [c := d.make("Cast", "@", to=11), d.make("Cast", c.output[0], to=1)],
        "Half": lambda: [c := d.make("Cast", "@", to=10), d.make("Cast", c.output[0], to=1)],
        "Clip": lambda: [d.make("Clip", "@", d.constant(np.float32(-1)), one)],
        "Dropout": lambda: [d.make("Dropout", "@")],
        "Unknown": lambda: [d.make("Enigma", "@", domain="some.domain")],
        "Where": lambda: [c := d.make("Less", "@", half), d.make("Where", c.output[0], "@", half)],
        "QDQ": lambda: [
            q := d.make("QuantizeLinear", "@", half, d.constant(np.int8(0))),
            d.make("DequantizeLinear", q.output[0], half, d.constant(np.int8(0))),
        ],
        "Random": lambda: [r := d.make("RandomNormalLike", "@"), d.make("Add", "@", r.output[0])],
    }
    what = d.rng.choice(list(chains))
    d.insert(edge, *chains[what]())
    return f"{edge[0].op_type} {edge[0].name}: {what}"


def in_branches(d: Draft) -> str | None:
    """A node inside both branches of an If, whose condition is constant or not."""
    node = d.node("Add", "Mul", "MatMul", "Softmax", "Erf", "LayerNormalization", "Reshape", "Gemm")
    if node is None or len(node.output) != 1:
        return None
    at = list(d.graph.node).index(node)
    branches = {}
    for branch in ("then_branch", "else_branch"):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[0] = d.fresh("inner")
        out = onnx.ValueInfoProto(name=inner.output[0])
        out.type.tensor_type.elem_type = TensorProto.FLOAT
        branches[branch] = helper.make_graph([inner], branch, [], [out])
    links = []
    if d.rng.random() < 0.5:
        condition = d.constant(np.array(d.rng.random() < 0.5))
    else:
        image = d.graph.input[0].name
        size = d.make("ReduceSum", image, keepdims=0)
        links = [size, d.make("Greater", size.output[0], d.constant(np.float32(0)))]
        condition = links[-1].output[0]
    made = helper.make_node("If", [condition], list(node.output), name=d.fresh("If"), **branches)
    d.graph.node.remove(node)
    for link in (made, *reversed(links)):
        d.graph.node.insert(at, link)
    return f"{node.op_type} {node.name}, condition {condition}"


def in_function(d: Draft) -> str | None:
    """A node as the body of a model-local function."""
    node = d.node()
    if node is None or not node.output or any(a.HasField("g") for a in node.attribute):
        return None
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    given = list(dict.fromkeys(n for n in node.input if n))
    name = d.fresh("Function")
    opset = helper.make_opsetid("", d.opset)
    function = helper.make_function("fuzz", name, given, list(node.output), [inner], [opset])
    d.model.functions.append(function)
    if all(o.domain != "fuzz" for o in d.model.opset_import):
        d.model.opset_import.append(helper.make_opsetid("fuzz", 1))
    d.model.ir_version = max(d.model.ir_version, 8)
    node.CopyFrom(helper.make_node(name, given, list(node.output), name=node.name, domain="fuzz"))
    return f"{inner.op_type} {inner.name}"


def in_loop(d: Draft) -> str | None:
    """A tensor that goes through a Loop of one turn."""
    edge = d.edge(rank=2)
    if edge is None:
        return None
    turn, going, state, after, still = (d.fresh("loop") for _ in range(5))
    body = helper.make_graph(
        [
            helper.make_node("Identity", [state], [after]),
            helper.make_node("Identity", [going], [still]),
        ],
        "body",
        [
            helper.make_tensor_value_info(turn, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(after, TensorProto.FLOAT, None),
        ],
    )
    count, yes = d.constant(np.array(1)), d.constant(np.array(True))
    d.insert(edge, d.make("Loop", count, yes, "@", body=body))
    return f"{edge[0].op_type} {edge[0].name}"


def another_output(d: Draft) -> str | None:
    """Some tensor in the middle is an output too, or an output is there twice."""
    floats = [n for n in d.shapes if any(n in node.output for node in d.graph.node)]
    if not floats:
        return None
    name = d.rng.choice([*floats, d.graph.output[0].name])
    info = onnx.ValueInfoProto(name=name)
    info.type.tensor_type.elem_type = TensorProto.FLOAT
    d.graph.output.append(info)
    return name


def another_reader(d: Draft) -> str | None:
    """A tensor in the middle is pooled and becomes an output."""
    edge = d.edge(rank=3)
    if edge is None:
        return None
    axis = d.rng.randrange(1, len(edge[2]))
    op = d.rng.choice(["ReduceMax", "ReduceMean"])
    name = edge[0].input[edge[1]]
    pooled = (
        d.make(op, name, d.constant(np.array([axis])), keepdims=0)
        if d.opset >= 18
        else d.make(op, name, axes=[axis], keepdims=0)
    )
    d.graph.node.append(pooled)
    out = helper.make_tensor_value_info(pooled.output[0], TensorProto.FLOAT, None)
    d.graph.output.append(out)
    return f"{op} of {name}, axis {axis}"


def shuffle_nodes(d: Draft) -> str | None:
    """Nodes in an order that is not that of execution."""
    nodes = list(d.graph.node)
    d.rng.shuffle(nodes)
    del d.graph.node[:]
    d.graph.node.extend(nodes)
    return "all"


def lose_names(d: Draft) -> str | None:
    """No node has a name, or all have the same."""
    name = d.rng.choice(["", "node", "tcompile/attn_0/score/Slice"])
    for node in d.graph.node:
        node.name = name
    return repr(name)


def stale_shapes(d: Draft) -> str | None:
    """value_info says what is not true, or nothing."""
    if d.rng.random() < 0.5:
        del d.graph.value_info[:]
        return "none"
    for name, dims in d.rng.sample(sorted(d.shapes.items()), min(5, len(d.shapes))):
        lies = [(v + 1 if isinstance(v, int) else v) for v in dims]
        d.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, lies))
    return "wrong"


def stale_output(d: Draft) -> str | None:
    """The declared shape or type of an output is wrong or missing."""
    output = d.rng.choice(list(d.graph.output))
    how = d.rng.choice(["none", "wrong", "int64"])
    if how == "none":
        output.type.tensor_type.ClearField("shape")
    elif how == "int64":
        output.type.tensor_type.elem_type = TensorProto.INT64
    else:
        for dim in output.type.tensor_type.shape.dim:
            dim.dim_value = d.rng.choice([1, 3, 99])
    return how


def change_input(d: Draft) -> str | None:
    """The image's dims: symbolic, another size, none."""
    dims = d.graph.input[0].type.tensor_type.shape.dim
    how = d.rng.choice(["free", "size", "rank", "type", "none", "second"])
    if how == "free":
        d.rng.choice(list(dims)).dim_param = "free"
    elif how == "size":
        dims[-1].dim_value = d.rng.choice([1, 16, 64, 1 << 40])
    elif how == "rank":
        del dims[0]
    elif how == "type":
        d.graph.input[0].type.tensor_type.elem_type = d.rng.choice([2, 7, 10, 11, 16, 0])
    elif how == "none":
        d.graph.input[0].type.tensor_type.ClearField("shape")
    else:
        extra = helper.make_tensor_value_info(d.fresh("input"), TensorProto.FLOAT, ["n", 3])
        d.graph.input.append(extra)
    return how


SPELLING = (
    insert_plain,
    in_branches,
    in_function,
    in_loop,
    another_output,
    another_reader,
    shuffle_nodes,
    lose_names,
    stale_shapes,
    stale_output,
    change_input,
)
