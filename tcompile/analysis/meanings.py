"""Meanings that index sets turn out to have once it is known what attention runs over.

A first propagation gives every axis an identity, and cannot tell what some are: axes of a mask,
those behind an op that is not known, cameras beside the batch. What they are joined with,
multiplied by or attended over tells, and a second propagation knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis, Digit, Interval, Root
from tcompile.analysis.facts import Facts
from tcompile.analysis.mixes import trailing
from tcompile.analysis.space import Residual, token_space
from tcompile.analysis.transfer import contracted

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def meanings(
    graph: gs.Graph, facts: Facts, attentions: Sequence[Attention], streams: Sequence[Residual]
) -> dict[Root, Axis]:
    """Index sets → the axes that they turn out to be."""
    # Features that are taken for tokens make a plain product look like an attention.
    attended = _attended(a for a in attentions if a.form != "sum")
    found = _features(graph, facts, streams, attended)
    if not found:  # of features that are taken for tokens nothing else can be told
        found = _batches(facts, streams, _attended(attentions))
        found |= _joined_sets(streams)
        found |= _same_tokens(streams)
        found |= _masks(facts, streams)
    return found


def _attended(attentions: Iterable[Attention]) -> set[Root]:
    return {r for a in attentions for axis in (a.rows, a.columns) for r in ax.roots(axis)}


def _features(
    graph: gs.Graph, facts: Facts, streams: Sequence[Residual], attended: set[Root]
) -> dict[Root, Axis]:
    """Axes of streams none of whose axes are features: the one along which stored matrices multiply
    or a norm runs, and attention never does. An input may hold tokens, an op not be known."""
    unclear = [r for r in streams if not _has_features(facts, r)]
    if not unclear:
        return {}
    summed = _summed(graph, facts)
    found: dict[Root, Axis] = {}
    for one in unclear:
        own = [a[0].root for a in facts.axes[one.stream] if len(a) == 1 and a[0].whole]
        likely = [r for r in own if r in summed and r not in attended and r.kind == "data"]
        if len(likely) == 1:
            found[likely[0]] = ax.new(likely[0].name, likely[0].size, "untracked")
    return found


def _has_features(facts: Facts, one: Residual) -> bool:
    return any(d.root.kind == "untracked" for axis in facts.axes[one.stream] for d in axis)


def _summed(graph: gs.Graph, facts: Facts) -> set[Root]:
    """Index sets along which, by themselves, a stored matrix multiplies or a norm runs."""
    found: set[Root] = set()
    for node in graph.nodes:
        axes: list[Axis] = []
        if node.op in ("MatMul", "Gemm"):
            first, second = node.inputs[:2]
            for tensor, other, axis in zip(
                (first, second), (second, first), contracted(node), strict=True
            ):
                if not facts.is_live(other):
                    axes.append(facts.of(tensor)[axis])
        elif node.op in _NORMS:
            axes = [facts.of(node.inputs[0])[i] for i in trailing(node, 0)]
        found |= {axis[0].root for axis in axes if len(axis) == 1}
    return found


def _batches(facts: Facts, streams: Sequence[Residual], attended: set[Root]) -> dict[Root, Axis]:
    """Axes of streams that no attention runs over, such as cameras: further batches.

    Each position along them has tokens of its own, of which as many leave.
    """
    found: dict[Root, Axis] = {}
    for one in streams:
        beside = [d for d in one.axis if d.root not in attended]
        if not beside or len(beside) == len(one.axis) or not _has_features(facts, one):
            continue
        if all(d.whole and d.root.kind == "data" and not d.root.pieces for d in beside):
            found |= {d.root: ax.new(d.root.name, d.size, "batch") for d in beside}
    return found


def _joined_sets(streams: Sequence[Residual]) -> dict[Root, Axis]:
    """Concatenations of sets of tokens, such as those of two images, that a stream runs over: the
    sets are one, with the fixed tokens before and behind as they are."""
    found: dict[Root, Axis] = {}
    for root in {d.root for one in streams for d in one.axis if d.whole and d.root.pieces}:
        loose = [i for i, p in enumerate(root.pieces) if not p.fixed]
        if len(loose) < 2 or loose[-1] - loose[0] >= len(loose):
            continue
        parts = root.pieces[loose[0] : loose[-1] + 1]
        sources = [ax.roots(p.axis) for p in parts]
        apart = sum(map(len, sources)) == len(set().union(*sources))
        if not apart or any(r.kind != "data" for s in sources for r in s):
            continue
        size = sum(p.size for p in parts)
        union = Root("+".join(ax.show(p.axis) for p in parts), size, "data", union=parts)
        whole = Interval((Digit(union, 1, size),), 0, size)
        around = (*root.pieces[: loose[0]], whole, *root.pieces[loose[-1] + 1 :])
        found[root] = ax.from_pieces(around)
    return found


def _same_tokens(streams: Sequence[Residual]) -> dict[Root, Axis]:
    """The same patches between fixed tokens that are put in anew before each block (prompts): one
    set of tokens, that of the first."""
    axes = [one.axis for one in streams]
    first: dict[tuple[object, ...], Root] = {}
    found: dict[Root, Axis] = {}
    for root in (axis[0].root for axis in axes if len(axis) == 1 and axis[0].whole):
        if not any(p.fixed for p in root.pieces) or all(p.fixed for p in root.pieces):
            continue
        layout = tuple(p.size if p.fixed else p for p in root.pieces)
        known = first.setdefault(layout, root)
        if known != root:
            found[root] = ax.new(known.name, known.size, known.kind, known.pieces)
    return found


def _masks(facts: Facts, streams: Sequence[Residual]) -> dict[Root, Axis]:
    """Axes of masks beside the images that turn out to be the tokens, or the batch.

    A mask's own axes have no meaning until it meets the tokens; what was counted along them before
    that has to be known as well.
    """
    spaces = [token_space(streams, None, axis) for axis in {r.axis for r in streams}]
    runs = {axis for space in spaces if space is not None for axis in space.runs}
    found: dict[Root, Axis] = {}
    for root, axes in facts.met.items():
        name = root.name.rpartition("/")[0]
        if name not in facts.live or name in facts.imaged or len(axes) != 1:
            continue
        (axis,) = axes
        if axis in runs or all(d.root.kind == "batch" for d in axis):
            found[root] = axis
    for pair in list(facts.alike) * len(facts.alike):
        for one, other in (pair, pair[::-1]):
            if one in found:
                found.setdefault(other, found[one])
    return found


def composed(known: Mapping[Root, Axis], more: Mapping[Root, Axis]) -> dict[Root, Axis]:
    """What was known before, in terms of what is known now."""
    later = {
        root: more.get(axis[0].root, axis) if len(axis) == 1 and axis[0].whole else axis
        for root, axis in known.items()
    }
    return {**later, **more}
