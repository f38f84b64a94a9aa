"""`python -m tests.fuzz`: try thousands of changed models, and write docs/benchmarks/fuzz.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import onnx

from tests.fuzz.cases import Result, bases, case, tried
from tests.fuzz.page import FAULTS, page
from tests.fuzz.workers import run

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases that the state file lacks, write the page; 1 where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--models", type=int, default=3000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first; default: 0")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--limit", type=float, default=60.0, metavar="S", help="seconds for a case")
    parser.add_argument(
        "--state",
        type=Path,
        default=ROOT / "build/fuzz.jsonl",
        metavar="FILE",
        help="results so far; a case in it is not tried again",
    )
    parser.add_argument("--again", action="store_true", help="try faults in the state file again")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; default: docs/benchmarks/fuzz.md",
    )
    parser.add_argument("--case", type=int, metavar="SEED", help="try one case and say what it is")
    parser.add_argument("--save", type=Path, metavar="FILE", help="with --case: write its model")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.case is not None:
            return _one(options.case, folder, options.save)
        models = len(bases(folder))
        known = {} if not options.state.exists() else read(options.state)
        if options.again:
            known = {seed: r for seed, r in known.items() if r.outcome not in FAULTS}
        seeds = range(options.seed, options.seed + options.models)
        missing = [seed for seed in seeds if seed not in known]
        options.state.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with options.state.open("a") as state:
            if known and not options.state.read_text().endswith("\n"):
                state.write("\n")  # the run before was stopped inside a line

            def done(result: Result) -> None:
                known[result.seed] = result
                state.write(json.dumps(result.to_json()) + "\n")
                state.flush()
                if result.outcome in FAULTS:
                    print(f"{result.seed} {result.outcome}: {result.note}", file=sys.stderr)

            run(missing, folder, folder, count=options.workers, limit=options.limit, done=done)
        taken = time.monotonic() - start
    print(f"{len(missing)} cases in {taken:.0f} s", file=sys.stderr)
    results = [known[seed] for seed in seeds]
    output = options.output or ROOT / "docs/benchmarks/fuzz.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(results, models))
    return 1 if any(r.outcome in FAULTS for r in results) else 0


def read(state: Path) -> dict[int, Result]:
    """Results by seed, the last of each; a line that was cut off in the middle is left out."""
    found = {}
    for line in state.read_text().splitlines():
        try:
            result = Result.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue
        found[result.seed] = result
    return found


def _one(seed: int, folder: Path, save: Path | None) -> int:
    model, method, base, log = case(seed, folder)
    if save is not None:
        onnx.save(model, save)
    print("\n".join([f"{base}, --method {method} --keep 0.6", *log]))
    result = tried(seed, folder, folder)
    print(f"{result.outcome}: {result.note}")
    return 1 if result.outcome in FAULTS else 0


if __name__ == "__main__":
    sys.exit(main())
