"""Masks written into a dense file: hidden keys in attentions, neutral values under pools."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.oracles.dense_file import Array, Arrays, File, InapplicableError, Tokens
from tests.oracles.dense_parts import Core, pooled_axes

#: What hides a key; exp of it is 0 in float32.
HIDDEN = -1e9
_NEUTRAL = {"ReduceMax": -np.inf, "ReduceMin": np.inf}


def spread(kept: Array, shape: tuple[int, ...], axes: tuple[int, ...], tokens: Tokens) -> Array:
    """Return which positions along the token axes of a tensor are kept, broadcastable to its shape.

    The batch is the first other axis, alone or merged with heads.
    """
    length, batch = prod(shape[a] for a in axes), len(kept)
    if length not in (tokens.total, tokens.patches):
        raise InapplicableError(f"an attention has {length} keys, the model {tokens.total} tokens")
    positions = tokens.full(kept) if length == tokens.total else kept
    mask = np.zeros((batch, length), dtype=bool)
    np.put_along_axis(mask, positions, True, axis=1)
    first = next((a for a in range(len(shape)) if a not in axes), None)
    if first is None or axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise InapplicableError(f"axes {axes} of {shape} are no [batch, tokens]")
    if shape[first] % batch:
        raise InapplicableError(f"a tensor of shape {shape} for {batch} images")
    mask = np.repeat(mask, shape[first] // batch, axis=0)
    if first > axes[0]:
        mask = mask.T
    return mask.reshape([d if a in (*axes, first) else 1 for a, d in enumerate(shape)])


class _Writer:
    """The masked model as it grows, and what is to be fed to it."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.model = onnx.ModelProto()
        self.model.CopyFrom(file.model)
        self.feed: Arrays = {}
        self.nodes: list[onnx.NodeProto] = []

    def given(self, value: Array) -> str:
        name = f"masked_{len(self.feed)}"
        self.feed[name] = np.ascontiguousarray(value).reshape(value.shape)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.model.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        return name

    def op(self, kind: str, *inputs: str) -> str:
        name = f"masked_{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [name]))
        return name

    def hide(self, node: onnx.NodeProto, core: Core, kept: Array, tokens: Tokens) -> None:
        """Add HIDDEN to the logits of the keys that were dropped."""
        dtype = self.file.values[core.logits].dtype
        mask = spread(kept, core.shape, (core.axis,), tokens)
        bias = np.where(mask, 0, -3e4 if dtype == np.float16 else HIDDEN).astype(dtype)
        if core.form == "softmax":
            node.input[0] = self.op("Add", node.input[0], self.given(bias))
            return
        while len(node.input) < 4:
            node.input.append("")
        full = self.given(np.broadcast_to(bias, core.shape))  # ONNX Runtime wants all of it
        before = node.input[3] and self._added(node.input[3], dtype)
        node.input[3] = self.op("Add", before, full) if before else full

    def _added(self, mask: str, dtype: Any) -> str:
        """The mask of an Attention op as something to add."""
        value = self.file.constant(mask)
        value = self.file.run(self.file.model, [mask])[mask] if value is None else value
        if value.dtype != bool:
            return mask
        nothing = self.given(np.zeros((), dtype))
        return self.op("Where", mask, nothing, self.given(np.asarray(-np.inf, dtype)))

    def pool(self, node: onnx.NodeProto, kept: Array, tokens: Tokens) -> None:
        """Let a pool read neutral values where tokens were dropped, and count the kept ones."""
        value, axes = self.file.values[node.input[0]], pooled_axes(self.file, node, tokens)
        assert axes is not None
        mask = spread(kept, value.shape, axes, tokens)
        neutral = self.given(np.asarray(_NEUTRAL.get(node.op_type, 0), value.dtype))
        node.input[0] = self.op("Where", self.given(mask), node.input[0], neutral)
        self.nodes.append(node)
        if node.op_type in ("ReduceMean", "GlobalAveragePool"):
            final, node.output[0] = node.output[0], f"{node.output[0]}__all"
            length = prod(value.shape[a] for a in axes)
            left = kept.shape[1] + length - tokens.patches
            scale = self.given(np.asarray(length / left, value.dtype))
            self.nodes.append(helper.make_node("Mul", [node.output[0], scale], [final]))

    def choose(
        self, node: onnx.NodeProto, end: str, start: str, kept: Array, tokens: Tokens
    ) -> None:
        """Let tokens that were not kept pass from `start` to `end` unchanged."""
        shape = self.file.run(self.file.model, [start])[start].shape
        spans = [
            tuple(range(i, j))
            for i in range(len(shape) - 1)
            for j in range(i + 1, len(shape))
            if prod(shape[i:j]) == tokens.total
        ]
        if not spans:
            raise InapplicableError(f"a stream of shape {shape} for {tokens.total} tokens")
        mask = self.given(spread(kept, shape, spans[-1], tokens))
        changed = f"{end}__all"
        node.output[list(node.output).index(end)] = changed
        self.nodes.append(helper.make_node("Where", [mask, changed, start], [end]))


def with_masks(
    file: File,
    cores: Mapping[int, tuple[Core, Array]],
    pools: Mapping[int, Array],
    tokens: Tokens,
    around: Mapping[str, tuple[str, Array]] | None = None,
) -> tuple[onnx.ModelProto, Arrays]:
    """The dense model with masks as further inputs, and what to feed them.

    Args:
        cores, pools: by node, with the kept patches [B, K] that hold for it.
        around: stream behind a block → stream before it, which the tokens that were not kept have
            again.
    """
    writer = _Writer(file)
    for i, node in enumerate(file.model.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if i in pools:
            writer.pool(copy, pools[i], tokens)
            continue
        if i in cores:
            core, kept = cores[i]
            writer.hide(copy, core, kept, tokens)
        writer.nodes.append(copy)
        for end, (start, kept) in (around or {}).items():
            if end in copy.output:
                writer.choose(copy, end, start, kept, tokens)
    del writer.model.graph.node[:]
    writer.model.graph.node.extend(writer.nodes)
    return writer.model, writer.feed
