"""Pictures for print: latency against tokens, a schedule over depth, a Pareto front.

Black on white, told apart by line and marker rather than by colour; SVG keeps its text as text.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.files import output_file
from tcompile.core.packages import require
from tcompile.planning.front import FrontPlan
from tcompile.planning.optimise.tables import Plan
from tcompile.planning.solve.plan_report import PlanReport
from tcompile.profiling.plateaus import Plateau
from tcompile.profiling.plateaus import plateaus as find_plateaus

Floats = npt.NDArray[np.float64]
#: Suffix → what saving it is told, so that equal pictures are equal files.
_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"dpi": 200, "metadata": {"Software": None}},
    ".svg": {"metadata": {"Date": None, "Creator": None}},
}
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "tcompile",
    "text.color": "black",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_SIZE = (6.3, 3.6)


def plot_latency(
    counts: Sequence[int],
    ms: npt.ArrayLike,
    path: str | Path,
    *,
    lower: npt.ArrayLike | None = None,
    upper: npt.ArrayLike | None = None,
    halves: Mapping[str, npt.ArrayLike] | None = None,
    plateaus: Sequence[Plateau] | None = None,
    chosen: Sequence[int] = (),
    measured: Sequence[int] = (),
    measured_ms: npt.ArrayLike | None = None,
    title: str = "",
) -> Path:
    """Draw latency against tokens.

    Args:
        counts: ascending, prefix included.
        ms: of the whole model, by count.
        path: .png or .svg.
        lower, upper: its quartiles, drawn as a band.
        halves: label → ms by count, such as those of all attention halves.
        plateaus: shaded, but for those narrower than a 25th of all; None: those of `ms`.
        chosen: counts marked on the curve.
        measured: counts that figures are of, marked by dots.
        measured_ms: of those, as they were measured; None: the dots lie on the curve.

    Raises:
        UsageError: another suffix; lengths that differ.
        MissingExtraError: matplotlib is not installed.
    """
    series = {"whole model": np.asarray(ms, np.float64)}
    series |= {name: np.asarray(row, np.float64) for name, row in (halves or {}).items()}
    if any(row.shape != (len(counts),) for row in series.values()):
        raise UsageError("needs as many latencies as counts", where="plot")
    shaded = find_plateaus(counts, ms) if plateaus is None else plateaus
    with _figure(path, title) as axes:
        n = np.asarray(counts)
        whole = series["whole model"]
        wide = max(4, round(0.04 * (counts[-1] - counts[0])))
        for i, step in enumerate(p for p in shaded if p.last - p.first >= wide):
            axes.axvspan(
                step.first,
                step.last,
                color="0.94",
                linewidth=0,
                label="plateau, right edge" if i == 0 else None,
            )
            axes.axvline(step.last, color="0.6", linewidth=0.7)
        for (name, row), dashes in zip(series.items(), cycle(("-", "--", ":", "-."))):
            axes.plot(n, row, dashes, color="black", label=name)
        if lower is not None and upper is not None and np.any(np.less(lower, upper)):
            axes.fill_between(n, lower, upper, color="0.75", linewidth=0, label="quartiles")
        if len(measured):
            dots = np.interp(measured, n, whole) if measured_ms is None else measured_ms
            axes.plot(measured, dots, "o", color="black", markersize=3, label="measured")
        if len(chosen):
            axes.plot(
                chosen,
                np.interp(chosen, n, whole),
                "D",
                markersize=6,
                zorder=5,
                markerfacecolor="white",
                markeredgecolor="black",
                label="chosen",
                linestyle="none",
            )
        seen = np.asarray(whole if measured_ms is None else measured_ms, np.float64)
        axes.set_ylim(0, 1.08 * max(float(whole.max()), float(seen.max(initial=0)), 1e-9))
        axes.margins(x=0.02)
        _labels(axes, [(c, float(np.interp(c, n, whole)), str(c)) for c in dict.fromkeys(chosen)])
        axes.set_xlabel("tokens")
        axes.set_ylabel("latency of a batch [ms]")
    return Path(path)


def plot_schedule(plan: Plan, tokens: int, path: str | Path, *, title: str = "") -> Path:
    """Draw the tokens in each half of each block under a plan, the dense model's dashed.

    Args:
        tokens: of the dense model, prefix included.
        path: .png or .svg.

    Raises:
        UsageError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    pairs = zip(plan.attention, plan.mlp, strict=True)
    carried = [count for pair in pairs for count in pair] + [plan.final]
    with _figure(path, title) as axes:
        edges = np.arange(len(carried) + 1) / 2
        axes.stairs(carried, edges, color="0.94", fill=True)
        axes.hlines(
            tokens,
            0,
            edges[-1],
            colors="black",
            linestyles="--",
            linewidth=1,
            label=f"dense: {tokens} tokens",
        )
        axes.stairs(
            carried,
            edges,
            color="black",
            linewidth=1.6,
            baseline=None,
            label=f"plan: {plan.latency_ms:.3g} of {plan.dense_ms:.3g} ms",
        )
        steps = [
            (edges[i + 1], after, str(after))
            for i, (before, after) in enumerate(pairwise(carried))
            if after < before
        ]
        blocks = len(plan.attention)
        stride = max(1, round(blocks / 16))
        axes.set_xticks(np.arange(0, blocks, stride), [str(i) for i in range(0, blocks, stride)])
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(0, tokens * 1.12)
        axes.set_xlabel("block (attention half, then MLP half; the last half step is the head)")
        axes.set_ylabel("tokens")
        _labels(axes, steps)
    return Path(path)


