"""The whole compiler on one page: load, normalise, analyse, plan, reduce, lower, emit, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.analysis.model import analyse
from tcompile.artifact.directory import check_destination, write_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.build.loop import Build, fill_best
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.load import load, names_in
from tcompile.core.model_files import describe_source
from tcompile.core.schedule import Schedule
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.passes.normalize import normalize
from tcompile.passes.normalize.bind_shapes import Shapes
from tcompile.passes.reduce.towers import reduce_towers
from tcompile.passes.stages import Analysed, Reduced
from tcompile.planning.cost import cost_of
from tcompile.planning.method_schedule import given_schedule
from tcompile.planning.request import NO_METHOD, Request
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport, PlanWithCost
from tcompile.planning.solve.schedule_for_request import schedule_for_request
from tcompile.planning.towers import for_towers, tower_notes
from tcompile.report.explain import NodeFacts
from tcompile.report.explain import explain as explain_node
from tcompile.report.inspection import Inspection, describe
from tcompile.targets import Target, load_target
from tcompile.targets.backends.batch_sizes import BatchSizes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tcompile.planning.request import Asked

__all__ = ["build", "explain", "inspect", "plan", "price", "read", "reduce"]

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that nobody watches."""


def read(
    model: str | Path,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> Analysed:
    """Load, normalise, analyse.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.
        prefix: tokens at the front that are no patches, where the analysis does not see it.
        tower: the one that loses tokens, of a model that has several; None: all of them.

    Raises:
        UsageError: no such file, no such tower.
        ModelError: a file that cannot be read, or holds no transformer we can follow.
    """
    with _Located(model):
        normalized = normalize(load(model), shapes=shapes)
        analysis = analyse(normalized.graph, prefix=prefix, tower=tower, sized=normalized.sized)
        return Analysed(str(model), normalized, analysis, prefix)


def _read_asked(model: str | Path, request: Request) -> Analysed:
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
    return read(model, shapes=request.shapes, prefix=request.prefix, tower=tower)


def inspect(
    model: str | Path,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> Inspection:
    """The transformer in a model, and where tokens may leave. Arguments and errors as `read`."""
    read_model = read(model, shapes=shapes, prefix=prefix, tower=tower)
    return describe(str(model), read_model.graph, read_model.analysis)


def explain(
    model: str | Path,
    node: str,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> NodeFacts:
    """What the analysis knows of one node, named by itself or by a tensor that it gives.

    Raises as `read`; also `UsageError` where nothing has that name.
    """
    read_model = read(model, shapes=shapes, prefix=prefix, tower=tower)
    with _Located(model):
        return explain_node(read_model.graph, read_model.analysis, node, names_in(model))


def plan(
    model: str | Path, *, target: str = "cpu", progress: Progress = silent, **asked: Unpack[Asked]
) -> Schedule:
    """The schedule that `build` would follow; writes nothing.

    Args:
        asked: keep, latency, max_drop, method, …: see `tcompile.planning.request.Request`.

    Raises:
        UsageError: as `read`; no budget, no plan within it, an illegal site.
    """
    request, chosen = Request.of(asked), load_target(target)
    read_model = _read_asked(model, request)
    made, planned = schedule_for_request(
        read_model, request, chosen, chosen.default_precision, progress
    )
    if read_model.analysis.others:
        # What another tower can follow is known once it has.
        return _reduce(read_model, made, request.outputs, planned).schedule
    return _with_towers(read_model, made, request.outputs)


def price(
    model: str | Path, *, target: str = "cpu", progress: Progress = silent, **asked: Unpack[Asked]
) -> PlanWithCost:
    """The schedule that `build` would follow, what its scores and reducers add, and where it was
    solved, what it is predicted to take and lose; writes nothing. Arguments and errors as `plan`.
    """
    request, chosen = Request.of(asked), load_target(target)
    read_model = _read_asked(model, request)
    precision = chosen.default_precision
    made, planned = schedule_for_request(read_model, request, chosen, precision, progress)
    reduced = _reduce(read_model, made, request.outputs, planned)
    if isinstance(planned, FixedPlan):
        planned = planned.with_latency(reduced, chosen, precision, request.batch)
    return PlanWithCost(reduced.schedule, cost_of(reduced.dense, reduced.graph, made), planned)


def reduce(
    model: str | Path, *, target: str = "cpu", progress: Progress = silent, **asked: Unpack[Asked]
) -> Reduced:
    """Everything up to the reduced fp32 graph. Arguments and errors as `plan`."""
    request, chosen = Request.of(asked), load_target(target)
    read_model = _read_asked(model, request)
    made, planned = schedule_for_request(
        read_model, request, chosen, chosen.default_precision, progress
    )
    return _reduce(read_model, made, request.outputs, planned)


def _with_towers(
    model: Analysed, schedule: Schedule, outputs: str, planned: PlanReport | FixedPlan | None = None
) -> Schedule:
    """The schedule with what leaves the model's other towers, and notes of it."""
    full = for_towers(model.analysis, schedule, outputs)
    notes = tower_notes(full, model.analysis)
    if isinstance(planned, PlanReport) and any(t.reductions for t in full.towers or ()):
        notes.append(
            f"the predicted latency has fewer tokens in tower '{full.tower}' alone: that "
            "of the others is as of the dense model"
        )
    return replace(full, notes=(*(n for n in full.notes if n not in notes), *notes))


def _reduce(
    model: Analysed, schedule: Schedule, outputs: str, planned: PlanReport | FixedPlan | None = None
) -> Reduced:
    full = for_towers(model.analysis, schedule, outputs)
    made, done = reduce_towers(
        model.graph,
        model.analysis,
        full,
        outputs=outputs,
        prefix=model.prefix,
        strict=full is schedule,
    )
    layers = sum(1 for a in model.analysis.attentions if a.query_rows > 1)
    normal = model.normalized
    return Reduced(
        made.graph,
        normal.graph,
        _with_towers(model, done, outputs, planned),
        made.fp32_nodes,
        layers,
        normal.metadata,
        normal.widened,
    )


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
    keep_failed: bool = False,
    progress: Progress = silent,
    **asked: Unpack[Asked],
) -> Path:
    """Compile a model for a target and write the artifact; returns its directory.

    What is asked is what is built. Only where the target's runtime runs here, and the reduced
    model is measured to be no faster, the artifact holds the dense one: its manifest has
    `emitted == "dense"`, and says why.

    Args:
        precision: `fp32` or `fp16`; the target's own by default.
        token_ops: `native`, `plugin` or `aot`; the target's own by default.
        output: the directory; by default `MODEL-TARGET` beside the model.
        force: keep a reduced model that is not faster; replace an artifact even if its files were
            changed by hand.
        refine: plan again from what was measured, where that is not what was predicted.
        min_batch, opt_batch, max_batch: what an engine takes and is tuned for, of a model with a
            free batch; by default 1, `batch`, and the larger of 8 and that.
        keep_failed: write also a model that failed a check, with `fault` in its manifest.
        asked: keep, latency, max_drop, method, …: see `tcompile.planning.request.Request`.

    Raises:
        UsageError, ModelError: see `read` and `plan`; also a destination that is not ours, and a
            node that the target's runtime does not accept.
        FailedBuildError: the lowered model does not compute what the reduced fp32 graph does.
        MissingExtraError: the target's runtime is not installed.
    """
    request, chosen = Request.of(asked), load_target(target)
    batches = BatchSizes(min_batch, opt_batch, max_batch, request.batch)
    form = choose_token_ops(chosen, token_ops)
    path = Path(model)
    directory = Path(output) if output is not None else path.parent / f"{path.stem}-{chosen.name}"
    check_destination(directory, force)
    level = precision or chosen.default_precision
    job = _Job(path, request, chosen, level, batches, progress)
    job.check()
    origin = describe_source(path)

    def fill(folder: Path) -> Manifest:
        made = fill_best(
            folder,
            Build(origin, chosen, level, request, force, refine, form, batches, keep_failed),
            job.make,
            progress,
        )
        bound = {name: tuple(dims) for name, dims in (request.shapes or {}).items()}
        return replace(made, shapes=bound, prefix=request.prefix)

    return write_artifact(directory, fill, force)


class _Job:
    """Makes reduced models of one source: the first, others after what was measured, the dense."""

    def __init__(
        self,
        path: Path,
        request: Request,
        target: Target,
        precision: str,
        batches: BatchSizes,
        say: Progress,
    ) -> None:
        self.path, self.request, self.target = path, request, target
        self.precision, self.batches, self.say = precision, batches, say
        self.held: tuple[Reduced, Any] | None = None

    def check(self) -> None:
        """Plan and reduce once, so that what cannot be done is known before anything is written."""
        self.held = self.make(self.request)

    def make(self, request: Request | None) -> tuple[Reduced, Any]:
        """A reduced model, and how it was planned; None: the dense one."""
        if self.held is not None and request == self.request:
            held, self.held = self.held, None
            return held
        self.say(f"reading {self.path}")
        asked = self.request
        analysed = _read_asked(self.path, asked)
        self.batches.check(analysed.graph, self.path)
        made, planned = Schedule(NO_METHOD, analysed.analysis.shape, ()), None
        if request is not None:
            made, planned = schedule_for_request(
                analysed, request, self.target, self.precision, self.say
            )
        self.say("reducing")
        return _reduce(analysed, made, asked.outputs, planned), planned


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
