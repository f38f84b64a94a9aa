"""An attention of the graph being rewritten, as scores and reducers see it.

Reading the softmax a second time would de-fuse it in TensorRT, so parts of an attention are
recomputed beside it: a few rows of softmax(q·Kᵀ) cost O(rows·N·d) and leave it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import BEFORE_SOFTMAX, JOINS, Attention
from tcompile.core.errors import UsageError
from tcompile.core.graph import attr, is_const, producer, value
from tcompile.passes.reduce.builder import Builder


class AttentionView:
    """Q, K, V, logits and probabilities of an attention, whichever spelling the graph has.

    By head they are [B, heads, N, d] fp32. They are read beside the attention, which stays fused.

    Attributes:
        builder: writes nodes.
        matched: what the analysis found of it.
        batch: the literal batch, or None.
        node: its Softmax or Attention.
        product: its Q·Kᵀ, or the Attention.
        mix: its product with V, or the Attention.
    """

    def __init__(
        self, builder: Builder, matched: Attention, nodes: Mapping[str, gs.Node], batch: int | None
    ) -> None:
        self.builder, self.matched, self.batch = builder, matched, batch
        self.node = nodes[matched.node]
        self.product = nodes[matched.product]
        self.mix = nodes[matched.mix]

    def rows(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """softmax(q_rows·Kᵀ) over all keys: [B, heads, len(positions), N] fp32.

        Args:
            positions: of the query tokens; None: all, which costs as much as the attention.

        Raises:
            UsageError: the attention does more between Q·Kᵀ and softmax than scale and mask.
        """
        logits, dims = self._logits(positions)
        chances = self._split(self.builder.op("Softmax", logits, axis=-1), dims, positions)
        return self._of_tokens(chances, 3)

    def logits(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """The input of the softmax, scaled, masks and biases added; otherwise as `rows`."""
        logits, dims = self._logits(positions)
        return self._of_tokens(self._split(logits, dims, positions), 3)

    def _of_tokens(self, x: gs.Tensor, axis: int, *, keys: bool = False) -> gs.Tensor:
        """What is the tokens' along an axis of keys, learned keys and sinks left out.

        Args:
            keys: of K or V, which have no sinks.
        """
        before, behind = (0, 0) if keys and self.matched.sinks else self.matched.beside
        if not before and not behind:
            return x
        return self.builder.slice(x, axis, before, before + self.tokens)

    def _logits(self, positions: Sequence[int] | None) -> tuple[gs.Tensor, list[int | str]]:
        """The logits, and the shape of those of the model."""
        self._check_rank()
        if self.matched.unreadable:
            raise self._strange(f"it {self.matched.unreadable}")
        if self.matched.form == "softmax":
            return self._logits_decomposed(positions), list(self.node.outputs[0].shape)
        return self._logits_op(positions), list(self.product.inputs[0].shape)

    def _split(
        self, x: gs.Tensor, dims: list[int | str], positions: Sequence[int] | None
    ) -> gs.Tensor:
        """[(B h), rows, N] or [1, (B h), rows, N] → [B, h, rows, N]."""
        op = self.matched.form == "op"
        if len(dims) == 2:  # one head of one image
            return self.builder.unsqueeze(x, 0, 1)
        if (op and len(dims) == 3) or not self._joined(dims):
            return x
        heads, rows = self.matched.heads, self._rows(positions)
        columns = self.tokens + sum(self.matched.beside)
        return self.builder.reshape(x, [self.batch or -1, heads, rows, columns])

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B, N, d] fp32 (ToMe's metric, up to a positive factor)."""
        self._check_rank()
        b, k, heads = self.builder, self.product.inputs[1], self.matched.heads
        if self.matched.form == "op":
            if len(k.shape) == 4:
                return self._of_tokens(b.reduce("Mean", self._by_head(k), [1]), 1, keys=True)
            split = b.reshape(k, [self.batch or -1, 0, heads, int(k.shape[-1]) // heads])
            return self._of_tokens(b.reduce("Mean", split, [2]), 1, keys=True)
        mean = b.transpose(b.reduce("Mean", self._by_head(k), [1]), [0, 2, 1])
        return self._of_tokens(mean, 1, keys=True)

    def _take_rows(self, x: gs.Tensor, positions: Sequence[int] | None, axis: int) -> gs.Tensor:
        if positions is None:
            return x
        axis %= len(x.shape)
        first, last = positions[0], positions[-1]
        if list(positions) == list(range(first, last + 1)):
            return self.builder.slice(x, axis, first, last + 1)
        return self.builder.op("Gather", x, list(positions), dtype=x.dtype, axis=axis)

    def _logits_decomposed(self, positions: Sequence[int] | None) -> gs.Tensor:
        b, product = self.builder, self.product
        rows = self._take_rows(product.inputs[0], positions, -2)
        current = b.op("MatMul", rows, product.inputs[1])
        columns = int(product.inputs[1].shape[-1])
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
                current = self._regrouped(current, node, positions, columns)
                continue
            columns += sum(self.matched.beside) if node.op in JOINS else 0
            # What inference says of types replaces this; quantised logits are not floats.
            dtype = np.float32 if node.op == "Cast" else current.dtype
            current = b.op(node.op, *inputs, dtype=dtype, **dict(node.attrs))
        return current

    def _regrouped(
        self, x: gs.Tensor, node: gs.Node, positions: Sequence[int] | None, columns: int
    ) -> gs.Tensor:
        """A Reshape of the chain, which only ever splits or joins batch and heads, of the rows."""
        dims = list(node.outputs[0].shape)
        front: list[int] = [-1] if len(dims) > 2 else []
        if len(dims) == 4:
            joined = self._joined(dims)
            front = [1, -1] if joined else [self.batch or -1, self.matched.heads]
        return self.builder.reshape(x, [*front, self._rows(positions), columns])

    def _logits_op(self, positions: Sequence[int] | None) -> gs.Tensor:
        b, node, heads = self.builder, self.node, self.matched.heads
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

    def queries(self) -> gs.Tensor:
        """Q as it enters the product: a scale may be in it or come behind (see `raw_scale`)."""
        return self._by_head(self.product.inputs[0])

    def head_keys(self) -> gs.Tensor:
        """K as it enters the product."""
        keys = self._by_head(self.product.inputs[1])
        if self.matched.form != "op":
            keys = self.builder.transpose(keys, [0, 1, 3, 2], fp32=False)
        return self._of_tokens(keys, 2, keys=True)

    def values(self) -> gs.Tensor:
        """V."""
        value = self.node.inputs[2] if self.matched.form == "op" else self.mix.inputs[1]
        return self._of_tokens(self._by_head(value), 2, keys=True)

    def context(self) -> gs.Tensor:
        """softmax(Q·Kᵀ)·V: what the attention gives, before its projection."""
        return self._by_head(self.mix.outputs[0])

    def position(self, place: int) -> int:
        """A place counted from the front, or (negative) from the back, as one from the front."""
        return place if place >= 0 else self.tokens + place

    @property
    def tokens(self) -> int:
        """Return how many keys there are that are tokens."""
        k = self.product.inputs[1]
        keys = int(k.shape[-2] if self.matched.form == "op" else k.shape[-1])
        return keys if self.matched.sinks else keys - sum(self.matched.beside)

    @property
    def width(self) -> int:
        """Channels of a key."""
        shape = self.product.inputs[1].shape
        if self.matched.form != "op":
            return int(shape[-2])
        return int(shape[-1]) // (1 if len(shape) == 4 else self.matched.heads)

    def raw_scale(self) -> float:
        """The factor of Q·Kᵀ behind the product, masks and biases left out.

        Raises:
            UsageError: the attention does more between Q·Kᵀ and softmax than scale and mask.
        """
        if self.matched.form == "op":
            return float(attr(self.node, "scale") or 1 / sqrt(self.width))
        if self.matched.unreadable:
            raise self._strange(f"it {self.matched.unreadable}")
        scale = 1.0
        for node in self._chain():
            if node.op in ("Mul", "Div"):
                factors = [value(t) for t in node.inputs if is_const(t)]
                if len(factors) != 1 or factors[0].size != 1:
                    raise self._strange(f"'{node.name}' scales its logits by more than one number")
                factor = float(factors[0].reshape(()))
                scale = scale * factor if node.op == "Mul" else scale / factor
            elif node.op in ("Tanh", "Clip"):
                raise self._strange(f"'{node.name}' ({node.op}) caps its logits")
        return scale

    def _strange(self, why: str) -> UsageError:
        return UsageError(
            f"attention '{self.node.name}' cannot be recomputed: {why}",
            where="--method",
            hint="use a method whose score does not read attention, such as tome",
        )

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
            if node.op not in BEFORE_SOFTMAX | JOINS:
                return False
            for operand in node.inputs:
                if up(operand):
                    found.append(node)
                    self._on_chain.add(tensor.name)
                    return True
            return False

        if not up(self.node.inputs[0]):
            raise self._strange("its heads are mixed before the softmax")
        return found

    def _by_head(self, x: gs.Tensor) -> gs.Tensor:
        """[B, heads, N, d] of a tensor that goes into the attention or comes out of it."""
        b, heads, dims = self.builder, self.matched.heads, list(x.shape)
        self._check_rank()
        if self.matched.form == "op" and len(dims) == 3:
            split = b.reshape(x, [0, 0, heads, int(dims[-1]) // heads], fp32=False)
            return b.transpose(split, [0, 2, 1, 3], fp32=False)
        if len(dims) == 2:
            return b.unsqueeze(x, 0, 1, fp32=False)
        if not self._joined(dims):
            return x
        return b.reshape(x, [self.batch or -1, heads, int(dims[-2]), int(dims[-1])], fp32=False)

    def _check_rank(self) -> None:
        if self.matched.form == "op":
            return
        for rank in {len(self.product.outputs[0].shape), len(self.node.outputs[0].shape)}:
            if rank not in (2, 3, 4):
                raise UsageError(
                    f"attention '{self.node.name}' has logits of {rank} dims, so its rows "
                    "cannot be recomputed",
                    where="--method",
                )

    def _joined(self, dims: list[int | str]) -> bool:
        """Tell if batch and heads are one axis: [(B h), …] or [1, (B h), …]."""
        return len(dims) == 3 or (dims[0] == 1 and self.batch != 1)

    def _rows(self, positions: Sequence[int] | None) -> int:
        """Return how many queries are meant."""
        queries = self.product.inputs[0].shape[-2]
        return int(queries) if positions is None else len(positions)
