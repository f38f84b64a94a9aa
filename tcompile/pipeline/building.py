"""Build: read → plan → reduce → lower → emit → measure → write, again where it is off.

From `emit` on, everything works from files: the graphs are gone.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.artifact.directory import Draft, new_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.builder.attempts import (
    ATTEMPTS,
    Attempt,
    attempt_of,
    better,
    dense_instead,
    kept_by_force,
    next_request,
    on_target,
)
from tcompile.builder.checks import evidence_of, measure
from tcompile.builder.emit import (
    Models,
    emit_model,
    judge_models,
    manifest_of,
    timed_against,
    write_models,
)
from tcompile.builder.job import Job
from tcompile.builder.on_images import looking_at
from tcompile.builder.pictures import shown_of
from tcompile.builder.polygraphy import write_checks
from tcompile.builder.rounded import round_models
from tcompile.core.drafts import scratch
from tcompile.core.errors import FailedBuildError, UsageError
from tcompile.core.graph import is_const, nbytes
from tcompile.core.model_files import describe_source
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.passes.lower import lower
from tcompile.passes.lower.int8 import check_size
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.passes.runner import Dump
from tcompile.pipeline.reading import read_asked
from tcompile.pipeline.reducing import apply_asked, planned_for, weigh_precisions, without_images
from tcompile.planning.memory import memory_plan
from tcompile.planning.precisions import AUTO_PRECISION, check_weighable
from tcompile.planning.request import NO_METHOD, Request
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport
from tcompile.report.build_page import page_of
from tcompile.report.shown import Shown
from tcompile.report.token_maps import write_trace
from tcompile.targets import load_target
from tcompile.targets.backends import check_runtime
from tcompile.targets.backends.base import BatchSizes, checked_workspace
from tcompile.targets.compatibility import checked_compatibility
from tcompile.targets.devices import ON_IMAGES
from tcompile.verify.owners import Owners

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tcompile.planning.request import Asked


#: Seconds that both models are timed for at least where milliseconds were promised.
_SECONDS = 3.0


def build(
    model: str | Path,
    *,
    target: str,
    precision: str | None = None,
    token_ops: str | None = None,
    output: str | Path | None = None,
    force: bool = False,
    refine: bool = False,
    min_batch: int | None = None,
    opt_batch: int | None = None,
    max_batch: int | None = None,
    workspace: int | None = None,
    version_compatible: bool = False,
    exclude_lean_runtime: bool = False,
    hardware_compatibility_level: str | None = None,
    keep_failed: bool = False,
    dump: str | Path | None = None,
    progress: Progress = silent,
    **asked: Unpack[Asked],
) -> Path:
    """Compile a model for a target and write the artifact; returns its directory.

    The build is what was asked for. Only where the target's runtime runs here, and the reduced
    model is measured to be no faster, the artifact holds the dense one: its manifest has
    `emitted == "dense"`, and says why.

    Args:
        precision: `fp32`, `fp16`, `int8`; on a GPU also `mixed` (fp16, but fp32 where values leave
            its range on images) and, by compute capability, `bf16` and `fp8`; in OpenVINO `bf16`;
            the target's own by default. `auto`, on a CPU: the one in which less is lost within the
            latency, or which is faster within the drop.
        token_ops: `native`, `plugin` or `aot`; the target's own by default.
        output: the directory; by default `MODEL-TARGET` beside the model.
        force: keep a reduced model that is not faster; replace an artifact even if its files were
            changed by hand.
        refine: plan again from what was measured, where that is not what was predicted; where it is
            more than the latency asked for, and the profile was measured, that is done anyway.
        min_batch, opt_batch, max_batch: what an engine takes and is tuned for, of a model with a
            free batch; by default 1, `batch`, and the larger of 8 and that.
        workspace: MiB that an engine's kernels may use while they run; by default all there is.
        version_compatible: newer versions of TensorRT run the engine too, which is slower: of a
            Jetson. It then holds TensorRT's lean runtime, code that runs where it is loaded, unless
            `exclude_lean_runtime`: a newer TensorRT has to be given that library.
        hardware_compatibility_level: `ampere-plus` or `same-compute-capability`: other GPUs run the
            engine too; of an RTX GPU.
        keep_failed: write also a model that failed a check, with `fault` in its manifest.
        dump: a folder for the graph as ONNX text after every pass, of the model that is written;
            new, empty, or of an earlier dump.
        asked: keep, latency, max_drop, method, …: see `tcompile.planning.request.Request`.

    Raises:
        UsageError, ModelError: see `read` and `plan`; also a destination or a folder for the dump
            that holds something else, and a node that the target's runtime does not accept.
        FailedBuildError: the lowered model does not compute what the reduced fp32 graph does; in
            8 bits it is not finite, or loses too much.
        MissingExtraError: the target's runtime is not installed.
    """
    request, device, path = Request.of(asked), load_target(target), Path(model)
    if auto := precision == AUTO_PRECISION:
        check_weighable(device, request)
        precision = None
    level, form = precision or device.default_precision, choose_token_ops(device, token_ops)
    job = Job(
        path=path,
        request=request,
        target=device,
        precision=level,  # type: ignore[arg-type]
        batches=BatchSizes(min_batch, opt_batch, max_batch, request.batch),
        token_ops=form,
        workspace=checked_workspace(device, workspace),
        compatibility=checked_compatibility(
            device,
            version=version_compatible,
            exclude_lean_runtime=exclude_lean_runtime,
            hardware=hardware_compatibility_level,
            precision=level,
            token_ops=form.form,
        ),
        force=force,
        refine=refine,
        keep_failed=keep_failed,
        dump=None if dump is None else Dump(dump),
    )
    device.check_precision(job.precision)
    check_runtime(device, job.precision)
    directory = path.parent / f"{path.stem}-{device.name}" if output is None else Path(output)
    with new_artifact(directory, force) as draft:
        if auto:
            job = _weighed(job, progress)
            gc.collect()
        manifest, shown = _build_best(job, draft, progress)
        if manifest.fault is None:
            write_checks(draft.folder, job.path, manifest, progress)
        page, why = page_of(manifest, shown)
        if why:
            manifest = replace(manifest, notes=(*manifest.notes, why))
        draft.finish(manifest, page)
    return draft.directory


def _weighed(job: Job, say: Progress) -> Job:
    """The build in the precision that is best. It plans once more: what was measured, and schedules
    that were run on images, are kept."""
    model = read_asked(job.path, job.request)
    best, note = weigh_precisions(model, job.request, job.target, say)
    front, level = best.planned.front, best.precision
    return replace(job, precision=level, why_precision=note, front=front)  # type: ignore[arg-type]


def _build_best(job: Job, draft: Draft, say: Progress) -> tuple[Manifest, Shown]:
    """Build what is asked, again where its latency is off, and the dense model where that is to be
    kept."""
    best = last = _build_one(job, job.request, draft, say)
    files: Attempt | None = last
    for number in range(2, ATTEMPTS + 1):
        request = next_request(last, job)
        if request is None:
            break
        say(f"planning again, attempt {number} of {ATTEMPTS}")
        files = None
        try:
            again = files = _build_one(job, request, draft, say)
        except (UsageError, FailedBuildError):  # no plan is within that budget, or none is right
            break
        same = again.manifest.schedule == last.manifest.schedule
        if (same and best is last) or better(again, best, job.request.latency):
            best = again
        last = again
        if same:
            break
    if files is not best:
        best = _build_one(job, best.request, draft, say)
    if not best.slower:
        return best.manifest, best.shown
    if job.force:
        return kept_by_force(best), best.shown
    say("the reduced model is not faster: emitting the dense one")
    dense = _build_one(job, None, draft, say)
    return dense_instead(best, dense.manifest), dense.shown


def _build_one(job: Job, request: Request | None, draft: Draft, say: Progress) -> Attempt:
    """Read → plan → reduce → lower → emit → measure: one model, in the place of an earlier one.

    What is rounded is made so between lowering and emitting, of the file that the lowered graph is
    in.

    Args:
        request: what is asked this time; None: the dense model.
    """
    with scratch() as folder:
        models, planned, notes = _write_reduced(job, request, draft, folder, say)
        # Nodes and tensors refer to each other: only the collector frees the weights.
        gc.collect()
        flops = models.flops.dense
        apart = job.precision in ON_IMAGES and without_images(job.request).calibration is None
        samples = evidence_of(models.shipped, job.request, planned, flops, apart)
        judged = judge_models(models, job, samples, say)
        rounded = None
        if job.rounds:
            rounded = round_models(models, job, samples, folder, say)
            judged = rounded.added_to(judged)
        built = emit_model(models, judged, job, say)
        say("measuring")
        evidence = measure(
            job.path,
            models.shipped,
            job.target,
            samples=samples,
            threads=job.request.threads,
            batch=job.request.batch,
            normal=timed_against(models, job),
            half=models.widened and job.target.runtime == "onnxruntime",
            precision=job.precision,
            decide=not models.schedule.dense,
            seconds=0.0 if job.request.latency is None else _SECONDS,
            schedule=models.schedule.to_json(),
            fidelity=None if rounded is None else rounded.fidelity,
            seen=None if rounded is None else rounded.seen,
            rival=None if rounded is None else rounded.rival_path,
        )
        shown = shown_of(models, job, samples, evidence.seen)
    manifest = manifest_of(models, built, evidence, job)
    if rounded is not None:
        manifest = rounded.noted(manifest, evidence.rival)
    manifest = replace(manifest, notes=(*notes, *manifest.notes))
    return replace(attempt_of(request, manifest, planned, job, models.quantized), shown=shown)


def _write_reduced(
    job: Job, request: Request | None, draft: Draft, temporary: Path, say: Progress
) -> tuple[Models, PlanReport | FixedPlan | None, list[str]]:
    """Read → plan → reduce → lower, and write what the stages behind need; graphs live here alone.

    Returns:
        The files, how the schedule was found, and notes on that.
    """
    say(f"reading {job.path}")
    analysed = read_asked(job.path, job.request, job.dump)
    job.batches.check(analysed.graph, job.path)
    if job.target.on_cpu and job.precision == "int8":
        weights = (t for t in analysed.graph.tensors().values() if is_const(t))
        check_size(sum(map(nbytes, weights)), str(job.path))
    schedule = Schedule(NO_METHOD, analysed.analysis.shape, ())
    planned: PlanReport | FixedPlan | None = None
    if request is not None:
        asked = without_images(request) if job.precision in ON_IMAGES else request
        schedule, planned = planned_for(analysed, asked, job.target, job.precision, say)
    say("reducing")
    reduced = apply_asked(analysed, schedule, job.request, planned, job.dump)
    # Up to here nothing was written, and what cannot be planned or reduced is known.
    source, owners = describe_source(job.path), Owners(job.path, reduced.dense, reduced.written)
    folder = draft.empty()
    planned, notes = on_target(planned, reduced, job)
    # An engine is given memory for the largest batch that it takes.
    largest = job.request.batch if job.target.on_cpu else job.batches.settled.largest
    memory = memory_plan(reduced, job.target, job.precision, largest)
    notes += filter(None, [memory.note(job.target.title)])
    trace, untraced = write_trace(
        analysed, reduced.schedule, temporary / "trace.onnx", job.request.outputs
    )
    looking = None
    if not job.target.on_cpu and job.precision in ON_IMAGES:
        looking = looking_at(
            analysed, job.request, job.target, job.precision, reduced.metadata, say
        )
    lowered = lower(
        reduced.graph,
        target=job.target,
        precision=job.precision,
        fp32_nodes=reduced.fp32_nodes,
        token_ops=job.token_ops.form,
        wide=None if looking is None else looking.wide,
        eight_bits=None if looking is None else looking.eight_bits,
        dump=job.dump,
    )
    if looking is not None:
        notes += looking.notes()
    plain = None
    if job.target.runtime == "openvino":
        plain = lower(reduced.dense, target=job.target, precision=job.precision)
    models = write_models(
        reduced,
        lowered,
        source,
        owners,
        job,
        folder,
        temporary,
        memory,
        plain=plain,
        quantization=None if looking is None else looking.quantization(),
    )
    return replace(models, trace=trace, untraced=untraced), planned, notes
