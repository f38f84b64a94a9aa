"""Dense against reduced on this machine: an artifact against the model it came from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tcompile.api.reference import dense_rival, find_dense, gone, normal_form, reduced_reference
from tcompile.artifact.directory import Artifact, load_artifact
from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.runtime.resident import measure_resident
from tcompile.runtime.timing import Benchmark, bench_models
from tcompile.targets.backends.cpu import on_cpu
from tcompile.targets.devices import HALF, ON_CPU


def bench(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    rounds: int = 50,
    threads: int | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Measure an artifact against the dense model it came from (or the one given): how long both
    take, and, of what is for a CPU, how much memory.

    An fp16 artifact is not built for a CPU, which would only emulate it: there, the fp32 reduced
    graph is made again and measured, so that like is compared with like. A source that computes in
    fp16 is compared in its fp32 normal form, and as it came apart from that. An artifact in int8 or
    bf16 is compared with the dense model in fp32 and, apart from that, in its own precision. All
    run in the runtime that the artifact is for, those for GPUs in ONNX Runtime.

    Raises `UsageError` when the dense model cannot be found.
    """
    opened = load_artifact(artifact)
    dense = find_dense(opened, against)
    if dense is None:
        raise UsageError(
            f"the dense model {gone(artifact)}; without it there is nothing to compare with",
            where=str(artifact),
            hint="give it as --against",
        )
    note = _note(opened)
    gpu = opened.manifest.target.runtime not in ON_CPU
    precision = opened.manifest.precision
    narrow = precision in HALF or (gpu and precision != "fp32")
    with ExitStack() as stack:
        reduced = (
            stack.enter_context(reduced_reference(opened, dense.path)) if narrow else opened.model
        )
        normal = stack.enter_context(normal_form(opened, dense.path))
        rival = stack.enter_context(dense_rival(opened, dense.path))
        manifest, target = opened.manifest, opened.manifest.target
        half = normal is not None and target.runtime != "openvino"
        flops = opened.manifest.flops
        measured = bench_models(
            normal or dense.path,
            reduced,
            rounds=rounds,
            threads=threads,
            note=note,
            progress=progress,
            source=dense.path if half else None,
            rival=rival,
            how=on_cpu(target.runtime, manifest.precision),
            precision=manifest.precision,
            flop_ideal=flops.dense / flops.reduced if flops.reduced else None,
        )
        if gpu or narrow:  # what runs here is not what was built
            return measured
        progress("measuring memory, each model in a process of its own")
        files = {"dense": normal or dense.path, "reduced": reduced, "rival": rival}
        how, found = on_cpu(target.runtime, manifest.precision), {}
        for name, path in files.items():
            way = how.exact if name == "dense" else how
            if path is not None:
                found[name] = measure_resident(
                    path, way, threads=measured.threads, batch=measured.batch
                )
        known = {name: one for name, one in found.items() if one is not None}
        return replace(measured, memory=known)


def _note(artifact: Artifact) -> str:
    target = artifact.manifest.target.name
    if artifact.manifest.target.runtime in ON_CPU:
        return ""
    what = "" if artifact.manifest.precision == "fp32" else " with the fp32 reduced graph"
    return f"measured on this CPU{what}; it says little about {target}"
