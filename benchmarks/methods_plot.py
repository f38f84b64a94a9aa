"""Accuracy against measured latency and the Pareto front: readable in print, without colour too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.methods_page import Results, Row, front, rivals

#: Marker and colour of each family of methods, in order (Okabe and Ito's colours).
STYLES = (
    ("o", "#0072B2"),
    ("s", "#D55E00"),
    ("^", "#009E73"),
    ("D", "#CC79A7"),
    ("v", "#E69F00"),
    ("P", "#56B4E9"),
    ("X", "#000000"),
    ("<", "#7f7f7f"),
)


def plot(results: Results, rows: Sequence[Row], families: Mapping[str, str], folder: Path) -> None:
    """Write methods.png and methods.svg.

    Args:
        families: of each method, by its name before any parameters.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row.speedup]
    of = {row.method: families.get(row.method.partition(":")[0], "other") for row in rows}
    styles = dict(zip(dict.fromkeys(of.values()), STYLES, strict=False))
    figure, axes = plt.subplots(figsize=(7.2, 5.0))
    for method in of:
        mine = sorted((r for r in rows if r.method == method), key=lambda r: -float(r.keep))
        marker, colour = styles.get(of[method], STYLES[-1])
        axes.plot(
            [r.relative for r in mine],
            [100 * r.top1 for r in mine],
            color=colour,
            marker=marker,
            markersize=3.5,
            markerfacecolor="none",
            markeredgewidth=0.7,
            linewidth=0.5,
            alpha=0.55,
        )
    for family, (marker, colour) in styles.items():
        axes.plot([], [], color=colour, marker=marker, markersize=4, linestyle="none", label=family)
    best = front(rivals(rows, families), results.dense_top1)
    axes.plot(
        [r.relative for r in best],
        [100 * r.top1 for r in best],
        color="black",
        linewidth=1.3,
        marker="o",
        markersize=4,
        label="Pareto front",
        zorder=5,
    )
    for at, row in enumerate(best):
        right = at % 2
        axes.annotate(
            f"{row.method} {row.keep}",
            (row.relative, 100 * row.top1),
            fontsize=6.5,
            xytext=(5, -9) if right else (-5, 5),
            textcoords="offset points",
            ha="left" if right else "right",
            zorder=6,
        )
    axes.plot(
        [1],
        [100 * results.dense_top1],
        marker="*",
        markersize=11,
        color="black",
        linestyle="none",
        label="dense model",
    )
    given = results.settings
    axes.set_xlabel(
        f"measured latency / dense, batch {given['batch']} ({given['machine']})", fontsize=8
    )
    axes.set_ylabel(f"top-1 on {given['scenes']} held-out scenes, %", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(0.1, 0.06)
    axes.grid(linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(folder / "methods.png", dpi=200)
    # Without dates and random ids, the same figures give the same file.
    with plt.rc_context({"svg.hashsalt": "tcompile", "svg.fonttype": "none"}):
        figure.savefig(folder / "methods.svg", metadata={"Date": None})
    plt.close(figure)
