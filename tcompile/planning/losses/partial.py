"""Parts of graphs by what they compute, so that nothing is computed twice.

A tensor's *content* is a digest of all that it is computed from: operators, attributes, constants,
inputs of the model. Two reduced graphs have equal contents wherever they compute the same, whatever
their tensors are called there: before the first step of a schedule all that the dense model has,
and with the same first steps all that lies before the next one. What was kept of one run is found
by its content in the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import is_const, opset_imports, producer, tensors_of
from tcompile.core.save import external, tensor_proto
from tcompile.core.subgraph import needed_nodes

Array = npt.NDArray[Any]
Content = bytes
#: The number of a node, and its input or attribute.
Place = tuple[int, int | str]


class Weights:
    """The constants of the dense graph, the large ones in one file.

    Args:
        path: the file to write.
    """

    def __init__(self, graph: gs.Graph, path: Path) -> None:
        self._path = path
        self._stored = {str(t.name): t._values for t in tensors_of(graph).values() if is_const(t)}
        self._stubs: dict[str, onnx.TensorProto] = {}
        with path.open("wb") as data:
            for tensor in tensors_of(graph).values():
                if is_const(tensor):
                    self._stubs[str(tensor.name)] = external(tensor, data, path.name)

    def content(self, tensor: gs.Constant) -> Content:
        """By name, for those that a reduced graph has from the dense one."""
        if self.holds(tensor):
            return _digest("weight", tensor.name)
        values = np.asarray(tensor.values)
        return _digest("constant", str(values.dtype), values.shape, values.tobytes())

    def proto(self, tensor: gs.Constant) -> onnx.TensorProto:
        """The constant as a part of a graph holds it."""
        return self._stubs[str(tensor.name)] if self.holds(tensor) else tensor_proto(tensor)

    def holds(self, tensor: gs.Constant) -> bool:
        """Tell whether it is one of the dense graph's, whose copies share the values."""
        return self._stored.get(str(tensor.name)) is tensor._values


@dataclass(frozen=True)
class Part:
    """Some nodes of a graph, which compute some tensors from others.

    Attributes:
        nodes: in execution order.
        inputs: contents by name; several names may have one content.
        outputs: tensors by content.
    """

    nodes: Sequence[gs.Node]
    inputs: Mapping[str, Content]
    outputs: Mapping[Content, gs.Tensor]


@dataclass(frozen=True)
class Form:
    """A part but for the numbers that a reduction wrote, such as counts and ranges of tokens.

    Parts that differ in these alone have one form, and one session runs them all.

    Attributes:
        key: equal for equal forms.
        inputs, outputs: names and contents, in the order in which the form has them.
        numbers: constants by the node and the input, or the attribute of a token op, that takes
            them.
    """

    key: tuple[object, ...]
    inputs: Sequence[str]
    outputs: Sequence[Content]
    numbers: Mapping[Place, Array]


def number_name(node: int, place: int | str) -> str:
    """The input of a form's model that takes a number."""
    return f"tc_number_{node}_{place}"


@dataclass(frozen=True)
class _Body:
    """The body of a token op that takes as inputs what else are its attributes.

    Attributes:
        arity: of the op as it is.
        inputs: the attributes, in the order in which they follow the inputs.
    """

    proto: onnx.FunctionProto
    arity: int
    inputs: tuple[str, ...]

    @staticmethod
    def of(function: gs.Function) -> _Body:
        proto = OnnxExporter.export_function(function)
        arity, nodes = len(proto.input), list(proto.node)
        # An attribute is read by constants; one that is read otherwise stays.
        others = {a.ref_attr_name for n in nodes for a in n.attribute if n.op_type != "Constant"}
        read: dict[str, str] = {}
        del proto.node[:]
        for node in nodes:
            name = node.attribute[0].ref_attr_name if node.op_type == "Constant" else ""
            if not name or name in others:
                proto.node.append(node)
            elif name in read:
                proto.node.add(op_type="Identity", input=[read[name]], output=node.output)
            else:
                read[name] = node.output[0]
        proto.input.extend(read.values())
        kept = [a for a in proto.attribute if a not in read]
        del proto.attribute[:]
        proto.attribute.extend(kept)
        return _Body(proto, arity, tuple(read))

    def call(self, node: onnx.NodeProto, number: int) -> None:
        """Let a node give its attributes as inputs."""
        if not self.inputs:
            return
        node.input.extend([""] * (self.arity - len(node.input)))
        node.input.extend(number_name(number, name) for name in self.inputs)
        kept = [a for a in node.attribute if a.name not in self.inputs]
        del node.attribute[:]
        node.attribute.extend(kept)


