"""A manifest as a page of Markdown: the report.md of an artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tcompile.analysis.memory import size_words
from tcompile.artifact.manifest import (
    Fidelity,
    Latency,
    Manifest,
    OutputFidelity,
    Quantization,
    Rival,
    dense_and_reduced,
)
from tcompile.core.errors import short_names
from tcompile.core.model_files import TensorInfo
from tcompile.core.schedule import RESTORES
from tcompile.planning.front import FrontPlan, front_table
from tcompile.planning.memory import AT_LEAST, Memory
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
        f"{m.tool} for {m.target.runtime}, {m.precision}, method "
        f"`{m.schedule.get('method', '?')}`.",
        f"FLOPs for one image: {giga(m.flops.dense)} dense, {giga(m.flops.reduced)} reduced "
        f"({saved:.1%} less; a multiply-add counts as two).",
        "\n## Tokens\n",
        _asked(m),
        _steps(m.schedule),
        table(
            ("block", "tokens into attention", "tokens into MLP"),
            ((t.block, t.attention, t.mlp) for t in m.tokens_per_block),
        ),
        "\n## Latency\n",
        _latency(m.latency),
        *filter(None, (_speedup(m), _over_rival(m), _prediction(m), _front(m))),
        *(["\n## Memory\n", _memory(m, m.memory)] if m.memory else []),
        "\n## Fidelity to the dense model\n",
        _fidelity(m.fidelity),
        *([_of_rival(m.rival, m.precision)] if m.rival else []),
        *([f"\n{m.precision}: {quantization_words(m.quantization)}."] if m.quantization else []),
        "\n## Fused attention\n",
        fused_text(m.fused_attention),
        *([f"\nToken ops: {m.token_ops.form}; {m.token_ops.reason}."] if m.token_ops else []),
        *([f"\nBatches of {b.words}."] if (b := m.batch_sizes) else []),
        "\n## Inputs and outputs\n",
        _tensors(m.inputs, m.outputs, m.token_index),
    ]
    if m.notes:
        parts += ["\n## Notes\n", *(f"- {note}" for note in m.notes)]
    versions = (f"{name} {version}" for name, version in m.versions.items())
    parts += ["\n## Made from\n", f"`{m.source.file}`, sha256 `{m.source.sha256}`."]
    parts += [", ".join(versions) + "."]
    return short_names("\n".join(parts)) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def milliseconds(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def share(value: float, digits: int = 0) -> str:
    """A share in percent; 100 % where it is all, and not where it is nearly all."""
    below = 1 - 10.0 ** -(digits + 2)
    return f"{value if value >= 1 else min(value, below):.{digits}%}"


def giga(flops: int) -> str:
    """FLOPs in the unit that reads best, with three digits that count."""
    return f"{flops / 1e9:.2f} G" if flops >= 1e9 else f"{flops / 1e6:.2f} M"


def _latency(figures: Sequence[Latency]) -> str:
    if not figures:
        return "Not looked at; `tcompile bench` measures it."
    rows = (
        (f.model, milliseconds(f.milliseconds), f.kind, f"{f.device}, {f.runtime}", f.batch, f.note)
        for f in figures
    )
    return table(("model", "median", "kind", "on", "batch", "note"), rows)


def _asked(m: Manifest) -> str:
    """The budgets that were asked for, and the share of the patch tokens that is kept."""
    head = ("asked", asked_words(m) or f"method `{m.schedule.get('method', '?')}`")
    rows = []
    if m.kept is not None:
        kept = f"{m.kept.keep:.1%}: {m.kept.patches} of {m.kept.of} patch tokens"
        rows.append(("kept", kept))
    if words := given_back(m.schedule):
        rows.append(("row of a dropped token", words))
    return table(head, rows) + "\n"


def asked_words(m: Manifest) -> str:
    """The budgets that were asked for, as options; empty for none."""
    budget = (m.plan or {}).get("budget") or {}
    return ", ".join(_BUDGETS[name](value) for name, value in budget.items() if name in _BUDGETS)


def given_back(schedule: Mapping[str, Any]) -> str:
    """The rule by which restored outputs give dropped tokens back; empty where none is."""
    rule = str(schedule.get("restore") or "")
    return f"{rule}: {RESTORES.get(rule, '?')}" if rule else ""


#: Budget → how it reads.
_BUDGETS: dict[str, Callable[[Any], str]] = {
    "keep": lambda share: f"--keep {share:g}",
    "exact": lambda _: "--exact",
    "latency_ms": lambda ms: f"--latency {ms:g} ms",
    "max_drop": lambda share: f"--max-drop {share:g}",
    "objective": lambda name: f"--objective {name}",
}


def _steps(schedule: Mapping[str, Any]) -> str:
    """Where tokens leave, by which score, and what happens to them; of every tower."""
    resized = schedule.get("resized")
    if resized:
        (h, w), (grid_h, grid_w) = resized["size"], resized["grid"]
        whose = "resized in the graph" if resized["image"] == "graph" else "the input has this size"
        return f"The image has {h} x {w} pixels ({whose}): {grid_h} x {grid_w} patches.\n"
    head, rows = steps_table(schedule)
    return table(head, rows) + "\n" if rows else "No token leaves.\n"


def steps_table(schedule: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the steps of a schedule; the tower where there are several."""
    towers = [(schedule.get("tower") or "", schedule.get("reductions") or ())]
    towers += [(t["tower"], t["reductions"]) for t in schedule.get("towers") or ()]
    rows = [
        [tower, r["site"], _spec(r.get("score")), _spec(r.get("reducer")), str(r["keep"])]
        for tower, reductions in towers
        for r in reductions
    ]
    first = 0 if any(tower for tower, *_ in rows) else 1
    head = ["tower", "site", "score", "reducer", "patch tokens kept"]
    return head[first:], [row[first:] for row in rows]


