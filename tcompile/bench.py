"""Dense against reduced on this machine: an artifact against the model it came from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from tcompile.artifact import Artifact, load_artifact
from tcompile.errors import UsageError
from tcompile.timing import Benchmark, bench_models
from tcompile.verify.reference import find_dense, reduced_reference


def bench(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    rounds: int = 50,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Benchmark:
    """Measure an artifact against the dense model it came from (or the one given).

    An fp16 artifact is not built for a CPU, which would only emulate it: there, the fp32 reduced
    graph is made again and measured, so that like is compared with like.

    Raises `UsageError` when the dense model cannot be found.
    """
    opened = load_artifact(artifact)
    dense = find_dense(opened, against)
    if dense is None:
        raise UsageError(
            f"the dense model it came from, '{opened.manifest.source.file}', is not there any more",
            where=str(artifact),
            hint="give it with --against",
        )
    note = _note(opened)
    fp16 = opened.manifest.precision == "fp16"
    with reduced_reference(opened, dense.path) if fp16 else nullcontext(opened.model) as reduced:
        flops = opened.manifest.flops
        return bench_models(
            dense.path, reduced, rounds=rounds, threads=threads, note=note, progress=progress,
            flop_ideal=flops.dense / flops.reduced if flops.reduced else None,
        )  # fmt: skip


def _note(artifact: Artifact) -> str:
    target = artifact.manifest.target.name
    if target == "cpu":
        return ""
    what = " with the fp32 reduced graph" if artifact.manifest.precision == "fp16" else ""
    return f"measured on this CPU{what}; it says little about {target}"
