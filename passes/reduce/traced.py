"""Outputs that tell the tokens of every step of a schedule: what maps of tokens are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers import traits_of
from tcompile.passes.reduce.reducers.chain import steps_of
from tcompile.passes.reduce.steps import Step
from tcompile.passes.reduce.token_state import TokenState

#: Begins the names of these outputs; `is_bookkeeping` knows it.
PREFIX = "tcompile.trace"


@dataclass(frozen=True)
class TracedStep:
    """A step of a schedule, or of a chain of reducers in one, and the outputs that tell of it.

    Attributes:
        site: where.
        reducer: that is run there.
        keep: patch tokens that it leaves.
        merges: whether what leaves becomes part of what stays; else it is dropped.
        passing: whether it is so within one block only: all are back behind it.
        outputs: `index` [B, keep] i64, the original patch that each token is (-1: a fused one);
            `owner` [B, T], the token that stands for each original patch; `local` [B, keep], where
            each was among those before. Each → the graph's output; none where all are back.
    """

    site: str
    reducer: str
    keep: int
    merges: bool
    passing: bool = False
    outputs: dict[str, str] = field(default_factory=dict)


def tell(
    graph: gs.Graph, b: Builder, done: Iterable[tuple[Step, TokenState]]
) -> tuple[TracedStep, ...]:
    """Let what tells of the steps be the only outputs of a graph, so that the rest falls away."""
    graph.outputs = []
    found: list[TracedStep] = []
    for step, after in done:
        spec = step.reduction.reducer
        # Of a chain run in segments, what lies between is not known: it is one step then.
        reducers = [s.reducer for s in steps_of(dict(spec.parameters))] if after.parts else [spec]
        for reducer, state in zip(reducers, after.parts or (after,), strict=True):
            known = {"index": state.index, "owner": state.owner, "local": state.local}
            names = {
                what: _output(graph, b, f"{PREFIX}/{len(found)}/{what}", tensor)
                for what, tensor in known.items()
                if tensor is not None
            }
            site, passing = str(step.reduction.site), bool(step.site.until)
            merges = bool(traits_of(reducer))
            found.append(TracedStep(site, reducer.name, state.count, merges, passing, names))
    return tuple(found)


def _output(graph: gs.Graph, b: Builder, name: str, tensor: gs.Tensor) -> str:
    out = gs.Variable(name, tensor.dtype)
    graph.nodes.append(gs.Node("Identity", b.name(name), {}, [tensor], [out]))
    graph.outputs.append(out)
    return name
