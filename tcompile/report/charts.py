"""Charts of a report's page, as small SVG: plans by latency and loss, tokens over depth, latency
against tokens.

They take the colours of the page, light or dark, and tell series apart by shape and by dashes.
matplotlib draws the same for print (`report.plots`); its SVG is ten times as large, and fixed in
its colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from tcompile.core.schedule import BlockTokens
from tcompile.planning.front import FrontPlan

_WIDTH, _HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 44
#: Marks by series, in the order in which these are met.
_SHAPES = ("circle", "triangle", "square", "diamond", "cross")


@dataclass(frozen=True)
class Mark:
    """A point of a chart.

    Attributes:
        series: what it is one of, told by its shape.
        label: beside it; empty for none.
        tip: what a pointer shows over it.
        ring: whether a ring is around it.
    """

    x: float
    y: float
    series: str
    label: str = ""
    tip: str = ""
    ring: bool = False


class _Axes:
    """A frame with two axes; draws in the units of the data.

    Args:
        whole: whether values across are whole numbers, such as blocks.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        labels: tuple[str, str],
        *,
        whole: bool = False,
    ) -> None:
        self._x, self._y = x, y
        self.parts: list[str] = []
        self._frame(*labels, whole)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (x - self._x[0]) / (self._x[1] - self._x[0] or 1)
        up = (y - self._y[0]) / (self._y[1] - self._y[0] or 1)
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return round(_LEFT + across * wide, 1), round(_HEIGHT - _BOTTOM - up * high, 1)

    def _frame(self, across: str, up: str, whole: bool) -> None:
        for tick in _ticks(*self._y):
            x0, y0 = self.at(self._x[0], tick)
            self.parts.append(f'<path class="grid" d="M{x0} {y0}H{_WIDTH - _RIGHT}"/>')
            self.text(x0 - 6, y0 + 4, f"{tick:g}", "end")
        base = _HEIGHT - _BOTTOM
        self.parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{_WIDTH - _RIGHT}"/>')
        for tick in _ticks(*self._x, whole=whole):
            x0, _ = self.at(tick, self._y[0])
            self.parts.append(f'<path class="axis" d="M{x0} {base}v4"/>')
            self.text(x0, base + 17, f"{tick:g}", "middle")
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, across, "middle")
        middle = (_TOP + base) / 2
        self.parts.append(
            f'<text transform="rotate(-90 13 {middle})" x="13" y="{middle}" '
            f'text-anchor="middle">{escape(up)}</text>'
        )

    def text(self, x: float, y: float, text: str, anchor: str, kind: str = "") -> None:
        """A text at pixels."""
        named = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        path = "L".join("{} {}".format(*self.at(*p)) for p in points)
        self.parts.append(f'<path class="{kind}" d="M{path}"/>')

    def marks(self, marks: Sequence[Mark], series: Sequence[str]) -> None:
        """Points, and the labels of those for which there is room."""
        taken: list[tuple[float, float, float, float]] = []
        for mark in marks:
            x, y = self.at(mark.x, mark.y)
            taken.append((x - 6, y - 6, x + 6, y + 6))
            shape = _shape(_SHAPES[series.index(mark.series) % len(_SHAPES)], x, y)
            ring = f'<circle class="ring" cx="{x}" cy="{y}" r="10"/>' if mark.ring else ""
            title = f"<title>{escape(mark.tip)}</title>" if mark.tip else ""
            self.parts.append(f"<g>{title}{shape}{ring}</g>")
        for mark in sorted(marks, key=lambda m: not m.ring):
            if mark.label:
                self._label(mark, taken)

    def _label(self, mark: Mark, taken: list[tuple[float, float, float, float]]) -> None:
        x, y = self.at(mark.x, mark.y)
        wide = 6.4 * len(mark.label)
        for dx, dy, anchor in (
            (11, 4, "start"),
            (0, -12, "middle"),
            (-11, 4, "end"),
            (0, 22, "middle"),
            (9, -9, "start"),
            (-9, -9, "end"),
            (9, 18, "start"),
        ):
            left = x + dx - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = (left, y + dy - 10, left + wide, y + dy + 2)
            inside = (
                box[0] > _LEFT and box[2] < _WIDTH and box[1] > 0 and box[3] < _HEIGHT - _BOTTOM
            )
            if inside and not any(_overlap(box, other) for other in taken):
                self.text(x + dx, y + dy, mark.label, anchor, "label")
                taken.append(box)
                return

    def svg(self, name: str, title: str, says: str) -> str:
        """The chart; `name` is that of its title's element, `says` is read out in its place."""
        return (
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(title)}</title>'
            f'<desc id="{name}-d">{escape(says)}</desc>{"".join(self.parts)}</svg>'
        )


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shape(name: str, x: float, y: float) -> str:
    if name == "circle":
        return f'<circle class="mark" cx="{x}" cy="{y}" r="4.5"/>'
    path = {
        "triangle": f"M{x} {y - 5.5}l5.2 9.5h-10.4z",
        "square": f"M{x - 4} {y - 4}h8v8h-8z",
        "diamond": f"M{x} {y - 6}l5.5 6l-5.5 6l-5.5 -6z",
        "cross": f"M{x - 4} {y - 4}l8 8m0 -8l-8 8",
    }[name]
    return f'<path class="mark {name}" d="{path}"/>'


