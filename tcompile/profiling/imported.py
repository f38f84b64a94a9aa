"""A profile from latencies of whole models, spread over their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from tcompile.analysis.flops import node_flops
from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import Conditions, MeasuredProfile, Subject
from tcompile.profiling.sizing import Sized, structures
from tcompile.profiling.structure import Layout, layout_of

NOTE = (
    "latencies of whole models that carry n tokens from the first block to the last; their parts "
    "are assumed to take time in proportion to FLOPs"
)
FREE = "steps were not measured and are taken to cost nothing"


def imported_profile(
    dense: gs.Graph,
    analysis: Analysis,
    methods: Sequence[Method],
    curve: Curve,
    conditions: Conditions,
    *,
    source: str,
    steps: Mapping[str, StepCost] | None = None,
) -> MeasuredProfile:
    """A measured profile whose parts add up to a curve of whole models.

    With F the FLOPs of parts, t the curve and N the dense model's tokens: the stem, which always
    sees N tokens, takes t(N) · F_stem / F(N). What is left of each t(n) is spread over halves and
    head by their share of the FLOPs at n, and so is the fit of t that does not decrease. So the
    parts of a model with n tokens throughout add up to t(n), and a plan's latency follows from
    where its tokens leave.

    Args:
        curve: whole models by token count, prefix included; counts beyond N only help to find t(N).
        conditions: whose note is filled in.
        steps: by key of a method; those that are missing cost nothing, and the note says so.

    Raises:
        UsageError: no method; a curve that lies beyond N.
    """
    shape = analysis.shape
    if not methods:
        raise UsageError("no method can be planned on this model", where="--method")
    if curve.counts[0] >= shape.tokens:
        raise UsageError(
            f"has no latency below the model's {shape.tokens} tokens", where="--import"
        )
    found = structures(dense, analysis, methods)
    whole = dict(curve.points)
    whole.setdefault(shape.tokens, _between(curve, shape.tokens))
    points = {n: f for n, f in sorted(whole.items()) if shape.prefix < n <= shape.tokens}
    stem_flops = sum(_flops(g) for g in found.stem.values())
    parts = {**found.halves, **found.heads}

    # What a half with sides of its own (masks, tables) becomes behind a step, where it is seen.
    later = _later(layout_of(dense, methods[0]))

    def total(tokens: int) -> float:
        """FLOPs of all halves and the head of the dense model, were there so many tokens."""
        return sum(
            uses * _at(parts[s if tokens in parts[s].graphs else later.get(s, s)], tokens)
            for s, uses in found.uses.items()
            if s in parts
        )

    all_flops = stem_flops + total(shape.tokens)
    stem_ms = points[shape.tokens].ms * stem_flops / max(all_flops, 1.0)

    # The whole is fitted, not its parts: where it is flat, the share of one part falls.
    fitted = Curve.of(points.items()).fit

    def spread(part: Sized) -> Curve:
        shares = [_at(part, n) / max(total(n), 1.0) for n in points]
        return Curve(
            tuple(
                (n, _scaled(f.minus(stem_ms), share))
                for (n, f), share in zip(points.items(), shares, strict=True)
            ),
            tuple(
                float(max(ms - stem_ms, 0.0) * share)
                for ms, share in zip(fitted, shares, strict=True)
            ),
        )

    given = dict(steps or {})
    free = StepCost(((shape.tokens, shape.prefix + 1, Figure(0.0, 0.0, 0.0)),))
    unknown = [m.key for m in methods if m.key not in given]
    note = "; ".join([NOTE, *([f"{', '.join(unknown)}: {FREE}"] if unknown else [])])
    if shape.tokens not in curve.counts:
        note += f"; {shape.tokens} tokens were not measured, but follow from what was"
    return MeasuredProfile(
        replace(conditions, note=note),
        Subject(source, shape.tokens, shape.prefix, shape.blocks),
        {
            s: _scaled(points[shape.tokens], _flops(g) / max(all_flops, 1.0))
            for s, g in found.stem.items()
        },
        {s: spread(part) for s, part in found.halves.items()},
        {s: spread(part) for s, part in found.heads.items()},
        {m.key: given.get(m.key, free) for m in methods},
        points[shape.tokens],
    )


def _later(layout: Layout) -> dict[str, str]:
    pairs = [(layout.head_dense, layout.head)]
    for before, after in zip(layout.dense, layout.reduced, strict=True):
        pairs += zip(before, after, strict=True)
    return {a: b for a, b in pairs if a and b and a != b}


def _flops(graph: gs.Graph) -> float:
    """For one image; a batch that is free counts as one."""
    return float(sum(node_flops(n) for n in graph.nodes))


def _at(part: Sized, tokens: int) -> float:
    """FLOPs at a count; of a part that was never seen there, in proportion to tokens."""
    graph = part.at(tokens)
    if graph is not None:
        return _flops(graph)
    seen = min(part.graphs, key=lambda n: abs(n - tokens))
    return _flops(part.graphs[seen]) * tokens / seen


def _scaled(figure: Figure, share: float) -> Figure:
    return Figure(figure.ms * share, figure.lower * share, figure.upper * share, figure.runs)


def _between(curve: Curve, tokens: int) -> Figure:
    """The figure of a count that was not measured: on the curve's line, without a spread."""
    ms = float(curve.at([tokens])[0])
    return Figure(ms, ms, ms, 1)
