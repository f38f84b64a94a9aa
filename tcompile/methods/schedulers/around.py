"""Tokens that leave for a while: around blocks, inside attentions, until the last block."""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.counts import root_ceil, shares
from tcompile.methods.schedulers.base import Place, Scheduler


def around(
    start: Fraction = Fraction(1, 4), *, powers: bool = False, behind: bool = False
) -> Scheduler:
    """K = ceil(keep · T) tokens run through each block from L · start on.

    Args:
        start: share of the blocks that all tokens run through; `first` says otherwise.
        powers: K = int(T · rate^i), i = 1 for the first L//4 blocks, 2 for the next, …; under
            --keep the last i gives ceil(keep · T).
        behind: never around the first block, because the scores read those before.
    """

    def run(context: Context, values: Values) -> list[Place]:
        total, depth = context.shape.patches, context.shape.blocks
        first = values.get("first")
        if first is None:
            windows = context.room is not None and context.room.windows
            first = 0 if windows else int(start * depth)
        blocks = [i for i in context.legal("around") if i >= max(first, int(behind))]
        if not blocks:
            raise UsageError(
                "no block of this model can be bypassed",
                where="--method",
                hint="`tcompile inspect` says why",
            )
        found: list[Place] = []
        most = (blocks[-1] - first) // max(depth // 4, 1) + 1
        for block in blocks:
            site, power = SiteName.of("around", block), (block - first) // max(depth // 4, 1) + 1
            if values.get("rate") is not None:
                keep = max(int(total * values["rate"] ** power), 1)
            elif powers:
                assert context.keep is not None
                keep = root_ceil(total, context.keep, power, most)
            else:
                keep = context.final_at(site)
            found.append(Place(site, keep))
        return [place for place in found if place.keep < total]

    since = f"{'' if start.numerator == 1 else start.numerator}L//{start.denominator}"
    shrinking = ", fewer every L//4 blocks" if powers else ""
    return Scheduler(f"around every block from {since} on{shrinking}; all come back", run)


def inside() -> Scheduler:
    """Inside every attention that takes it: T − int(T · ratio) tokens run through it."""

    def run(context: Context, values: Values) -> list[Place]:
        total, share = context.shape.patches, values["ratio"]
        h, w = context.grid[-2:]
        cells = total // (h * w) * (h // values["sy"]) * (w // values["sx"])
        found: list[Place] = []
        for block in context.legal("inside"):
            site = SiteName.of("inside", block)
            keep = context.final_at(site) if share is None else total - int(total * share)
            if keep < max(cells, 1):
                raise UsageError(
                    f"{context.method} keeps one token of each cell, {cells} of "
                    f"{total}, not {keep}",
                    where="--method",
                    hint="larger sx and sy make larger cells",
                )
            found.append(Place(site, keep))
        if not found:
            raise UsageError(
                "tokens can be merged inside no attention of this model",
                where="--method",
                hint="`tcompile inspect` says why",
            )
        return [place for place in found if place.keep < total]

    return Scheduler("inside every attention; all come back before the residual add", run)


def until_last() -> Scheduler:
    """r in every block (one more in the first), all back before the last one (LLF)."""

    def run(context: Context, values: Values) -> list[Place]:
        total, blocks = context.shape.patches, context.shape.blocks
        if blocks < 3:
            raise UsageError(
                f"{context.method} needs 3 blocks or more, not {blocks}", where="--method"
            )
        steps, r = blocks - 2, values["r"]
        if r is None:
            if context.final == total:
                return []
            counts = shares(total - 1, context.final, [1] * steps)
        else:
            counts = [total - 1 - r * (i + 1) for i in range(steps)]
        if counts[-1] < 1:
            raise UsageError(
                f"r={r} in {steps} blocks leaves none of {total} tokens", where="--method"
            )
        found, count = [], total
        for block, keep in enumerate(counts):
            if keep < count:
                found.append(Place(SiteName.of("block", block), keep))
                count = keep
        return [*found, Place(SiteName.of("block", steps), total)]

    return Scheduler("after every block but the last two; all come back before the last", run)