#: Markers by precision, in the order in which precisions are met.
_MARKERS = "o^vDs*"


def plot_front(front: Sequence[FrontPlan], path: str | Path, *, losses: str = "") -> Path:
    """Draw predicted latency against loss of plans and dense models, by precision.

    A dense model that was not run for its loss is a dotted line at its latency.

    Args:
        front: plans, by rising latency.
        path: .png or .svg.
        losses: what they are and their unit.

    Raises:
        UsageError: another suffix; a front without plans.
        MissingExtraError: matplotlib is not installed.
    """
    known = [(p, p.loss) for p in front if p.loss is not None]
    if not known:
        raise UsageError("the front has no plan", where="plot")
    with _figure(path, "") as axes:
        best = [(p.latency_ms, loss) for p, loss in known if not p.beaten]
        axes.plot(*zip(*best, strict=True), color="black", label="not beaten")
        chosen = [(p.latency_ms, loss) for p, loss in known if p.chosen]
        # The far end of a front, where hardly a token stays, would flatten all else.
        most, seen = max(loss for _, loss in known), max((loss for _, loss in chosen), default=0.0)
        top = min(most, 4 * seen or most) * 1.05 or 1.0
        shown = [(p, loss) for p, loss in known if loss <= top]
        for precision, marker in zip(dict.fromkeys(p.precision for p in front), cycle(_MARKERS)):
            dots = [(p.latency_ms, loss) for p, loss in shown if p.precision == precision]
            axes.plot(
                [ms for ms, _ in dots],
                [loss for _, loss in dots],
                marker,
                color="black",
                markersize=5,
                linestyle="none",
                label=precision,
                clip_on=False,
            )
        for plan in front:
            if plan.loss is None:
                axes.axvline(plan.latency_ms, color="0.5", linestyle=":", linewidth=1)
        if chosen:
            axes.plot(
                *zip(*chosen, strict=True),
                "o",
                markersize=11,
                zorder=6,
                markerfacecolor="none",
                markeredgecolor="black",
                linestyle="none",
                label="chosen",
            )
        axes.set_xlabel("predicted latency of a batch [ms]")
        axes.set_ylabel(textwrap.fill("loss: " + losses if losses else "loss", 44))
        axes.set_ylim(0, top)
        axes.margins(x=0.1)
        _labels(
            axes,
            [
                (p.latency_ms, min(p.loss or 0.0, top), f"dense {p.precision}")
                for p in front
                if p.dense
            ],
        )
    return Path(path)


