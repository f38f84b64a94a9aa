"""Attention over the tokens that are left, with whatever joins it from the side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tests.oracles.stream import Block, Stream, attention


@dataclass(frozen=True)
class Attended:
    """q, k as they met, v, what was added to the logits, and the stream after the attention."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    after: Tensor


def attend(block: Block, stream: Stream, tables: Sequence[Tensor], index: Tensor) -> Attended:
    bias = _bias(tables, stream, index)
    q, k, v = block.heads(stream.x, index)
    if block.pairs is not None:
        pairs = block.pairs(q, index)
        bias = pairs if bias is None else bias + pairs
    after = block.attend(stream.x, attention(q, k, v, block.scale, bias))
    return Attended(q, k, v, bias, after)


def _bias(tables: Sequence[Tensor], stream: Stream, index: Tensor) -> Tensor | None:
    """Everything that is added to the logits: the tables at the tokens that are left, and the sizes
    of the keys."""
    found = stream.key_bias()
    for table in tables:
        own = _at(table, index)
        found = own if found is None else found + own
    return found


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """[N, C] at the tokens index [B, K]. Raises ValueError when one was made of others."""
    if bool((index < 0).any()):
        raise ValueError("a token that was made of others has no position")
    return table[index]


def _at(table: Tensor, index: Tensor) -> Tensor:
    """[1 or B, 1 or H, 1 or N, N] (or without the batch) -> the same with the tokens index [B, K].

    Raises ValueError when one of them was made of others.
    """
    if bool((index < 0).any()):
        raise ValueError("a token that was made of others has no row in the bias")
    table = table if table.ndim == 4 else table.unsqueeze(0)
    table = table.expand(len(index), -1, -1, -1)
    places = index[:, None, None, :].expand(-1, table.shape[1], table.shape[2], -1)
    table = table.gather(3, places)
    if table.shape[2] == 1:
        return table
    return table.gather(2, index[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))
