"""Which TensorRT a JetPack has, and what that TensorRT's trtexec understands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from tcompile.targets.devices import DEVICES, Target


@dataclass(frozen=True)
class JetPack:
    """One row of the JetPack matrix.

    Attributes:
        jetpack, l4t, cuda, tensorrt: version strings; empty where not known.
        families: which Jetsons it runs on: `orin`, `thor`.
        supported: whether our models can be built there; `note` says why not.
        confidence: `read` in `source`, or `recalled` (general knowledge, not checked again).
    """

    jetpack: str
    l4t: str
    cuda: str
    tensorrt: str
    families: tuple[str, ...]
    supported: bool
    confidence: str
    source: str
    note: str

    @property
    def trt_version(self) -> tuple[int, int]:
        """TensorRT's (major, minor)."""
        major, minor, *_ = self.tensorrt.split(".")
        return int(major), int(minor)


@lru_cache(maxsize=1)
def all_jetpacks() -> tuple[JetPack, ...]:
    """The whole matrix, oldest first."""
    rows = json.loads((DEVICES / "_jetpack.json").read_text(encoding="utf-8"))["matrix"]
    return tuple(JetPack(**{**row, "families": tuple(row["families"])}) for row in rows)


def jetpacks_for(target: Target) -> tuple[JetPack, ...]:
    """The supported JetPacks of a Jetson target, oldest first; none for another target."""
    return tuple(row for row in all_jetpacks() if row.supported and row.jetpack in target.jetpacks)
