"""The report of an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Dims = tuple["int | str", ...]


@dataclass(frozen=True)
class ExportReport:
    """A written ONNX file and how it came about.

    Attributes:
        path: the .onnx file.
        files: every file written, external data included.
        source: the SOURCE string.
        exporter: "dynamo", "torchscript" or "transformers".
        opset: of the default domain, as written in the file.
        attention: "sdpa" or "eager"; None where the model offers no choice.
        inputs: dims by name; the free batch is called "batch".
        outputs: dims by name.
        max_abs_error: largest difference from PyTorch in ONNX Runtime; None when not checked.
        notes: what was changed or worked around, in words.
    """

    path: Path
    files: tuple[Path, ...]
    source: str
    exporter: str
    opset: int
    attention: str | None
    inputs: dict[str, Dims]
    outputs: dict[str, Dims]
    max_abs_error: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            **asdict(self),
            "path": str(self.path),
            "files": [str(f) for f in self.files],
            "inputs": {k: list(v) for k, v in self.inputs.items()},
            "outputs": {k: list(v) for k, v in self.outputs.items()},
            "notes": list(self.notes),
        }