def _spec(document: Mapping[str, Any] | None) -> str:
    """A score or reducer as `name` or `name(key=value)`; composed ones by the names inside."""
    if not document:
        return ""
    inside = [
        f"{key}={_spec(v) if isinstance(v, dict) else v}"
        for key, v in document.items()
        if key != "name" and not isinstance(v, list)
    ]
    parts = [_spec(v) for d in document.values() if isinstance(d, list) for v in d]
    shown = ", ".join([*inside, *(p for p in parts if p)])
    return f"{document.get('name', '?')}({shown})" if shown else str(document.get("name", "?"))


def _speedup(m: Manifest) -> str:
    s = m.speedup
    if s is None:
        return ""
    return (
        f"\nSpeed-up of the reduced model over {s.over}, measured: {s.ratio:.2f} × "
        f"[{s.lower:.2f}, {s.upper:.2f}] (95 %)."
    )


def _over_rival(m: Manifest) -> str:
    s = None if m.rival is None else m.rival.speedup
    if s is None:
        return ""
    return f"\nOver {s.over}: {s.ratio:.2f} × [{s.lower:.2f}, {s.upper:.2f}] (95 %)."


def _of_rival(rival: Rival, precision: str) -> str:
    """The figures of the dense model in that precision, a line each output."""
    lines = [f"- `{out.output}`: {fidelity_words(out)}." for out in rival.fidelity.outputs]
    kind = "" if rival.kind == precision else f" ({rival.kind})"
    return "\n".join([f"\nThe dense model in {precision}{kind} has, on the same:\n", *lines])


def quantization_words(how: Quantization) -> str:
    """How a model was put into int8, and why so, without a full stop."""
    data = f", ranges from {how.data}" if how.data else ""
    same = how.same_tokens
    tokens = "" if same is None else f"; {same:.1%} of the tokens are chosen as in fp32"
    smoothed = f"; outliers behind norms are in the weights: {how.smoothed}" if how.smoothed else ""
    return f"{how.kind}{data}, of {how.products} matrix products; {how.reason}{tokens}{smoothed}"


def _memory(m: Manifest, memory: Memory) -> str:
    """What both models need, predicted, beside the bytes of what was written."""
    needs = [("dense", memory.dense), *([("reduced", memory.reduced)] if m.reduced else [])]
    text = table(
        ("model", "weights", "activations", "together"),
        ((name, *map(size_words, (n.weights, n.activations, n.total))) for name, n in needs),
    )
    said = f"Predicted, in {m.precision}, of a batch of {memory.batch}; {AT_LEAST}. "
    said += "Activations are those alive at one time, at their most."
    written = [("model.onnx", memory.file), ("the engine", memory.engine)]
    sizes = [f"{name} {size_words(size)}" for name, size in written if size is not None]
    if sizes:
        said += f" Written: {', '.join(sizes)}."
    if memory.device is not None:
        said += f" The device has {size_words(memory.device)}."
    return f"{text}\n\n{said}"


def prediction(m: Manifest) -> tuple[tuple[list[str], list[list[str]]], str] | None:
    """The latency that the plan predicted, beside what was measured of the same two models: head
    and rows of a table, and where the prediction is from; None where there is none."""
    plan = m.plan or {}
    if "predicted_ms" not in plan or m.emitted == "dense":
        return None
    rows = [(f"predicted, {plan['latency_kind']} profile", plan["dense_ms"], plan["predicted_ms"])]
    dense, reduced = dense_and_reduced(m.latency)
    if dense is not None and reduced is not None:
        rows.append(("measured", dense, reduced))
    cells = [
        [name, milliseconds(dense), milliseconds(ms), f"{dense / ms:.2f}" if ms > 0 else ""]
        for name, dense, ms in rows
    ]
    said = f"Predicted within {plan['band']:.0%}, from: {plan['profile']}."
    return (["latency", "dense", "reduced", "dense / reduced"], cells), said


