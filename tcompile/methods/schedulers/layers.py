"""Schedulers that let tokens leave in every block."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.counts import inflected, root_ceil, shares
from tcompile.methods.schedulers.base import Place, Scheduler, falling, places


def constant(
    key: str = "r", *, half: bool = False, first: Fraction = Fraction(0), least: int = 0
) -> Scheduler:
    """The same number in each block; with `inflect`, ToMe's decreasing (−1) or increasing (1) ones.

    Args:
        key: the parameter that says how many.
        half: only half of the tokens can find a partner in one step.
        first: of the blocks, as a share of them.
        least: tokens, prefix included, below which none leave; not under --keep.
    """

    def run(context: Context, values: Values) -> list[Place]:
        total, blocks = context.shape.patches, context.shape.blocks
        sites = [context.site(i) for i in range(int(first * blocks), blocks)]
        r, inflect = values[key], values.get("inflect", Fraction(0))
        if r is None:
            n = max(len(sites) - 1, 1)
            weights = [1 - inflect + 2 * inflect * Fraction(i, n) for i in range(len(sites))]
            even = all(w == 0 for w in weights)
            goals = shares(total, context.final, [1] * len(sites) if even else weights)
            return places(context, zip(sites, goals, strict=True), half=half)
        kept: list[tuple[SiteName, int]] = []
        count = total
        for site, leaving in zip(sites, inflected(r, inflect, len(sites)), strict=True):
            if count + context.shape.prefix < least:
                break
            count -= min(leaving, count // 2 if half else count - 1)
            kept.append((site, count))
        return falling(context, kept)

    since = f" from block {_times_l(first)} on" if first else ""
    return Scheduler(f"in every block{since}, as many each time", run)


def ratio(*, half: bool = False) -> Scheduler:
    """r = floor(T − T · ratio) of the T tokens before each block's MLP."""

    def run(context: Context, values: Values) -> list[Place]:
        total, blocks = context.shape.patches, context.shape.blocks
        goals, share, count = [], values["ratio"], total
        for block in range(blocks):
            if share is None:
                assert context.keep is not None
                count = root_ceil(total, context.keep, block + 1, blocks)
            else:
                count -= min(int(count - count * share), count // 2 if half else count)
            goals.append((context.site(block), count))
        return places(context, goals, half=half)

    return Scheduler("in every block, the same share of those that are left", run)


def ramp() -> Scheduler:
    """None in the first max(3, ceil(0.15 L)) blocks, then linear to the final count."""

    def run(context: Context, values: Values) -> list[Place]:
        blocks = context.shape.blocks
        start = min(max(3, ceil(Fraction(15, 100) * blocks)), blocks - 1)
        sites = [context.site(i) for i in range(start, blocks)]
        goals = shares(context.shape.patches, context.final, [1] * len(sites))
        return places(context, zip(sites, goals, strict=True))

    return Scheduler("none in the first max(3, ceil(0.15·L)) blocks, then a straight line", run)


def _times_l(share: Fraction) -> str:
    return f"{'' if share.numerator == 1 else share.numerator}L//{share.denominator}"
