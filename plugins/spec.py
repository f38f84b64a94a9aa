"""The specification of a token op: an ONNX model-local function in the domain `tcompile`, its numpy
meaning, and what its CUDA kernel and its TensorRT plugin take.

A runtime without the plugin inlines the function body; one with the plugin dispatches on the name.
Parsers match the bare op type and ignore the domain, so names start with `Tc`.

One specification yields the function body, the fields and tensor types of the plugin
(`cuda/tcompile_spec.h`), the cases of its tests and its page of documentation. This module and the
ops need numpy alone, so that a machine with a GPU and nothing else can run the cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.core.domain import DOMAIN
from tcompile.plugins.shapes import evaluate, holds, symbols

if TYPE_CHECKING:
    import onnx

#: Of every plugin: what the registry finds it by, beside its name.
PLUGIN_VERSION, PLUGIN_NAMESPACE = "1", "tcompile"
#: Of the C interface of the kernels, `cuda/tcompile_ops.h`.
API_VERSION = 1
#: No tensor has more tokens, or more images.
MAX_TOKENS, MAX_BATCH = 16384, 65535

Array = np.ndarray[Any, Any]
Reference = Callable[..., tuple[Array, ...]]

#: Element types by the names used in specifications.
FLOATS = ("f32", "f16", "bf16")
#: Kind of a tensor in a specification: what a kernel and a plugin take there. All `data` of one
#: call share a type, all `index` as well; `table` is a float type of its own.
KINDS: Mapping[str, tuple[str, ...]] = {
    "data": FLOATS,
    "table": FLOATS,
    "f32": ("f32",),
    "index": ("i64", "i32"),
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an op.

    Attributes:
        name: as in the function body.
        dims: one expression a dimension: a name, or terms such as `T-r`, `T/2` (see `shapes`).
            A name is bound by the first input that has it, or is that of an attribute.
        kind: a key of `KINDS`. In ONNX an index is int64 and everything else float32, but for
            tensors that a body only moves, which may be of any float type.
        doc: what it is.
    """

    name: str
    dims: tuple[str, ...]
    kind: str
    doc: str

    @staticmethod
    def parse(text: str) -> Tensor:
        """From `x [B,T,C] data: meaning`."""
        head, _, doc = text.partition(":")
        name, dims, kind = head.split()
        if kind not in KINDS:
            raise ValueError(f"'{text}' is not one of the kinds {', '.join(KINDS)}")
        return Tensor(name, tuple(dims.strip("[]").split(",")), kind, doc.strip())

    def to_json(self) -> dict[str, Any]:
        """Return the tensor as JSON values."""
        return {
            "name": self.name,
            "dims": list(self.dims),
            "kind": self.kind,
            "types": list(KINDS[self.kind]),
            "meaning": self.doc,
        }


@dataclass(frozen=True)
class TokenOp:
    """One token op.

    Attributes:
        name: op type and plugin name, globally unique.
        inputs, outputs: each as `scores [B,T] data: meaning`, see `Tensor`.
        attributes: each `name: meaning`. ONNX holds them as int64 tensors [1], since ONNX Runtime
            up to 1.23 (the newest for Python 3.10) forgets the shape of a `Constant` made from
            plain integers; a plugin reads a field of that name, one INT64 (or INT32) number.
        body: the function body in ONNX text; `@name` refers to an attribute.
        reference: the same in numpy: (*inputs, **attributes) → outputs, data as float32.
        doc: semantics in words, and what uses it.
        limits: relations that hold in every legal call, such as `k<=T`. Every dimension is at least
            1 besides.
        unused: inputs that the body needs to be written without computed shapes, and a kernel does
            not read.
        exact: outputs that are copies of what came in: no tolerance at all.
        scale: of the inputs and attributes, how large the terms that a float output is summed from
            can be; None: as large as the largest finite float that came in.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: str
    reference: Reference
    doc: str = ""
    limits: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    scale: Callable[..., float] | None = field(default=None, compare=False)

    @cached_property
    def takes(self) -> tuple[Tensor, ...]:
        """The inputs."""
        return tuple(Tensor.parse(t) for t in self.inputs)

    @cached_property
    def gives(self) -> tuple[Tensor, ...]:
        """The outputs."""
        return tuple(Tensor.parse(t) for t in self.outputs)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the attributes, which are the plugin's fields."""
        return tuple(a.split(":")[0] for a in self.attributes)

    def bind(
        self, shapes: tuple[tuple[int, ...], ...], numbers: Mapping[str, int]
    ) -> dict[str, int]:
        """Return the value of each name of the specification in a call.

        Raises:
            ValueError: the shapes or the numbers are not those of a legal call; says what is wrong.
        """
        known = {name: int(numbers[name]) for name in self.fields}
        if len(shapes) != len(self.takes):
            raise ValueError(f"{self.name} takes {len(self.takes)} inputs, not {len(shapes)}")
        for tensor, shape in zip(self.takes, shapes, strict=True):
            if len(shape) != len(tensor.dims):
                raise ValueError(f"{self.name}: {tensor.name} has {len(tensor.dims)} dimensions")
            for text, size in zip(tensor.dims, shape, strict=True):
                if symbols(text) == (text,):
                    known.setdefault(text, size)
        for tensor, shape in zip(self.takes, shapes, strict=True):
            want = tuple(evaluate(d, known) for d in tensor.dims)
            if want != shape or min(shape) < 1:
                raise ValueError(f"{self.name}: {tensor.name} is {shape}, not {want}")
        if known.get("B", 1) > MAX_BATCH:
            raise ValueError(f"{self.name}: a batch of {known['B']} is more than {MAX_BATCH}")
        for limit in self.limits:
            if not holds(limit, known):
                raise ValueError(f"{self.name}: {limit} does not hold where {known}")
        return known

    def shapes(
        self, shapes: tuple[tuple[int, ...], ...], numbers: Mapping[str, int]
    ) -> tuple[tuple[int, ...], ...]:
        """The shapes of the outputs of a call; raises like `bind`."""
        known = self.bind(shapes, numbers)
        return tuple(tuple(evaluate(d, known) for d in t.dims) for t in self.gives)

    def to_json(self) -> dict[str, Any]:
        """Return what a plugin of the op takes, gives, and has for fields."""
        fields = (a.split(":", 1) for a in self.attributes)
        return {
            "name": self.name,
            "version": PLUGIN_VERSION,
            "namespace": PLUGIN_NAMESPACE,
            "fields": [
                {"name": n, "type": "int64", "length": 1, "meaning": m.strip()} for n, m in fields
            ],
            "inputs": [t.to_json() for t in self.takes],
            "outputs": [t.to_json() for t in self.gives],
            "limits": list(self.limits),
        }

    def function(self, opset: int) -> onnx.FunctionProto:
        """The ONNX function under the given version of the default opset."""
        import onnx

        attributes = f"<{', '.join(self.fields)}>" if self.fields else ""
        ins = ", ".join(t.name for t in self.takes)
        outs = ", ".join(t.name for t in self.gives)
        text = (
            f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
            f"{self.name} {attributes} ({ins}) => ({outs})\n{{\n{self.body}\n}}"
        )
        return onnx.parser.parse_function(text)
