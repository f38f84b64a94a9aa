"""Recomputing parts of an attention beside it, so that the attention itself stays fused.

Reading the softmax a second time would de-fuse it in TensorRT (DESIGN 5.5); a few rows of
softmax(q·Kᵀ) cost O(rows·N·d) and leave it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import BEFORE_SOFTMAX, Attention
from tcompile.errors import UsageError
from tcompile.ir import attr, is_const, producer
from tcompile.passes.reduce.builder import Builder


class Core:
    """An attention of the graph being rewritten, as the scores see it."""

    def __init__(
        self, b: Builder, attention: Attention, nodes: Mapping[str, gs.Node], batch: int | None
    ) -> None:
        self.b, self.attention, self.batch = b, attention, batch
        self.node = nodes[attention.node]
        self.product = nodes[attention.product]

    def rows(self, positions: Sequence[int]) -> gs.Tensor:
        """softmax(q_rows·Kᵀ) over all keys: [B, heads, len(positions), N] fp32.

        Args:
            positions: of the query tokens.

        Raises:
            UsageError: the attention does more between Q·Kᵀ and softmax than scale and mask.
        """
        b = self.b
        self._check_rank()
        if self.attention.form == "softmax":
            logits = self._logits_decomposed(positions)
        else:
            logits = self._logits_op(positions)
        probabilities = b.op("Softmax", logits, axis=-1)
        if self._joined():
            # [(B h), rows, N] or [1, (B h), rows, N] → [B, h, rows, N]
            dims = [self.batch or -1, self.attention.heads, len(positions), self._keys()]
            return b.reshape(probabilities, dims)
        return probabilities

    def position(self, place: int) -> int:
        """A place counted from the front, or (negative) from the back, as one from the front."""
        return place if place >= 0 else self._keys() + place

    @property
    def width(self) -> int:
        """Channels of a key."""
        shape = self.product.inputs[1].shape
        if self.attention.form == "softmax":
            return int(shape[-2])
        return int(shape[-1]) // (1 if len(shape) == 4 else self.attention.heads)

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B, N, d] fp32 (ToMe's metric, up to a positive factor)."""
        b, k = self.b, self.product.inputs[1]
        self._check_rank()
        heads = self.attention.heads
        if self.attention.form == "op":
            if len(k.shape) == 4:
                if self._joined():
                    k = b.reshape(k, [self.batch or -1, heads, self._keys(), int(k.shape[-1])])
                return b.reduce("Mean", k, [1])
            split = b.reshape(k, [self.batch or -1, 0, heads, int(k.shape[-1]) // heads])
            return b.reduce("Mean", split, [2])
        if self._joined():
            k = b.reshape(k, [self.batch or -1, heads, int(k.shape[-2]), self._keys()])
        return b.transpose(b.reduce("Mean", k, [1]), [0, 2, 1])

    def _check_rank(self) -> None:
        if self.attention.form == "softmax" and self._rank() not in (3, 4):
            raise UsageError(
                f"attention '{self.node.name}' has logits of {self._rank()} dims, so its rows "
                "cannot be recomputed",
                where="--method",
            )

    def _rank(self) -> int:
        return 4 if self.attention.form == "op" else len(self.product.outputs[0].shape)

    def _joined(self) -> bool:
        """Whether batch and heads are one axis of the logits."""
        if self._rank() == 3:
            return True
        first = self.product.inputs[0].shape
        return len(first) == 4 and first[0] == 1 and self.batch != 1

    def _keys(self) -> int:
        k = self.product.inputs[1]
        return int(k.shape[-1] if self.attention.form == "softmax" else k.shape[-2])

    def _take_rows(self, x: gs.Tensor, positions: Sequence[int], axis: int) -> gs.Tensor:
        axis %= len(x.shape)
        first, last = positions[0], positions[-1]
        if list(positions) == list(range(first, last + 1)):
            return self.b.slice(x, axis, first, last + 1)
        return self.b.op("Gather", x, list(positions), dtype=x.dtype, axis=axis)

    def _logits_decomposed(self, positions: Sequence[int]) -> gs.Tensor:
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
                continue  # only ever splits or joins batch and heads; `rows` does that itself
            # What inference says of types replaces this; quantised logits are not floats.
            dtype = np.float32 if node.op == "Cast" else current.dtype
            current = b.op(node.op, *inputs, dtype=dtype, **dict(node.attrs))
        return current

    def _chain(self) -> list[gs.Node]:
        """Nodes between the product and the softmax as they are now, inserted biases included."""
        self._on_chain = {self.product.outputs[0].name}
        found: list[gs.Node] = []

        def up(tensor: gs.Tensor) -> bool:
            node = producer(tensor)
            if node is None or is_const(tensor):
                return False
            if node is self.product:
                return True
            if node.op not in BEFORE_SOFTMAX:
                return False
            for operand in node.inputs:
                if up(operand):
                    found.append(node)
                    self._on_chain.add(tensor.name)
                    return True
            return False

        if not up(self.node.inputs[0]):
            raise UsageError(
                f"attention '{self.node.name}' mixes its heads before the softmax, so its rows "
                "cannot be recomputed",
                where="--method",
                hint="use a method whose score does not read attention, such as tome",
            )
        return found

    def _logits_op(self, positions: Sequence[int]) -> gs.Tensor:
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
