"""A report read back as a person reads it: cards, tables, and charts through their axes' ticks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from itertools import pairwise

Point = tuple[float, float]
#: Pixels across at which the numbers up an axis end.
_LEFT = 50.0
#: Where the first corner of a mark lies beside the point that it is of.
_CORNERS = {"triangle": (0, -5.5), "square": (-4, -4), "diamond": (0, -6), "cross": (-4, -4)}


def text_of(html: str) -> str:
    """The words of some HTML, one space between them."""
    body = re.sub(r"<(style|script)>.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@dataclass(frozen=True)
class Table:
    """Head and rows."""

    head: list[str]
    rows: list[list[str]]

    def row(self, first: str) -> list[str]:
        """The one row that begins so."""
        (found,) = (row for row in self.rows if row[0] == first)
        return found


@dataclass(frozen=True)
class Chart:
    """What is drawn, in the units of its axes.

    Attributes:
        marks: title and place of each.
        lines: class of a line and its corners.
        labels: texts beside points, and where they stand.
        pixel: what a tenth of a pixel, to which places are rounded, is across and up.
    """

    marks: list[tuple[str, Point]]
    labels: list[tuple[str, Point]]
    lines: dict[str, list[Point]]
    pixel: Point


class Page:
    """A report.html."""

    def __init__(self, html: str) -> None:
        self.html, self.text = html, text_of(html)
        (lead,) = re.findall(r'<p class="lead">(.*?)</p>', html, re.DOTALL)
        self.lead = text_of(lead)
        cards = re.findall(r'<section class="card">(.*?)</section>', html, re.DOTALL)
        self.cards = {_inside(card, "h2"): _inside(card, "p") for card in cards}
        self.card_lines = {
            _inside(card, "h2"): [text_of(line) for line in re.findall(r"<li>(.*?)</li>", card)]
            for card in cards
        }
        self.tables = [
            read_table(part) for part in re.findall(r"<table.*?</table>", html, re.DOTALL)
        ]

    def table(self, *head: str) -> Table | None:
        """The first table whose head begins so; None: there is none."""
        return next((t for t in self.tables if t.head[: len(head)] == list(head)), None)

    def chart(self, name: str) -> Chart | None:
        """The chart whose title's element is called so."""
        found = re.search(rf'<svg class="chart"[^>]*"{name}-t {name}-d".*?</svg>', self.html)
        return None if found is None else read_chart(found[0])


def _inside(html: str, tag: str) -> str:
    return text_of(re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)[0])


def read_table(html: str) -> Table:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    head, *rest = [[text_of(cell) for cell in row] for row in cells]
    return Table(head, rest)


def markdown_tables(text: str) -> list[Table]:
    """The tables of a report.md."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([unescape(cell.strip()) for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [Table(rows[0], rows[2:]) for rows in found if rows]


def read_chart(svg: str) -> Chart:
    """Read the places of marks and lines through the numbers at the ticks."""
    root = ElementTree.fromstring(svg)
    paths = [(e.get("class", ""), e.get("d", "")) for e in root.iter("path")]
    texts = [(e.text or "", float(e.get("x", 0)), float(e.get("y", 0))) for e in root.iter("text")]
    base = next(d for kind, d in paths if kind == "axis" and "H" in d)
    bottom = float(base.partition("V")[2].partition("H")[0])
    across = [float(d[1:].split()[0]) for k, d in paths if k == "axis" and d.endswith("v4")]
    up = [float(d.split()[1].partition("H")[0]) for kind, d in paths if kind == "grid"]
    x_ticks = [(x, float(t)) for t, x, y in texts if x in across and y == bottom + 17]
    left = {(round(y - 4, 1), t) for t, x, y in texts if x == _LEFT}
    y_ticks = [(y, float(t)) for y, t in sorted(left) if y in up]
    assert (len(x_ticks), len(y_ticks)) == (len(across), len(up)), "a tick without a number"
    to_x, to_y = _scale(x_ticks), _scale(y_ticks)

    def place(x: float, y: float) -> Point:
        return to_x[0] + to_x[1] * x, to_y[0] + to_y[1] * y

    marks = []
    for group in root.iter("g"):
        title = "".join(e.text or "" for e in group.iter("title"))
        (shape,) = (e for e in group if e.get("class", "").startswith("mark"))
        if shape.tag == "circle":
            at = float(shape.get("cx", "nan")), float(shape.get("cy", "nan"))
        else:
            x, y = re.findall(r"-?[\d.]+", shape.get("d", ""))[:2]
            aside, above = _CORNERS[shape.get("class", "").split()[1]]
            at = float(x) - aside, float(y) - above
        marks.append((title, place(*at)))
    lines = {
        kind: [place(*map(float, corner.split())) for corner in d[1:].split("L")]
        for kind, d in paths
        if kind.startswith("line") and "L" in d
    }
    labels = [
        (e.text or "", place(float(e.get("x", 0)), float(e.get("y", 0))))
        for e in root.iter("text")
        if e.get("class") == "label"
    ]
    return Chart(marks, labels, lines, (abs(to_x[1]) / 10, abs(to_y[1]) / 10))


def _scale(ticks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Offset and slope of the line through ticks, which must lie on one."""
    assert len(ticks) > 1, "an axis needs two ticks to be read"
    (first, low), (last, high) = ticks[0], ticks[-1]
    slope = (high - low) / (last - first)
    for (a, v), (b, w) in pairwise(ticks):
        assert abs((w - v) - slope * (b - a)) <= 0.11 * abs(slope), "ticks at unequal distances"
    return low - slope * first, slope
