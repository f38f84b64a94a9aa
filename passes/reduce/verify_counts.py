"""The last check of a rewrite: the reduced graph, analysed afresh, carries the planned counts."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import find_attention
from tcompile.analysis.model import Analysis
from tcompile.analysis.propagate import propagate
from tcompile.analysis.token_dims import Run
from tcompile.core.errors import InternalError
from tcompile.core.schedule import Schedule


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
            now = found.get(core.context)
            if now is None:
                raise InternalError(
                    f"the attention '{core.node}' of block {block.index} is gone after reduction"
                )
            run = space.runs.get(core.columns)
            if core.rows != core.columns or run is None:
                continue
            counts = (ax.size(now.rows), ax.size(now.columns))
            patches = planned[block.index] - space.prefix - space.suffix
            count = Run(*run).size(space, patches)
            if counts != (count, count):
                raise InternalError(
                    f"block {block.index} attends from {counts[0]} to {counts[1]} tokens after "
                    f"reduction, the schedule says {count}"
                )
