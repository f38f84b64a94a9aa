"""Several towers: one rewrite after the other.

The second rewrite works on the result of the first, analysed afresh: what its tokens meet there is
what the finished graph has, so that no walk has to know of two token axes at once. After each, the
reduced graph is analysed anew and must carry the planned counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.find_attention import find_attention
from tcompile.analysis.model import Analysis, analyse_axis, meeting
from tcompile.analysis.propagate import propagate
from tcompile.analysis.token_dims import Run
from tcompile.core.errors import InternalError, ModelError, TcompileError, UsageError
from tcompile.core.schedule import Schedule, TowerSchedule
from tcompile.passes.reduce import ReducedGraph, reduce_graph
from tcompile.passes.reduce.check import check_schedule
from tcompile.passes.reduce.outputs import carries_patches
from tcompile.passes.runner import Dump


def reduce_towers(
    dense: gs.Graph,
    analysis: Analysis,
    schedule: Schedule,
    *,
    outputs: str = "reduced",
    prefix: int | None = None,
    strict: bool = False,
    dump: Dump | None = None,
) -> tuple[ReducedGraph, Schedule]:
    """Apply a schedule to its tower, and to the others what it says of them.

    Args:
        prefix: tokens that a person stated not to be patches.
        strict: a tower that cannot do what is said of it is an error; otherwise it stays dense.
        dump: takes the graph after each step of the schedule and after each pass.

    Returns:
        The reduced model, and the schedule with what became of each tower, and why.

    Raises:
        UsageError: the schedule does not fit the model, or asks for what is illegal.
    """
    made = reduce_graph(dense, analysis, schedule, outputs=outputs, dump=dump)
    check_counts(made.graph, analysis, schedule)
    mine = {n.name for n in dense.nodes}
    towers = {a.tower: a for a in analysis.others}
    done: list[TowerSchedule] = []
    for plan in schedule.towers or ():
        if not plan.reductions:
            done.append(plan)
            continue
        other = towers[plan.tower]
        own = Schedule(schedule.method, plan.model, plan.reductions, restore=schedule.restore)
        try:
            check_schedule(other, own, outputs)
            # The tokens that the model reads may be out of sight behind those of another tower.
            written = frozenset(n.name for n in made.graph.nodes) - mine
            sites = {r.site for r in plan.reductions}
            here = analyse_axis(
                made.graph,
                other.space.axis,
                other.tower,
                prefix,
                sites,
                written,
                analysis.facts.sized,
            )
            here = replace(here, cls=other.cls, readers=other.readers)
            if here.shape != other.shape:
                raise _MeetingError(f"its last blocks run over the tokens of '{analysis.tower}'")
            more = reduce_graph(
                made.graph, here, own, outputs=outputs, label=other.tower, dump=dump
            )
        except (ModelError, UsageError) as error:
            why = _why(dense, [analysis, *analysis.others], other, error)
            if strict:
                raise UsageError(f"tower '{other.tower}': {why}", where="schedule") from error
            done.append(replace(plan, reductions=(), dense=why))
            continue
        check_counts(more.graph, here, own)
        holds = tuple(str(o.name) for o in dense.outputs if carries_patches(o, other))
        edits = {
            n: [*made.edits.get(n, ()), *more.edits.get(n, ())]
            for n in {**made.edits, **more.edits}
        }
        names = {**made.written, **more.written}
        told = {**made.token_index, **more.token_index}
        made = ReducedGraph(more.graph, made.fp32_nodes | more.fp32_nodes, names, edits, told)
        done.append(replace(plan, outputs=holds))
    if any(plan.reductions for plan in done):
        check_counts(made.graph, analysis, schedule)
    return made, schedule if schedule.towers is None else replace(schedule, towers=tuple(done))


class _MeetingError(UsageError):
    """Another tower's tokens are in its way."""


def _why(dense: gs.Graph, towers: Sequence[Analysis], other: Analysis, error: TcompileError) -> str:
    """Return why a tower stays dense: where its site was legal by itself, what its tokens meet."""
    legal = [s.name for s in other.sites if s.legal]
    became = any(f"'{name}' is illegal" in error.what for name in legal)
    if not became and not isinstance(error, _MeetingError):
        return error.what
    for tower in towers:
        node = meeting(dense, other, tower) if tower is not other else None
        if node is not None:
            return (
                f"its tokens meet those of '{tower.tower}' at {node.op} '{node.name}', where "
                "fewer of those are left"
            )
    return error.what


def _sizes(found: Mapping[str, Attention], core: Attention) -> tuple[int, int] | None:
    """How many queries and keys a plain attention has; None where it was not found anew as one."""
    now = found.get(core.context)
    return None if now is None or not now.plain else (ax.size(now.rows), ax.size(now.seen))


def _sizes_of_map(graph: gs.Graph, analysis: Analysis, core: Attention) -> tuple[int, int] | None:
    """The same of one that is not plain, by its map, whose dims are where they were."""
    name = core.mix if core.form == "sum" else core.node
    node = next((n for n in graph.nodes if n.name == name), None)
    if node is None:
        return None
    chances = node.inputs[0] if core.form == "sum" else node.outputs[0]
    axes = analysis.facts.axes.get(chances.name, ())
    pairs = list(zip(axes, chances.shape or (), strict=False))
    keys = [int(n) for axis, n in pairs if axis == core.seen]
    rows = [int(n) for axis, n in pairs if axis == core.rows]
    return (rows[0], keys[-1]) if rows and keys else None


def check_counts(graph: gs.Graph, analysis: Analysis, schedule: Schedule) -> None:
    """Find the attentions of the reduced graph, knowing nothing of the rewrite, and compare how
    many queries and keys each has with what the schedule says.

    Raises:
        InternalError: an attention is missing or has another number of tokens.
    """
    found = {a.context: a for a in find_attention(graph, propagate(graph))}
    planned = {b.block: b.attention for b in schedule.tokens_per_block()}
    space = analysis.space
    for block in analysis.blocks:
        for core in block.attentions:
            if not core.plain and (ax.has_batch(core.rows) or ax.has_batch(core.seen)):
                continue  # images and tokens are one axis of its map
            now = _sizes(found, core) if core.plain else _sizes_of_map(graph, analysis, core)
            if now is None:
                raise InternalError(
                    f"the attention '{core.node}' of block {block.index} is gone after reduction"
                )
            run = space.runs.get(core.columns)
            if core.rows != core.columns or run is None:
                continue
            counts = (now[0], now[1] - sum(core.beside))
            patches = planned[block.index] - space.prefix - space.suffix
            count = Run(*run).size(space, patches)
            if counts != (count, count):
                raise InternalError(
                    f"block {block.index} attends from {counts[0]} to {counts[1]} tokens after "
                    f"reduction, the schedule says {count}"
                )
