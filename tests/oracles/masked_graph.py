"""Masks written into a dense file: hidden keys in attentions, neutral values under pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.oracles.dense_file import (
    Array,
    Arrays,
    Core,
    File,
    InapplicableError,
    Tokens,
    pooled_axes,
)

#: What hides a key; exp of it is 0 in float32.
HIDDEN = -1e9


def _mask_of(kept: Array, length: int, tokens: Tokens) -> Array:
    """[B, length] bool over all tokens or over the patches alone."""
    positions = tokens.full(kept) if length == tokens.total else kept
    mask = np.zeros((len(kept), length), dtype=bool)
    np.put_along_axis(mask, positions, True, axis=1)
    return mask


def _key_mask(core: Core, kept: Array, tokens: Tokens) -> Array:
    """What is added to the logits of a core: HIDDEN at the keys that were dropped."""
    *lead, rows, length = core.shape
    if length not in (tokens.total, tokens.patches):
        raise InapplicableError(f"an attention has {length} keys, the model {tokens.total} tokens")
    batch = len(kept)
    if lead[0] % batch:
        raise InapplicableError(f"logits of shape {core.shape} for {batch} images")
    mask = np.where(_mask_of(kept, length, tokens), 0.0, HIDDEN).astype(np.float32)
    mask = np.repeat(mask, lead[0] // batch, axis=0)  # heads merged with the batch
    mask = mask.reshape(lead[0], *[1] * (len(lead) - 1), 1, length)
    return np.broadcast_to(mask, (*lead, rows, length))


def with_masks(
    file: File, cores: Sequence[Core], kept: Mapping[int, Array], pools: Mapping[int, Array],
    tokens: Tokens,
) -> tuple[onnx.ModelProto, Arrays]:  # fmt: skip
    """The dense model with masks as further inputs, and what to feed them.

    kept, pools: node → kept patches [B, K] that hold for this core or pool.
    """
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    del model.graph.value_info[:]
    feed: Arrays = {}
    nodes: list[onnx.NodeProto] = []
    by_node = {core.node: core for core in cores}

    def given(value: Array) -> str:
        name = f"masked_{len(feed)}"
        feed[name] = np.ascontiguousarray(value)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        return name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"masked_{len(nodes)}_{kind}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    for i, node in enumerate(model.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if i in kept:
            dtype = file.values[by_node[i].logits].dtype
            mask = _key_mask(by_node[i], kept[i], tokens)
            bias = given(np.maximum(mask, -3e4 if dtype == np.float16 else HIDDEN).astype(dtype))
            if by_node[i].form == "softmax":
                copy.input[0] = op("Add", node.input[0], bias)
            else:
                _mask_attention(file, copy, bias, op, given, dtype)
        if i in pools:
            value = file.values[node.input[0]]
            axes = pooled_axes(file, node, tokens)
            assert axes is not None
            length = prod(value.shape[a] for a in axes)
            mask = _mask_of(pools[i], length, tokens)
            dims = [d if a in axes else 1 for a, d in enumerate(value.shape)]
            dims[0] = len(mask)
            _mask_pool(copy, mask.reshape(dims), length, mask[0].sum(), op, given, value.dtype)
            nodes.append(copy)
            if node.op_type in ("ReduceMean", "GlobalAveragePool"):
                final = copy.output[0]
                copy.output[0] = f"{final}__all"
                scale = given(np.asarray(length / mask[0].sum(), value.dtype))
                nodes.append(helper.make_node("Mul", [copy.output[0], scale], [final]))
            continue
        nodes.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, feed


def _mask_attention(
    file: File, node: onnx.NodeProto, bias: str, op: Any, given: Any, dtype: Any
) -> None:
    """Add `bias` to the mask of an ai.onnx Attention."""
    while len(node.input) < 4:
        node.input.append("")
    if node.input[3]:
        before = node.input[3]
        values = file.run(file.model, [before])[before]
        if values.dtype == bool:
            nothing = given(np.asarray(0, dtype))
            hidden = given(np.asarray(-np.inf, dtype))
            before = op("Where", before, nothing, hidden)
        bias = op("Add", before, bias)
    node.input[3] = bias


def _mask_pool(
    node: onnx.NodeProto, mask: Array, length: int, count: int, op: Any, given: Any, dtype: Any
) -> None:
    """Let a pool read neutral values where tokens were dropped."""
    neutral = {"ReduceMax": -np.inf, "ReduceMin": np.inf}.get(node.op_type, 0.0)
    node.input[0] = op("Where", given(mask), node.input[0], given(np.asarray(neutral, dtype)))
