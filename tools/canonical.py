"""Canonical form of what an ONNX model computes, apart from the names in it and the order of its
nodes.

Every value is known by a digest of all that it is computed from: an input by its name and type, a
constant by its content, an output of a node by the node's operator, attributes and inputs. Two
models are the same if they have the same nodes, known in this way, and the same outputs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

Names = Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """A node as it stands in its model.

    Attributes:
        digest: of the node and all that it is computed from.
        inputs: digests of its inputs.
        text: one line to tell it by: its operator, attributes and names.
    """

    digest: str
    inputs: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Canonical:
    """A model without its names.

    Attributes:
        nodes: in an order in which each comes after those that it reads.
        constants: digest of each initializer, with one line to tell it by.
        outputs: name, type and digest of each output, in order.
        types: type of each value that the model gives one, by the digest of the value.
        functions: names and digests of the local functions.
        header: operator sets, IR version, metadata, and the inputs in order.
    """

    nodes: tuple[Found, ...]
    constants: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    types: Counter[str] = field(repr=False)
    functions: Counter[str] = field(repr=False)
    header: tuple[str, ...]


def canonical(model: ModelProto) -> Canonical:
    """Describe a model by its structure."""
    functions: dict[tuple[str, str], str] = {}
    for function in _callees_first(model.functions):
        functions[function.domain, function.name] = _function(function, functions)
    graph = model.graph
    constants = [(_tensor(t), f"{t.name} {_shape_of(t)}") for t in graph.initializer]
    values, nodes = _walk(graph, {}, functions)
    typed = [*graph.value_info, *graph.output]
    return Canonical(
        nodes=tuple(nodes),
        constants=tuple(constants),
        outputs=tuple(f"{o.name} {_type(o)} {values.get(o.name, '')}" for o in graph.output),
        types=Counter(f"{values[v.name]} {_type(v)}" for v in typed if v.name in values),
        functions=Counter(f"{d}.{name} {digest}" for (d, name), digest in functions.items()),
        header=(
            f"IR version {model.ir_version}",
            *(f"input {i.name} {_type(i)}" for i in graph.input),
            *sorted(
                f"operator set {o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import
            ),
            *sorted(f"metadata {p.key} = {p.value}" for p in model.metadata_props),
        ),
    )


def difference(one: ModelProto, other: ModelProto) -> list[str]:
    """Return how two models differ, the first place of each kind, or nothing if they do not."""
    a, b = canonical(one), canonical(other)
    return [
        *_first_node(a, b),
        *_only("constant", dict(a.constants), dict(b.constants)),
        *(f"output: {x} against {y}" for x, y in _unequal(a.outputs, b.outputs)),
        *(f"{x} against {y}" for x, y in _unequal(a.header, b.header)),
        *_counted("function", a.functions, b.functions),
        *_counted("type of a value", a.types, b.types),
    ]


def _first_node(a: Canonical, b: Canonical) -> list[str]:
    """The first node of each that the other lacks: all that such a node reads, both have."""
    found = []
    for mine, yours, side in ((a, b, "first"), (b, a, "second")):
        have = Counter(n.digest for n in yours.nodes)
        for node in mine.nodes:
            have[node.digest] -= 1
            if have[node.digest] < 0:
                found.append(f"node only in the {side}: {node.text}")
                break
    extra = len(a.nodes) - len(b.nodes)
    return found + ([f"{len(a.nodes)} nodes against {len(b.nodes)}"] if extra else [])


def _only(kind: str, a: Names, b: Names) -> list[str]:
    sides = (("first", a, b), ("second", b, a))
    lacking = [(side, [x[d] for d in x if d not in y]) for side, x, y in sides]
    return [f"{kind} only in the {s}: {n[0]}, {len(n)} in all" for s, n in lacking if n]


def _unequal(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    if len(a) != len(b):
        one, other = sorted(set(a) - set(b)), sorted(set(b) - set(a))
        return [("; ".join(one) or "nothing", "; ".join(other) or "nothing")]
    return [(x, y) for x, y in zip(a, b, strict=True) if x != y]


def _counted(kind: str, a: Counter[str], b: Counter[str]) -> list[str]:
    sides = (("first", a - b), ("second", b - a))
    return [f"{kind} only in the {s}: {next(iter(c))}, {c.total()} in all" for s, c in sides if c]


def _walk(
    graph: GraphProto | FunctionProto, outer: Names, functions: Mapping[tuple[str, str], str]
) -> tuple[dict[str, str], list[Found]]:
    """Digests of all values by name, and the nodes."""
    values = dict(outer)
    if isinstance(graph, FunctionProto):
        values |= {name: _digest("argument", str(i)) for i, name in enumerate(graph.input)}
    else:
        top = not outer
        for i, value in enumerate(graph.input):
            values[value.name] = _digest("input", value.name if top else str(i), _type(value))
        values |= {t.name: _tensor(t) for t in graph.initializer}
    nodes = []
    for node in _sources_first(graph.node, values):
        inputs = tuple(values.get(name, "") for name in node.input)
        kind = functions.get((node.domain, node.op_type), f"{node.domain}.{node.op_type}")
        attributes = sorted(_attribute(a, values, functions) for a in node.attribute)
        extra = sorted(f"{p.key}={p.value}" for p in node.metadata_props)
        said = [kind, node.overload, *attributes, *extra, str(len(node.output))]
        digest = _digest("node", *said, "|", *inputs)
        values |= {name: _digest(digest, str(i)) for i, name in enumerate(node.output) if name}
        nodes.append(Found(digest, inputs, _line(node)))
    return values, nodes


def _sources_first(nodes: Iterable[NodeProto], known: Names) -> list[NodeProto]:
    """In the order of the file, but that each comes after those that it reads."""
    waiting, there, found = list(nodes), set(known), list[NodeProto]()
    made = {name for node in waiting for name in node.output}
    while waiting:
        later = []
        for node in waiting:
            if all(name in there or name not in made for name in _read(node)):
                there.update(node.output)
                found.append(node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"the nodes form a circle, with {_line(later[0])}")
        waiting = later
    return found


def _read(node: NodeProto) -> set[str]:
    graphs = [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))]
    return set(node.input).union(*(_read(inner) for g in graphs for inner in g.node))


def _callees_first(functions: Iterable[FunctionProto]) -> list[FunctionProto]:
    waiting, found = {(f.domain, f.name): f for f in functions}, list[FunctionProto]()
    while waiting:
        ready = [
            key
            for key, f in waiting.items()
            if not any((n.domain, n.op_type) in waiting for n in f.node)
        ]
        if not ready:
            raise ValueError(f"functions call each other in a circle: {sorted(waiting)}")
        found += [waiting.pop(key) for key in ready]
    return found


def _function(function: FunctionProto, functions: Mapping[tuple[str, str], str]) -> str:
    values, nodes = _walk(function, {}, functions)
    return _digest(
        "function",
        str(len(function.input)),
        *function.attribute,
        *(_attribute(a, values, functions) for a in function.attribute_proto),
        *sorted(f"{o.domain} {o.version}" for o in function.opset_import),
        *sorted(n.digest for n in nodes),
        *(values[name] for name in function.output),
    )


def _attribute(
    attribute: AttributeProto, values: Names, functions: Mapping[tuple[str, str], str]
) -> str:
    if attribute.ref_attr_name:
        said = f"of the function, {attribute.ref_attr_name}"
    elif attribute.type == AttributeProto.TENSOR:
        said = _tensor(attribute.t)
    elif attribute.type == AttributeProto.GRAPH:
        inner, nodes = _walk(attribute.g, values, functions)
        ends = (inner.get(output.name, "") for output in attribute.g.output)
        said = _digest("graph", *sorted(n.digest for n in nodes), "|", *ends)
    else:
        said = repr(onnx.helper.get_attribute_value(attribute))
    return f"{attribute.name}:{attribute.type}={said}"


def _tensor(tensor: TensorProto) -> str:
    content = onnx.numpy_helper.to_array(tensor).tobytes()
    return _digest("tensor", _shape_of(tensor), hashlib.sha256(content).hexdigest())


def _shape_of(tensor: TensorProto) -> str:
    return f"{TensorProto.DataType.Name(tensor.data_type)}{list(tensor.dims)}"


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return f"{tensor.elem_type} of any shape"
    dims = ",".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return f"{TensorProto.DataType.Name(tensor.elem_type)}[{dims}]"


def _line(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name}' ({', '.join(node.input)}) -> {', '.join(node.output)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
