"""What the charts of a report.html show, read back through their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tests.oracles.report.reading import Chart, Page, Point

C = TypeVar("C")


def far_off(chart: Chart, drawn: Sequence[Point], meant: Sequence[Point]) -> float:
    """How many tenths of a pixel points lie from where they are meant to be, at most; each may be
    rounded to one, and so may the ticks that it is read by."""
    if len(drawn) != len(meant):
        return float("inf")
    return max(
        (
            abs(p[i] - q[i]) / chart.pixel[i]
            for p, q in zip(drawn, meant, strict=True)
            for i in (0, 1)
        ),
        default=0.0,
    )


def chart_checks(
    page: Page,
    check: Callable[[str, str, str], C],
    attention: Sequence[int],
    mlp: Sequence[int],
    dense: int,
    plan: Mapping[str, Any],
) -> Iterator[C]:
    """Tokens over depth against those that ran; plans and latencies against the manifest's."""

    def told(name: str, chart: Chart, drawn: Sequence[Point], meant: Sequence[Point]) -> C:
        off = far_off(chart, drawn, meant)
        places = f"{len(meant)} points where they belong"
        return check(name, places, places if off < 2 else f"{off:.0f} tenths of a pixel off")

    depth = page.chart("depth")
    assert depth is not None
    counts = [n for pair in zip(attention, mlp, strict=True) for n in pair]
    steps = [(edge / 2, n) for i, n in enumerate(counts) for edge in (i, i + 1)]
    yield told("chart: tokens over depth", depth, depth.lines["line strong"], steps)
    yield told(
        "chart: dense tokens", depth, depth.lines["line dashed"], [(0, dense), (len(mlp), dense)]
    )
    beside = [str(counts[int(2 * x)]) for _, (x, _) in depth.labels[1:]]
    texts = [f"dense: {dense}", *beside]
    yield check("chart: labels over depth", str([t for t, _ in depth.labels]), str(texts))
    front, points = page.chart("front"), plan.get("front") or []
    if front is not None:
        most = 4 * max((p["loss"] for p in points if p["chosen"]), default=0.0)
        known = [p for p in points if p["loss"] is not None]
        drawn = [p for p in known if not most or p["loss"] <= most]
        places = [(p["latency_ms"], p["loss"]) for p in drawn]
        yield told("chart: plans", front, [at for _, at in front.marks], places)
        told_of = [title for title, _ in front.marks]
        yield check("chart: tips of plans", str(told_of), str(list(map(_tip, drawn))))
        names = set(map(_name, drawn)) | {
            f"dense {p['precision']}, loss not run" for p in points if p["loss"] is None
        }
        yield check(
            "chart: labels of plans", str([t for t, _ in front.labels if t not in names]), "[]"
        )
        yield check(
            "chart: labels beside plans", _astray(front, list(map(_name, drawn))), "none astray"
        )
        beyond = "; ".join(_tip(p) for p in known if p not in drawn)
        text = f"Beyond the top: {beyond}." if beyond else ""
        rest = text if not beyond or text in page.text else "not there"
        yield check("chart: plans that are not drawn", rest, text)
        best = [(p["latency_ms"], p["loss"]) for p in drawn if not p["beaten"]]
        if len(best) > 1:
            yield told("chart: plans that none beats", front, front.lines["line"], best)
    curve, latency = plan.get("curve") or [], page.chart("latency")
    if latency is not None:
        yield told(
            "chart: latency against tokens",
            latency,
            latency.lines["line strong"],
            [(n, ms) for n, ms in curve],
        )
        n, ms = np.array(curve).T
        chosen = list(dict.fromkeys(s["after"] for s in plan["steps"]))
        places = [(k, float(np.interp(k, n, ms))) for k in chosen]
        yield told("chart: counts of the plan", latency, [at for _, at in latency.marks], places)
        tips = [title for title, _ in latency.marks]
        yield check("chart: tips of counts", str(tips), str([f"{k} tokens" for k in chosen]))
        others = [t for t, _ in latency.labels if t not in map(str, chosen)]
        yield check("chart: labels of counts", str(others), "[]")
        yield check(
            "chart: labels beside counts", _astray(latency, list(map(str, chosen))), "none astray"
        )


def _astray(chart: Chart, names: Sequence[str]) -> str:
    """Labels that are not beside the mark they are of; a mark each of `names`, in their order."""
    places = [(name, at) for name, (_, at) in zip(names, chart.marks, strict=True)]

    def beside(text: str, at: Point) -> bool:
        near = (
            [abs(at[i] - p[i]) / chart.pixel[i] for i in (0, 1)] for t, p in places if t == text
        )
        return any(across < 120 and up < 230 for across, up in near)

    wrong = [text for text, at in chart.labels if text in names and not beside(text, at)]
    return ", ".join(wrong) or "none astray"


def _tip(p: Mapping[str, Any]) -> str:
    chosen = ", chosen" if p["chosen"] else ""
    said = f"{p['method']} in {p['precision']}, {p['patches']} patch tokens"
    return f"{said}: {p['latency_ms']:.4g} ms, loss {p['loss']:.3g}{chosen}"


def _name(p: Mapping[str, Any]) -> str:
    if p["method"] == "dense":
        return f"dense {p['precision']}"
    return f"{'chosen: ' if p['chosen'] else ''}{p['method']} {p['patches']}"
