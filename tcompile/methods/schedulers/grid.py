"""Schedules of what the grid of the patches allows: windows, rows, cells, lines, frames."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, prod

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.schedulers.base import Place, falling, half_up, root_ceil, scheduler
from tcompile.methods.schedulers.blocks import depths

OUTPUT = SiteName("output")


@scheduler("in the first block and in block L//3")
def local_then_global(context: Context, values: Values) -> list[Place]:
    """ALGM: 2 x 2 windows become one token each in the first block, pairs merge in the fifth."""
    total, blocks = context.shape.patches, context.shape.blocks
    final = values["total"] or context.final
    if final >= total:
        return []
    frames, (h, w) = prod(context.grid[:-2]), context.grid[-2:]
    most, windows = frames * (h // 2) * (w // 2), values["local"]
    if windows is None:
        # Half of what leaves, or as much more as halving the rest later needs.
        windows = max((total - final) // 6, -((2 * final - total) // 3))
    left = total - 3 * windows
    if windows > most or left < final or final < left - left // 2:
        raise UsageError(
            f"{context.method} merges up to {most} windows of 2 x 2 and then half of what is "
            f"left: {final} of {total} tokens is out of reach with {windows} windows",
            where="--keep" if context.keep is not None else "--method",
        )
    sites = [context.site(0), context.site(max(blocks // 3, 1))]
    return falling(context, zip(sites, (left, final), strict=True))


@scheduler("once, at the output")
def rows(context: Context, values: Values) -> list[Place]:
    """At the output, whole rows of the grid where `unit` is row."""
    total, keep = context.shape.patches, context.final_at(OUTPUT)
    if values["unit"] == "row":
        width = context.grid[-1]
        assert context.keep is not None
        keep = ceil(context.keep * (total // width)) * width
    return falling(context, [(OUTPUT, keep)])


@scheduler("once, at the output")
def dominant(context: Context, values: Values) -> list[Place]:
    """At the output: `dominant` tokens, CLS among them, and `contextual` ones (VisionZip)."""
    best, rest = values["dominant"], values["contextual"]
    if best is None:
        keep = context.final_at(OUTPUT)
    else:
        # 162 of 192 = 27/32 are dominant where published.
        rest = half_up(Fraction(5 * best, 27)) if rest is None else rest
        keep = best - context.has_cls + rest
    if (rest or 0) >= keep:
        raise UsageError(
            f"{rest} contextual tokens of {keep} leave no dominant one", where="--method"
        )
    return falling(context, [(OUTPUT, keep)])


@scheduler("once, at the output")
def cells(context: Context, values: Values) -> list[Place]:
    """At the output, one token for each cell of `side` x `side`; the nearest to --keep."""
    side = values["side"]
    frames, (h, w) = prod(context.grid[:-2]), context.grid[-2:]
    left = {s: frames * ceil(h / s) * ceil(w / s) for s in range(1, max(h, w) + 1)}
    if side is None:
        side = min(left, key=lambda s: (abs(left[s] - context.final), s))
    keep = left.get(side, frames)
    return falling(context, [(OUTPUT, keep)])


@scheduler("columns at blocks L//4, L//2, 3L//4, rows in the blocks after them")
def lines(context: Context, values: Values) -> list[Place]:
    """ATME: columns, in the next block rows, at three depths; h' · w' is the least ≥ keep · T."""
    at = lined(context.shape.blocks)
    frames, (h, w) = prod(context.grid[:-2]), context.grid[-2:]
    across, down = len(at[0::2]), len(at[1::2])
    sizes = [
        (abs(Fraction(a, h) - Fraction(b, w)), a, b)
        for a in range(ceil(h / 2**down), h + 1)
        for b in range(ceil(w / 2**across), w + 1)
        if frames * a * b >= context.final
    ]
    # A grid of about the same shape, within a line or so, before the smallest one.
    near = Fraction(3, 2 * min(h, w))
    _, fewer, narrower = min(sizes, key=lambda s: (s[0] > near, s[1] * s[2], s[0]))
    heights = [root_ceil(h, Fraction(fewer, h), i + 1, down) for i in range(down)]
    widths = [root_ceil(w, Fraction(narrower, w), i + 1, across) for i in range(across)]
    goals: list[tuple[SiteName, int]] = []
    for i, block in enumerate(at):
        (h, w) = (heights[i // 2], w) if i % 2 else (h, widths[i // 2])
        goals.append((context.site(block), frames * h * w))
    return falling(context, goals)


def lined(blocks: int) -> list[int]:
    """The blocks where lines merge: columns in the first of them, rows in the second, and so on."""
    return sorted({i for d in depths(blocks) for i in (d, d + 1) if i < blocks})


@scheduler("once, at the output, every fourth frame whole")
def frames(context: Context, values: Values) -> list[Place]:
    """DyCoke: the first frame of four whole, K = ceil(rate · S) of the S tokens of the others."""
    total, grid = context.shape.patches, context.grid
    if len(grid) != 3:
        raise UsageError(
            f"{context.method} needs the frames of a video, which this model does not take",
            where="--method",
        )
    size, whole = grid[1] * grid[2], ceil(grid[0] / 4)
    others = grid[0] - whole
    if values["rate"] is not None:
        each = ceil(values["rate"] * size)
    else:
        each = max(ceil(Fraction(context.final - whole * size, max(others, 1))), 0)
    if others and not each:
        raise UsageError(
            f"{context.method} keeps every fourth frame whole and a token of the "
            f"others at least, {whole * size + others} of {total}, not "
            f"{context.final}",
            where="--keep",
        )
    keep = whole * size + others * each
    return falling(context, [(OUTPUT, keep)])
