"""What the planner chooses among: methods on a model, each with its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.methods.context import SiteConstraints
from tcompile.methods.method import Method, method_for
from tcompile.planning.optimise import Limits, Tables
from tcompile.planning.optimise.tables import StepFunction
from tcompile.planning.request import AUTO
from tcompile.planning.solve.tables import counts_for, tables_for
from tcompile.profiling.profile import Profile
from tcompile.profiling.structure import Layout, layout_of

#: What `auto` tries with images, in order; without, the first that the model has room for: losses
#: of different methods cannot be compared then. `evit` keeps a trace of what leaves; where a fused
#: token has no place (rotary tables, position bias, groups), `topk` drops it. `mctf` and `turbo`
#: merge: they lost least of all presets on `zoo:glyphs`, step by step, at the price of more nodes.
PORTFOLIO = ("evit", "topk", "mctf", "turbo")
#: TensorRT's TopK takes no larger K.
TOPK_LIMIT = 3840


@dataclass(frozen=True, eq=False)
class MethodTables:
    """A method, and what its steps cost and lose.

    Attributes:
        method: it.
        tables: for the optimiser.
        words: of the losses: where they come from, and their unit.
        comparable: whether its losses can be compared with another method's.
    """

    method: Method
    tables: Tables
    words: str
    comparable: bool

    @property
    def limits(self) -> Limits:
        """Return limits without a TopK that TensorRT would refuse."""
        return Limits(topk=TOPK_LIMIT)


@dataclass(frozen=True)
class Losses:
    """What steps of a method lose, and in which words that is to be said."""

    step: StepFunction
    words: str
    comparable: bool


def methods_of(
    analysis: Analysis, room: SiteConstraints, text: str, outputs: str, *, several: bool
) -> list[Method]:
    """The methods that are to be planned.

    Args:
        text: as in `--method`.
        several: whether `auto` may try more than one.

    Raises:
        UsageError: one that was named cannot be planned on the model; or none of `auto` can.
    """
    if text.partition(":")[0] != AUTO:
        return [method_for(analysis, room, text, outputs)]
    found: list[Method] = []
    reason: UsageError | None = None
    for name in PORTFOLIO:
        try:
            found.append(method_for(analysis, room, name, outputs))
        except UsageError as error:
            reason = error
    if not found:
        assert reason is not None
        raise reason
    return found if several else found[:1]


def layouts_of(graph: gs.Graph, methods: Sequence[Method]) -> list[Layout]:
    """Of each method."""
    return [layout_of(graph, m) for m in methods]


def candidate(
    graph: gs.Graph,
    method: Method,
    profile: Profile,
    losses: Callable[[Method, Sequence[int]], Losses],
    *,
    least: int | None,
    eps: float,
) -> MethodTables:
    """A method with its tables.

    Args:
        losses: gives what a method loses, for a grid of counts.
        least: a token count that must be on the grid.
        eps: see `tables.counts_for`.
    """
    layout = layout_of(graph, method)
    counts = counts_for(profile, layout, method, eps=eps, least=least)
    given = losses(method, counts)
    tables = tables_for(profile, layout, method, given.step, counts)
    return MethodTables(method, tables, given.words, given.comparable)
