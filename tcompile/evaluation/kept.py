"""Overlap of the sets of kept tokens: with another run, and of neighbouring frames of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.evaluation.collector import Column
from tcompile.evaluation.findings import Overlap
from tcompile.runtime.token_outputs import is_bookkeeping, token_overlap

Array = npt.NDArray[Any]
NEXT_FRAME = "the next frame"


class Overlaps:
    """Collects overlaps by what with; see `tcompile.runtime.token_outputs.token_overlap`."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._last: dict[str, Array] = {}
        self._clip = ""

    def add(self, between: str, one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
        """Take outputs of two runs on the same samples."""
        found = token_overlap(one, other)
        if found is not None:
            self._columns.setdefault(between, Column()).add(found)

    def add_frames(self, clips: Sequence[str], outputs: Mapping[str, Array]) -> None:
        """Take outputs of samples one after another, each of a clip or of none."""
        told = {name: array for name, array in outputs.items() if is_bookkeeping(name)}
        names = [self._clip, *clips] if self._last else list(clips)
        whole = {
            name: np.concatenate([self._last[name], array]) if self._last else array
            for name, array in told.items()
        }
        pairs = [i for i in range(len(names) - 1) if names[i] and names[i] == names[i + 1]]
        if pairs:
            at = np.asarray(pairs)
            self.add(
                NEXT_FRAME,
                {name: array[at] for name, array in whole.items()},
                {name: array[at + 1] for name, array in whole.items()},
            )
        self._clip = clips[-1] if clips else ""
        self._last = {name: array[-1:] for name, array in told.items()}

    def found(self) -> tuple[Overlap, ...]:
        """All overlaps so far."""
        return tuple(
            Overlap(name, float(c.values.mean()), float(c.values.min()), len(c.values))
            for name, c in self._columns.items()
        )
