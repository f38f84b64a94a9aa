"""Scores of blocks that were run before, carried to the tokens of now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.passes.reduce.scores.base import ScoreInput, Seen
from tcompile.passes.reduce.token_state import TokenState

One = Callable[[ScoreInput], gs.Tensor]
Combine = Callable[[gs.Tensor, gs.Tensor], gs.Tensor]


def owns(given: ScoreInput) -> bool:
    """Whether the site's own block was run already, which it was not around or inside it."""
    return bool(given.seen) and given.seen[-1].core.attention == given.core.attention


def at_site(given: ScoreInput) -> TokenState:
    """The stage of the tokens that are scored: around or inside a block all of them are there."""
    return given.stages[-1] if owns(given) or not given.seen else given.stages[0]


def previous(given: ScoreInput, one: One) -> gs.Tensor:
    """The score by the attention of the block before the site's own; of tokens that bypassed it, 0.

    Raises:
        UsageError: there is no block before, or tokens since then were made of others.
    """
    before = given.seen[: -1 if owns(given) else None]
    return over(given, before[-1:], one, lambda _, new: new)


def over(given: ScoreInput, blocks: Sequence[Seen], one: One, combine: Combine) -> gs.Tensor:
    """`one` of each block, combined from the first to the last: [B, T].

    What a token has is carried to the tokens that are left (`TokenState.local`), given to all that
    it stood for where they come back (`TokenState.owner`), and kept by tokens that bypass a block.

    Raises:
        UsageError: there is no such block, one sees windows only, or tokens since then were made
            of others.
    """
    b, total, place = given.b, None, 0
    if not blocks:
        raise UsageError(
            "no block before has an attention that could be read",
            where="schedule",
            hint="use a later site, or the block's own attention only",
        )
    for seen in blocks:
        if seen.core.attention.columns != given.core.attention.columns:
            raise UsageError(
                f"the attention '{seen.core.node.name}' of a block before is not over the same "
                "tokens as the site's own",
                where="schedule",
                hint="use source=this",
            )
        inner = replace(given, core=seen.core, count=given.stages[seen.number].count)
        new = one(inner)
        if seen.through is None:
            total = new if total is None else combine(moved(given, total, place, seen.number), new)
            place = seen.number
            continue
        if total is None:
            zero = b.op("Mul", b.slice(new, 1, 0, 1), b.const([0], np.float32))
            total = b.op("Add", zero, b.const(np.zeros((1, given.patches)), np.float32))
        total = moved(given, total, place, 0)
        old = b.op("GatherElements", total, seen.through, axis=1)
        total = b.op("ScatterElements", total, seen.through, combine(old, new), axis=1)
        place = 0
    assert total is not None
    return moved(given, total, place, given.seen[-1].number if owns(given) else 0)


def moved(given: ScoreInput, values: gs.Tensor, start: int, end: int) -> gs.Tensor:
    """[B, T] values of the tokens of one stage, for those of another."""
    b, stages = given.b, given.stages
    before, after = _path(given, start), _path(given, end)
    if before != after[: len(before)]:
        owner = stages[start].owner
        assert owner is not None
        values, before = b.op("GatherElements", values, owner, axis=1), []
    for number in after[len(before) :]:
        local = stages[number].local
        if local is None:
            raise UsageError(
                "a score of an earlier block ends where tokens were made of others",
                where="schedule",
                hint="use source=this, or a reducer that keeps tokens as they are",
            )
        values = b.op("GatherElements", values, local, axis=1)
    return values


def _path(given: ScoreInput, number: int) -> list[int]:
    """The stages from that of all tokens (excluded) to one, each made from the one before."""
    found: list[int] = []
    while not given.stages[number].whole:
        found.insert(0, number)
        number = given.stages[number].before
    return found