def _prediction(m: Manifest) -> str:
    found = prediction(m)
    return "" if found is None else f"\n{table(*found[0])}\n\n{found[1]}"


def _front(m: Manifest) -> str:
    """The plans that were looked at, and the dense model, by predicted latency and loss."""
    plan = m.plan or {}
    # Manifests written before had pairs here.
    points = [point for point in plan.get("front") or () if isinstance(point, Mapping)]
    found = [FrontPlan(**point) for point in points]
    if not found:
        return ""
    head, rows = front_table(found)
    said = f"Loss: {plan['losses']}. "
    said += "Of the plans that were looked at: those that no other beats in both latency and loss, "
    said += "the best in each precision, and the dense model; latencies are predicted, from a "
    said += f"{plan['latency_kind']} profile."
    if m.rival is not None:
        said += f" What the dense model takes and loses in {m.precision} was measured: see above"
        said += " and below."
    return f"\n### Plans by latency and loss\n\n{table(head, rows)}\n\n{said}"


def _fidelity(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return "Not looked at; `tcompile verify` does."
    head, rows = fidelity_table(fidelity)
    # A file may be called anything, and Markdown takes HTML as it is.
    rows = [[escape(cell).replace("|", "&#124;") for cell in row] for row in rows]
    notes = fidelity_notes(fidelity)
    return "\n\n".join(
        [f"On {fidelity.data}.", table(head, rows), *(f"{n[0].upper()}{n[1:]}." for n in notes)]
    )


def fidelity_table(fidelity: Fidelity) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table, without the columns that no output has a figure for."""
    columns = [(name, [text(out) for out in fidelity.outputs]) for name, text in _FIGURES]
    shown = [(name, cells) for name, cells in columns if any(cells)]
    rows = zip(*(cells for _, cells in shown), strict=True)
    return [name for name, _ in shown], [list(row) for row in rows]


def _number(name: str, form: str) -> Callable[[OutputFidelity], str]:
    def text(out: OutputFidelity) -> str:
        value = getattr(out, name)
        return "" if value is None else format(value, form)

    return text


#: Columns of the table of fidelity.
_FIGURES: tuple[tuple[str, Callable[[OutputFidelity], str]], ...] = (
    ("output", lambda out: out.output),
    ("compared on", lambda out: out.compared),
    ("correlation", _number("correlation_mean", ".4f")),
    ("its worst", _number("correlation_min", ".4f")),
    ("cosine", _number("cosine_mean", ".5f")),
    ("its worst", _number("cosine_min", ".5f")),
    ("relative error", _number("error_mean", ".3g")),
    ("its worst", _number("error_max", ".3g")),
    ("5 % of tokens below", _number("token_cosine_p05", ".4f")),
    (
        "top-1 the same",
        lambda out: "" if out.top1_agreement is None else share(out.top1_agreement, 1),
    ),
    ("worst sample", lambda out: out.worst),
)


def fidelity_notes(fidelity: Fidelity) -> list[str]:
    """Return what a reader must know of the figures, a sentence each without a full stop."""
    remarks = [f"output '{out.output}': {out.remark}" for out in fidelity.outputs if out.remark]
    return [*remarks, *filter(None, [fidelity.reminder])]


def fidelity_words(out: OutputFidelity) -> str:
    """Return one output's figures in a line: what tells most of such an output comes first."""
    worst = f" ({out.worst})" if out.worst else ""
    if out.correlation_mean is not None:
        said = f"correlation {out.correlation_mean:.4f} to dense, worst {out.correlation_min:.4f}"
        said += f"{worst}, cosine {out.cosine_mean:.4f}"
    else:
        said = f"cosine {out.cosine_mean:.4f} to dense, worst {out.cosine_min:.4f}{worst}"
    if out.error_mean is not None:
        said += f", relative error {out.error_mean:.2g}"
    if out.top1_agreement is not None:
        said += f", top-1 {share(out.top1_agreement)} the same"
    return said + (f"; on {out.compared}" if out.compared != "all" else "")


def fused_text(fused: FusedAttention | None) -> str:
    """How many attentions of an engine run in a fused kernel, and which do not."""
    if fused is None:
        return "No engine here to look into."
    text = f"{fused.found} of {fused.expected} attention layers run in a fused kernel."
    return text + (f" Not fused: {', '.join(fused.missing)}." if fused.missing else "")


def _tensors(
    inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], token_index: Mapping[str, str]
) -> str:
    def row(kind: str, tensor: TensorInfo) -> tuple[str, str, str, str]:
        return kind, f"`{tensor.name}`", tensor.dtype, " × ".join(map(str, tensor.shape))

    rows = [row("input", t) for t in inputs] + [row("output", t) for t in outputs]
    told = "".join(
        f"\n\nThe rows of `{name}` are the tokens that `{index}` lists."
        for name, index in token_index.items()
    )
    return table(("", "name", "type", "shape"), rows) + told
