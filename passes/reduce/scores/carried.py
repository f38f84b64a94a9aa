"""Scores of blocks that were run before, carried to the tokens of now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.passes.reduce.scores.base import PastAttention, ScoreInput
from tcompile.passes.reduce.token_state import TokenState

One = Callable[[ScoreInput], gs.Tensor]
Combine = Callable[[gs.Tensor, gs.Tensor], gs.Tensor]


def owns(inputs: ScoreInput) -> bool:
    """Tell if the site's own block was run already, which it was not around or inside it."""
    return bool(inputs.past) and inputs.past[-1].attention.matched == inputs.attention.matched


def at_site(inputs: ScoreInput) -> TokenState:
    """The state of the tokens that are scored: around or inside a block all of them are there."""
    return inputs.states[-1] if owns(inputs) or not inputs.past else inputs.states[0]


def previous(inputs: ScoreInput, one: One) -> gs.Tensor:
    """The score by the attention of the block before the site's own; of tokens that bypassed it, 0.

    Raises:
        UsageError: there is no block before, or tokens since then were made of others.
    """
    before = inputs.past[: -1 if owns(inputs) else None]
    return over(inputs, before[-1:], one, lambda _, new: new)


def over(
    inputs: ScoreInput, blocks: Sequence[PastAttention], one: One, combine: Combine
) -> gs.Tensor:
    """`one` of each block, combined from the first to the last: [B, T].

    What a token has is carried to the tokens that are left (`TokenState.local`), given to all that
    it stood for where they come back (`TokenState.owner`), and kept by tokens that bypass a block.

    Raises:
        UsageError: there is no such block, one sees windows only, or tokens since then were made
            of others.
    """
    b, total, place = inputs.builder, None, 0
    if not blocks:
        raise UsageError(
            "no block before has an attention that could be read",
            where="schedule",
            hint="use a later site, or the block's own attention only",
        )
    for block in blocks:
        attention = block.attention
        if attention.matched.columns != inputs.attention.matched.columns:
            raise UsageError(
                f"the attention '{attention.node.name}' of a block before is not over the same "
                "tokens as the site's own",
                where="schedule",
                hint="use source=this",
            )
        inner = replace(inputs, attention=attention, count=inputs.states[block.state].count)
        new = one(inner)
        if block.through is None:
            total = new if total is None else combine(moved(inputs, total, place, block.state), new)
            place = block.state
            continue
        if total is None:
            zero = b.op("Mul", b.slice(new, 1, 0, 1), b.const([0], np.float32))
            total = b.op("Add", zero, b.const(np.zeros((1, inputs.dense_count)), np.float32))
        total = moved(inputs, total, place, 0)
        old = b.op("GatherElements", total, block.through, axis=1)
        total = b.op("ScatterElements", total, block.through, combine(old, new), axis=1)
        place = 0
    assert total is not None
    return moved(inputs, total, place, inputs.past[-1].state if owns(inputs) else 0)


def moved(inputs: ScoreInput, values: gs.Tensor, start: int, end: int) -> gs.Tensor:
    """[B, T] values of the tokens of one state, for those of another."""
    b, states = inputs.builder, inputs.states
    before, after = _path(inputs, start), _path(inputs, end)
    if before != after[: len(before)]:
        owner = states[start].owner
        assert owner is not None
        values, before = b.op("GatherElements", values, owner, axis=1), []
    for number in after[len(before) :]:
        local = states[number].local
        if local is None:
            raise UsageError(
                "a score of an earlier block ends where tokens were made of others",
                where="schedule",
                hint="use source=this, or a reducer that keeps tokens as they are",
            )
        values = b.op("GatherElements", values, local, axis=1)
    return values


def _path(inputs: ScoreInput, number: int) -> list[int]:
    """The states from that of all tokens (excluded) to one, each made from the one before."""
    found: list[int] = []
    while not inputs.states[number].whole:
        found.insert(0, number)
        number = inputs.states[number].before
    return found