def check_picture(path: str | Path) -> None:
    """Raise UsageError unless a picture can be written there; before the work that it shows."""
    if Path(path).suffix.lower() not in _FORMATS:
        raise UsageError("a picture is a .png or a .svg", where=str(path))
    output_file(path)
    require("matplotlib", "plot", "drawing")


@contextmanager
def _figure(path: str | Path, title: str) -> Iterator[Any]:
    """Axes to draw on, saved at the end under another name first."""
    check_picture(path)
    suffix, path = Path(path).suffix.lower(), output_file(path)
    how = _FORMATS[suffix]
    matplotlib = require("matplotlib", "plot", "drawing")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if title:
            axes.set_title(textwrap.fill(title, 80), loc="left")
        yield axes
        entries = len(axes.get_legend_handles_labels()[0])
        figure.legend(loc="outside lower center", ncols=4 if entries <= 4 else 3)
        part = path.with_name(f".{path.name}.part")
        try:
            figure.savefig(part, format=suffix[1:], **how)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


#: Where a label may stand beside its point, in points, best first.
_OFFSETS = tuple(
    (x, y, side)
    for far in (1, 2, 4)
    for x, y, side in (
        (5, 4, "left"),
        (-5, 4, "right"),
        (5, -10, "left"),
        (-5, -10, "right"),
        (0, 6, "center"),
        (0, -12, "center"),
    )
    for x, y in ((x * far, y * far),)
)


def _labels(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Texts beside points, where they hide neither each other nor lines; call when all is drawn.

    A text for which there is no room but on another text is left out.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    inside, taken = axes.get_window_extent(), list[Any]()
    drawn = [axes.transData.transform((x, y)) for x, y, _ in points]
    for line in axes.lines:
        across, up = (np.asarray(v, np.float64) for v in line.get_data())
        if len(across) and line.get_transform() == axes.transData:
            drawn += list(axes.transData.transform(_dense(across, up)))
    dots = np.asarray(drawn).reshape(-1, 2)
    for x, y, text in points:
        best = None
        for dx, dy, side in _OFFSETS:
            label = axes.annotate(
                text,
                (x, y),
                xytext=(dx, dy),
                fontsize=7.5,
                ha=side,
                textcoords="offset points",
                zorder=7,
            )
            box = label.get_window_extent(figure.canvas.get_renderer())
            hits = int(((dots > box.min) & (dots < box.max)).all(axis=1).sum())
            out = not (inside.contains(*box.min) and inside.contains(*box.max))
            cost = (any(box.overlaps(other) for other in taken), out, hits)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, label, box)
            else:
                label.remove()
        assert best is not None
        if best[0][0]:
            best[1].remove()
        else:
            taken.append(best[2])


def _dense(x: Floats, y: Floats) -> Floats:
    """Return points along a line, so near to each other that no label fits between."""
    at = np.linspace(0, len(x) - 1, max(400, len(x)))
    index = np.arange(len(x))
    return np.stack([np.interp(at, index, x), np.interp(at, index, y)], axis=-1)


def draw(planned: PlanReport | None, path: Path) -> list[Path]:
    """Write NAME-latency, NAME-depth and, where plans were weighed, NAME-front beside each other.

    Raises:
        UsageError: nothing was solved, or a suffix that is neither .png nor .svg.
        MissingExtraError: matplotlib is not installed.
    """
    if planned is None:
        raise UsageError(
            "only a solved schedule is drawn",
            where="--plot",
            hint="omit --method, or give --latency or --max-drop",
        )

    def named(what: str) -> Path:
        return path.with_name(f"{path.stem}-{what}{path.suffix}")

    counts, ms = zip(*planned.curve, strict=True)
    plan, dense = planned.plan, planned.curve[-1][0]
    chosen = [step.after for step in plan.steps]
    made = [named("latency"), named("depth")]
    plot_latency(counts, ms, made[0], chosen=chosen, title=planned.profile)
    plot_schedule(plan, dense, made[1], title=planned.schedule.method)
    if any(p.loss is not None for p in planned.front):
        made.append(named("front"))
        plot_front(planned.front, made[2], losses=planned.losses)
    return made
