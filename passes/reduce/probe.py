"""The learned probe behind some encoders (SigLIP's pooling head, Q-Former): a score for towers
without CLS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.model import Analysis
from tcompile.analysis.sites import Site, between
from tcompile.analysis.structure import ancestors
from tcompile.analysis.token_dims import locate
from tcompile.core.graph import is_const
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder


def find_probe(analysis: Analysis, graph: gs.Graph) -> Attention | None:
    """The first attention behind the blocks that learned queries pay to all the tokens."""
    last, tensors = analysis.blocks[-1].stream_out, graph.tensors()
    for attention in analysis.attentions:
        if attention.columns != analysis.space.axis or attention.rows == attention.columns:
            continue
        above = ancestors(tensors[attention.k]) | {attention.k}
        if last in above and last not in ancestors(tensors[attention.q]):
            return attention
    return None


def probe_of(
    b: Builder,
    analysis: Analysis,
    nodes: Mapping[str, gs.Node],
    batch: int | None,
    count: int,
    site: Site,
) -> Callable[[gs.Tensor], gs.Tensor] | None:
    """Return a function that gives the attention [B, N] that the probe, mean of heads and queries,
    pays to the stream [B, N, C] of a site with `count` patches: what leads from the last block to
    its keys is copied, and at the output what leads there from the final norm."""
    attention = find_probe(analysis, b.graph)
    if attention is None:
        return None
    found = attention
    start = site.tensor if site.kind == "output" else analysis.blocks[-1].stream_out

    def attend(x: gs.Tensor) -> gs.Tensor:
        copied = _copied(b, analysis, found, start, x, batch, count)
        core = AttentionView(b, found, {**nodes, **copied}, batch)
        queries = core.rows(list(range(found.query_rows)))
        return b.reduce("Mean", queries, [1, 2])

    return attend


def _copied(
    b: Builder,
    analysis: Analysis,
    attention: Attention,
    start: str,
    x: gs.Tensor,
    batch: int | None,
    count: int,
) -> dict[str, gs.Node]:
    """Copies of the nodes from a tensor to the probe's logits, reading `x` in its place."""
    tensors = {start: x}
    made: dict[str, gs.Node] = {}
    softmax = attention.node
    end = next(n for n in b.graph.nodes if n.name == softmax).outputs[0].name
    inside = between(b.graph, start, str(end))
    for node in [n for n in b.graph.nodes if n.name in inside]:
        outputs = []
        for out in node.outputs:
            tensors[out.name] = gs.Variable(
                b.name(f"probe/{out.name}"), out.dtype, _shape(analysis, out, batch, count)
            )
            outputs.append(tensors[out.name])
        inputs = [tensors.get(t.name, t) for t in node.inputs]
        copy = gs.Node(
            node.op, b.name(f"probe/{node.name}"), dict(node.attrs), inputs, outputs, node.domain
        )
        if node.op in ("Reshape", "Expand") and is_const(node.inputs[1]):
            dims = _shape(analysis, node.outputs[0], None, count)
            copy.inputs[1] = b.const([d if isinstance(d, int) else 0 for d in dims])
        made[node.name] = copy
        b.graph.nodes.append(copy)
    return made


def _shape(analysis: Analysis, out: gs.Tensor, batch: int | None, count: int) -> list[int | str]:
    """The shape that a tensor of the dense graph has with fewer patches."""
    found: list[int | str] = []
    for dim, old in zip(
        locate(analysis.facts.axes[out.name], analysis.space), out.shape, strict=True
    ):
        held = dim is not None and dim.run is not None and dim.run.has_patches(analysis.space)
        found.append(dim.size(analysis.space, count, batch or 1) if dim and held else old)
    return found
