"""The operands of an attention by head, in whichever spelling the graph has them."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.attention_match import AFTER_SOFTMAX, BEFORE_SOFTMAX
from tcompile.core.errors import InternalError, UsageError
from tcompile.core.graph import attr, is_const, producer, value
from tcompile.passes.reduce.builder import Builder


class Operands:
    """Q, K, V and softmax·V of an attention, one head after the other: [B, heads, N, d] fp32.

    They are read beside the attention, which stays fused (DESIGN 5.5).

    Attributes:
        b: where to write nodes.
        attention: what the analysis says of it.
        batch: the literal batch, or None.
        node: its Softmax or Attention.
        product: its Q·Kᵀ, or the Attention.
    """

    b: Builder
    attention: Attention
    batch: int | None
    node: gs.Node
    product: gs.Node

    def queries(self) -> gs.Tensor:
        """Q as it enters the product: a scale may be in it or come behind (see `raw_scale`)."""
        return self._by_head(self.product.inputs[0])

    def head_keys(self) -> gs.Tensor:
        """K as it enters the product."""
        if self.attention.form == "op":
            return self._by_head(self.product.inputs[1])
        return self.b.transpose(self._by_head(self.product.inputs[1]), [0, 1, 3, 2], fp32=False)

    def values(self) -> gs.Tensor:
        """V."""
        if self.attention.form == "op":
            return self._by_head(self.node.inputs[2])
        return self._by_head(self._reader().inputs[1])

    def context(self) -> gs.Tensor:
        """softmax(Q·Kᵀ)·V: what the attention gives, before its projection."""
        made = self.node if self.attention.form == "op" else self._reader()
        return self._by_head(made.outputs[0])

    def position(self, place: int) -> int:
        """A place counted from the front, or (negative) from the back, as one from the front."""
        return place if place >= 0 else self._keys() + place

    @property
    def tokens(self) -> int:
        """How many keys there are."""
        return self._keys()

    @property
    def width(self) -> int:
        """Channels of a key."""
        shape = self.product.inputs[1].shape
        if self.attention.form == "softmax":
            return int(shape[-2])
        return int(shape[-1]) // (1 if len(shape) == 4 else self.attention.heads)

    def raw_scale(self) -> float:
        """What Q·Kᵀ is multiplied with behind the product, masks and biases left out.

        Raises:
            UsageError: the attention does more between Q·Kᵀ and softmax than scale and mask.
        """
        if self.attention.form == "op":
            return float(attr(self.node, "scale") or 1 / sqrt(self.width))
        scale = 1.0
        for node in self._chain():
            if node.op in ("Mul", "Div"):
                factors = [value(t) for t in node.inputs if is_const(t)]
                if len(factors) != 1 or factors[0].size != 1:
                    raise self._strange(f"'{node.name}' scales its logits by more than one number")
                factor = float(factors[0].reshape(()))
                scale = scale * factor if node.op == "Mul" else scale / factor
            elif node.op in ("Tanh", "Clip"):
                raise self._strange(f"'{node.name}' bends its logits")
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
            if node.op not in BEFORE_SOFTMAX:
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
        b, heads, dims = self.b, self.attention.heads, list(x.shape)
        self._check_rank()
        if self.attention.form == "op" and len(dims) == 3:
            split = b.reshape(x, [0, 0, heads, int(dims[-1]) // heads], fp32=False)
            return b.transpose(split, [0, 2, 1, 3], fp32=False)
        if not self._joined(dims):
            return x
        return b.reshape(x, [self.batch or -1, heads, int(dims[-2]), int(dims[-1])], fp32=False)

    def _check_rank(self) -> None:
        if self.attention.form == "op":
            return
        for rank in {len(self.product.outputs[0].shape), len(self.node.outputs[0].shape)}:
            if rank not in (3, 4):
                raise UsageError(
                    f"attention '{self.node.name}' has logits of {rank} dims, so its rows "
                    "cannot be recomputed",
                    where="--method",
                )

    def _joined(self, dims: list[int | str]) -> bool:
        """Whether batch and heads are one axis: [(B h), …] or [1, (B h), …]."""
        if len(dims) == 3:
            return True
        return dims[0] == 1 and self.batch != 1

    def _rows(self, positions: Sequence[int] | None) -> int:
        """How many queries are meant."""
        if positions is not None:
            return len(positions)
        return int(self.product.inputs[0].shape[-2])

    def _keys(self) -> int:
        k = self.product.inputs[1]
        return int(k.shape[-1] if self.attention.form == "softmax" else k.shape[-2])

    def _reader(self) -> gs.Node:
        """The product with V, by walking down from the softmax."""
        frontier, reached = list(self.node.outputs[0].outputs), {self.node.outputs[0].name}
        while frontier:
            node = frontier.pop(0)
            if node.op == "MatMul" and node.inputs[0].name in reached:
                return node
            if node.op in AFTER_SOFTMAX:
                reached.add(node.outputs[0].name)
                frontier.extend(node.outputs[0].outputs)
        raise InternalError(f"nothing multiplies '{self.node.name}' with V")
