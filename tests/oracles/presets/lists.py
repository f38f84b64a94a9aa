"""Numbers of tokens that leave each block, as published; all exact."""

from __future__ import annotations

from fractions import Fraction

#: DiffRate: tokens, CLS included, after pruning and after merging, block by block.
DIFFRATE = {
    "deit-s": (
        [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
        [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
    ),
    "deit-b": (
        [197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3],
        [197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3],
    ),
}
#: PYRA: merges of each of 12 blocks.
PYRA = {"low": [16] * 11 + [10], "high": [40, 34, 30, 24, 18, 14, 10, 8, 4, 4, 3, 3]}


def after(removals: list[int], patches: int) -> list[int]:
    """Return what is left after each block when ToMe merges so many, never more than half."""
    counts = []
    for r in removals:
        patches -= min(r, patches // 2)
        counts.append(patches)
    return counts


def decreasing(r: int, blocks: int) -> list[int]:
    """ToMe's r_i with inflection −1: from 2r in the first block to 0 in the last."""
    return [int(2 * r - Fraction(2 * r * i, blocks - 1)) for i in range(blocks)]


def inflected(r: int, inflect: Fraction, blocks: int) -> list[int]:
    """ToMe's r_i: int(low + i·step), low = int(r (1 − inflect)), high = 2r − low."""
    low = int(r * (1 - inflect))
    step = Fraction(2 * r - 2 * low, blocks - 1)
    return [int(low + i * step) for i in range(blocks)]


def pitome(ratio: str, patches: int, blocks: int) -> list[int]:
    """Return what is left after each block: floor(T − T·ratio) merge."""
    counts = []
    for _ in range(blocks):
        patches -= int(patches - patches * Fraction(ratio))
        counts.append(patches)
    return counts
