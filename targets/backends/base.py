"""What every backend gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tcompile.errors import UsageError


@dataclass(frozen=True)
class FusedAttention:
    """How many attention layers a compiled engine runs as one fused kernel.

    Attributes:
        expected: attention layers in the model that ought to be fused.
        found: fused attention kernels in the engine.
        missing: names of the attention layers (their Softmax or Attention node) without one.
    """

    expected: int
    found: int
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every expected attention is fused."""
        return not self.missing and self.found >= self.expected

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON data."""
        return {"expected": self.expected, "found": self.found, "missing": list(self.missing)}


@dataclass(frozen=True)
class Emitted:
    """What a backend wrote for a target.

    Attributes:
        files: paths relative to the artifact directory.
        fused: fused attention, where an engine was built and could be looked into.
        versions: version of each backend that took part, by package name.
        notes: sentences for the manifest and for people.
    """

    files: tuple[str, ...] = ()
    fused: FusedAttention | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """A model input or output: dtype as numpy names it, symbolic dims as strings."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine with a symbolic batch is built for."""

    smallest: int = 1
    typical: int = 1
    largest: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.typical <= self.largest:
            raise UsageError(
                f"batch sizes {self.smallest}, {self.typical}, {self.largest} are not 1 <= "
                "smallest <= typical <= largest",
                where="batch",
            )
