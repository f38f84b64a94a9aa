"""SCH2: tokens leave at a few depths, each time the same share of those that are left."""

from __future__ import annotations

from math import ceil

from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.counts import root_ceil
from tcompile.methods.schedulers.base import Place, Scheduler


def stages(
    kind: str = "attn", *, before: bool = False, fused: int = 0, whole: bool = False
) -> Scheduler:
    """At blocks L//4, L//2 and 3L//4.

    With `rate`, K = ceil(rate · tokens) stay at each; with --keep, ceil(T · keep^(i/3)) after the
    i-th.

    Args:
        kind: of the sites: attn or block.
        before: before those blocks, which is behind the ones before them.
        fused: tokens that are made of those that leave; they come on top of `rate`.
        whole: K = int(T · rate^i) of all T patches instead.
    """

    def run(context: Context, values: Values) -> list[Place]:
        total, found, blocks = context.shape.patches, [], depths(context.shape.blocks, before)
        count, rate = total, values.get("rate")
        for i, block in enumerate(blocks, 1):
            if rate is None:
                assert context.keep is not None
                leave = root_ceil(total, context.keep, i, len(blocks))
            else:
                kept = int(total * rate**i) if whole else ceil(rate * count)
                leave = max(kept, 1) + fused if kept < count else count
            if leave < count:
                site = context.site(block) if kind == "attn" else SiteName.of(kind, block)
                found.append(Place(site, leave))
                count = leave
        return found

    where = "before blocks" if before else "after the MLP of blocks"
    where = "before the MLP of blocks" if kind == "attn" else where
    return Scheduler(f"at three depths: {where} L//4, L//2, 3L//4", run)


def depths(blocks: int, before: bool = False) -> list[int]:
    """The blocks L//4, L//2, 3L//4, or those before them."""
    found = {i * blocks // 4 - before for i in (1, 2, 3)}
    return sorted(i for i in found if i >= 0) or [0]
