"""The batch sizes that an engine is built for, as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.core.errors import UsageError
from tcompile.core.graph import batch_dim, free_names
from tcompile.targets.backends.base import Batch

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

#: What is said of sizes on a target that takes any.
UNBOUND = "batch sizes bound nothing on this target, which runs any batch; they are recorded"


@dataclass(frozen=True)
class BatchSizes:
    """`--min-batch`, `--opt-batch`, `--max-batch` and `--batch`.

    Attributes:
        smallest, typical, largest: None where not asked for.
        batch: images in a run, which is planned and measured with.
    """

    smallest: int | None = None
    typical: int | None = None
    largest: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        _ = self.settled  # Raises before anything is read.

    @property
    def asked(self) -> dict[str, int]:
        """Option → size, those asked for."""
        every = {
            "--min-batch": self.smallest,
            "--opt-batch": self.typical,
            "--max-batch": self.largest,
        }
        return {option: size for option, size in every.items() if size is not None}

    @property
    def settled(self) -> Batch:
        """All three. Raises `UsageError` where they are not in order."""
        return Batch.asked(self.smallest, self.typical, self.largest, self.batch)

    def check(self, graph: gs.Graph, where: str | Path) -> None:
        """Raise `UsageError` for sizes that a model of a fixed batch does not have."""
        if free_names(graph):
            return
        fixed = batch_dim(graph)
        for option, size in self.asked.items():
            if size != fixed:
                shapes = ", ".join(f"'{t.name}' {list(t.shape)}" for t in graph.inputs)
                raise UsageError(
                    f"{option} {size} needs a model with a free batch; this one runs {fixed} at a "
                    f"time, inputs {shapes}",
                    where=str(where),
                    hint="export it with a free batch (tcompile export --batch dynamic)",
                )
