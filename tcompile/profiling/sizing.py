"""Parts of a model at any token count, from their shapes at a few.

Reducing a large model at every count would take minutes. From count to count each dim of a half is
on a line: it is the count, the count without the prefix, a multiple of either, or fixed. The lines
go through two counts and are checked at all others that were seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.core.graph import dim_to_int, int_to_dim, is_const, tensors_of
from tcompile.methods.method import Method
from tcompile.profiling.partition import Role, subgraph
from tcompile.profiling.sampling import sampled
from tcompile.profiling.structure import (
    PartitionedGraph,
    partition_at,
    partition_dense,
    partition_steps,
)

#: Counts at which a model is cut that has a half whose dims are on no line.
_FEW = 12

_HALVES: tuple[Role, ...] = ("attn", "mlp")
_HEADS: tuple[Role, ...] = ("head",)

Lines = tuple[tuple[Fraction, Fraction], ...]
StepPart = tuple[int, int, gs.Graph]
Graphs = dict[str, dict[int, gs.Graph]]


@dataclass(frozen=True, eq=False)
class Sized:
    """A part whose shapes are known by token count.

    Attributes:
        graphs: by count, ascending, those that were cut.
        lines: tensor of the first of them → of each dim, slope and what is added; None: some are on
            no line, or too few counts were seen to know.
    """

    graphs: Mapping[int, gs.Graph]
    lines: Mapping[str, Lines] | None

    def at(self, tokens: int) -> gs.Graph | None:
        """The part at a count, None where that is not known. Valid until the next call."""
        if self.lines is None:
            return self.graphs.get(tokens)
        sizes = {
            name: [slope * tokens + rest for slope, rest in dims]
            for name, dims in self.lines.items()
        }
        if any(s.denominator != 1 or s < 1 for dims in sizes.values() for s in dims):
            return None
        graph = next(iter(self.graphs.values()))
        tensors = tensors_of(graph)
        for name, found in sizes.items():
            tensors[name].shape = [int_to_dim(int(size)) for size in found]
        return graph


@dataclass(frozen=True, eq=False)
class Structures:
    """All structures that a model has, with some methods and without.

    Attributes:
        uses: signature → how many parts of the dense model have it.
        stem, halves, heads: by signature.
        steps: method → what steps of it are made of: (before, after, part), prefix included.
    """

    uses: Mapping[str, int]
    stem: Mapping[str, gs.Graph]
    halves: Mapping[str, Sized]
    heads: Mapping[str, Sized]
    steps: Mapping[str, Sequence[StepPart]]


def structures(dense: gs.Graph, analysis: Analysis, methods: Sequence[Method]) -> Structures:
    """Return every structure of a model: as it is in the dense one, and behind the methods' steps.

    Args:
        dense: in normal form.

    Raises:
        UsageError: a method of which no step is possible.
    """
    whole = partition_dense(dense, analysis)
    seen: dict[tuple[Role, ...], Graphs] = {roles: {} for roles in (_HALVES, _HEADS)}
    for roles, found in seen.items():
        _see(found, [whole], roles)
    steps: dict[str, Sequence[StepPart]] = {}
    for method in methods:
        made = [(s, partition_steps(dense, method, s)) for s in sampled(method)]
        if not made:
            raise UsageError(f"no step of {method.key} is possible", where="--method")
        steps[method.key] = _steps(made, method)
        once = [c for s, c in made if len(s) == 1]
        for roles, found in seen.items():
            _see(found, [c for _, c in made], roles)
            # Behind several steps a half may have nodes that others share behind one: only what
            # follows one step has to be known everywhere.
            parts = (p for c in once for p in c.behind(*roles))
            if any(sized(found[p.signature]).lines is None for p in parts):
                _see(found, _at_few(dense, method), roles)
    stem = {p.signature: subgraph(dense, p) for p in whole.behind("stem")}
    halves, heads = ({s: sized(g) for s, g in found.items()} for found in seen.values())
    return Structures(Counter(p.signature for p in whole.parts), stem, halves, heads, steps)


def sized(graphs: Mapping[int, gs.Graph]) -> Sized:
    """A part from what it looks like at some counts."""
    ordered = dict(sorted(graphs.items()))
    return Sized(ordered, _lines(ordered) if len(ordered) >= 3 else None)


def _see(found: Graphs, partitioned: Iterable[PartitionedGraph], roles: Sequence[Role]) -> None:
    """Add parts of some roles to signature → count → part: the first of a count, in place of one
    that was there before."""
    new: Graphs = {}
    for given in partitioned:
        for part in given.behind(*roles):
            graphs = new.setdefault(part.signature, {})
            if given.tokens not in graphs:
                graphs[given.tokens] = subgraph(given.graph, part)
    for signature, graphs in new.items():
        found.setdefault(signature, {}).update(graphs)


def _steps(
    made: Sequence[tuple[list[tuple[str, int]], PartitionedGraph]], method: Method
) -> list[StepPart]:
    """Each step of some graphs as a part, those of equal counts once."""
    shape = method.context.shape
    found: dict[tuple[int, int], gs.Graph] = {}
    for steps, given in made:
        parts = {p.site: p for p in given.parts if p.role == "reducer"}
        before = shape.patches
        for site, keep in steps:
            counts = (before + shape.prefix, keep + shape.prefix)
            if counts not in found and site in parts:
                found[counts] = subgraph(given.graph, parts[site])
            before = keep
    return [(n, k, graph) for (n, k), graph in sorted(found.items())]


def _at_few(dense: gs.Graph, method: Method) -> Iterator[PartitionedGraph]:
    """The model at counts spread evenly."""
    shape = method.context.shape
    grain = max(rule.granularity for rule in method.sites)
    spread = np.linspace(shape.patches * 0.05, shape.patches, _FEW + 1)[:-1]
    for keep in sorted({max(round(s / grain), 1) * grain for s in spread}):
        try:
            yield partition_at(dense, method, keep + shape.prefix)
        except UsageError:
            continue


def _lines(graphs: Mapping[int, gs.Graph]) -> dict[str, Lines] | None:
    """The lines of all tensors that change; None where one is on no line, or is a weight.

    Names may differ from graph to graph; the order in which nodes name tensors does not.
    """
    counts, shapes = list(graphs), [_shapes(g) for g in graphs.values()]
    if len({len(s) for s in shapes}) > 1:
        return None
    first = next(iter(graphs.values())).tensors()
    found: dict[str, Lines] = {}
    for name, each in zip(shapes[0], zip(*(s.values() for s in shapes), strict=True), strict=True):
        if len({len(dims) for dims in each}) > 1:
            return None
        if len(set(each)) == 1:
            continue
        lines = tuple(_line(counts, sizes) for sizes in zip(*each, strict=True))
        known = [line for line in lines if line is not None]
        if is_const(first[name]) or len(known) < len(lines):
            return None
        found[name] = tuple(known)
    return found


def _line(counts: Sequence[int], sizes: Sequence[int]) -> tuple[Fraction, Fraction] | None:
    slope = Fraction(sizes[-1] - sizes[0], counts[-1] - counts[0])
    rest = sizes[0] - slope * counts[0]
    fits = all(slope * n + rest == size for n, size in zip(counts, sizes, strict=True))
    return (slope, rest) if fits else None


def _shapes(graph: gs.Graph) -> dict[str, tuple[int, ...]]:
    """Dims of all tensors in the order in which nodes name them."""
    found: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes:
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name and tensor.name not in found and tensor.shape is not None:
                found[tensor.name] = tuple(dim_to_int(d) for d in tensor.shape)
    return found
