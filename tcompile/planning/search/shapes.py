"""Shapes of schedules: how tokens leave over the depth, in four numbers.

A shape is tried on images as a whole, since losses of single steps do not add up: where tokens
merge, many small steps lose far less than one large one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from tcompile.methods.context import SiteRule


@dataclass(frozen=True)
class Shape:
    """Steps in blocks `first`, `first + stride`, … `last`, the i-th of m down to
    N − (N − final) · (i/m)^bend tokens.

    Attributes:
        bend: below 1, more leave early; above 1, late.
    """

    first: int
    last: int
    bend: float = 1.0
    stride: int = 1


@dataclass(frozen=True)
class Step:
    """One step of a method: its place among the methods weighed, the site's place among the
    method's sites, and the tokens behind it, prefix included."""

    method: int
    site: int
    after: int


Steps = tuple[Step, ...]


@dataclass(frozen=True)
class Room:
    """The sites of a method, and the counts of tokens that it may leave there.

    Attributes:
        method: its place among the methods weighed.
        sites: in the order in which they run.
        counts: ascending, prefix included; the last is the dense model's.
        prefix, blocks: of the model.
    """

    method: int
    sites: tuple[SiteRule, ...]
    counts: tuple[int, ...]
    prefix: int
    blocks: int

    @cached_property
    def by_block(self) -> dict[int, int]:
        """The first site of each block that has one. What leaves at the output saves little: it is
        the last block of methods that have no other site."""
        found: dict[int, int] = {}
        for i, rule in enumerate(self.sites):
            if rule.name.block is not None:
                found.setdefault(rule.name.block, i)
        return found or {self.blocks - 1: 0}

    def steps(self, shape: Shape, final: int) -> Steps | None:
        """The steps of a shape that ends with `final` tokens or the least count from there on; None
        where the method cannot in so few steps."""
        blocks = [b for b in range(shape.first, shape.last + 1, shape.stride) if b in self.by_block]
        count = tokens = self.counts[-1]
        found: list[Step] = []
        for i, block in enumerate(blocks, 1):
            at = self.by_block[block]
            goal = tokens - (tokens - final) * (i / len(blocks)) ** shape.bend
            after = self.reached(self.sites[at], count, goal)
            if after is not None:
                found.append(Step(self.method, at, after))
                count = after
        if (
            not found
            or self.reached(self.sites[found[-1].site], tokens, final, limit=False) != count
        ):
            return None
        return tuple(found)

    def reached(
        self, rule: SiteRule, before: int, goal: float, *, limit: bool = True
    ) -> int | None:
        """The least count ≥ `goal` that a step from `before` tokens may leave; None: none does.

        Args:
            limit: whether a step is bound by the share that may leave at once.
        """
        least = max(goal, rule.least)
        if limit and rule.most_dropped is not None:
            least = max(least, before - int(rule.most_dropped * (before - self.prefix)))
        for count in self.counts[bisect_left(self.counts, math.ceil(least - 1e-9)) :]:
            if count >= before:
                return None
            if (count - self.prefix) % rule.granularity == 0:
                return count
        return None


def first_shapes(blocks: int) -> Iterator[Shape]:
    """The shapes to begin with: over the whole depth, its first half, its middle, and at once at a
    quarter of the depth."""
    last, quarter = blocks - 1, blocks // 4
    for first, end in ((0, last), (0, blocks // 2), (quarter, last), (quarter, blocks // 2)):
        yield Shape(first, end)
    yield Shape(quarter, quarter)


def neighbours(shape: Shape, blocks: int) -> Iterator[Shape]:
    """Shapes that differ in one number: a block or an eighth of the depth earlier or later, more
    bent, less bent, every second block."""
    far = max(blocks // 8, 1)
    for move in dict.fromkeys((-1, 1, -far, far)):
        for other in (
            replace(shape, first=shape.first + move),
            replace(shape, last=shape.last + move),
        ):
            if 0 <= other.first <= other.last < blocks:
                yield other
    for bend in (0.7, 1.4):
        if 0.4 < shape.bend * bend < 2.5 and shape.first < shape.last:
            yield replace(shape, bend=round(shape.bend * bend, 3))
    if shape.last - shape.first >= 2:
        yield replace(shape, stride=1 if shape.stride > 1 else 2)
