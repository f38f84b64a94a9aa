"""What stands behind the blocks, computed of every token: for rules that give rows to the stream.

A tensor that is to have every token again is a function of the residual stream. Where the stream
gets its tokens back, the nodes between the two are copied as the dense model has them. Tokens that
left behind the last block (`output`) never left the stream: they have the rows of the dense model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.model import Analysis
from tcompile.analysis.token_dims import stream_layout
from tcompile.core.errors import UsageError
from tcompile.core.graph import int_to_dim, tensors_of
from tcompile.passes.reduce.edit_state import Editor
from tcompile.passes.reduce.gather_rows import from_rows, to_rows
from tcompile.passes.reduce.reducers.base import Grid
from tcompile.passes.reduce.restoring import given_back
from tcompile.passes.reduce.token_state import TokenState


@dataclass(frozen=True)
class DenseNode:
    """A node of the dense graph, before anything was edited."""

    name: str
    op: str
    attrs: Mapping[str, Any]
    inputs: tuple[gs.Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[gs.Variable, ...]
    domain: str | None

    @staticmethod
    def of(node: gs.Node) -> DenseNode:
        outputs = tuple(gs.Variable(o.name, o.dtype, o.shape) for o in node.outputs)
        names = tuple(str(t.name) for t in node.inputs)
        return DenseNode(
            node.name, node.op, dict(node.attrs), tuple(node.inputs), names, outputs, node.domain
        )


class DenseTail:
    """Gives tensors behind the blocks every token again by way of the stream.

    Attributes:
        nodes: of the dense graph, in execution order.
        streams: the tensors between blocks, where tokens are given back.
        attentions: nodes of attentions; what they give is not made of one token alone.
        grid: of the dense model.
        rule: of `restoring`, but for those of one kept token's row.
    """

    def __init__(self, graph: gs.Graph, analysis: Analysis, grid: Grid, rule: str) -> None:
        self.nodes = [DenseNode.of(node) for node in graph.nodes]
        self.producer = {o.name: node for node in self.nodes for o in node.outputs}
        self.streams = {
            name for k in analysis.blocks for name in (k.stream_in, k.after_attention, k.stream_out)
        }
        self.attentions = {
            name for a in analysis.attentions for name in (a.node, getattr(a, "mix", ""))
        }
        self.tensors = tensors_of(graph)
        self.grid, self.rule = grid, rule
        self.made: dict[str, gs.Tensor] = {}

    def streams_of(self, name: str) -> frozenset[str]:
        """The streams that a tensor is made of."""
        return self._region(name).streams

    def give(
        self, editor: Editor, name: str, stages: Mapping[str, TokenState], edited: frozenset[str]
    ) -> gs.Tensor:
        """The tensor of that name in the dense graph, of every token.

        Args:
            stages: the tokens that each stream has now.
            edited: nodes that were changed, whose tensors mean something else by now.

        Raises:
            UsageError: more is between it and the stream than nodes behind the blocks.
        """
        region = self._region(name)
        whole = {stream: self._whole(editor, stream, stages) for stream in region.streams}
        changed = {n for n, tensor in whole.items() if tensor is not None}
        for node in region.nodes:
            outs = [str(o.name) for o in node.outputs]
            if node.name not in edited and changed.isdisjoint(node.names):
                continue
            changed.update(outs)
            if all(out in self.made for out in outs):
                continue
            copied = [
                self.made.get(n, editor.current[n] if n in self.streams else t)
                for n, t in zip(node.names, node.inputs, strict=True)
            ]
            self._copy(editor, node, copied)
        return self.made.get(name, self.tensors[name])

    def _copy(self, editor: Editor, node: DenseNode, inputs: Sequence[gs.Tensor]) -> None:
        b = editor.b
        outputs = [gs.Variable(b.name(f"whole/{o.name}"), o.dtype, o.shape) for o in node.outputs]
        name = b.name(f"whole/{node.name}")
        b.graph.nodes.append(
            gs.Node(node.op, name, dict(node.attrs), list(inputs), outputs, node.domain)
        )
        self.made |= {str(o.name): new for o, new in zip(node.outputs, outputs, strict=True)}

    def _region(self, name: str) -> Region:
        """The nodes that lead from the streams to a tensor."""
        wanted, streams, names = [name], set[str](), set[str]()
        while wanted:
            tensor = wanted.pop()
            if tensor in self.streams:
                streams.add(tensor)
                continue
            node = self.producer.get(tensor)
            if node is None or node.name in names:
                continue
            if node.name in self.attentions:
                raise UsageError(
                    f"'{name}' is not computed from the tokens behind a block one by one: it is "
                    f"made of the attention '{node.name}'",
                    where=f"--restore {self.rule}",
                    hint="--restore nearest",
                )
            names.add(node.name)
            wanted += node.names
        return Region(tuple(n for n in self.nodes if n.name in names), frozenset(streams))

    def _whole(
        self, editor: Editor, stream: str, stages: Mapping[str, TokenState]
    ) -> gs.Tensor | None:
        """The stream with every token; None where it has them all."""
        state = stages[stream]
        if state.departure is None:
            return None
        if stream in self.made:
            return self.made[stream]
        b, space, axes = editor.b, editor.space, editor.facts.axes[stream]
        layout = stream_layout(axes, space)
        assert layout is not None
        now = editor.current[stream]
        fixed = space.prefix + space.suffix
        x = to_rows(b, now, layout, fixed + state.count)
        end = space.prefix + state.count
        patches = b.slice(x, 1, space.prefix, end) if fixed else x
        parts = [given_back(b, space, self.grid, state, patches, self.rule)]
        if space.prefix:
            parts.insert(0, b.slice(x, 1, 0, space.prefix))
        if space.suffix:
            parts.append(b.slice(x, 1, end, None))
        sizes = [ax.size(axes[i]) for i in layout.tokens]
        full = from_rows(b, b.concat(parts, 1), layout, sizes, ax.size(axes[layout.features]))
        full.shape = [int_to_dim(ax.size(a)) for a in axes]
        self.made[stream] = full
        return full


@dataclass(frozen=True)
class Region:
    """Nodes in execution order, and the streams that they begin with."""

    nodes: tuple[DenseNode, ...]
    streams: frozenset[str]
