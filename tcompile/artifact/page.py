"""A manifest as a page of Markdown: the report.md of an artifact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tcompile.artifact.manifest import Fidelity, Latency, Manifest
from tcompile.core.model_files import TensorInfo
from tcompile.targets.backends.base import FusedAttention


def render(manifest: Manifest) -> str:
    """The report, ending in a newline."""
    m = manifest
    saved = 1 - m.flops.reduced / m.flops.dense if m.flops.dense else 0.0
    parts = [
        *(
            [f"**This build failed and is kept for debugging only.** {m.fault}\n"]
            if m.fault
            else []
        ),
        f"# {m.source.file} for {m.target.name}\n",
        *([" \n".join(f"{line}." for line in m.summary) + "\n"] if m.summary else []),
        f"{m.tool}, {m.precision}, method `{m.schedule.get('method', '?')}`.",
        f"FLOPs for one image: {giga(m.flops.dense)} dense, {giga(m.flops.reduced)} reduced "
        f"({saved:.1%} less; a multiply-add counts as two).",
        "\n## Tokens\n",
        table(
            ("block", "tokens into attention", "tokens into MLP"),
            ((t.block, t.attention, t.mlp) for t in m.tokens_per_block),
        ),
        "\n## Latency\n",
        _latency(m.latency),
        "\n## Fidelity to the dense model\n",
        _fidelity(m.fidelity),
        "\n## Fused attention\n",
        _fused(m.fused_attention),
        *([f"\nToken ops: {m.token_ops.form}; {m.token_ops.reason}."] if m.token_ops else []),
        *([f"\nBatches of {b.words}."] if (b := m.batch_sizes) else []),
        "\n## Inputs and outputs\n",
        _tensors(m.inputs, m.outputs),
    ]
    if m.notes:
        parts += ["\n## Notes\n", *(f"- {note}" for note in m.notes)]
    versions = (f"{name} {version}" for name, version in m.versions.items())
    parts += ["\n## Made from\n", f"`{m.source.file}`, sha256 `{m.source.sha256}`."]
    parts += [", ".join(versions) + "."]
    return "\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def milliseconds(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def giga(flops: int) -> str:
    """FLOPs in the unit that reads best."""
    return f"{flops / 1e9:.2f} G" if flops >= 1e8 else f"{flops / 1e6:.2f} M"


def _latency(figures: Sequence[Latency]) -> str:
    if not figures:
        return "Not looked at; `tcompile bench` measures it."
    rows = (
        (f.model, milliseconds(f.milliseconds), f.kind, f"{f.device}, {f.runtime}", f.batch, f.note)
        for f in figures
    )
    return table(("model", "median", "kind", "on", "batch", "note"), rows)


def _fidelity(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return "Not looked at; `tcompile verify` does."
    rows = (
        (
            o.output,
            o.compared,
            f"{o.cosine_mean:.5f}",
            f"{o.cosine_min:.5f}",
            "" if o.top1_agreement is None else f"{o.top1_agreement:.1%}",
        )
        for o in fidelity.outputs
    )
    head = ("output", "compared on", "cosine, mean", "cosine, worst", "top-1 agreement")
    return f"On {fidelity.data}.\n\n{table(head, rows)}"


def _fused(fused: FusedAttention | None) -> str:
    if fused is None:
        return "No engine here to look into."
    text = f"{fused.found} of {fused.expected} attention layers run in a fused kernel."
    return text + (f" Not fused: {', '.join(fused.missing)}." if fused.missing else "")


def _tensors(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> str:
    def row(kind: str, tensor: TensorInfo) -> tuple[str, str, str, str]:
        return kind, f"`{tensor.name}`", tensor.dtype, " × ".join(map(str, tensor.shape))

    rows = [row("input", t) for t in inputs] + [row("output", t) for t in outputs]
    return table(("", "name", "type", "shape"), rows)
