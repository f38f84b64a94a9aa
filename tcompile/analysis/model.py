"""Everything the analysis says of one model, and which sites are legal."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention, find_attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.effect_walk import effects
from tcompile.analysis.facts import Facts
from tcompile.analysis.propagate import propagate
from tcompile.analysis.structure import Block, TokenSpace, carries, find_blocks, token_space
from tcompile.errors import ModelError
from tcompile.ir import attr, is_const, value
from tcompile.planning.schedule import Shape


@dataclass(frozen=True)
class Site:
    """A point where tokens may leave.

    Attributes:
        name: `attn:3`, `block:3` or `output`.
        tensor: the stream there.
        block: whose attention the scores read.
        reason: why it is illegal; empty when legal.
        merge_reason: why merging (which needs sizes) is illegal there; empty when legal.
    """

    name: str
    tensor: str
    block: int
    reason: str
    merge_reason: str

    @property
    def legal(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Analysis:
    """The structure of a normalised model.

    Attributes:
        has_cls: the model reads its first prefix token by itself or returns it.
    """

    facts: Facts
    attentions: tuple[Attention, ...]
    space: TokenSpace
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    has_cls: bool

    @property
    def shape(self) -> Shape:
        s = self.space
        return Shape(s.total, s.total - s.patches, s.patches, len(self.blocks))

    def site(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)


def analyse(graph: gs.Graph) -> Analysis:
    """Analyse a graph in normal form.

    Raises:
        ModelError: no transformer with a residual stream in it.
    """
    facts = propagate(graph)
    attentions = tuple(find_attention(graph, facts))
    if not attentions:
        raise ModelError(
            "no transformer found: nothing in it is an attention (softmax(Q·Kᵀ)·V)",
            hint="tcompile reduces the tokens of vision transformers",
        )
    space = token_space(list(attentions))
    if space is None:
        raise ModelError(
            f"has {len(attentions)} attentions, but none is self-attention over one token axis",
            hint="tcompile reduces encoders whose tokens are the patches of an image",
        )
    blocks = tuple(find_blocks(graph, facts, list(attentions), space))
    if not blocks:
        raise ModelError("no residual stream around its attentions was found")
    sites = tuple(_sites(graph, facts, space, attentions, blocks))
    return Analysis(
        facts,
        attentions,
        space,
        blocks,
        sites,
        _has_cls(graph, facts, space, blocks[-1].stream_out),
    )


def _sites(
    graph: gs.Graph,
    facts: Facts,
    space: TokenSpace,
    attentions: tuple[Attention, ...],
    blocks: tuple[Block, ...],
) -> list[Site]:
    points = [p for b in blocks for p in (
        (f"attn:{b.index}", b.after_attention, b.index), (f"block:{b.index}", b.stream_out, b.index)
    )]  # fmt: skip
    last = blocks[-1]
    points.append(("output", _output_tensor(graph, facts, space, last.stream_out), last.index))
    tensors = graph.tensors()
    found: list[Site] = []
    for name, tensor, block in points:
        result = effects(graph, facts, space, attentions, [tensor])
        reason = str(result.barriers[0]) if result.barriers else ""
        if not reason and stream_layout(facts, tensors[tensor], space) is None:
            reason = "the stream has no [batch, tokens, features] layout there"
        merge = reason or (str(result.merge_barriers[0]) if result.merge_barriers else "")
        found.append(Site(name, tensor, block, reason, merge))
    return found


def stream_layout(
    facts: Facts, tensor: gs.Tensor, space: TokenSpace
) -> tuple[int, int, int] | None:
    """(batch axis, token axis, feature axis) of a rank 3 stream that carries all tokens."""
    axes = facts.of(tensor)
    if len(axes) != 3:
        return None
    tokens = [i for i, a in enumerate(axes) if a == space.axis]
    if len(tokens) != 1:
        return None
    rest = [i for i in range(3) if i != tokens[0]]
    if ax.has_batch(axes[rest[1]]) or (not ax.has_batch(axes[rest[0]]) and axes[rest[0]]):
        rest.reverse()
    if axes[rest[0]] and not ax.has_batch(axes[rest[0]]):
        return None
    return rest[0], tokens[0], rest[1]


def _output_tensor(graph: gs.Graph, facts: Facts, space: TokenSpace, stream: str) -> str:
    """The last tensor downstream of the blocks that carries all tokens: past the final norm."""
    tensor = graph.tensors()[stream]
    while True:
        if any(tensor is o for o in graph.outputs):
            return str(tensor.name)
        nexts = [n for n in tensor.outputs if len(n.outputs) == 1]
        keeps = [n for n in nexts if n.op in ("LayerNormalization", "RMSNormalization", "Identity")]
        if len(tensor.outputs) != 1 or not keeps or not carries(facts, keeps[0].outputs[0], space):
            return str(tensor.name)
        tensor = keeps[0].outputs[0]


def _has_cls(graph: gs.Graph, facts: Facts, space: TokenSpace, final: str) -> bool:
    """Whether the first prefix token is read after the last block: by itself, with others, or as
    part of an output.

    A model that only ever averages its patches (registers, or a CLS nobody reads) has no CLS whose
    attention means anything.
    """
    if not space.prefix:
        return False
    below = {final}
    if any(o.name == final for o in graph.outputs):
        return True
    for node in graph.nodes:
        if not any(t.name in below for t in node.inputs):
            continue
        below.update(t.name for t in node.outputs)
        if any(o.name in below and carries(facts, o, space) for o in node.outputs
               if any(o is g for g in graph.outputs)):  # fmt: skip
            return True
        if node.op == "Gather" and _picks_first(node, facts, space):
            return True
        if node.op in ("Slice", "Split") and any(
            _starts(axis, space) for out in node.outputs for axis in facts.of(out)
        ):
            return True
        pooled = node.op.startswith("Reduce") and carries(facts, node.inputs[0], space)
        if pooled and not carries(facts, node.outputs[0], space):
            return True
    return False


def _starts(axis: Axis, space: TokenSpace) -> bool:
    """Whether the axis is the first prefix tokens, without any patch."""
    first = ax.pieces(axis)[0]
    whole = space.pieces[0]
    return first.fixed and first.axis == whole.axis and first.start == 0 and axis != space.axis


def _picks_first(node: gs.Node, facts: Facts, space: TokenSpace) -> bool:
    axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
    if facts.of(node.inputs[0])[axis] != space.axis or not is_const(node.inputs[1]):
        return False
    return bool((value(node.inputs[1]).reshape(-1) == 0).any())
