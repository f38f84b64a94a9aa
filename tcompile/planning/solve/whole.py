"""Modelled latency of whole models, where a schedule was not solved from a profile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcompile.core.errors import TcompileError
from tcompile.planning.solve.planned import Followed, Modelled
from tcompile.planning.solve.solve import BAND

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from tcompile.passes.stages import Reduced
    from tcompile.targets import Target


def with_latency(
    followed: Followed, reduced: Reduced, target: Target, precision: str, batch: int
) -> Followed:
    """With what the roofline has of both models; on a CPU, which is measured, as it was."""
    ms = whole_ms(reduced.graph, target, precision, batch)
    dense = whole_ms(reduced.dense, target, precision, batch)
    if ms is None or dense is None:
        return followed
    words = f"modelled, {target.title}, by the roofline, batch {batch}, {precision}"
    return replace(followed, modelled=Modelled(dense, ms, words, BAND["modelled"]))


def whole_ms(graph: gs.Graph, target: Target, precision: str, batch: int) -> float | None:
    """ms of one batch by the roofline; None on a CPU, and where there are no figures."""
    if target.runtime == "onnxruntime":
        return None
    from tcompile.profiling.roofline import device_of, modelled

    try:
        return modelled(graph, device_of(target, precision), precision=precision, batch=batch).ms
    except TcompileError:
        return None


def faster_precision(graph: gs.Graph, target: Target, precision: str, batch: int) -> str:
    """A note that another precision of the target is modelled to be faster; empty for none."""
    mine = whole_ms(graph, target, precision, batch)
    others = [
        (ms, p)
        for p in target.precisions
        if p != precision and (ms := whole_ms(graph, target, p, batch)) is not None
    ]
    if mine is None or not others:
        return ""
    ms, best = min(others)
    if ms >= mine * (1 - BAND["modelled"] / 2):
        return ""
    return (
        f"{best} is modelled {mine / ms:.1f} x faster than {precision} here ({ms:.4g} ms "
        f"against {mine:.4g} ms): --precision {best}"
    )
