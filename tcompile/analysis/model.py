"""Everything the analysis says of one model, and which sites are legal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention, find_attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts, Origin
from tcompile.analysis.groups import find_grouping
from tcompile.analysis.propagate import propagate
from tcompile.analysis.sites import Site, find_sites
from tcompile.analysis.space import Residual, TokenSpace, token_space, with_orders
from tcompile.analysis.structure import Block, ancestors, carries, find_blocks, residuals
from tcompile.errors import ModelError, UsageError
from tcompile.ir import attr, is_const, value
from tcompile.planning.schedule import Shape


@dataclass(frozen=True)
class Analysis:
    """The structure of a normalised model.

    Attributes:
        cls: position of the fixed token that the model reads by itself or returns, counted from
            the front or, after the patches, from the back (-1); None where there is none.
        restorable: nodes behind the last block, which may get every token back.
    """

    facts: Facts
    attentions: tuple[Attention, ...]
    space: TokenSpace
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    cls: int | None
    restorable: frozenset[str]

    @property
    def has_cls(self) -> bool:
        return self.cls is not None

    @property
    def shape(self) -> Shape:
        s = self.space
        return Shape(s.total, s.total - s.patches, s.patches, len(self.blocks))

    def site(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)


def analyse(
    graph: gs.Graph, *, prefix: int | None = None, sized: Mapping[str, Origin] | None = None
) -> Analysis:
    """Analyse a graph in normal form.

    Args:
        prefix: tokens at the front that are no patches, where the person knows better.
        sized: stored numbers → the (tensor, axis, size) that they were computed from.

    Raises:
        ModelError: no transformer with a residual stream in it.
        UsageError: a prefix that cannot be.
    """
    facts = propagate(graph)
    attentions = tuple(find_attention(graph, facts))
    if facts.conflicts and attentions:
        # What the tokens are is known now: what contradicts them may take their meaning.
        first = token_space(residuals(graph, facts, attentions))
        if first is not None:
            facts = propagate(graph, frozenset(ax.roots(first.axis)))
            attentions = tuple(find_attention(graph, facts))
    meant = _meant(graph, facts, attentions)
    if meant:
        facts = propagate(graph, facts.preferred, meant)
        attentions = tuple(find_attention(graph, facts))
    facts.sized = sized or {}
    if not attentions:
        raise ModelError(
            "no transformer found: nothing in it is an attention (softmax(Q·Kᵀ)·V)",
            hint="tcompile reduces the tokens of vision transformers",
        )
    streams = residuals(graph, facts, attentions)
    space = token_space(streams, prefix)
    if space is None and prefix is not None and token_space(streams) is not None:
        raise UsageError(f"{prefix} tokens before the patches are not possible here",
                         where="--prefix", hint=_possible(streams))  # fmt: skip
    if space is None:
        raise ModelError(
            f"has {len(attentions)} attentions, but none is self-attention over one token axis "
            "around which a residual stream runs",
            hint="tcompile reduces encoders whose tokens are the patches of an image",
        )
    whole = space.whole_patches
    if whole is not None:
        space = replace(space, grouping=find_grouping(graph, facts, whole))
        space = with_orders(space, facts)
    blocks = tuple(find_blocks(graph, facts, streams, space))
    restorable = _behind(graph, blocks[-1].stream_out)
    tensors = graph.tensors()
    if any(blocks[-1].stream_out in ancestors(tensors[r.stream]) for r in streams
           if r.axis != space.axis):  # fmt: skip
        restorable = frozenset()  # another stage of the encoder follows, with other tokens
    sites = tuple(find_sites(graph, facts, space, attentions, blocks, restorable))
    cls = _find_cls(graph, facts, space, blocks[-1].stream_out)
    return Analysis(facts, attentions, space, blocks, sites, cls, restorable)


def _meant(graph: gs.Graph, facts: Facts, attentions: tuple[Attention, ...]) -> dict[ax.Root, Axis]:
    """Axes of masks beside the images that turn out to be the tokens, or the batch.

    A mask's own axes have no meaning until it meets the tokens; what was counted along them before
    that has to be known as well.
    """
    space = token_space(residuals(graph, facts, attentions)) if attentions else None
    if space is None:
        return {}
    found: dict[ax.Root, Axis] = {}
    for root, axes in facts.met.items():
        name = root.name.rpartition("/")[0]
        if name not in facts.live or name in facts.imaged or len(axes) != 1:
            continue
        (axis,) = axes
        if axis in space.runs or all(d.root.kind == "batch" for d in axis):
            found[root] = axis
    return found


def _possible(streams: list[Residual]) -> str:
    space = token_space(streams)
    assert space is not None
    most = space.prefix + space.patches - 1
    return f"the analysis proves {space.prefix}; more can be stated, up to {most}"


def _behind(graph: gs.Graph, last: str) -> frozenset[str]:
    """Nodes that the last block's output does not depend on."""
    tensors = graph.tensors()
    needed = ancestors(tensors[last]) | {last}
    return frozenset(n.name for n in graph.nodes if not any(o.name in needed for o in n.outputs))


def _find_cls(graph: gs.Graph, facts: Facts, space: TokenSpace, final: str) -> int | None:
    """The fixed token that is read after the last block: by itself, with others, or as part of an
    output. The first before the patches, else the first after them.

    A model that only ever averages its patches (registers, or a CLS nobody reads) has no CLS whose
    attention means anything.
    """
    if space.prefix and _is_read(graph, facts, space, final, 0):
        return 0
    if space.suffix and _is_read(graph, facts, space, final, space.end):
        return -space.suffix
    return None


def _is_read(graph: gs.Graph, facts: Facts, space: TokenSpace, final: str, piece: int) -> bool:
    """Whether the first token of a piece is read after the last block."""
    below = {final}
    if any(o.name == final for o in graph.outputs):
        return True
    outputs = {o.name for o in graph.outputs}
    first = sum(p.size for p in space.pieces[:piece])
    for node in graph.nodes:
        if not any(t.name in below for t in node.inputs):
            continue
        below.update(t.name for t in node.outputs)
        if any(o.name in outputs and carries(facts, o, space) for o in node.outputs):
            return True
        if node.op == "Gather" and _picks(node, facts, space, first):
            return True
        if node.op in ("Slice", "Split") and any(
            _starts(axis, space, piece) for out in node.outputs for axis in facts.of(out)
        ):
            return True
        pooled = node.op.startswith("Reduce") and carries(facts, node.inputs[0], space)
        if pooled and not carries(facts, node.outputs[0], space):
            return True
    return False


def _starts(axis: Axis, space: TokenSpace, piece: int) -> bool:
    """Whether the axis is the first tokens of a fixed piece, without any patch."""
    first = ax.pieces(axis)[0]
    whole = space.pieces[piece]
    return first.fixed and first.axis == whole.axis and first.start == 0 and axis != space.axis


def _picks(node: gs.Node, facts: Facts, space: TokenSpace, position: int) -> bool:
    axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
    if facts.of(node.inputs[0])[axis] != space.axis or not is_const(node.inputs[1]):
        return False
    return bool((value(node.inputs[1]).reshape(-1) % space.total == position).any())