@dataclass(frozen=True)
class Contents:
    """A graph in execution order, and the content of each of its tensors by name."""

    graph: gs.Graph
    weights: Weights

    @cached_property
    def of(self) -> Mapping[str, Content]:
        found = {str(t.name): _digest("input", t.name) for t in self.graph.inputs}
        for tensor in self.tensors.values():
            if is_const(tensor):
                found[str(tensor.name)] = self.weights.content(tensor)
        for node in self.graph.nodes:
            read = [found.get(str(t.name), b"") for t in node.inputs]
            # What lies in a graph inside is of the dense model: no token may leave before it.
            name = node.name if any(_graphs(node)) else ""
            attributes = self._attributes[str(node.name)]
            made = _digest(node.op, node.domain or "", name, attributes, *read)
            for place, out in enumerate(node.outputs):
                found[str(out.name)] = _digest(made, place)
        return found

    @cached_property
    def _bodies(self) -> Mapping[str, _Body]:
        return {str(f.name): _Body.of(f) for f in self.graph.functions}

    @cached_property
    def _attributes(self) -> Mapping[str, str]:
        return {str(n.name): _attributes(n) for n in self.graph.nodes}

    @cached_property
    def tensors(self) -> Mapping[str, gs.Tensor]:
        return tensors_of(self.graph)

    def cut(
        self, wanted: Sequence[str], known: Callable[[Content], bool], more: Sequence[str] = ()
    ) -> Part:
        """The nodes that tensors are computed by, from tensors whose values are known.

        Args:
            wanted: names; what is known, stored, or an input of the graph is no part's output.
            more: tensors that are given as well where they are computed on the way.
        """
        inputs: dict[str, Content] = {}
        outputs = self._made(wanted, known)
        needed: set[str] = set()
        pending = list(outputs.values())
        while pending:
            node = producer(pending.pop())
            if node is None or node.name in needed:
                continue
            needed.add(str(node.name))
            for tensor in self._read(node):
                content = self.of[str(tensor.name)]
                if known(content) or (not tensor.inputs and not is_const(tensor)):
                    inputs[str(tensor.name)] = content
                elif tensor.inputs:
                    pending.append(tensor)
        for content, tensor in self._made(more, known).items():
            if tensor.inputs[0].name in needed:
                outputs.setdefault(content, tensor)
        # A node that runs for one of its outputs makes the others as well, known or not.
        for node in (n for n in self.graph.nodes if n.name in needed):
            for made in node.outputs:
                inputs.pop(str(made.name), None)
        return Part([n for n in self.graph.nodes if n.name in needed], inputs, outputs)

    def _made(
        self, names: Sequence[str], known: Callable[[Content], bool]
    ) -> dict[Content, gs.Tensor]:
        """Those of some tensors that have to be computed."""
        found = {self.of[name]: self.tensors[name] for name in names}
        return {c: t for c, t in found.items() if t.inputs and not known(c)}

    def crossing(self, streams: Sequence[str]) -> list[str]:
        """Names of the tensors that are read behind one of some tensors and are computed on the way
        to it, that one included.

        Args:
            streams: each computed from the one before it.
        """
        place: dict[str, int] = {}
        for number, stream in enumerate(streams):
            way = needed_nodes([self.tensors[stream]], place)
            place.update(dict.fromkeys(way, number))
        found: dict[str, None] = {}
        for node in self.graph.nodes:
            here = place.get(str(node.name), len(streams))
            for tensor in self._read(node):
                maker = producer(tensor)
                if maker is not None and place.get(str(maker.name), here) < here:
                    found[str(tensor.name)] = None
        return list(found)

    def form(self, part: Part) -> Form:
        """The form of a part."""
        seen: dict[str, int] = {}
        inputs: dict[str, None] = {}
        numbers: dict[Place, Array] = {}
        rows: list[object] = []
        for number, node in enumerate(part.nodes):
            read: list[object] = []
            for place, tensor in enumerate(node.inputs):
                name = str(tensor.name)
                if not name:
                    read.append(None)
                elif not is_const(tensor):
                    if name in part.inputs:
                        inputs[name] = None
                    read.append(seen.setdefault(name, len(seen)))
                elif self.weights.holds(tensor):
                    read.append(name)
                else:
                    values = np.asarray(tensor.values)
                    numbers[number, place] = values
                    read.append((str(values.dtype), *dims_of(values)))
            if any(_graphs(node)):
                read.append(str(node.name))
                inner = (str(t.name) for t in self._read(node))
                inputs |= dict.fromkeys(n for n in inner if n in part.inputs)
            attributes = self._attributes[str(node.name)]
            taken = self._bodies[str(node.op)].inputs if node.domain == DOMAIN else ()
            if taken:
                attributes = _attributes(node, taken)
                numbers |= {(number, a): np.asarray(node.attrs[a].values) for a in taken}
            made = [seen.setdefault(str(o.name), len(seen)) for o in node.outputs]
            rows.append((node.op, node.domain, attributes, *read, *made))
        rows.extend(seen[str(t.name)] for t in part.outputs.values())
        return Form(tuple(rows), list(inputs), list(part.outputs), numbers)

    def model(
        self, part: Part, form: Form, given: Mapping[str, Array], *, fixed: bool = False
    ) -> onnx.ModelProto:
        """A part as a model of its form; large weights lie in the shared file.

        Args:
            given: values of its inputs, for their types.
            fixed: store the numbers and the shapes of the inputs, for this part alone.
        """
        constants: dict[str, gs.Constant] = {}
        nodes: list[onnx.NodeProto] = []
        for number, node in enumerate(part.nodes):
            proto = OnnxExporter.export_node(node)
            nodes.append(proto)
            for place in range(len(node.inputs)):
                if (number, place) in form.numbers:
                    proto.input[place] = number_name(number, place)
            if node.domain == DOMAIN:
                self._bodies[str(node.op)].call(proto, number)
            for tensor in self._read(node):
                if is_const(tensor) and (self.weights.holds(tensor) or any(_graphs(node))):
                    constants.setdefault(str(tensor.name), tensor)
        inputs = [
            _info(name, given[name].dtype, given[name].shape if fixed else dims_of(given[name]))
            for name in form.inputs
        ]
        numbers = {number_name(*place): values for place, values in form.numbers.items()}
        if not fixed:
            inputs += [_info(name, v.dtype, dims_of(v)) for name, v in numbers.items()]
        called = dict.fromkeys(str(n.op) for n in part.nodes if n.domain == DOMAIN)
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            inputs,
            [onnx.helper.make_empty_tensor_value_info(t.name) for t in part.outputs.values()],
            initializer=[
                *(self.weights.proto(t) for t in constants.values()),
                *(onnx.numpy_helper.from_array(v, n) for n, v in numbers.items() if fixed),
            ],
        )
        return onnx.helper.make_model(
            graph,
            opset_imports=opset_imports(self.graph),
            functions=[self._bodies[name].proto for name in called],
            ir_version=self.graph.ir_version or 10,
        )

    def _read(self, node: gs.Node) -> Iterator[gs.Tensor]:
        """All that a node reads, in graphs inside of it too."""
        yield from (t for t in node.inputs if t.name)
        for name in _outer(node):
            if name in self.tensors:
                yield self.tensors[name]


