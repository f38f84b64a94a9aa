"""The whole compiler on one page: read → plan → reduce → lower → emit → measure → write.

`plan`, `price` and `reduce` go a part of the way; `build` goes all of it. What cannot be done is
known before anything is written. From `emit` on, everything works from files: the graphs are gone.
"""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.analysis.model import analyse
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
from tcompile.core.errors import FailedBuildError, TcompileError, UsageError
from tcompile.core.graph import is_const, nbytes
from tcompile.core.load import load, names_in
from tcompile.core.model_files import TensorInfo, describe_source
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_method
from tcompile.models.preprocess import PREPROCESS_KEY, read_preprocessing
from tcompile.models.preprocess_option import overrides, resolved
from tcompile.passes.lower import lower
from tcompile.passes.lower.int8 import check_size
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.passes.normalize import check_not_reduced, normalize
from tcompile.passes.normalize.bind_shapes import Shapes
from tcompile.passes.reduce.check import without_schedule
from tcompile.passes.reduce.towers import reduce_towers
from tcompile.passes.runner import Dump
from tcompile.passes.stages import Analysed, Reduced
from tcompile.planning.cost import cost_of
from tcompile.planning.memory import memory_plan
from tcompile.planning.method_schedule import for_towers, given_schedule, tower_notes
from tcompile.planning.precisions import (
    AUTO_PRECISION,
    InPrecision,
    best_precision,
    check_weighable,
)
from tcompile.planning.remedy import remedy
from tcompile.planning.request import NO_METHOD, Request
from tcompile.planning.resolution import (
    describe_grids,
    is_resolution,
    resized_model,
    with_position_rule,
)
from tcompile.planning.restoring import with_rule
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport, PlanWithCost
from tcompile.planning.solve.solve import schedule_for_request
from tcompile.report.build_page import page_of
from tcompile.report.explain import NodeFacts
from tcompile.report.explain import explain as explain_node
from tcompile.report.inspection import describe
from tcompile.report.inspection_page import Inspection
from tcompile.report.shown import Shown
from tcompile.report.token_maps import write_trace
from tcompile.runtime.token_outputs import recorded, recorded_choice
from tcompile.targets import Target, load_target
from tcompile.targets.backends import check_runtime
from tcompile.targets.backends.base import BatchSizes, checked_workspace
from tcompile.targets.devices import ON_IMAGES
from tcompile.verify.owners import Owners

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tcompile.planning.request import Asked

__all__ = ["apply_schedule", "build", "explain", "inspect", "plan", "price", "read", "reduce"]

#: Seconds that both models are timed for at least where milliseconds were promised.
_SECONDS = 3.0


def read(
    model: str | Path,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
    dump: Dump | None = None,
) -> Analysed:
    """Load, normalise, analyse.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.
        prefix: tokens at the front that are not patches, where the analysis does not see it.
        tower: the one that loses tokens, of a model that has several; None: all of them.
        dump: takes the graph after each pass.

    Raises:
        UsageError: no such file, no such tower.
        ModelError: a file that cannot be read, or holds no transformer that tcompile can follow.
    """
    with _Located(model):
        source = load(model)
        check_not_reduced(source)
        normalized = normalize(source, shapes=shapes, dump=dump)
        analysis = analyse(normalized.graph, prefix=prefix, tower=tower, sized=normalized.sized)
        return Analysed(str(model), normalized, analysis, prefix)


def _read_asked(model: str | Path, request: Request, dump: Dump | None = None) -> Analysed:
    """The model as a request has it: a schedule may be for one tower by name."""
    tower = request.tower
    if request.schedule is not None:
        own = given_schedule(request.schedule).tower
        if tower is not None and own is not None and tower != own:
            raise UsageError(
                f"the schedule is for tower '{own}'",
                where=f"--tower {tower}",
                hint="omit one of them",
            )
        tower = tower or own
    found = read(model, shapes=request.shapes, prefix=request.prefix, tower=tower, dump=dump)
    return found if request.preprocess is None else _prepared(found, request.preprocess)


def _prepared(model: Analysed, preprocess: str) -> Analysed:
    """The model with a record of how images are prepared for it."""
    normal = model.normalized
    inputs = [
        TensorInfo(t.name, np.dtype(t.dtype).name, tuple(t.shape)) for t in model.graph.inputs
    ]
    known = read_preprocessing(normal.metadata) or {}
    found = resolved(preprocess, inputs, known)
    metadata = {**normal.metadata, PREPROCESS_KEY: json.dumps(found)}
    note = overrides(found, known)
    notes = (*normal.notes, note) if note else normal.notes
    return replace(model, normalized=replace(normal, metadata=metadata, notes=notes))


