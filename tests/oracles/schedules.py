"""Numbers of tokens that leave at each site, computed from the papers in exact arithmetic.

Written apart from the planner, to check it.  All counts are of tokens other than the prefix.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil

from tests.oracles.methods import Reduction


def final_count(keep: str, patches: int) -> int:
    """ceil(keep * patches), `keep` being the decimal the user typed, taken exactly."""
    return ceil(Fraction(keep) * patches)


def _root_ceiling(keep: Fraction, patches: int, i: int, n: int) -> int:
    """ceil(patches * keep ** (i / n)), without floating point: the least k with k^n >= T^n R^i."""
    bound = Fraction(patches) ** n * keep**i
    return next(k for k in range(patches + 1) if Fraction(k) ** n >= bound)


def topk_keep(keep: str, patches: int, blocks: int, score: str = "cls") -> list[Reduction]:
    """All at once, after the attention of block floor(blocks / 4)."""
    count = final_count(keep, patches)
    return [] if count == patches else [Reduction(f"attn:{blocks // 4}", "topk", count, score)]


def evit_blocks(blocks: int) -> list[int]:
    """0-based blocks after whose attention EViT reduces: 3, 6, 9 of 12."""
    return sorted({blocks * i // 4 for i in (1, 2, 3)})


def evit_rate(rate: str, patches: int, blocks: int, score: str = "cls") -> list[Reduction]:
    """ceil(rate * T) best of the T that arrive, and the fused one, at each of EViT's blocks."""
    out, now = [], patches
    for block in evit_blocks(blocks):
        best = ceil(Fraction(rate) * now)
        if best < now and best + 1 < now:
            now = best + 1
            out.append(Reduction(f"attn:{block}", "fuse", now, score))
    return out


def evit_keep(keep: str, patches: int, blocks: int, score: str = "cls") -> list[Reduction]:
    """At EViT's n blocks ceil(T * keep^(i/n)) leave the i-th, the fused one included."""
    where = evit_blocks(blocks)
    out, now = [], patches
    for i, block in enumerate(where, 1):
        count = _root_ceiling(Fraction(keep), patches, i, len(where))
        if count < now:
            now = count
            out.append(Reduction(f"attn:{block}", "fuse", count, score))
    return out


def _merged(counts: list[int]) -> list[Reduction]:
    """Reductions from the count leaving each block, the first entry being what arrives at all."""
    pairs = enumerate(pairwise(counts))
    return [Reduction(f"attn:{i}", "tome", now) for i, (was, now) in pairs if now < was]


def tome_r(r: int, patches: int, blocks: int) -> list[Reduction]:
    """r merges in every block, never more than half of what arrives."""
    counts = [patches]
    for _ in range(blocks):
        counts.append(counts[-1] - min(r, counts[-1] // 2))
    return _merged(counts)


def tome_keep(keep: str, patches: int, blocks: int) -> list[Reduction]:
    """T - K merges spread evenly: after block l, T - round_half_up((l + 1) (T - K) / blocks)."""
    away = patches - final_count(keep, patches)
    counts = [patches]
    for block in range(blocks):
        rounded = (2 * (block + 1) * away + blocks) // (2 * blocks)
        counts.append(max(patches - rounded, counts[-1] - counts[-1] // 2))
    return _merged(counts)
