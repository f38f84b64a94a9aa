"""The images that lose most, a few of any number."""

from __future__ import annotations

import heapq
from itertools import count

from tcompile.evaluation.findings import Damage


class Worst:
    """Keeps the most damaged of the images that it is shown; of equals, the first."""

    def __init__(self, most: int) -> None:
        self._most, self._number = most, count()
        self._heap: list[tuple[float, int, Damage]] = []

    def wants(self, damage: float) -> bool:
        """Whether an image with this damage would be kept; one without any never is."""
        full = len(self._heap) >= self._most
        return damage > 0 and self._most > 0 and (not full or damage > self._heap[0][0])

    def add(self, damage: float, what: Damage) -> None:
        """Show an image."""
        if self.wants(damage):
            push = heapq.heappushpop if len(self._heap) >= self._most else heapq.heappush
            push(self._heap, (damage, -next(self._number), what))

    def found(self) -> tuple[Damage, ...]:
        """The images kept, the worst first."""
        return tuple(what for _, _, what in sorted(self._heap, key=lambda x: x[:2], reverse=True))
