"""Writing nodes: fresh names, opset differences, and which nodes must stay in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN, WRITTEN
from tcompile.core.graph import tensors_of

_END = np.iinfo(np.int64).max

#: No length is less, so that zeros divided by theirs are zeros.
_TINY = 1e-12


class Builder:
    """Appends nodes to a graph; one toposort at the end puts them in order.

    Attributes:
        fp32: names of the nodes written that must stay in fp32 when the graph goes to fp16.
        written: name of a node or tensor written → the site that it is for, empty for none.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.fp32: set[str] = set()
        self.written: dict[str, str] = {}
        self._scope, self._site = "tcompile", ""
        self._used = {n.name for n in graph.nodes} | set(tensors_of(graph))
        self._constants: dict[tuple[np.dtype[Any], tuple[int, ...], bytes], gs.Constant] = {}

    def scope(self, name: str, site: str = "") -> None:
        """Begin the names that follow with `tcompile/NAME`, such as `tcompile/attn_3/score`.

        Args:
            site: that the nodes are for.
        """
        self._scope, self._site = f"{WRITTEN}{name}", site

    def name(self, hint: str) -> str:
        """A name not yet used in the graph."""
        base, i = f"{self._scope}/{hint}", 0
        name = base
        while name in self._used:
            i += 1
            name = f"{base}_{i}"
        self._used.add(name)
        self.written[name] = self._site
        return name

    def const(self, array: Any, dtype: Any = np.int64) -> gs.Constant:
        """A stored constant; equal ones are shared."""
        stored = np.asarray(array, dtype=dtype)
        key = (stored.dtype, stored.shape, stored.tobytes())
        if key not in self._constants:
            self._constants[key] = gs.Constant(self.name("constant"), stored)
        return self._constants[key]

    def nodes(
        self,
        op: str,
        inputs: Sequence[gs.Tensor | Sequence[int] | np.ndarray[Any, Any]],
        dtypes: Sequence[Any],
        *,
        fp32: bool = True,
        domain: str | None = None,
        **attrs: Any,
    ) -> list[gs.Variable]:
        """A node with one output per dtype. Index lists among the inputs become constants."""
        name = self.name(op)
        tensors = [
            t if isinstance(t, gs.Tensor) else self.const(t, getattr(t, "dtype", np.int64))
            for t in inputs
        ]
        outputs = [gs.Variable(self.name(f"{op}_out"), d) for d in dtypes]
        self.graph.nodes.append(gs.Node(op, name, attrs, tensors, outputs, domain))
        if fp32:
            self.fp32.add(name)
        return outputs

    def op(
        self, op: str, *inputs: Any, dtype: Any = np.float32, fp32: bool = True, **attrs: Any
    ) -> gs.Variable:
        """A node with one output."""
        return self.nodes(op, inputs, [dtype], fp32=fp32, **attrs)[0]

    def top_k(self, x: gs.Tensor, k: int, *, largest: bool = True) -> list[gs.Variable]:
        """The k largest (or least) along the last axis, in order: values f32, places i64."""
        dtypes = [np.float32, np.int64]
        return self.nodes("TopK", [x, [k]], dtypes, axis=-1, largest=int(largest), sorted=1)

    def call(
        self, op: str, *inputs: Any, dtypes: Sequence[Any], fp32: bool = True, **attrs: int
    ) -> list[gs.Variable]:
        """A token op; its integer attributes are stored as tensors [1] (see `TokenOp`)."""
        tensors = {k: gs.Constant(k, np.asarray([v], np.int64)) for k, v in attrs.items()}
        return self.nodes(op, inputs, dtypes, fp32=fp32, domain=DOMAIN, **tensors)

    def slice(self, x: gs.Tensor, axis: int, start: int, stop: int | None, **kw: Any) -> Any:
        """x[..., start:stop, ...] along `axis`; stop None means the end."""
        end = _END if stop is None else stop
        return self.op("Slice", x, [start], [end], [axis], dtype=x.dtype, **kw)

    def concat(self, parts: Sequence[gs.Tensor], axis: int, **kw: Any) -> Any:
        """Concatenation; of one part, that part."""
        if len(parts) == 1:
            return parts[0]
        return self.op("Concat", *parts, dtype=parts[0].dtype, axis=axis, **kw)

    def transpose(self, x: gs.Tensor, perm: Sequence[int], **kw: Any) -> Any:
        """Transposition; the identity is left out."""
        if list(perm) == sorted(perm):
            return x
        return self.op("Transpose", x, dtype=x.dtype, perm=list(perm), **kw)

    def reshape(self, x: gs.Tensor, dims: Sequence[int], **kw: Any) -> Any:
        """Reshape to literal dims (0 copies, −1 is inferred)."""
        return self.op("Reshape", x, list(dims), dtype=x.dtype, **kw)

    def unsqueeze(self, x: gs.Tensor, *axes: int, **kw: Any) -> Any:
        return self.op("Unsqueeze", x, list(axes), dtype=x.dtype, **kw)

    def squeeze(self, x: gs.Tensor, *axes: int, **kw: Any) -> Any:
        return self.op("Squeeze", x, list(axes), dtype=x.dtype, **kw)

    def cast(self, x: gs.Tensor, dtype: Any, **kw: Any) -> Any:
        import onnx

        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.op("Cast", x, dtype=dtype, to=to, **kw)

    def corner(self, x: gs.Tensor) -> Any:
        """[B, 1] bool, one for each image: numbers made from it can take the batch from it."""
        first = self.slice(self.slice(x, 1, 0, 1), 2, 0, 1)
        return self.cast(self.reshape(first, [-1, 1]), np.bool_)

    def unit(self, x: gs.Tensor) -> gs.Variable:
        """x/‖x‖₂ along the last axis; zeros stay zeros."""
        length = self.reduce("L2", x, [-1], 1)
        return self.op("Div", x, self.op("Max", length, self.const([_TINY], np.float32)))

    def for_all(self, row: Any, x: gs.Tensor, dtype: Any = np.int64) -> gs.Variable:
        """[B, n]: the numbers of a row [n], the same for each image of x [B, N, C]."""
        nothing = self.op(
            "Mul", self.cast(self.corner(x), dtype), self.const([0], dtype), dtype=dtype
        )
        return self.op("Add", nothing, self.const(np.reshape(row, (1, -1)), dtype), dtype=dtype)

    def reduce(self, kind: str, x: gs.Tensor, axes: Sequence[int], keepdims: int = 0) -> Any:
        """ReduceMean, ReduceSum…: axes moved from attribute to input at opset 18 (Sum: 13).

        L1 is a sum of magnitudes: OpenVINO 2026.4 takes ReduceL1 of opset 17 as one over all axes.
        """
        if kind == "L1":
            return self.reduce("Sum", self.op("Abs", x), axes, keepdims)
        if self.graph.opset >= (13 if kind == "Sum" else 18):
            return self.op(f"Reduce{kind}", x, list(axes), keepdims=keepdims)
        return self.op(f"Reduce{kind}", x, axes=list(axes), keepdims=keepdims)
