"""Mutation testing of passes/reduce and passes/lower: which small faults no test would see?

    python -m tools.mutation --sample 400 --jobs 2

Every mutant is one small change of the source: a comparison turned, a number off by one, a branch
never taken. The golden files run first, then the unit tests of its folder, then numerics of whole
models. Results are lines of JSON in `--results`, one a mutant; a run that was stopped goes on where
it was. Own code in place of mutmut: that expects a package where its name says, and `passes/` is
`tcompile.passes` here.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
FOLDERS = ("passes/reduce", "passes/lower")
#: Folders that are packages inside of `tcompile`.
MAPPED = ("passes", "plugins", "targets", "models")
#: Tests of whole models against PyTorch, for what the golden files and unit tests let pass.
NUMERICS = (
    "test_towers",
    "test_presets",
    "test_presets_b",
    "test_preset_properties",
    "test_counting",
    "test_structures",
)
#: A run of tests takes no longer; a mutant that does hangs.
SECONDS = 900
_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_COMPUTED: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "//",
    ast.FloorDiv: "*",
    ast.Div: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: bytes from `start` to `end` become `text`."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    text: str
    digest: str

    @property
    def id(self) -> str:
        """The same mutant of the same source."""
        return f"{self.file}:{self.line}:{self.start}:{self.kind}:{self.digest}"

    def source(self) -> tuple[bytes, bytes]:
        """The file before and after."""
        before = (ROOT / self.file).read_bytes()
        return before, before[: self.start] + self.text.encode() + before[self.end :]

    def diff(self) -> str:
        before, after = (s.decode().splitlines() for s in self.source())
        changed = difflib.unified_diff(before, after, lineterm="", n=0)
        return "\n".join(line for line in changed if line[:3] not in ("---", "+++", "@@ "))


class _Finder(ast.NodeVisitor):
    """Finds what can be changed in a file; messages, annotations and docstrings are not code."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source, self.found = file, source, list[Mutant]()
        self.digest = hashlib.blake2b(source, digest_size=4).hexdigest()
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self.lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, end

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _add(self, node: ast.AST, kind: str, text: str) -> None:
        line = node.lineno  # type: ignore[attr-defined]
        self.found.append(Mutant(self.file, line, kind, *self._span(node), text, self.digest))

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "raise", "pass")

    def visit_Assert(self, node: ast.Assert) -> None:
        """Skip it: what mypy is told is not behaviour."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *(d for d in node.kw_defaults if d is not None)):
            self.visit(default)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        for each in node.body:
            self.visit(each)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._add(node, "statement", "pass")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self._add(node.test, "condition", f"not ({self._text(node.test)})")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add(node.test, "condition", f"not ({self._text(node.test)})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            left, right = self._text(node.left), self._text(node.comparators[0])
            turned = _COMPARED[type(node.ops[0])]
            self._add(node, "comparison", f"({left}) {turned} ({right})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        turned = _COMPUTED.get(type(node.op))
        if turned and not any(isinstance(n, ast.JoinedStr) for n in ast.walk(node)):
            left, right = self._text(node.left), self._text(node.right)
            self._add(node, "operator", f"(({left}) {turned} ({right}))")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        turned = " or " if isinstance(node.op, ast.And) else " and "
        joined = turned.join(f"({self._text(value)})" for value in node.values)
        self._add(node, "boolean", f"({joined})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(node, "not", f"({self._text(node.operand)})")
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            # The last axis becomes the second; -2 would often be the same to numpy.
            self._add(node, "sign", f"({self._text(node.operand)})")
            return
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A message, or a name."""

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, "truth", str(not node.value))
        elif isinstance(node.value, (int, float)):
            self._add(node, "number", f"({self._text(node)} + 1)")


