"""Towers: the encoders of a model, or the passes of one encoder over several images.

Each runs over tokens of its own: left and right image, a second encoder of the same image. Which
of the token axes are towers, what they are called, and which attentions belong to none.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import Residual, TokenSpace, token_axes, token_space
from tcompile.analysis.structure import Block, Lineage, ancestors
from tcompile.analysis.transfer import contracted, einsum_contracted
from tcompile.core.graph import shape, tensors_of


@dataclass(frozen=True)
class Beside:
    """Attentions of one kind that belong to no tower: a text encoder, a decoder, another stage of
    the encoder. None of the tokens that they run over are taken away.

    Attributes:
        count: how many.
        queries, keys: what each has.
        node: the first one's softmax or `Attention`.
        inputs: the graph inputs that they depend on.
        channels: whether they are between channels, not between tokens.
    """

    count: int
    queries: int
    keys: int
    node: str
    inputs: tuple[str, ...]
    channels: bool = False

    def __str__(self) -> str:
        what = "attention" if self.count == 1 else "attentions"
        over = f"over {self.queries} {'channels' if self.channels else 'tokens'}"
        if self.queries != self.keys:
            over = f"from {self.queries} queries to {self.keys} keys"
        source = f" of '{self.inputs[0]}'" if len(self.inputs) == 1 else ""
        return f"{self.count} {what} {over}{source} ('{self.node}')"


def tower_axes(graph: gs.Graph, facts: Facts, found: Sequence[Residual]) -> list[Axis]:
    """The token axes of the towers; first the one that schedules are planned for.

    A tower begins by itself: none of its blocks comes before another tower's first one. Of the
    stages of one encoder, that of most blocks is the tower, and the others are not.
    """
    lineage = Lineage(graph)
    entries: dict[Axis, str] = {}
    for one in found:
        entries.setdefault(one.axis, one.stream)

    def reads(axis: Axis) -> Container[str]:
        return lineage.above(entries[axis])

    towers: list[Axis] = []
    for axis in token_axes(found):
        mine = [r for r in found if r.axis == axis]
        if token_space(found, None, axis) is None or not _proven(facts, axis, mine):
            continue
        if towers and not any(a.self_attention for r in mine for a in r.attentions):
            continue
        others = [[r for r in found if r.axis == t] for t in towers]
        alone = all(
            not any(r.after in reads(axis) for r in other)
            and not any(r.after in reads(other[0].axis) for r in mine)
            for other in others
        )
        if alone:
            towers.append(axis)
    return towers


def _proven(facts: Facts, axis: Axis, mine: Sequence[Residual]) -> bool:
    """Return whether an axis is known all the way, or is just what attention runs over."""
    lost = any(root in facts.lost for root in ax.roots(axis))
    return not lost or any(a.rows == a.columns == axis for r in mine for a in r.attentions)


def names_of(graph: gs.Graph, found: Sequence[Residual], towers: Sequence[Axis]) -> list[str]:
    """A name for each tower: of its image, where no other has the same one; else its number in
    execution order."""
    images = [_image(graph, next(r.stream for r in found if r.axis == axis)) for axis in towers]
    if all(images) and len(set(images)) == len(images):
        return images
    order = list(dict.fromkeys(r.axis for r in found if r.axis in towers))
    return [f"tower{order.index(axis)}" for axis in towers]


def _image(graph: gs.Graph, stream: str) -> str:
    """The largest input that a stream depends on; empty where several are as large."""
    # How many images there are may be taken from any of the inputs.
    above = ancestors(tensors_of(graph)[stream], shapes=False) | {stream}
    sizes = {str(t.name): prod(shape(t)) for t in graph.inputs if t.name in above}
    largest = [n for n, size in sizes.items() if size == max(sizes.values())]
    return largest[0] if len(largest) == 1 else ""


def beside(
    graph: gs.Graph,
    facts: Facts,
    attentions: Sequence[Attention],
    towers: Iterable[tuple[TokenSpace, Sequence[Block]]],
) -> tuple[Beside, ...]:
    """The attentions that are in no tower and do not run over the tokens of one, by their kind.

    Those with one query (pooling heads) are left out: they have no tokens to lose.
    """
    lineage = Lineage(graph)
    inputs = [str(t.name) for t in graph.inputs]
    makers = {n.name: n for n in graph.nodes}
    known = list(towers)
    mine = {a.node for _, blocks in known for b in blocks for a in b.attentions}
    groups: dict[tuple[int, int, tuple[str, ...], bool], list[str]] = {}
    for core in attentions:
        if core.node in mine or core.query_rows <= 1:
            continue
        above = lineage.above(core.context)
        if any(core.rows in space.runs and blocks[0].stream_in in above for space, blocks in known):
            continue
        source = tuple(n for n in inputs if n in above)
        channels = not ax.tracked(core.rows) and _sums_tokens(makers[core.product], facts)
        key = (ax.size(core.rows), ax.size(core.columns), source, channels)
        groups.setdefault(key, []).append(core.node)
    return tuple(
        Beside(len(nodes), rows, columns, nodes[0], source, channels)
        for (rows, columns, source, channels), nodes in groups.items()
    )


def _sums_tokens(product: gs.Node, facts: Facts) -> bool:
    """Return whether a product of queries and keys sums over tokens: it is between channels."""
    if product.op == "Einsum":
        places = einsum_contracted(product)
    elif product.op in ("MatMul", "Gemm"):
        places = list(enumerate(contracted(product)))
    else:
        return False
    return any(ax.tracked(facts.of(product.inputs[i])[axis]) for i, axis in places)
