"""What `tcompile inspect` shows: the transformer in a model, and where tokens may leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis.flops import block_flops, graph_flops
from tcompile.analysis.model import Analysis
from tcompile.ir import attr, batch_dim


@dataclass(frozen=True)
class BlockInfo:
    """One block. `attention` is how it is spelled; FLOPs are for one image."""

    block: int
    heads: int
    attention: str
    node: str
    flops: int


@dataclass(frozen=True)
class SiteInfo:
    """A point where tokens may leave; `reason` says why not."""

    site: str
    legal: bool
    merge_legal: bool
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The structure of a model. `tokens` includes the prefix; `grid` is rows × columns."""

    model: str
    opset: int
    batch: int | str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    tokens: int
    prefix: int
    patches: int
    grid: tuple[int, ...]
    cls: bool
    attention_layers: int
    flops: int
    blocks: tuple[BlockInfo, ...]
    sites: tuple[SiteInfo, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """The same for people."""
        grid = " × ".join(map(str, self.grid))
        cls = "with CLS" if self.cls else "no CLS read"
        lines = [
            f"{self.model}: opset {self.opset}, batch {self.batch}",
            *(f"  input  {n} {v}" for n, v in self.inputs.items()),
            *(f"  output {n} {v}" for n, v in self.outputs.items()),
            f"  tokens {self.tokens} = {self.prefix} prefix ({cls}) + {self.patches} patches "
            f"({grid})",
            f"  {len(self.blocks)} blocks, {self.attention_layers} attentions, "
            f"{self.flops / 1e9:.2f} GFLOP an image",
            "",
            "  block  heads  attention      GFLOP  node",
        ]
        lines += [
            f"  {b.block:5}  {b.heads:5}  {b.attention:13}  {b.flops / 1e9:5.2f}  {b.node}"
            for b in self.blocks
        ]
        legal = [s.site for s in self.sites if s.legal]
        lines += ["", f"  tokens may leave at {_ranges(legal) or 'no site'}"]
        lines += [f"  {s.site} is illegal: {s.reason}" for s in self.sites if not s.legal]
        return "\n".join(lines)


def _ranges(names: list[str]) -> str:
    """`attn:0, attn:1, attn:2, output` → `attn:0–2, output`."""
    runs: dict[str, list[int]] = {}
    plain = []
    for name in names:
        kind, colon, number = name.partition(":")
        if colon:
            runs.setdefault(kind, []).append(int(number))
        else:
            plain.append(name)
    parts = []
    for kind, numbers in runs.items():
        start = previous = numbers[0]
        for n in [*numbers[1:], -1]:
            if n == previous + 1:
                previous = n
                continue
            parts.append(f"{kind}:{start}" + (f"–{previous}" if previous > start else ""))
            start = previous = n
    return ", ".join(parts + plain)


def describe(name: str, graph: gs.Graph, analysis: Analysis) -> Inspection:
    """Collect what is known of a normalised, analysed graph."""
    space = analysis.space
    nodes = {n.name: n for n in graph.nodes}
    flops = block_flops(graph, analysis.blocks)
    blocks = tuple(
        BlockInfo(
            b.index,
            b.attention.heads,
            _spelling(nodes[b.attention.node], b.attention.chain, nodes),
            b.attention.node,
            cost,
        )
        for b, cost in zip(analysis.blocks, flops, strict=True)
    )
    sites = tuple(SiteInfo(s.name, s.legal, not s.reduced.merge, s.reason) for s in analysis.sites)
    return Inspection(
        name,
        graph.opset,
        batch_dim(graph),
        {t.name: list(t.shape) for t in graph.inputs},
        {t.name: list(t.shape) for t in graph.outputs},
        space.total,
        space.total - space.patches,
        space.patches,
        space.grid,
        analysis.has_cls,
        len(analysis.attentions),
        graph_flops(graph),
        blocks,
        sites,
    )


def _spelling(node: gs.Node, chain: tuple[str, ...], nodes: dict[str, gs.Node]) -> str:
    """`Attention`, or `softmax` with what stands between Q·Kᵀ and it."""
    if node.op == "Attention":
        mask = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        causal = ", causal" if attr(node, "is_causal", 0) else ""
        return "Attention" + (", mask" if mask else "") + causal
    ops = {nodes[n].op for n in chain}
    kinds = (["scale"] if ops & {"Mul", "Div"} else []) + (
        ["mask"] if ops & {"Add", "Where"} else []
    )
    return ", ".join(["softmax", *kinds])