def mutants() -> Iterator[Mutant]:
    """All mutants of the folders, file by file."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_bytes()
            finder = _Finder(path.relative_to(ROOT).as_posix(), source)
            finder.visit(ast.parse(source))
            yield from finder.found


def plant(folder: Path) -> None:
    """Copy the packages as they are installed, and the tests beside them."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "tcompile", folder / "tcompile", ignore=ignored)
    for name in MAPPED:
        shutil.copytree(ROOT / name, folder / "tcompile" / name, ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def judge(mutant: Mutant, tree: Path) -> str:
    """Return who killed a mutant: golden, unit, numerics, timeout; or `survived`."""
    path = tree / "tcompile" / mutant.file
    before, after = mutant.source()
    path.write_bytes(after)
    try:
        stage = mutant.file.split("/")[1]
        stages = {
            "golden": ["tests/golden"],
            "unit": [f"tests/unit/passes/{stage}"],
            "numerics": [f"tests/acceptance/{name}.py" for name in NUMERICS],
        }
        for name, tests in stages.items():
            try:
                if not passes(tree, tests):
                    return name
            except subprocess.TimeoutExpired:
                return "timeout"
    finally:
        path.write_bytes(before)
    return "survived"


def passes(tree: Path, tests: Sequence[str]) -> bool:
    """Return whether tests pass with the packages of a tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["--deselect", "tests/golden/test_golden.py::test_ci_does_not_rewrite_them"]
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    env.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        command, cwd=tree, env=env, capture_output=True, timeout=SECONDS, check=False
    )
    return done.returncode == 0


def report(results: Path) -> None:
    """Print how many were killed, by whom, and the survivors."""
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    known = {mutant.id: mutant for mutant in mutants()}
    rows = [row for row in rows if row["id"] in known]
    by = {who: sum(row["by"] == who for row in rows) for who in sorted({r["by"] for r in rows})}
    killed = sum(row["by"] != "survived" for row in rows)
    print(f"{killed} of {len(rows)} mutants killed ({killed / max(len(rows), 1):.1%}): {by}")
    for row in sorted((r for r in rows if r["by"] == "survived"), key=lambda r: str(r["id"])):
        mutant = known[row["id"]]
        print(f"\n{mutant.file}:{mutant.line} ({mutant.kind})\n{mutant.diff()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=400, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("mutation.jsonl"))
    parser.add_argument("--report", action="store_true", help="print what is known, run nothing")
    asked = parser.parse_args()
    everything = list(mutants())
    chosen = everything
    if asked.sample and asked.sample < len(everything):
        chosen = random.Random(asked.seed).sample(everything, asked.sample)
    lines = asked.results.read_text().splitlines() if asked.results.exists() else []
    done = {json.loads(line)["id"] for line in lines}
    left = [] if asked.report else [mutant for mutant in chosen if mutant.id not in done]
    print(f"{len(everything)} mutants, {len(chosen)} chosen, {len(left)} to run")
    if left:
        run(left, asked.jobs, asked.results)
    if asked.results.exists():
        report(asked.results)


def run(left: list[Mutant], jobs: int, results: Path) -> None:
    """Judge mutants side by side, each job in a tree of its own."""
    lock = threading.Lock()
    with TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        trees: Queue[Path] = Queue()
        for i in range(jobs):
            plant(Path(folder) / str(i))
            trees.put(Path(folder) / str(i))
        if not passes(Path(folder) / "0", ["tests/golden"]):
            sys.exit("the golden tests fail before anything is changed")

        def one(mutant: Mutant) -> None:
            tree, start = trees.get(), time.monotonic()
            try:
                by = judge(mutant, tree)
            finally:
                trees.put(tree)
            seconds = round(time.monotonic() - start, 1)
            row = {"id": mutant.id, "by": by, "seconds": seconds, **asdict(mutant)}
            with lock, results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{by:9} {mutant.file}:{mutant.line} {mutant.kind} ({seconds} s)", flush=True)

        list(pool.map(one, left))


if __name__ == "__main__":
    main()
