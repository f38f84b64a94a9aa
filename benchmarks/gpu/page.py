"""Figures as a page and as JSON; and the page that says that there are none, with predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.work import Work, works

#: Devices whose data sheets give a prediction where nothing was measured.
PREDICTED = ("jetson-agx-orin", "rtx-4090")

_HEAD = """# Token ops on a GPU

Made by `benchmarks/gpu/run.sh` (needs nvcc, python3 and torch with numpy; nothing else is
installed). Bytes are what must cross memory once, read or written; operations are those of the
similarities; the floor is the larger of bytes over copy bandwidth and operations over the rate of
a large product of the same type. `ToMe step` is matching and merging, `EViT step` selection, gather
and the fused token; eager torch and torch.compile run the methods' own sequences of operations.
"""

_NONE = """
**No GPU was at hand when this page was written: nothing below was measured.** The kernels are
tested on the host (`tests/plugins`), compiled for every architecture, and the script that makes
this page was run on their host build only, for which times mean nothing. What follows is the
prediction for each figure: the floor is modelled from data sheets, and no kernel was seen to
reach it.
"""


def floors(work: Work, rates: Mapping[str, float]) -> float:
    """Microseconds of the floor; rates are `bandwidth` and peaks by element type."""
    return work.floor(rates["bandwidth"], rates[work.data]) * 1e6


def data_sheet(target: str) -> dict[str, float]:
    """Rates of a target from its file."""
    from tcompile.targets import load_target

    known = load_target(target)
    bandwidth, half = known.value("memory_bandwidth"), known.value("fp16_dense")
    assert bandwidth is not None
    assert half is not None
    # fp32 outside of tensor cores: an eighth of the dense fp16 rate on these architectures.
    return {
        "bandwidth": bandwidth * 1e9,
        "f16": half * 1e12,
        "bf16": half * 1e12,
        "f32": half * 1e12 / 8,
    }


def prediction() -> str:
    """docs/benchmarks/gpu.md where nothing was measured."""
    rates = {name: data_sheet(name) for name in PREDICTED}
    head = ("work", "MB", "GFLOP", *(f"floor on {name}, modelled" for name in PREDICTED), "aim")
    rows = [
        (
            w.title,
            f"{w.bytes / 1e6:.3g}",
            f"{w.flops / 1e9:.3g}" if w.flops else "",
            *(f"{floors(w, rates[name]):.3g} µs" for name in PREDICTED),
            w.aim.text if w.aim else "",
        )
        for w in works()
    ]
    return f"{_HEAD}{_NONE}\n{_table(head, rows)}\n"


def predicted_json() -> dict[str, Any]:
    """docs/benchmarks/gpu.json where nothing was measured."""
    rates = {name: data_sheet(name) for name in PREDICTED}
    return {
        "measured": False,
        "rows": [
            {**row_json(w), "floor_us_modelled": {n: floors(w, rates[n]) for n in PREDICTED}}
            for w in works()
        ],
    }


def row_json(work: Work) -> dict[str, Any]:
    """Return what is known of a piece of work before it runs."""
    return {
        "work": work.name,
        "title": work.title,
        "data": work.data,
        "shapes": {n: list(s) for n, s in work.shapes.items()},
        "bytes": work.bytes,
        "flops": work.flops,
        "aim": work.aim.text if work.aim else None,
    }


def measured(results: Mapping[str, Any]) -> str:
    """docs/benchmarks/gpu.md from what `run.py` measured."""
    about = results["about"]
    rates = results["rates"]
    peaks = ", ".join(f"{k} {v / 1e12:.3g} TFLOP/s" for k, v in rates.items() if k != "bandwidth")
    head = (
        "work",
        "MB",
        "GFLOP",
        "floor, µs",
        "ours, µs",
        "of the floor",
        "launched, µs",
        "eager torch, µs",
        "in a graph, µs",
        "torch.compile, µs",
        "in a graph, µs",
        "aim",
        "met",
    )
    rows = [_measured_row(row) for row in results["rows"]]
    wrong = {k: v for k, v in results["correctness"].items() if v["wrong"]}
    cases = sum(v["cases"] for v in results["correctness"].values())
    checked = (
        f"{cases} cases of {len(results['correctness'])} ops agree with the specification on the "
        "device."
        if not wrong
        else "**Wrong on the device:** "
        + "; ".join(f"{k}: {v['wrong'][0]}" for k, v in wrong.items())
    )
    return "\n".join(
        [
            _HEAD,
            f"{about['device']}, compute capability {about['capability']}, driver "
            f"{about['driver']}, torch {about['torch']}, CUDA {about['cuda']}; {about['date']}.",
            f"Copy bandwidth {rates['bandwidth'] / 1e9:.4g} GB/s (512 MiB, read and written); "
            f"large products: {peaks}.",
            f"{checked} compute-sanitizer: {about['sanitizer']}.\n",
            "Ours: median over replays of a CUDA graph of many launches; launched: the same calls "
            "from Python, one by one. Work that fits the L2 cache is measured there; larger work "
            "runs on copies in turn.\n",
            _table(head, rows),
            "",
        ]
    )


def _measured_row(row: Mapping[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    rivals = row["rivals"]
    return [
        row["title"],
        number(row["bytes"] / 1e6),
        number(row["flops"] / 1e9) if row["flops"] else "",
        number(row["floor_us"]),
        number(row["ours_us"]["median"]),
        f"{row['floor_us'] / row['ours_us']['median']:.0%}",
        number(row["launched_us"]["median"]),
        *(
            number(rivals[n]["median"] if rivals.get(n) else None)
            for n in ("eager", "eager graph", "compile", "compile graph")
        ),
        row["aim"] or "",
        "" if row["met"] is None else "yes" if row["met"] else "**no**",
    ]


def write(folder: Path, text: str, data: Mapping[str, Any]) -> None:
    """gpu.md and gpu.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text(text, encoding="utf-8")
    (folder / "gpu.json").write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
