"""Do budgets hold? `--latency` measured against what was asked, `--max-drop` on held-out images.

`python -m benchmarks.budgets`: latencies are of builds on `cpu` at several budgets, as shares of
the dense model's; drops are of plans for `zoo:glyphs` that were calibrated on a stream of scenes of
their own, and then asked 2000 scenes of the held-out one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.subjects import HELD_OUT, SUBJECTS, calibration, export, find, images
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import TcompileError
from tcompile.pipeline import build, price, read
from tcompile.planning.losses.drop import measure_drop
from tcompile.planning.solve.plan_report import BAND
from tcompile.runtime.samples import Samples, run_all
from tcompile.runtime.timing import bench_models, machine_name

SHARES = (0.9, 0.75, 0.6, 0.45)
DROPS = (0.01, 0.02, 0.05)
_SCENES = 2000
#: For which both models are timed at least.
_SECONDS = 5.0


def latencies(name: str, folder: Path, refine: bool) -> list[dict[str, Any]]:
    """Builds of a model at several budgets of latency, measured again."""
    path = export(find(name), folder)
    dense = bench_models(path, path, rounds=15, seconds=_SECONDS).dense.median
    found = []
    for share in SHARES:
        asked = share * dense
        artifact = load_artifact(
            build(
                path,
                target="cpu",
                latency=asked,
                refine=refine,
                output=folder / "artifact",
                force=True,
            )
        )
        again = bench_models(path, artifact.model, rounds=20, seconds=_SECONDS)
        # The budget in the terms of the dense model as it runs now.
        now = asked * again.dense.median / dense
        found.append(
            {
                "model": name,
                "share": share,
                "asked": asked,
                "measured": again.reduced.median,
                "dense": again.dense.median,
                "off": again.reduced.median / asked - 1,
                "off_now": again.reduced.median / now - 1,
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    return found


def drops(
    folder: Path, methods: tuple[str, ...] = ("auto", "topk", "tome")
) -> list[dict[str, Any]]:
    """Plans for glyphs with a bounded drop, asked the held-out scenes."""
    from tcompile.core.save import save
    from tcompile.passes.reduce import reduce_graph

    subject = find("glyphs")
    path = export(subject, folder)
    model = read(path)
    data = calibration(subject, path, folder, 2400)
    given = images(subject, path, HELD_OUT, _SCENES)
    labels = given.pop("labels")
    samples = Samples(given, "held-out scenes", real=True)
    dense = run_all(path, samples)
    found = []
    for method in methods:
        for most in DROPS:
            try:
                made = price(path, target="cpu", method=method, max_drop=most, calibration=data)
            except TcompileError as error:
                print(method, most, error.one_line(), file=sys.stderr)
                continue
            reduced = folder / "reduced.onnx"
            save(reduce_graph(model.graph, model.analysis, made.schedule).graph, reduced)
            assert made.planned is not None
            drop = measure_drop(dense, run_all(reduced, samples), labels)
            checked = made.planned.drop
            found.append(
                {
                    "method": method,
                    "asked": most,
                    "chosen": made.schedule.method,
                    "checked": None if checked is None else checked.mean,
                    "bound": None if checked is None else checked.upper,
                    "held_out": drop.mean,
                    "speedup": made.planned.plan.speedup,
                    "outcome": made.planned.outcome.to_json(),
                }
            )
            print(found[-1], file=sys.stderr, flush=True)
    return found


def page(found: dict[str, Any]) -> str:
    """Both tables, as Markdown."""
    band = BAND["measured"]
    lines = [
        "# Budgets\n",
        f"Made by `python -m benchmarks.budgets -o docs/benchmarks`. {found['machine']}.\n",
        f"`--latency`, built with `--refine`; the stated band is ± {band:.0%}. *off* is measured "
        "over asked; *off, same day* corrects for how much slower or faster the dense model ran "
        "than when the budget was set.\n",
        "| model | budget, share of dense | asked | measured | off | off, same day |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["latency"]:
        lines.append(
            f"| {r['model']} | {r['share']:.2f} | {r['asked']:.3g} ms | {r['measured']:.3g} ms | "
            f"{r['off']:+.1%} | {r['off_now']:+.1%} |"
        )
    lines += [
        f"\n`--max-drop` on `zoo:glyphs`, 2400 labelled scenes to calibrate and check on; the drop "
        f"of top-1 on {_SCENES} held-out scenes that neither saw.\n",
        "| method | at most | drop where it was checked | its bound | held-out drop | predicted "
        "speed-up |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["drop"]:
        if r["bound"] is None:
            continue
        mark = "" if r["held_out"] <= r["asked"] else " **over**"
        lines.append(
            f"| {r['chosen']} ({r['method']}) | {r['asked']:.0%} | {r['checked']:.2%} | "
            f"{r['bound']:.2%} | {r['held_out']:.2%}{mark} | {r['speedup']:.2f} × |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--models", nargs="*", default=[s.name for s in SUBJECTS[:3]])
    parser.add_argument("--no-drops", action="store_true")
    parser.add_argument("--exports", type=Path, help="where dense models are kept between runs")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as scratch:
        folder = given.exports or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {
            "machine": machine_name(),
            "latency": [row for name in given.models for row in latencies(name, folder, True)],
            "drop": [] if given.no_drops else drops(folder),
        }
    print(page(found))
    if given.output is not None:
        (given.output / "budgets.md").write_text(page(found))
        (given.output / "budgets.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
