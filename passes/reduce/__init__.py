"""Reduce: write a schedule's scores and reducers into the graph and correct every shape downstream.

The passes are listed below, in their order. The first one walks over the nodes once; `--dump` shows
the graph after each step of the schedule there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis.count_state import Counts
from tcompile.analysis.counts import find_counts
from tcompile.analysis.effect_walk import effects
from tcompile.analysis.model import Analysis
from tcompile.analysis.outcomes import Paths
from tcompile.analysis.token_dims import Dims
from tcompile.core.copies import copied
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule, known_rule
from tcompile.passes.reduce.apply import ReducedGraph, Rewriter, returns
from tcompile.passes.reduce.check import check_schedule, dense_grid, raise_on_barrier
from tcompile.passes.reduce.reducers import reducer_of
from tcompile.passes.reduce.restoring import check_rule, default_rule
from tcompile.passes.runner import Dump, Pass, run
from tcompile.plugins.ops import add_functions

__all__ = ["ReducedGraph", "Shared", "reduce_graph"]


def reduce_graph(
    dense: gs.Graph,
    analysis: Analysis,
    schedule: Schedule,
    *,
    outputs: str = "reduced",
    label: str = "",
    dump: Dump | None = None,
    shared: Shared | None = None,
    traced: bool = False,
) -> ReducedGraph:
    """Apply a schedule to the tower that the analysis describes. The dense graph is left as it is.

    Args:
        label: at the end of the names of the added outputs: `token_index_LABEL`.
        dump: takes the graph after each step of the schedule and after each pass.
        shared: what many schedules of one model share; the graph is then one that is only run:
            the shapes of its tensors are neither inferred nor checked.
        traced: the graph is to tell the tokens of every step, and nothing else.

    Raises:
        UsageError: the schedule does not fit the model, or a site is illegal.
    """
    if outputs not in ("reduced", "restored"):
        raise UsageError(f"'{outputs}' is not reduced or restored", where="--outputs")
    rule = known_rule(schedule.restore, "--restore") or default_rule(schedule.reductions)
    check_rule(rule, dense_grid(analysis))
    steps = check_schedule(analysis, schedule, outputs)
    graph = copied(dense)
    if not schedule.reductions:
        return ReducedGraph(graph, frozenset(), {}, {})
    restorable: frozenset[str] = frozenset()
    if outputs == "restored":
        restorable = analysis.restorable
        if not _in_groups(analysis, schedule):
            analysis = replace(analysis, space=replace(analysis.space, grouping=None))
    known = (shared or Shared(dense)).on(analysis)
    cuts = [s.site.cut(known.paths, back=returns(s)) for s in steps]
    found = effects(
        graph,
        analysis.facts,
        analysis.space,
        analysis.attentions,
        cuts,
        restorable=restorable,
        counts=known.counts,
        known=known.dims,
    )
    raise_on_barrier(found, schedule)
    state = Rewriter(
        graph,
        analysis,
        found,
        list(zip(steps, cuts, strict=True)),
        known.counts,
        outputs=outputs,
        rule=rule if outputs == "restored" else "owner",
        label=label,
        dump=dump,
        shapes=shared is None,
    )
    run(state, TRACED if traced else PASSES, "reduce", dump)
    edits = {n: [type(e).__name__ for e in es] for n, es in found.edits.items()}
    names = dict(state.b.written)
    return ReducedGraph(graph, frozenset(state.b.fp32), names, edits, state.token_index, state.told)


@dataclass(frozen=True)
class Known:
    """The facts about a dense graph that a reduction looks up."""

    paths: Paths
    counts: Counts
    dims: dict[str, Dims]


class Shared:
    """What reductions of one dense graph look up, found once for all of them."""

    def __init__(self, dense: gs.Graph) -> None:
        self._dense = dense
        self._paths = Paths(dense)
        self._known: dict[bool, Known] = {}

    def on(self, analysis: Analysis) -> Known:
        """What is known with the tokens in groups, or one by one."""
        grouped, space = analysis.space.grouping is not None, analysis.space
        if grouped not in self._known:
            counts = find_counts(self._dense, analysis.facts, space)
            self._known[grouped] = Known(self._paths, counts, {})
        return self._known[grouped]


def _in_groups(analysis: Analysis, schedule: Schedule) -> bool:
    """Tell whether every reduction takes whole groups, so that the model may join them."""
    grouping, segments = analysis.space.grouping, analysis.space.segments
    return grouping is not None and all(
        reducer_of(r.reducer).groups and r.keep % (grouping.members * segments) == 0
        for r in schedule.reductions
    )


PASSES: tuple[Pass[Rewriter], ...] = (
    Pass("walk", lambda s: s.walk()),
    Pass("token-outputs", lambda s: s.write_outputs()),
    Pass("sort", lambda s: s.sort()),
    Pass("token-op-bodies", lambda s: add_functions(s.graph)),
    Pass("spell-biased-attention", lambda s: s.spell_biased()),
    Pass("infer-shapes", lambda s: s.infer(), when=lambda s: s.shapes),
)
#: Of a graph that is only to tell of its steps.
TRACED: tuple[Pass[Rewriter], ...] = (PASSES[0], Pass("trace", lambda s: s.tell()), *PASSES[2:5])
