"""Settings of one build, from its options to the last stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.targets.devices import ROUNDED

if TYPE_CHECKING:
    from tcompile.passes.lower.token_ops import TokenOpsChoice
    from tcompile.passes.runner import Dump
    from tcompile.planning.front import FrontPlan
    from tcompile.planning.request import Request
    from tcompile.targets import Target
    from tcompile.targets.backends.base import BatchSizes
    from tcompile.targets.compatibility import Compatibility
    from tcompile.targets.devices import Precision


@dataclass(frozen=True)
class Job:
    """A build: the model, the target, and how it is built.

    Attributes:
        path: the source file.
        request: what was asked of the tokens.
        target, precision, token_ops: what it is built for.
        batches: that an engine of a free batch takes.
        workspace: MiB that an engine's kernels may use while they run; None: all there is.
        compatibility: what an engine is to be compatible with; None: nothing was asked.
        force: emit also what is not faster than dense.
        refine: plan again from measurements.
        keep_failed: write also what failed a check.
        dump: takes the graph after each pass.
        why_precision: what the precision was weighed against; empty where nobody left it open.
        front: the plans that were looked at for that, in all precisions.
    """

    path: Path
    request: Request
    target: Target
    precision: Precision
    token_ops: TokenOpsChoice
    batches: BatchSizes
    workspace: int | None = None
    compatibility: Compatibility | None = None
    force: bool = False
    refine: bool = False
    keep_failed: bool = False
    dump: Dump | None = None
    why_precision: str = ""
    front: tuple[FrontPlan, ...] = ()

    @property
    def graph_precision(self) -> Precision:
        """Return the precision of the lowered graph: on a CPU int8 is made of its file, and a
        runtime that rounds does so while it runs."""
        return "fp32" if self.target.on_cpu and self.precision in ROUNDED else self.precision

    @property
    def rounds(self) -> bool:
        """Tell whether what is shipped is not run as ONNX Runtime runs the lowered graph, on a
        CPU: it is judged on images then."""
        return self.target.on_cpu and (
            self.precision in ROUNDED or self.target.runtime == "openvino"
        )
