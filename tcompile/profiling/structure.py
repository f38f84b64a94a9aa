"""A model's parts before and after a method's steps, by signature: what a profile must hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.method import Method
from tcompile.passes.reduce import reduce_graph
from tcompile.profiling.common_subexpressions import without_common_subexpressions
from tcompile.profiling.partition import Segment, partition
from tcompile.profiling.signature import signature


@dataclass(frozen=True, eq=False)
class PartitionedGraph:
    """A graph and its parts.

    Attributes:
        tokens: in the parts behind the last step, prefix included.
        parts: in order.
        signatures: of each part.
        step: index of the last reducer in `parts`; -1 where nothing is reduced.
    """

    graph: gs.Graph
    tokens: int
    parts: tuple[Segment, ...]
    signatures: tuple[str, ...]
    step: int = -1

    def behind(self, role: str) -> list[tuple[Segment, str]]:
        """Parts of a role behind the last step, with their signatures."""
        pairs = list(zip(self.parts, self.signatures, strict=True))[self.step + 1 :]
        return [(p, s) for p, s in pairs if p.role == role]

    def halves(self) -> dict[str, list[Segment]]:
        """Halves behind the last step, alike ones together."""
        found: dict[str, list[Segment]] = {}
        for part, sign in [*self.behind("attn"), *self.behind("mlp")]:
            found.setdefault(sign, []).append(part)
        return found

    def head(self) -> tuple[Segment, str] | None:
        return next(iter(self.behind("head")), None)


def partition_dense(dense: gs.Graph, analysis: Analysis) -> PartitionedGraph:
    """The dense model's parts."""
    parts = tuple(partition(dense, analysis))
    return PartitionedGraph(
        dense, analysis.shape.tokens, parts, tuple(signature(dense, p) for p in parts)
    )


def partition_at(dense: gs.Graph, method: Method, tokens: int) -> PartitionedGraph:
    """The parts of the model when a method comes down to so many tokens, as early as it can.

    Raises:
        UsageError: it cannot come down that far.
    """
    places = method.descend(tokens - method.context.shape.prefix)
    if not places:
        raise UsageError(f"{tokens} tokens are all there are", where="profile")
    return partition_steps(dense, method, [(p.site, p.keep) for p in places])


def partition_steps(
    dense: gs.Graph, method: Method, steps: list[tuple[str, int]], *, deduplicate: bool = False
) -> PartitionedGraph:
    """The parts of the model with these steps of a method: (site, patches that stay).

    Args:
        deduplicate: leave out nodes that compute what others do.
    """
    from tcompile.methods.schedulers import Place

    schedule = method.schedule([Place(SiteName(site), keep) for site, keep in steps])
    made = reduce_graph(dense, method.analysis, schedule, outputs=method.outputs)
    if deduplicate:
        fewer = without_common_subexpressions(made.graph, made.written)
        made = replace(made, graph=fewer)
    parts = tuple(partition(dense, method.analysis, made))
    last = max(i for i, p in enumerate(parts) if p.role == "reducer" and p.site == steps[-1][0])
    tokens = method.context.shape.prefix + steps[-1][1]
    signatures = tuple(signature(made.graph, p) for p in parts)
    return PartitionedGraph(made.graph, tokens, parts, signatures, last)


@dataclass(frozen=True)
class Layout:
    """Which parts a model has, by signature, with a method and without.

    Attributes:
        stem: signature, or empty.
        dense: block → (attention half, MLP half or empty), as in the dense model.
        reduced: the same once tokens have left.
        head_dense, head: what follows the blocks, or empty.
    """

    stem: str
    dense: tuple[tuple[str, str], ...]
    reduced: tuple[tuple[str, str], ...]
    head_dense: str
    head: str


def layout_of(dense: gs.Graph, method: Method) -> Layout:
    """The layout of a model under a method; one early step shows it."""
    before = partition_dense(dense, method.analysis)
    patches, rule = method.context.shape.patches, method.sites[0]
    keep = -(-patches * 3 // (4 * rule.granularity)) * rule.granularity
    after = partition_steps(dense, method, [(rule.name, keep)])
    blocks = method.context.shape.blocks
    whole = _halves(before, blocks)
    later = _halves(after, blocks, behind=True)
    stem = next(
        (s for p, s in zip(before.parts, before.signatures, strict=True) if p.role == "stem"), ""
    )
    heads = [c.head() for c in (before, after)]
    return Layout(
        stem,
        tuple(whole),
        tuple((a or b, c or d) for (a, c), (b, d) in zip(later, whole, strict=True)),
        heads[0][1] if heads[0] else "",
        heads[1][1] if heads[1] else "",
    )


def _halves(given: PartitionedGraph, blocks: int, behind: bool = False) -> list[tuple[str, str]]:
    found = [["", ""] for _ in range(blocks)]
    pairs = zip(given.parts, given.signatures, strict=True)
    for i, (part, sign) in enumerate(pairs):
        if part.role in ("attn", "mlp") and (not behind or i > given.step):
            found[part.block][part.role == "mlp"] = sign
    return [(a, m) for a, m in found]