def legend(series: Sequence[str]) -> str:
    """The shapes of series with their names, as SVG that stands in a line of text."""
    items = []
    for i, name in enumerate(series):
        shape = _shape(_SHAPES[i % len(_SHAPES)], 7, 8)
        items.append(
            f'<span class="key"><svg viewBox="0 0 14 16" width="14" height="16" '
            f'aria-hidden="true">{shape}</svg> {escape(name)}</span>'
        )
    return " ".join(items)


def _ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers between two, about as many as asked."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    if whole:
        raw = max(raw, 1.0)
    size = 10.0 ** math.floor(math.log10(raw))
    steps = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(s * size for s in steps if s * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _range(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """From the least to the largest, with some room."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if zero else max(low - room, 0.0)), high + room


def scatter(
    name: str,
    title: str,
    marks: Sequence[Mark],
    labels: tuple[str, str],
    line: Sequence[tuple[float, float]] = (),
    upright: Sequence[tuple[float, str]] = (),
) -> str:
    """Points by latency and loss.

    Args:
        line: through those that no other beats.
        upright: latencies of which no loss is known, and whose they are.
    """
    series = list(dict.fromkeys(mark.series for mark in marks))
    across = _range([*(m.x for m in marks), *(x for x, _ in upright)])
    axes = _Axes(across, _range([m.y for m in marks], zero=True), labels)
    for i, (x, name_of) in enumerate(upright):
        at, base = axes.at(x, 0)[0], _HEIGHT - _BOTTOM
        axes.parts.append(f'<path class="line dashed" d="M{at} {_TOP}V{base}"/>')
        aside, anchor = (-4, "end") if at > _WIDTH / 2 else (4, "start")
        axes.text(at + aside, base - 8 - 14 * i, name_of, anchor, "label")
    if len(line) > 1:
        axes.line(line, "line")
    axes.marks(marks, series)
    told = "; ".join([*(m.tip or m.label for m in marks), *(f"{n}: {x:.4g}" for x, n in upright)])
    return axes.svg(name, title, told) + f'<p class="legend">{legend(series)}</p>'


def front_chart(front: Sequence[FrontPlan]) -> str:
    """Plans and dense models by predicted latency and loss, and in words those that are not drawn;
    empty where no loss is known."""
    known = [(p, p.loss) for p in front if p.loss is not None]
    if not known:
        return ""
    chosen = max((loss for p, loss in known if p.chosen), default=0.0)
    most = max(loss for _, loss in known)
    # The far end of a front, where hardly a token stays, would flatten all else.
    top = min(most, 4 * chosen or most)
    marks = [
        Mark(p.latency_ms, loss, p.precision, _name(p), _said(p, loss), p.chosen)
        for p, loss in known
        if loss <= top
    ]
    lost = "; ".join(_said(p, loss) for p, loss in known if loss > top)
    rest = f'<p class="legend">Beyond the top: {escape(lost)}.</p>' if lost else ""
    best = [(p.latency_ms, loss) for p, loss in known if not p.beaten and loss <= top]
    labels = ("predicted latency of a batch [ms]", "loss")
    unknown = [(p.latency_ms, f"{_name(p)}, loss not run") for p in front if p.loss is None]
    return scatter("front", "Plans by latency and loss", marks, labels, best, unknown) + rest


def _said(plan: FrontPlan, loss: float) -> str:
    return (
        f"{plan.method} in {plan.precision}, {plan.patches} patch tokens: "
        f"{plan.latency_ms:.4g} ms, loss {loss:.3g}{', chosen' if plan.chosen else ''}"
    )


def _name(plan: FrontPlan) -> str:
    if plan.dense:
        return f"dense {plan.precision}"
    return f"{'chosen: ' if plan.chosen else ''}{plan.method} {plan.patches}"


def depth_chart(tokens: Sequence[BlockTokens], dense: int) -> str:
    """Tokens in the attention and in the MLP of each block, those of the dense model dashed."""
    counts = [count for block in tokens for count in (block.attention, block.mlp)]
    names = ("block (attention, then MLP)", "tokens")
    axes = _Axes((0, len(tokens)), (0, dense * 1.1), names, whole=True)
    axes.line([(0, dense), (len(tokens), dense)], "line dashed")
    steps: list[tuple[float, float]] = []
    for i, count in enumerate(counts):
        steps += [(i / 2, count), ((i + 1) / 2, count)]
    corners = [(0, 0), *steps, (len(tokens), 0)]
    path = "L".join("{} {}".format(*axes.at(*p)) for p in corners)
    axes.parts.append(f'<path class="area" d="M{path}z"/>')
    axes.line(steps, "line strong")
    x, y = axes.at(0, dense)
    axes.text(x + 6, y - 5, f"dense: {dense}", "start", "label")
    last, before = float(_WIDTH), dense
    for i in range(len(counts) - 1, -1, -1):
        previous = counts[i - 1] if i else before
        x, y = axes.at((i + 0.5) / 2, counts[i])
        if (counts[i] != previous or i == len(counts) - 1) and last - x > 30:
            axes.text(x, y + 15, str(counts[i]), "middle", "label")
            last = x
    each = "; ".join(f"block {b.block}: {b.attention} and {b.mlp}" for b in tokens)
    return axes.svg("depth", "Tokens over depth", f"Of {dense} tokens: {each}")


def latency_chart(curve: Sequence[tuple[float, float]], chosen: Sequence[int], kind: str) -> str:
    """Latency against tokens, with the counts of the plan; empty where there is no curve.

    Args:
        kind: of the curve: measured or modelled.
    """
    if len(curve) < 2:
        return ""
    highest = max(ms for _, ms in curve)
    axes = _Axes(
        (min(n for n, _ in curve), max(n for n, _ in curve)),
        (0, 1.08 * highest),
        ("tokens from the first block on", f"latency of a batch [ms], {kind}"),
        whole=True,
    )
    axes.line(curve, "line strong")
    marks = [
        Mark(n, _between(curve, n), "counts of this plan", str(n), f"{n} tokens") for n in chosen
    ]
    axes.marks(marks, ["counts of this plan"])
    ends = ", ".join(f"{n:g} tokens {ms:.3g} ms" for n, ms in (curve[0], curve[-1]))
    named = ", ".join(map(str, chosen))
    says = f"{kind}: {ends}" + (f"; the plan has {named}" if chosen else "")
    return axes.svg("latency", "Latency against tokens", says)


def _between(curve: Sequence[tuple[float, float]], n: float) -> float:
    """The curve at a count, between its points in a straight line."""
    import numpy as np

    return float(np.interp(n, [x for x, _ in curve], [y for _, y in curve]))
