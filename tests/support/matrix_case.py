"""One case of the acceptance matrix, and one export of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TORCH = ("dynamo", "torchscript")
TORCH_AND_HF = ("dynamo", "torchscript", "transformers")
BOTH = ("sdpa", "eager")
#: What torch 2.15 with onnxscript 0.7 can write; for 17, dynamo's 18 is lowered.
OPSETS: Mapping[str, tuple[int, ...]] = {
    "dynamo": (17, 18, 20, 23, 25),
    "torchscript": (17, 18, 20),
    "transformers": (17, 18, 20, 23, 25),
}
BATCHES: tuple[int | str, ...] = (1, 4, "dynamic")


@dataclass(frozen=True)
class Case:
    """One model of the acceptance matrix.

    Attributes:
        id: short, unique, fit for a test id.
        family: the entry of the acceptance list it stands for.
        source: SOURCE string, loaded with random weights.
        image_size: pixels.
        overrides: see `load_source`.
        prefix: tokens that stay (CLS, distillation, registers).
        patches: patch tokens.
        exporters: those that must give a right file.
        attentions: spellings that the model offers; (None,) where it offers no choice.
        notes: what is special about it.
        refused: methods that do not exist for it, with words that the refusal has.
        few: how many exports of it are enough unless all are asked for; 0: one of each kind.
    """

    id: str
    family: str
    source: str
    image_size: int
    overrides: Mapping[str, Any]
    prefix: int
    patches: int
    exporters: tuple[str, ...] = TORCH
    attentions: tuple[str | None, ...] = BOTH
    notes: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    few: int = 0

    @property
    def tokens(self) -> int:
        """Prefix and patch tokens."""
        return self.prefix + self.patches


@dataclass(frozen=True)
class Variant:
    """Form in which a case is exported."""

    exporter: str
    attention: str | None
    opset: int
    batch: int | str
    id: str = field(init=False)

    def __post_init__(self) -> None:
        parts = (self.exporter, self.attention or "mha", str(self.opset), f"b{self.batch}")
        object.__setattr__(self, "id", "-".join(parts))