def inspect(
    model: str | Path,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> Inspection:
    """The transformer in a model, and where tokens may leave. Arguments and errors as `read`."""
    read_model = read(model, shapes=shapes, prefix=prefix, tower=tower)
    notes = read_model.normalized.notes
    found = describe(str(model), read_model.graph, read_model.analysis, notes)
    return replace(found, resolutions=describe_grids(read_model))


def explain(
    model: str | Path,
    node: str,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> NodeFacts:
    """Explain what the analysis knows of one node, named by itself or by a tensor that it gives.

    Raises as `read`; also `UsageError` where nothing has that name.
    """
    read_model = read(model, shapes=shapes, prefix=prefix, tower=tower)
    with _Located(model):
        return explain_node(read_model.graph, read_model.analysis, node, names_in(model))


def plan(
    model: str | Path,
    *,
    target: str = "cpu",
    precision: str | None = None,
    progress: Progress = silent,
    **asked: Unpack[Asked],
) -> Schedule:
    """The schedule that `build` would follow; writes nothing.

    Args:
        precision: see `build`.
        asked: keep, latency, max_drop, method, …: see `tcompile.planning.request.Request`.

    Raises:
        UsageError: as `read`; no budget, no plan within it, an illegal site.
    """
    request, chosen = Request.of(asked), load_target(target)
    read_model = _read_asked(model, request)
    _, made, planned = _planned_in(read_model, request, chosen, precision, progress)
    if read_model.analysis.others or made.resized is not None:
        # What another tower can follow, or a smaller grid, is known once it has.
        return _apply(read_model, made, request, planned).schedule
    return _with_towers(read_model, made, request.outputs)


def price(
    model: str | Path,
    *,
    target: str = "cpu",
    precision: str | None = None,
    progress: Progress = silent,
    **asked: Unpack[Asked],
) -> PlanWithCost:
    """The schedule that `build` would follow, what its scores and reducers add, and where it was
    solved, what it is predicted to take and lose; writes nothing. Arguments and errors as `plan`.
    """
    request, chosen = Request.of(asked), load_target(target)
    read_model = _read_asked(model, request)
    level, made, planned = _planned_in(read_model, request, chosen, precision, progress)
    reduced = _apply(read_model, made, request, planned)
    if isinstance(planned, FixedPlan):
        planned = planned.with_latency(reduced, chosen, level, request.batch)
    memory = memory_plan(reduced, chosen, level, request.batch)
    made = reduced.schedule
    if note := memory.note(chosen.title):
        made = replace(made, notes=(*made.notes, note))
    return PlanWithCost(made, cost_of(reduced), planned, level, memory)


def reduce(
    model: str | Path, *, target: str = "cpu", progress: Progress = silent, **asked: Unpack[Asked]
) -> Reduced:
    """Everything up to the reduced fp32 graph. Arguments and errors as `plan`."""
    request, chosen = Request.of(asked), load_target(target)
    read_model = _read_asked(model, request)
    made, planned = _planned(read_model, request, chosen, chosen.default_precision, progress)
    return _apply(read_model, made, request, planned)


def _planned_in(
    model: Analysed, request: Request, target: Target, precision: str | None, say: Progress
) -> tuple[str, Schedule, PlanReport | FixedPlan]:
    """The precision that is asked for, or chosen, or the target's own; and `_planned` in it."""
    if precision != AUTO_PRECISION:
        level = precision or target.default_precision
        target.check_precision(level)
        asked = _without_images(request) if level in ON_IMAGES else request
        return level, *_planned(model, asked, target, level, say)
    check_weighable(target, request)
    best, note = _best_precision(model, request, target, say)
    made = replace(best.schedule, notes=(*best.schedule.notes, note))
    return best.precision, made, replace(best.planned, schedule=made)


def _best_precision(
    model: Analysed, request: Request, target: Target, say: Progress
) -> tuple[InPrecision, str]:
    def plan_in(precision: str) -> tuple[Schedule, PlanReport | FixedPlan]:
        return _planned(model, request, target, precision, say)

    return best_precision(model, request, target, plan_in, say)


def _planned(
    model: Analysed, request: Request, target: Target, precision: str, say: Progress
) -> tuple[Schedule, PlanReport | FixedPlan]:
    """`schedule_for_request`, with the rules of restored outputs and of a smaller image."""
    level = target.planned_as(precision)
    made, planned = schedule_for_request(model, request, target, level, say)
    if solved := isinstance(planned, PlanReport):
        planned = planned.labelled(precision, level)
    else:
        made = with_position_rule(model, request, made, say)
    return with_rule(model, request, made, say, solved=solved), planned


def _apply(
    model: Analysed,
    schedule: Schedule,
    request: Request,
    planned: PlanReport | FixedPlan | None,
    dump: Dump | None = None,
) -> Reduced:
    """`apply_schedule`; what it says of a schedule that no person wrote is said of the method."""
    try:
        return apply_schedule(model, schedule, request.outputs, planned, dump)
    except UsageError as error:
        if request.schedule is not None or not error.where.startswith(("schedule", "--method")):
            raise
        hint = remedy(model, request.method, request.keep, request.outputs, planned=request.solved)
        where = f"--method {request.method}"
        raise UsageError(without_schedule(error), where=where, hint=hint) from error


def apply_schedule(
    model: Analysed,
    schedule: Schedule,
    outputs: str = "reduced",
    planned: PlanReport | FixedPlan | None = None,
    dump: Dump | None = None,
) -> Reduced:
    """The reduced graph of a schedule, with what leaves the model's other towers.

    Args:
        outputs: `reduced` or `restored`.
        planned: how the schedule was found, where it was.
        dump: takes the graph after each step and pass.

    Raises:
        UsageError: the schedule does not fit the model, or a site is illegal.
    """
    if schedule.resized is not None:
        return resized_model(model, schedule, outputs)
    full, normal = for_towers(model.analysis, schedule, outputs), model.normalized
    made, done = reduce_towers(
        model.graph,
        model.analysis,
        full,
        outputs=outputs,
        prefix=model.prefix,
        strict=full is schedule,
        dump=dump,
    )
    return Reduced(
        graph=made.graph,
        dense=normal.graph,
        schedule=_with_towers(model, done, outputs, planned),
        fp32_nodes=made.fp32_nodes,
        written=made.written,
        metadata={**normal.metadata, **recorded(made.token_index), **recorded_choice(made.graph)},
        token_index=made.token_index,
        widened=normal.widened,
        quantized=bool(normal.quantized),
    )


def _with_towers(
    model: Analysed, schedule: Schedule, outputs: str, planned: PlanReport | FixedPlan | None = None
) -> Schedule:
    """The schedule with what leaves the model's other towers, and notes of it."""
    full = for_towers(model.analysis, schedule, outputs)
    notes = [*model.normalized.notes, *tower_notes(full, model.analysis)]
    if isinstance(planned, PlanReport) and any(t.reductions for t in full.towers or ()):
        notes.append(
            f"the predicted latency has fewer tokens in tower '{full.tower}' alone: that "
            "of the others is as of the dense model"
        )
    return replace(full, notes=(*(n for n in full.notes if n not in notes), *notes))


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
    job = Job(
        path=path,
        request=request,
        target=device,
        precision=precision or device.default_precision,  # type: ignore[arg-type]
        batches=BatchSizes(min_batch, opt_batch, max_batch, request.batch),
        token_ops=choose_token_ops(device, token_ops),
        workspace=checked_workspace(device, workspace),
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
    model = _read_asked(job.path, job.request)
    best, note = _best_precision(model, job.request, job.target, say)
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
        apart = job.precision in ON_IMAGES and _without_images(job.request).calibration is None
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
    analysed = _read_asked(job.path, job.request, job.dump)
    job.batches.check(analysed.graph, job.path)
    if job.target.on_cpu and job.precision == "int8":
        weights = (t for t in analysed.graph.tensors().values() if is_const(t))
        check_size(sum(map(nbytes, weights)), str(job.path))
    schedule = Schedule(NO_METHOD, analysed.analysis.shape, ())
    planned: PlanReport | FixedPlan | None = None
    if request is not None:
        asked = _without_images(request) if job.precision in ON_IMAGES else request
        schedule, planned = _planned(analysed, asked, job.target, job.precision, say)
    say("reducing")
    reduced = _apply(analysed, schedule, job.request, planned, job.dump)
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


def _without_images(request: Request) -> Request:
    """The request without images that are the precision's alone: its method learns nothing from
    them."""
    if request.calibration is None or request.solved or request.schedule is not None:
        return request
    if request.outputs == "restored" or is_resolution(request.method):
        return request  # by rules that are weighed on images
    learns = parse_method(request.method)[0].scheduler.observes
    return request if learns else replace(request, calibration=None)


class _Located:
    """Adds the model's path to an error that names no place."""

    def __init__(self, model: str | Path) -> None:
        self.model = str(model)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TcompileError) and not error.where:
            error.where = self.model
            error.args = (error.one_line(),)
