"""Is what is asked what is built? ViT-S and ViT-B (random weights) on every target, `--keep 0.6`.

`python -m benchmarks.asked --work DIR`: plans for every target, with and without `--exact`, and the
builds named by `--build`, by the command line. A row is kept in DIR when it is done, so that the
same command goes on where it was stopped. Ends with 1 where a row is wrong: more than a tenth more
than asked is kept, or not exactly that with `--exact`, or the first lines do not say asked, kept
and why, or the dense model is emitted without a measurement on the target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcompile.targets import list_targets, load_target

MODELS = {"vit_s": "timm:vit_small_patch16_224", "vit_b": "timm:vit_base_patch16_224"}
BUILDS = ("cpu", "rtx-4090", "jetson-orin", "jetson-orin-nano", "t4")
KEEP, ASKED, MOST = "0.6", 118, 129


@dataclass(frozen=True)
class Row:
    """One plan or build: what it kept, what its first lines say, what is wrong (empty: nothing)."""

    model: str
    command: str
    target: str
    exact: bool
    emitted: str
    kept: int
    summary: tuple[str, ...]
    wrong: str

    @property
    def key(self) -> str:
        return f"{self.model}-{self.command}-{self.target}-{'exact' if self.exact else 'keep'}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line."""
    return subprocess.run(
        [sys.executable, "-m", "tcompile", *arguments], text=True, capture_output=True, check=False
    )


def judged(document: dict[str, Any], exact: bool, target: str) -> str:
    """Return what is wrong with an outcome; empty: nothing."""
    kept, summary = document["kept"]["patches"], document["summary"]
    if document["asked"] != {"keep": float(KEEP), "patches": ASKED, "of": 196}:
        return f"asked {document['asked']}"
    if document["emitted"] == "dense":
        measured = document["reason"] == "measured" and load_target(target).runtime == "onnxruntime"
        first = summary[0].startswith("this is the dense model: ") and "measured" in summary[0]
        return "" if measured and first else "dense without a measurement"
    if not ASKED <= kept <= (ASKED if exact else MOST):
        return f"{kept} kept"
    line = f"asked 0.60 ({ASKED} of 196 patch tokens), kept {kept / 196:.2f} ({kept}), because "
    return "" if summary[0].startswith(line) else f"says {summary[0]!r}"


def one(model: str, path: Path, command: str, target: str, exact: bool, work: Path) -> Row:
    """Plan or build by the command line, and judge."""
    asked = [command, str(path), "--target", target, "--keep", KEEP, "--json"]
    if exact:
        asked.append("--exact")
    if command == "build":
        asked += ["-o", str(work / f"artifact-{model}-{target}"), "--force"]
        # Dense for a reason is looked at, too: without --force on what is measured here.
        if load_target(target).runtime == "onnxruntime":
            asked.remove("--force")
            asked[asked.index("-o") + 1] += f"-{exact}"
    done = run(*asked)
    if done.returncode:
        return Row(model, command, target, exact, "nothing", 0, (), done.stderr.strip()[-300:])
    document = json.loads(done.stdout)
    document = document["manifest"] if command == "build" else document
    return Row(
        model,
        command,
        target,
        exact,
        document["emitted"],
        document["kept"]["patches"],
        tuple(document["summary"]),
        judged(document, exact, target),
    )


def export(model: str, work: Path) -> Path:
    """The model as ONNX, random weights."""
    path = work / f"{model}.onnx"
    if not path.exists():
        done = run("export", MODELS[model], "--random-weights", "-o", str(path))
        if done.returncode:
            raise SystemExit(done.stderr)
    return path


def main() -> None:
    """Plan, build, judge, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asked", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="models, artifacts, finished rows")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--build",
        nargs="*",
        default=list(BUILDS),
        metavar="TARGET",
        help=f"to build the first model for, and the second for the first of them "
        f"[default: {' '.join(BUILDS)}]",
    )
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for number, model in enumerate(given.models):
        path = export(model, given.work)
        jobs = [("plan", t.name, exact) for t in list_targets() for exact in (False, True)]
        builds = given.build if number == 0 else given.build[:1]
        jobs += [("build", target, exact) for target in builds for exact in (False, True)]
        for command, target, exact in jobs:
            key = Row(model, command, target, exact, "", 0, (), "").key
            kept = given.work / f"{key}.json"
            if kept.exists():
                found = json.loads(kept.read_text())
                row = Row(**{**found, "summary": tuple(found["summary"])})
            else:
                row = one(model, path, command, target, exact, given.work)
                kept.write_text(json.dumps(asdict(row)) + "\n")
            rows.append(row)
            print(
                f"{row.key}: {row.wrong or 'right'}: {row.kept}; {' | '.join(row.summary)}",
                flush=True,
            )
    wrong = [row.key for row in rows if row.wrong]
    print(f"{len(rows)} rows, {len(wrong)} wrong{': ' if wrong else ''}{', '.join(wrong)}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
