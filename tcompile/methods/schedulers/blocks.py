"""Schedules over the blocks of a model: once, at a few depths, in every block, by a published list,
or for a while: around blocks, inside attentions, until the last block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.schedulers.base import (
    Place,
    Scheduler,
    after_blocks,
    falling,
    half_up,
    inflected,
    root_ceil,
    scheduler,
    shares,
)


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
        total, blocks = context.shape.patches, depths(context.shape.blocks, before)
        count, rate, goals = total, values.get("rate"), list[tuple[SiteName, int]]()
        for i, block in enumerate(blocks, 1):
            if rate is None:
                assert context.keep is not None
                leave = root_ceil(total, context.keep, i, len(blocks))
            else:
                kept = int(total * rate**i) if whole else ceil(rate * count)
                leave = max(kept, 1) + fused if kept < count else count
            site = context.site(block) if kind == "attn" else SiteName.of(kind, block)
            goals.append((site, leave))
            count = min(count, leave)
        return falling(context, goals)

    where = "before blocks" if before else "after the MLP of blocks"
    where = "before the MLP of blocks" if kind == "attn" else where
    return Scheduler(f"at three depths: {where} L//4, L//2, 3L//4", run)


def depths(blocks: int, before: bool = False) -> list[int]:
    """The blocks L//4, L//2, 3L//4, or those before them."""
    found = {i * blocks // 4 - before for i in (1, 2, 3)}
    return sorted(i for i in found if i >= 0) or [0]


def single(kind: str = "attn", depth: Fraction = Fraction(1, 4), least: int = 1) -> Scheduler:
    """At one site: the first legal one from a depth on, or where `block` and `site` say.

    Args:
        kind: of the site: attn, block or output.
        depth: of the block, as a share of the blocks.
        least: tokens that `r` must leave.
    """

    def run(context: Context, values: Values) -> list[Place]:
        site = _site(context, values, kind, int(depth * context.shape.blocks))
        return falling(context, [(site, _keep(context, values, site, least))])

    block = f"({depth.numerator}·L)//{depth.denominator}" if depth != Fraction(1, 4) else "L//4"
    where = "at the output" if kind == "output" else f"at {kind}:{block}"
    return Scheduler(f"once, {where}", run)


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
        start = int(first * blocks)
        sites = [context.site(i) for i in range(start, blocks)]
        r, inflect = values[key], values.get("inflect", Fraction(0))
        if r is None:
            n = max(len(sites) - 1, 1)
            weights = [1 - inflect + 2 * inflect * Fraction(i, n) for i in range(len(sites))]
            even = all(w == 0 for w in weights)
            goals = shares(total, context.final, [1] * len(sites) if even else weights)
            return after_blocks(context, goals, start, half=half)
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
            goals.append(count)
        return after_blocks(context, goals, half=half)

    return Scheduler("in every block, the same share of those that are left", run)


@scheduler("none in the first max(3, ceil(0.15·L)) blocks, then a straight line")
def ramp(context: Context, values: Values) -> list[Place]:
    """None in the first max(3, ceil(0.15 L)) blocks, then linear to the final count."""
    blocks = context.shape.blocks
    start = min(max(3, ceil(Fraction(15, 100) * blocks)), blocks - 1)
    goals = shares(context.shape.patches, context.final, [1] * (blocks - start))
    return after_blocks(context, goals, start)


def _times_l(share: Fraction) -> str:
    return f"{'' if share.numerator == 1 else share.numerator}L//{share.denominator}"


#: Patch tokens after each block.
Counts = Sequence[int]
#: Patches of the models that lists were published for.
_PUBLISHED = 196


def leaving(key: str, tables: Mapping[str, Sequence[Sequence[int]]]) -> Scheduler:
    """Numbers of tokens that leave each block, from a list for the model's depth.

    Args:
        key: the parameter that names the table.
        tables: name → lists, each for another depth.
    """
    return _published("in every block, by a published list", key, tables, _after)


def counted(key: str, tables: Mapping[str, Counts]) -> Scheduler:
    """Counts after each block as a table says, made for exactly as many blocks and tokens."""
    words = "in every block, by a published table"
    return _published(words, key, {k: [counts] for k, counts in tables.items()}, None)


def _published(
    words: str,
    key: str,
    tables: Mapping[str, Sequence[Sequence[int]]],
    after: Callable[[int, Sequence[int]], Counts] | None,
) -> Scheduler:
    """By a list for the model's depth; under --keep, shared out over the depth as in the first one.

    Args:
        after: (patches, list) → counts after each block, where halves merge; None: the list has
            them, for 196 patches.
    """
    default = next(iter(tables))

    def run(context: Context, values: Values) -> list[Place]:
        name, blocks, total = values[key], context.shape.blocks, context.shape.patches
        lists = {len(one): one for one in tables[name or default]}
        if name is None:
            first = next(iter(lists.values()))
            counts = after(_PUBLISHED, first) if after else first
            return along(context, counts, half=after is not None)
        if blocks not in lists:
            raise UsageError(
                f"{context.method}:{name} was published for {' or '.join(map(str, lists))} "
                f"blocks, this model has {blocks}",
                where="--method",
                hint="say --keep R in its place",
            )
        if after is not None:
            return after_blocks(context, after(total, lists[blocks]), half=True)
        if total != _PUBLISHED:
            raise UsageError(
                f"{context.method}:{name} was published for {_PUBLISHED} patches, "
                f"this model has {total}",
                where="--method",
                hint="say --keep R in its place",
            )
        return after_blocks(context, lists[blocks])

    def notes(context: Context, values: Values) -> tuple[str, ...]:
        text = (
            f"what leaves is shared out over the depth as in {context.method}:{key}={default}, "
            "scaled to --keep"
        )
        return (text,) if values[key] is None else ()

    return Scheduler(words, run, notes)


def along(context: Context, counts: Counts, *, half: bool) -> list[Place]:
    """Down to exactly what --keep says, what leaves shared out over the depth as in a list."""
    blocks, patches, total = context.shape.blocks, context.shape.patches, _PUBLISHED
    removed = [Fraction(0), *(Fraction(total - c, total - counts[-1]) for c in counts)]
    goals: list[int] = []
    for block in range(blocks):
        at = Fraction((block + 1) * len(counts), blocks)
        low = int(at)
        high = min(low + 1, len(counts))
        share = removed[low] + (removed[high] - removed[low]) * (at - low)
        goals.append(patches - half_up((patches - context.final) * share))
    return after_blocks(context, goals, half=half)


def _after(total: int, r: Sequence[int]) -> list[int]:
    """Counts from what leaves; at most half of the tokens find a partner."""
    found, count = [], total
    for one in r:
        count -= min(one, count // 2)
        found.append(count)
    return found


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

    shrinking = ", fewer every L//4 blocks" if powers else ""
    return Scheduler(f"around every block from {_times_l(start)} on{shrinking}; all come back", run)


def _larger_cells(context: Context, frames: int, keep: int) -> str:
    """The smallest cells of which so many tokens can be kept."""
    h, w = context.grid[-2:]
    for side in range(2, max(h, w) + 1):
        if 1 <= frames * (h // side) * (w // side) <= keep:
            return f"say --method {context.method}:sx={side},sy={side}"
    return "keep more tokens"


@scheduler("inside every attention; all come back before the residual add")
def inside(context: Context, values: Values) -> list[Place]:
    """Inside every attention that takes it: T − int(T · ratio) tokens run through it."""
    total, share = context.shape.patches, values["ratio"]
    h, w = context.grid[-2:]
    cells = total // (h * w) * (h // values["sy"]) * (w // values["sx"])
    found: list[Place] = []
    for block in context.legal("inside"):
        site = SiteName.of("inside", block)
        keep = context.final_at(site) if share is None else total - int(total * share)
        if keep < max(cells, 1):
            raise UsageError(
                f"{context.method} keeps one token of each cell, {cells} of {total}, not {keep}",
                where="--method",
                hint=_larger_cells(context, total // (h * w), keep),
            )
        found.append(Place(site, keep))
    if not found:
        raise UsageError(
            "tokens can be merged inside no attention of this model",
            where="--method",
            hint="`tcompile inspect` says why",
        )
    return [place for place in found if place.keep < total]


@scheduler("after every block but the last two; all come back before the last")
def until_last(context: Context, values: Values) -> list[Place]:
    """r in every block (one more in the first), all back before the last one (LLF)."""
    total, blocks = context.shape.patches, context.shape.blocks
    if blocks < 3:
        raise UsageError(f"{context.method} needs 3 blocks or more, not {blocks}", where="--method")
    steps, r = blocks - 2, values["r"]
    if r is None:
        if context.final == total:
            return []
        counts = shares(total - 1, context.final, [1] * steps)
    else:
        counts = [total - 1 - r * (i + 1) for i in range(steps)]
    if counts[-1] < 1:
        raise UsageError(f"r={r} in {steps} blocks leaves none of {total} tokens", where="--method")
    goals = ((SiteName.of("block", block), keep) for block, keep in enumerate(counts))
    return [*falling(context, goals), Place(SiteName.of("block", steps), total)]
