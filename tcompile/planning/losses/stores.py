"""What evaluations keep for later ones: tensors of runs by content, and what was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy.typing as npt

from tcompile.planning.losses.partial import Content

Array = npt.NDArray[Any]
K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were made, or asked for, last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        if key not in self._found:
            self._found[key] = make()
        self._found.move_to_end(key)
        while len(self._found) > self._most:
            self._found.popitem(last=False)
        return self._found[key]


class Values:
    """Tensors of runs by content, as many as fit into so many bytes.

    What an earlier evaluation left goes first. What this one took or left stays, even if later
    values of this one find no room: all of its runs come by again, and would push out each other's.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._bytes = self._now = 0
        self._found: OrderedDict[tuple[int, Content], tuple[Array, int]] = OrderedDict()

    def begin(self) -> None:
        """Begin another evaluation."""
        self._now += 1

    def __contains__(self, key: tuple[int, Content]) -> bool:
        return key in self._found

    def take(self, key: tuple[int, Content]) -> Array:
        """A value that is there: a run's tensor."""
        array, _ = self._found[key]
        self._found[key] = array, self._now
        self._found.move_to_end(key)
        return array

    def put(self, key: tuple[int, Content], array: Array) -> None:
        """Keep a tensor of a run, if there is room."""
        while self._found and self._bytes + array.nbytes > self.limit:
            oldest, (values, used) = next(iter(self._found.items()))
            if used == self._now:
                return
            del self._found[oldest]
            self._bytes -= values.nbytes
        if key not in self._found and self._bytes + array.nbytes <= self.limit:
            self._found[key] = array, self._now
            self._bytes += array.nbytes
