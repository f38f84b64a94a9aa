"""ONNX text for people who compare: one node a line, names that say what made a tensor.

It is the language of `onnx.parser`, printed here so that no version of ONNX prints it otherwise.
Large weights have no values; a comment has a digest of those that a pass wrote.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Values of a constant that are printed: of floats, and of others.
_FLOATS, _PRINTED = 12, 40
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
#: Values of a constant that its name tells.
_NAMED = 4


def parse(text: str) -> onnx.ModelProto:
    """Read a model; weights without values get some, the same each time."""
    model = onnx.parser.parse_model(text)
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.raw_data or tensor.float_data or tensor.int64_data or tensor.int32_data:
            continue
        size = int(np.prod(tensor.dims))
        values = np.random.default_rng(i).integers(-8, 8, size) / 8
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        array = values.reshape(tuple(tensor.dims)).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def to_text(
    model: onnx.ModelProto,
    known: Collection[str] = (),
    *,
    shapes: bool = False,
    names: bool = False,
    functions: bool = False,
    half: Collection[str] = (),
) -> str:
    """Print a model.

    Args:
        known: names of tensors that stay; others are called after their operator or value.
        shapes: print the shapes of all tensors.
        names: print the names of nodes.
        functions: print the local functions.
        half: names of nodes that a comment lists, by what they give, as of fp16 in an fp16 graph.
    """
    graph = model.graph
    called = _Names(graph, known)
    opsets = ", ".join(f'"{o.domain}" : {o.version}' for o in model.opset_import)
    lines = [f"<ir_version: {model.ir_version}, opset_import: [{opsets}]>"]
    lines.append(f"g ({_typed(graph.input, called)}) => ({_typed(graph.output, called)})")
    facts = [_constant(t, called(t.name)) for t in graph.initializer]
    facts += [_type(v, called(v.name)) for v in graph.value_info] if shapes else []
    if facts:
        # A constant is not broken in two.
        listed = fill("<" + ", ".join(f.replace(" ", "\0") for f in facts), 110, **_WHOLE) + ">"
        lines.append(listed.replace("\0", " "))
    lines += ["{", *("   " + line for line in _nodes(graph.node, called, names=names)), "}"]
    for t in graph.initializer:
        if np.prod(t.dims) > _printed(t) and t.name not in known:
            values = numpy_helper.to_array(t)
            digest = hashlib.blake2b(values.tobytes(), digest_size=4).hexdigest()
            lines.append(f"# {called(t.name)}: {digest}")
    if half:
        moved = [called(n.output[0]) for n in graph.node if n.name in half]
        lines.append(f"# in fp16: {', '.join(moved)}")
    for function in model.functions if functions else ():
        ends = [", ".join(names) for names in (function.input, function.output)]
        opsets = ", ".join(f'"{o.domain}" : {o.version}' for o in function.opset_import)
        attributes = f" <{', '.join(function.attribute)}>" if function.attribute else ""
        lines.append(f'<domain: "{function.domain}", opset_import: [{opsets}]>')
        lines.append(f"{function.name}{attributes} ({ends[0]}) => ({ends[1]})")
        own = _Names(onnx.GraphProto(node=function.node), [*function.input, *function.output])
        lines += ["{", *("   " + line for line in _nodes(function.node, own, names=False)), "}"]
    return "\n".join(lines) + "\n"


class _Names:
    """Names of tensors that say what they are."""

    def __init__(self, graph: onnx.GraphProto, known: Collection[str]) -> None:
        self._kept = {*known, *(v.name for v in (*graph.input, *graph.output))}
        self._names: dict[str, str] = {"": ""}
        self._counts: Counter[str] = Counter()
        for tensor in graph.initializer:
            self._add(tensor.name, _called(tensor), number=False)
        for node in graph.node:
            for out in node.output:
                self._add(out, node.op_type.lower(), number=True)

    def __call__(self, name: str) -> str:
        return self._names.get(name, name)

    def _add(self, name: str, base: str, *, number: bool) -> None:
        if name in self._kept or name in self._names:
            return
        while True:
            self._counts[base] += 1
            count = self._counts[base]
            made = f"{base}{'' if number else '_'}{count}" if number or count > 1 else base
            if made not in self._kept and made not in self._names.values():
                break
        self._names[name] = made


def _printed(tensor: onnx.TensorProto) -> int:
    # The parser reads no fp16.
    return {TensorProto.FLOAT: _FLOATS, TensorProto.FLOAT16: 0}.get(tensor.data_type, _PRINTED)


def _called(tensor: onnx.TensorProto) -> str:
    values = numpy_helper.to_array(tensor).reshape(-1).tolist()
    if values == [np.iinfo(np.int64).max]:
        return "end"
    if not 0 < len(values) <= _NAMED:
        return "table" if tensor.data_type == TensorProto.INT64 else "weight"
    kind = {TensorProto.INT64: "i", TensorProto.BOOL: "b"}.get(tensor.data_type, "f")
    return kind + re.sub(r"\W", "_", "_".join(map(_number, values)).replace("-", "n"))


def _number(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(int(value))


def _constant(tensor: onnx.TensorProto, name: str) -> str:
    values = numpy_helper.to_array(tensor).reshape(-1).tolist()
    shown = ",".join(map(_number, values)) if len(values) <= _printed(tensor) else ""
    return f"{_dims(tensor.data_type, tensor.dims)} {name} = {{{shown}}}"


def _dims(dtype: int, dims: Sequence[Any]) -> str:
    kind = TensorProto.DataType.Name(dtype).lower()  # type: ignore[attr-defined]
    return f"{kind}[{','.join(map(str, dims))}]" if len(dims) else kind


def _type(value: onnx.ValueInfoProto, name: str) -> str:
    tensor = value.type.tensor_type
    dims = [
        d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim
    ]
    kind = _dims(tensor.elem_type, dims)
    return f"{kind if tensor.HasField('shape') else kind + '[]'} {name}"


def _typed(values: Sequence[onnx.ValueInfoProto], called: _Names) -> str:
    return ", ".join(_type(v, called(v.name)) for v in values)


def _nodes(nodes: Sequence[onnx.NodeProto], called: _Names, *, names: bool) -> Iterator[str]:
    for node in nodes:
        ins, outs = (", ".join(map(called, ends)) for ends in (node.input, node.output))
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        listed = sorted(node.attribute, key=lambda a: a.name)
        attributes = ", ".join(f"{a.name} = {_attribute(a, called)}" for a in listed)
        named = f"[{node.name}] " if names and node.name else ""
        yield f"{named}{outs} = {op}{f' <{attributes}>' if attributes else ''} ({ins})"


def _attribute(attribute: onnx.AttributeProto, called: _Names) -> str:
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.GraphProto):
        ends = [_typed(each, called) for each in (value.input, value.output)]
        body = " ".join(_nodes(value.node, called, names=False))
        return f"{value.name} ({ends[0]}) => ({ends[1]}) {{ {body} }}"
    if isinstance(value, onnx.TensorProto):
        return _constant(value, "").replace("  = ", " ")
    if isinstance(value, bytes):
        return f'"{value.decode()}"'
    if isinstance(value, float):
        return _number(value) + ".0" * value.is_integer()
    if isinstance(value, int):
        return str(value)
    return f"[{', '.join(v.decode() if isinstance(v, bytes) else _number(v) for v in value)}]"
