"""SCH1: tokens leave once."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.schedulers.base import Place, Scheduler


def single(kind: str = "attn", depth: Fraction = Fraction(1, 4), least: int = 1) -> Scheduler:
    """At one site: the first legal one from a depth on, or where `block` and `site` say.

    Args:
        kind: of the site: attn, block or output.
        depth: of the block, as a share of the blocks.
        least: tokens that `r` must leave.
    """

    def run(context: Context, values: Values) -> list[Place]:
        site = _site(context, values, kind, int(depth * context.shape.blocks))
        keep = _keep(context, values, site, least)
        return [Place(site, keep)] if keep < context.shape.patches else []

    where = "at the output" if kind == "output" else f"at {kind}:{_share(depth)}"
    return Scheduler(f"once, {where}", run)


def _share(depth: Fraction) -> str:
    return "L//4" if depth == Fraction(1, 4) else f"({depth.numerator}·L)//{depth.denominator}"


def _site(context: Context, values: Values, kind: str, block: int) -> SiteName:
    kind, chosen = values.get("site", kind), values.get("block")
    if kind == "output":
        return SiteName.of(kind)
    if chosen is None:
        if kind == "attn" and context.site(block).kind == "block":
            kind = "block"
        return SiteName.of(kind, context.first(kind, block))
    if not 0 <= chosen < context.shape.blocks:
        raise UsageError(
            f"block {chosen} does not exist: 0 to {context.shape.blocks - 1}", where="--method"
        )
    return SiteName.of(kind, chosen)


def _keep(context: Context, values: Values, site: SiteName, least: int) -> int:
    total, r, rate = context.shape.patches, values.get("r"), values.get("rate")
    if r is not None:
        if total - r < least:
            raise UsageError(f"r={r} of {total} tokens leaves fewer than {least}", where="--method")
        return int(total - r)
    return ceil(rate * total) if rate is not None else context.final_at(site)
