"""Parts of graphs by what they compute, so that nothing is computed twice.

A tensor's *content* is a digest of all that it is computed from: operators, attributes, constants,
inputs of the model. Two reduced graphs have equal contents wherever they compute the same, whatever
their tensors are called there: before the first step of a schedule all that the dense model has,
and with the same first steps all that lies before the next one. What was kept of one run is found
by its content in the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from tcompile.core.graph import is_const, opset_imports, producer
from tcompile.core.save import external, tensor_proto
from tcompile.core.subgraph import needed_nodes

Array = npt.NDArray[Any]
Content = bytes


class Weights:
    """The constants of the dense graph, the large ones in one file.

    Args:
        path: the file to write.
    """

    def __init__(self, graph: gs.Graph, path: Path) -> None:
        self._path = path
        self._stored = {str(t.name): t._values for t in graph.tensors().values() if is_const(t)}
        self._stubs: dict[str, onnx.TensorProto] = {}
        with path.open("wb") as data:
            for tensor in graph.tensors().values():
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
        numbers: constants by the place at which they are read, (node, input).
    """

    key: tuple[object, ...]
    inputs: Sequence[str]
    outputs: Sequence[Content]
    numbers: Mapping[tuple[int, int], Array]


def number_name(node: int, place: int) -> str:
    """The input of a form's model that takes a number."""
    return f"tc_number_{node}_{place}"


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
    def _attributes(self) -> Mapping[str, str]:
        return {str(n.name): _attributes(n) for n in self.graph.nodes}

    @cached_property
    def tensors(self) -> Mapping[str, gs.Tensor]:
        return self.graph.tensors()  # type: ignore[no-any-return]

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
        numbers: dict[tuple[int, int], Array] = {}
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
                    read.append((str(values.dtype), *dims_of_number(values)))
            if any(_graphs(node)):
                read.append(str(node.name))
                inner = (str(t.name) for t in self._read(node))
                inputs |= dict.fromkeys(n for n in inner if n in part.inputs)
            made = [seen.setdefault(str(o.name), len(seen)) for o in node.outputs]
            rows.append((node.op, node.domain, self._attributes[str(node.name)], *read, *made))
        rows.extend(seen[str(t.name)] for t in part.outputs.values())
        return Form(tuple(rows), list(inputs), list(part.outputs), numbers)

    def model(self, part: Part, form: Form, given: Mapping[str, Array]) -> onnx.ModelProto:
        """A part as a model of its form; large weights lie in the shared file.

        Args:
            given: values of its inputs, for their types.
        """
        constants: dict[str, gs.Constant] = {}
        nodes: list[onnx.NodeProto] = []
        for number, node in enumerate(part.nodes):
            proto = OnnxExporter.export_node(node)
            nodes.append(proto)
            for place in range(len(node.inputs)):
                if (number, place) in form.numbers:
                    proto.input[place] = number_name(number, place)
            for tensor in self._read(node):
                if is_const(tensor) and (self.weights.holds(tensor) or any(_graphs(node))):
                    constants.setdefault(str(tensor.name), tensor)
        inputs = [_info(name, given[name].dtype, [None] * given[name].ndim) for name in form.inputs]
        inputs += [
            _info(number_name(*place), values.dtype, dims_of_number(values))
            for place, values in form.numbers.items()
        ]
        called = {n.op for n in part.nodes if n.domain}
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            inputs,
            [onnx.helper.make_empty_tensor_value_info(t.name) for t in part.outputs.values()],
            initializer=[self.weights.proto(t) for t in constants.values()],
        )
        return onnx.helper.make_model(
            graph,
            opset_imports=opset_imports(self.graph),
            functions=[
                OnnxExporter.export_function(f) for f in self.graph.functions if f.name in called
            ],
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


def dims_of_number(values: Array) -> list[int | None]:
    """The dims of a number that a form fixes: those of what may be a shape or a list of axes."""
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


def _attributes(node: gs.Node) -> str:
    """All attributes but graphs, as a text."""
    found = []
    for name, given in sorted(node.attrs.items()):
        if isinstance(given, gs.Graph):
            continue
        if isinstance(given, gs.Tensor):
            given = given.values
        if isinstance(given, np.ndarray):
            given = (str(given.dtype), given.shape, given.tobytes())
        found.append((name, given))
    return repr(found)


def _digest(*parts: object) -> Content:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
