"""`python -m tests.coverage`: make docs/coverage.md. See --help."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tcompile.core.decode import decode
from tests.coverage.measure import Row, empty
from tests.coverage.page import failures, page
from tests.coverage.rows import Ask, wanted

ROOT = Path(__file__).parents[2]
#: What decides over the exported files, and over all the rest.
_EXPORTING = ("models", "tests/support", "tests/oracles/weights.py")
_COMPILING = ("tcompile", "passes", "plugins", "targets", "tests/oracles", "tests/coverage")
#: Seconds without a new row after which a worker is taken for stuck.
_PATIENCE = 300.0


def digest(paths: Iterable[str]) -> str:
    """Return the digest of all Python files below these paths."""
    found = hashlib.sha256()
    for name in paths:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return found.hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not in the cache, write the page; 1 when something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose id matches")
    parser.add_argument("--full", action="store_true", help="every export, not a covering choice")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/coverage", metavar="DIR")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="default: docs/coverage.md; with --only, standard output",
    )
    options = parser.parse_args(arguments)
    asks = [a for a in wanted(full=options.full) if re.search(options.only, a.id)]
    exporting = digest(_EXPORTING)
    exports = options.cache / f"exports-{exporting}"
    results = options.cache / f"rows-{digest((*_EXPORTING, *_COMPILING))}"
    for folder in (exports, results):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    run(
        [a for a in asks if not (results / f"{a.id}.json").exists()],
        results,
        exports,
        options.workers,
    )
    rows = [read(results / f"{a.id}.json") for a in asks]
    print(f"{len(rows)} rows, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    text = page(rows)
    output = options.output or (None if options.only else ROOT / "docs/coverage.md")
    if output is None:
        print(text, end="")
    else:
        output.parent.mkdir(exist_ok=True)
        output.write_text(text)
    wrong = failures(rows)
    for line in wrong:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if wrong else 0


def read(path: Path) -> Row:
    """A row that a worker wrote."""
    return decode(Row, json.loads(path.read_text()))


class Worker:
    """A process and what it still has to do."""

    def __init__(self, results: Path, exports: Path, asks: list[Ask]) -> None:
        self.results, self.exports, self.asks = results, exports, asks
        self.process: subprocess.Popen[str] | None = None
        self.since = 0.0

    def pending(self) -> list[Ask]:
        return [a for a in self.asks if not (self.results / f"{a.id}.json").exists()]

    def step(self) -> bool:
        """Start or restart the process where there is work; whether work is left.

        The row at which a process died or got stuck is written down as failed.
        """
        left = self.pending()
        if len(left) < len(self.asks):
            self.asks, self.since = left, time.monotonic()
        if self.process is not None:
            stuck = time.monotonic() - self.since > _PATIENCE
            if self.process.poll() is None and not stuck:
                return True
            code = self.process.poll()
            if stuck and code is None:
                self.process.kill()
                self.process.wait()
            self.process = None
            if left:
                why = f"took more than {_PATIENCE:.0f} s" if stuck else f"process ended with {code}"
                self.write(empty(left[0], failed=why))
                left = self.pending()
        if left:
            self.start(left)
        return bool(left)

    def write(self, row: Row) -> None:
        from dataclasses import asdict

        (self.results / f"{row.id}.json").write_text(json.dumps(asdict(row)))

    def start(self, left: list[Ask]) -> None:
        self.since = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.coverage.worker", str(self.results), str(self.exports)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdin is not None
        self.process.stdin.write("\n".join(a.id for a in left))
        self.process.stdin.close()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


def run(asks: list[Ask], results: Path, exports: Path, count: int) -> None:
    """Measure rows in `count` processes; all rows of a case in one of them."""
    cases = list(dict.fromkeys(a.case.id for a in asks))
    shares: list[list[Ask]] = [
        [a for a in asks if cases.index(a.case.id) % count == n] for n in range(count)
    ]
    workers = [Worker(results, exports, share) for share in shares]
    try:
        while sum(w.step() for w in workers):
            time.sleep(0.2)
            left = sum(len(w.asks) for w in workers)
            if sys.stderr.isatty():
                print(f"\r{len(asks) - left} of {len(asks)} rows", end="", file=sys.stderr)
    finally:
        for worker in workers:
            worker.stop()


if __name__ == "__main__":
    sys.exit(main())
