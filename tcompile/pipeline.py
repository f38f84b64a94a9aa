"""The whole compiler on one page: load, normalise, analyse, plan, reduce, lower, emit, verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis, analyse
from tcompile.artifact import check_destination, write_artifact
from tcompile.cost import Cost, cost_of
from tcompile.errors import TcompileError, UsageError
from tcompile.filling import fill as fill_artifact
from tcompile.inspection import Inspection, describe
from tcompile.inspection_why import NodeFacts
from tcompile.inspection_why import explain as explain_node
from tcompile.loading import load, names_in
from tcompile.manifest import Manifest, describe_source
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.passes.normalize import Normalized, normalize
from tcompile.passes.normalize.bind import Shapes
from tcompile.passes.reduce import ReducedGraph, reduce_graph
from tcompile.passes.reduce.check import check_schedule, dense_grid
from tcompile.passes.reduce.recheck import check_counts
from tcompile.planning.methods import Room, compose
from tcompile.planning.schedule import Schedule, read_schedule
from tcompile.targets import load_target

Progress = Callable[[str], None]
Keep = float | str | Fraction | None
ScheduleLike = str | Path | Mapping[str, Any] | Schedule | None


def silent(_: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Analysed:
    """A model in normal form and what is known of it."""

    source: str
    normalized: Normalized
    analysis: Analysis

    @property
    def graph(self) -> gs.Graph:
        return self.normalized.graph


@dataclass(frozen=True)
class Priced:
    """A schedule and what following it costs."""

    schedule: Schedule
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        return {**self.schedule.to_json(), "cost": self.cost.to_json()}


@dataclass(frozen=True)
class Reduced:
    """A reduced model before lowering.

    Attributes:
        graph: reduced, fp32, token ops as model-local functions.
        dense: the normalised dense graph it came from.
        schedule: what was applied.
        fp32_nodes: nodes that must stay fp32 when the rest goes to fp16.
        attention_layers: attentions with more than one query row: the fused kernels to expect.
        metadata: the source's metadata_props.
        widened: whether the source computed in fp16.
    """

    graph: gs.Graph
    dense: gs.Graph
    schedule: Schedule
    fp32_nodes: frozenset[str]
    attention_layers: int
    metadata: dict[str, str]
    widened: bool


def read(model: str | Path, *, shapes: Shapes | None = None, prefix: int | None = None) -> Analysed:
    """Load, normalise, analyse.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.
        prefix: tokens at the front that are no patches, where the analysis does not see it.

    Raises:
        UsageError: no such file.
        ModelError: a file that cannot be read, or holds no transformer we can follow.
    """
    with _Located(model):
        normalized = normalize(load(model), shapes=shapes)
        return Analysed(str(model), normalized, analyse(normalized.graph, prefix=prefix))


def inspect(
    model: str | Path, *, shapes: Shapes | None = None, prefix: int | None = None
) -> Inspection:
    """The transformer in a model, and where tokens may leave. Raises as `read`."""
    read_model = read(model, shapes=shapes, prefix=prefix)
    return describe(str(model), read_model.graph, read_model.analysis)


def explain(
    model: str | Path, node: str, *, shapes: Shapes | None = None, prefix: int | None = None
) -> NodeFacts:
    """What the analysis knows of one node, named by itself or by a tensor that it gives.

    Raises as `read`; also `UsageError` where nothing has that name.
    """
    read_model = read(model, shapes=shapes, prefix=prefix)
    with _Located(model):
        return explain_node(read_model.graph, read_model.analysis, node, names_in(model))


def schedule_for(
    model: Analysed,
    keep: Keep = None,
    method: str = "topk",
    schedule: ScheduleLike = None,
    outputs: str = "reduced",
    calibration: str | Path | None = None,
) -> Schedule:
    """The schedule of a method and budget, or the one given, checked against the model.

    Args:
        calibration: images, for methods that learn their counts from them; see `build`.

    Raises:
        UsageError: no budget or two, an illegal site, a schedule for another model.
    """
    if schedule is not None:
        if keep is not None:
            raise UsageError("--keep and --schedule both set the budget", where="--schedule",
                             hint="give one of them")  # fmt: skip
        if calibration is not None:
            raise UsageError("a schedule learns nothing from images", where="--calibration",
                             hint="leave it away")  # fmt: skip
        made = _read_schedule(schedule)
    else:
        analysis = model.analysis
        room = room_of(analysis, outputs)
        observe = None
        if calibration is not None:
            from tcompile.planning.calibration import observer

            observe = observer(model.graph, analysis, model.source, calibration)
        made = compose(method, analysis.shape, analysis.has_cls, keep, room, observe)
    check_schedule(model.analysis, made, outputs)
    return made


def room_of(analysis: Analysis, outputs: str = "reduced") -> Room:
    """Where a model lets tokens leave, as methods see it."""
    legal = [s for s in analysis.sites if not s.verdict(outputs).reason]
    groups = {s.name: s.step(outputs) for s in legal if s.step(outputs) > 1}
    unscored = frozenset(s.name for s in analysis.sites if not s.scored)
    windows = any(b.window for b in analysis.blocks)
    parallel = frozenset(b.index for b in analysis.blocks if b.parallel)
    names, grid = frozenset(s.name for s in legal), dense_grid(analysis)
    return Room(names, groups, windows, parallel, unscored, grid)


def plan(
    model: str | Path,
    *,
    target: str = "cpu",
    keep: Keep = None,
    method: str = "topk",
    schedule: ScheduleLike = None,
    calibration: str | Path | None = None,
    outputs: str = "reduced",
    shapes: Shapes | None = None,
    prefix: int | None = None,
) -> Schedule:
    """The schedule that `build` would follow; writes nothing. Raises as `read`, `schedule_for`."""
    load_target(target)
    read_model = read(model, shapes=shapes, prefix=prefix)
    return schedule_for(read_model, keep, method, schedule, outputs, calibration)


def price(
    model: str | Path,
    *,
    target: str = "cpu",
    keep: Keep = None,
    method: str = "topk",
    schedule: ScheduleLike = None,
    calibration: str | Path | None = None,
    outputs: str = "reduced",
    shapes: Shapes | None = None,
    prefix: int | None = None,
) -> Priced:
    """The schedule that `build` would follow and what its scores and reducers add; writes nothing.

    Raises as `plan`.
    """
    made = reduce(model, target=target, keep=keep, method=method, schedule=schedule,
                  calibration=calibration, outputs=outputs, shapes=shapes,
                  prefix=prefix)  # fmt: skip
    return Priced(made.schedule, cost_of(made.dense, made.graph, made.schedule))


def reduce(
    model: str | Path,
    *,
    target: str = "cpu",
    keep: Keep = None,
    method: str = "topk",
    schedule: ScheduleLike = None,
    calibration: str | Path | None = None,
    outputs: str = "reduced",
    shapes: Shapes | None = None,
    prefix: int | None = None,
) -> Reduced:
    """Everything up to the reduced fp32 graph. Raises as `read` and `schedule_for`."""
    load_target(target)
    analysed = read(model, shapes=shapes, prefix=prefix)
    made = schedule_for(analysed, keep, method, schedule, outputs, calibration)
    return _reduce(analysed, made, outputs)


def _reduce(model: Analysed, schedule: Schedule, outputs: str) -> Reduced:
    made: ReducedGraph = reduce_graph(model.graph, model.analysis, schedule, outputs=outputs)
    check_counts(made.graph, model.analysis, schedule)
    layers = sum(1 for a in model.analysis.attentions if a.query_rows > 1)
    normal = model.normalized
    return Reduced(
        made.graph, normal.graph, schedule, made.fp32_nodes, layers, normal.metadata, normal.widened
    )


def build(
    model: str | Path,
    *,
    target: str,
    keep: Keep = None,
    method: str = "topk",
    schedule: ScheduleLike = None,
    calibration: str | Path | None = None,
    precision: str | None = None,
    token_ops: str | None = None,
    outputs: str = "reduced",
    output: str | Path | None = None,
    force: bool = False,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    progress: Progress = silent,
) -> Path:
    """Compile a model for a target and write the artifact; returns its directory.

    Args:
        keep: fraction of patch tokens that leave the encoder, in (0, 1].
        method: `topk`, `evit:rate=0.7`, …; see `tcompile methods`.
        schedule: instead of keep and method.
        calibration: .npz of inputs, or a folder of images, for methods that learn their counts.
        precision: `fp32` or `fp16`; the target's own by default.
        token_ops: `native`, `plugin` or `aot`; the target's own by default.
        outputs: `reduced` or `restored`, for outputs with a token axis.
        output: the directory; by default `MODEL-TARGET` beside the model.
        force: replace an artifact even if its files were changed by hand.
        shapes, prefix: see `read`.

    Raises:
        UsageError, ModelError: see `read` and `schedule_for`; also a destination that is not ours.
        MissingExtraError: the target's runtime is not installed.
    """
    chosen = load_target(target)
    form = choose_token_ops(chosen, token_ops)
    path = Path(model)
    directory = Path(output) if output is not None else path.parent / f"{path.stem}-{chosen.name}"
    check_destination(directory, force)
    progress(f"reading {path}")
    analysed = read(path, shapes=shapes, prefix=prefix)
    origin = describe_source(path)
    made = schedule_for(analysed, keep, method, schedule, outputs, calibration)
    progress("reducing")
    reduced = _reduce(analysed, made, outputs)
    level = precision or chosen.default_precision

    # The graphs are handed over, so that their weights are gone before anything is measured.
    held = [reduced]
    del analysed, reduced

    def fill(folder: Path) -> Manifest:
        made = fill_artifact(folder, origin, chosen, level, held, outputs, progress, form)
        bound = {name: tuple(dims) for name, dims in (shapes or {}).items()}
        return replace(made, shapes=bound, prefix=prefix)

    return write_artifact(directory, fill, force)


def _read_schedule(schedule: ScheduleLike) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, Mapping):
        return Schedule.from_json(schedule)
    assert schedule is not None
    return read_schedule(schedule)


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
