"""What a plan is weighed against: a smaller image, and other counts in the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import TcompileError
from tcompile.core.schedule import Schedule
from tcompile.passes.stages import Analysed
from tcompile.planning.optimise.tables import Plan
from tcompile.planning.options.budgets import MethodPlan
from tcompile.planning.options.method_tables import MethodTables
from tcompile.planning.resolution import best_rule, resized_model, resolutions
from tcompile.planning.search.evidence import Runs
from tcompile.planning.search.level import Level
from tcompile.planning.search.search import Weighed, search, summed_up
from tcompile.planning.search.space import Space

#: The share by which another plan must lose less to be named.
_BETTER = 0.9
#: Times a loss that no rule for a table of positions makes up for: they differ by a tenth.
_FAR = 1.5


def smaller_image(
    options: Sequence[MethodTables], most_ms: float, runs: Runs, loss: float
) -> MethodPlan | None:
    """The largest smaller image that is fast enough, and what it loses; None where there is none.

    All blocks carry its tokens from the first on; what it takes to make it smaller is not counted.

    Args:
        loss: of the plan that it is weighed against. Rules for tables of positions are not tried
            where one loses far more than that.
    """
    tables, model, level = options[0].tables, runs.model, runs.level
    source = runs.samples.source
    if level.images < level.last:
        source = f"the first {level.images} of {source}"

    def loss_of(schedule: Schedule, images: int = level.images) -> float:
        graph = partial(_graph, model, runs.mode)
        return summed_up(runs.resized(schedule, graph, images))

    rows = (*tables.attn_ms, *tables.mlp_ms, tables.head_ms)
    try:
        for schedule in resolutions(model):
            tokens = schedule.final + tables.prefix
            ms = tables.stem_ms + sum(float(np.interp(tokens, tables.counts, r)) for r in rows)
            if ms <= most_ms:
                if loss_of(schedule, level.last) <= _FAR * loss:
                    schedule, _ = best_rule(model, schedule, loss_of, source)
                return _plan(options[0], schedule, tokens, ms, loss_of(schedule, level.last))
    except TcompileError:  # the model cannot be had on a smaller grid
        return None
    return None


def _graph(model: Analysed, mode: str, schedule: Schedule) -> gs.Graph:
    return resized_model(model, schedule, mode).graph


def _plan(
    option: MethodTables, schedule: Schedule, tokens: int, ms: float, loss: float
) -> MethodPlan:
    tables = option.tables
    each = (tokens,) * tables.blocks
    plan = Plan((), each, each, tokens, ms, loss, tables.dense_ms)
    return MethodPlan(option, plan, made=schedule)


def other_count(space: Space, best: Weighed, runs: Runs, level: Level) -> str:
    """A note where another count of tokens in the end loses less in the same time; else empty."""
    methods = {s.method for s in best.steps}
    free = Space(tuple(space.options[m] for m in sorted(methods)), space.most_ms, None)
    quick = replace(level, rounds=0, promote=1, moves=0)
    try:
        found = search(free, lambda steps, n: runs.losses(free.schedule(steps), n), quick)[0]
    except TcompileError:
        return ""
    shape = space.options[0].method.context.shape
    if found.loss >= _BETTER * best.loss or found.plan.final == best.plan.final:
        return ""
    kept = (found.plan.final - shape.prefix) / shape.patches
    return (
        f"in the same time {found.loss:.3g} would be lost instead of {best.loss:.3g} with "
        f"{math.floor(100 * kept) / 100:.2f} of the patch tokens left in the end, which leave "
        f"over more of the depth: --latency {space.most_ms:.4g} in place of --keep"
    )