#: Values of a vector that may say how many axes a result has.
_AXES = 8


def dims_of(values: Array) -> list[int | None]:
    """The dims of an input that a form fixes: those of what may be a shape or a list of axes."""
    return list(values.shape) if values.size <= _AXES else [None] * values.ndim


def _info(name: str, dtype: np.dtype[Any], dims: Sequence[int | None]) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, dims)


def _graphs(node: gs.Node) -> list[gs.Graph]:
    return [a for a in node.attrs.values() if isinstance(a, gs.Graph)]


def _outer(node: gs.Node) -> Iterator[str]:
    """Names that are read in graphs inside a node, those that are made there among them."""
    for graph in _graphs(node):
        yield from (str(o.name) for o in graph.outputs)
        for inner in graph.nodes:
            yield from (str(t.name) for t in inner.inputs if t.name)
            yield from _outer(inner)


def _attributes(node: gs.Node, without: Collection[str] = ()) -> str:
    """All attributes but graphs, as a text."""
    found = []
    for name, given in sorted(node.attrs.items()):
        if name in without or isinstance(given, gs.Graph):
            continue
        if isinstance(given, gs.Tensor):
            given = given.values
        if isinstance(given, np.ndarray):
            given = (str(given.dtype), given.shape, given.tobytes())
        found.append((name, given))
    return repr(found)


def _digest(*parts: object) -> Content:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
