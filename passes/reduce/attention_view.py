"""Recomputing parts of an attention beside it, so that the attention itself stays fused.

Reading the softmax a second time would de-fuse it in TensorRT (DESIGN 5.5); a few rows of
softmax(q·Kᵀ) cost O(rows·N·d) and leave it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.core.errors import UsageError
from tcompile.core.graph import attr
from tcompile.passes.reduce.attention_operands import Operands
from tcompile.passes.reduce.builder import Builder


class AttentionView(Operands):
    """An attention of the graph being rewritten, as the scores see it."""

    def __init__(
        self, b: Builder, attention: Attention, nodes: Mapping[str, gs.Node], batch: int | None
    ) -> None:
        self.b, self.attention, self.batch = b, attention, batch
        self.node = nodes[attention.node]
        self.product = nodes[attention.product]

    def rows(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """softmax(q_rows·Kᵀ) over all keys: [B, heads, len(positions), N] fp32.

        Args:
            positions: of the query tokens; None: all, which costs as much as the attention.

        Raises:
            UsageError: the attention does more between Q·Kᵀ and softmax than scale and mask.
        """
        logits, dims = self._logits(positions)
        return self._split(self.b.op("Softmax", logits, axis=-1), dims, positions)

    def logits(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """What the softmax is taken of, scaled, masks and biases added; otherwise as `rows`."""
        logits, dims = self._logits(positions)
        return self._split(logits, dims, positions)

    def _logits(self, positions: Sequence[int] | None) -> tuple[gs.Tensor, list[int | str]]:
        """The logits, and the shape of those of the model."""
        self._check_rank()
        if self.attention.form == "softmax":
            return self._logits_decomposed(positions), list(self.node.outputs[0].shape)
        return self._logits_op(positions), list(self.product.inputs[0].shape)

    def _split(
        self, x: gs.Tensor, dims: list[int | str], positions: Sequence[int] | None
    ) -> gs.Tensor:
        """[(B h), rows, N] or [1, (B h), rows, N] → [B, h, rows, N]."""
        op = self.attention.form == "op"
        if (op and len(dims) == 3) or not self._joined(dims):
            return x
        heads, rows = self.attention.heads, self._rows(positions)
        return self.b.reshape(x, [self.batch or -1, heads, rows, self._keys()])

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B, N, d] fp32 (ToMe's metric, up to a positive factor)."""
        b, k = self.b, self.product.inputs[1]
        self._check_rank()
        heads = self.attention.heads
        if self.attention.form == "op":
            if len(k.shape) == 4:
                return b.reduce("Mean", self._by_head(k), [1])
            split = b.reshape(k, [self.batch or -1, 0, heads, int(k.shape[-1]) // heads])
            return b.reduce("Mean", split, [2])
        return b.transpose(b.reduce("Mean", self._by_head(k), [1]), [0, 2, 1])

    def _take_rows(self, x: gs.Tensor, positions: Sequence[int] | None, axis: int) -> gs.Tensor:
        if positions is None:
            return x
        axis %= len(x.shape)
        first, last = positions[0], positions[-1]
        if list(positions) == list(range(first, last + 1)):
            return self.b.slice(x, axis, first, last + 1)
        return self.b.op("Gather", x, list(positions), dtype=x.dtype, axis=axis)

    def _logits_decomposed(self, positions: Sequence[int] | None) -> gs.Tensor:
        b, product = self.b, self.product
        rows = self._take_rows(product.inputs[0], positions, -2)
        current = b.op("MatMul", rows, product.inputs[1])
        for node in self._chain():
            inputs: list[gs.Tensor] = []
            for tensor in node.inputs:
                if tensor.name in self._on_chain:
                    inputs.append(current)
                elif len(tensor.shape or ()) >= 2 and tensor.shape[-2] not in (1, None):
                    inputs.append(self._take_rows(tensor, positions, -2))
                else:
                    inputs.append(tensor)
            if node.op == "Reshape":
                current = self._regrouped(current, node, positions)
                continue
            # What inference says of types replaces this; quantised logits are not floats.
            dtype = np.float32 if node.op == "Cast" else current.dtype
            current = b.op(node.op, *inputs, dtype=dtype, **dict(node.attrs))
        return current

    def _regrouped(self, x: gs.Tensor, node: gs.Node, positions: Sequence[int] | None) -> gs.Tensor:
        """A Reshape of the chain, which only ever splits or joins batch and heads, of the rows."""
        dims = list(node.outputs[0].shape)
        front: list[int] = [-1]
        if len(dims) == 4:
            joined = self._joined(dims)
            front = [1, -1] if joined else [self.batch or -1, self.attention.heads]
        return self.b.reshape(x, [*front, self._rows(positions), self._keys()])

    def _logits_op(self, positions: Sequence[int] | None) -> gs.Tensor:
        b, node, heads = self.b, self.node, self.attention.heads
        q, k = node.inputs[:2]
        shared = k.shape[1] != q.shape[1] if len(k.shape) == 4 else k.shape[-1] != q.shape[-1]
        for strange, why in (
            (attr(node, "is_causal", 0), "is causal"),
            (attr(node, "softcap", 0), "caps its logits"),
            (shared, "shares keys among heads"),
        ):
            if strange:
                raise UsageError(
                    f"attention '{node.name}' {why}, so its rows cannot be recomputed",
                    where="--method",
                    hint="export it with an opset of 22 or older",
                )
        if len(q.shape) == 3:
            rows = self._take_rows(q, positions, 1)
            width = int(q.shape[-1]) // heads
            rows = b.reshape(rows, [0, 0, heads, width])
            rows = b.transpose(rows, [0, 2, 1, 3])
            keys = b.transpose(b.reshape(k, [0, 0, heads, width]), [0, 2, 3, 1])
        else:
            width = int(q.shape[-1])
            rows = self._take_rows(q, positions, 2)
            keys = b.transpose(k, [0, 1, 3, 2])
        scale = float(attr(node, "scale") or 1 / sqrt(width))
        rows = b.op("Mul", rows, b.const([scale], np.float32))
        logits = b.op("MatMul", rows, keys)
        if len(node.inputs) > 3 and not node.inputs[3].is_empty():
            mask = node.inputs[3]
            if mask.shape[-2] != 1:
                mask = self._take_rows(mask, positions, -2)
            if mask.dtype == np.bool_:
                zero, low = (
                    b.const([0], np.float32),
                    b.const([np.finfo(np.float32).min], np.float32),
                )
                mask = b.op("Where", mask, zero, low)
            logits = b.op("Add", logits, mask)
        return logits
