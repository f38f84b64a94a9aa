"""What collects figures of one output, batch after batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tcompile.data.base import Label
from tcompile.evaluation.findings import OutputFindings

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """Outputs of both models on the same samples.

    Attributes:
        ids, labels: of the samples; None: no label.
        dense, reduced: outputs by name, samples first; of the reduced model also what tells of its
            tokens. Where there is no dense model, both are the same.
    """

    ids: Sequence[str]
    labels: Sequence[Label | None]
    dense: Mapping[str, Array]
    reduced: Mapping[str, Array]

    @property
    def alone(self) -> bool:
        """Tell whether there is no dense model to compare with."""
        return self.dense is self.reduced


#: Said of an output whose figures are all of a comparison.
NO_DENSE = "its figures are comparisons with the dense model, which is not there"


class Collector(Protocol):
    """Collects figures of one output. Holds a few numbers of each image and none of its outputs,
    but for embeddings."""

    def add(self, batch: Batch) -> None:
        """Take the outputs of some samples."""

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""


class Column:
    """A number of each image, as it comes."""

    def __init__(self, dtype: type[np.generic] = np.float64) -> None:
        self._parts: list[Array] = []
        self._dtype = dtype

    def add(self, values: Array) -> None:
        """Take those of some images."""
        self._parts.append(np.asarray(values, self._dtype))

    @property
    def values(self) -> Array:
        """Those of all images."""
        return np.concatenate(self._parts) if self._parts else np.empty(0, self._dtype)
