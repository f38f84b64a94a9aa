"""trtexec by release: which flags each takes (`tensorrt/trtexec_flags.json`), and a program that
takes the same ones and writes what the real one writes, with no TensorRT in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "tensorrt" / "trtexec_flags.json"
Version = tuple[int, ...]
#: µs that a step of a kit's models takes.
STEP = 2


def numbers(version: str) -> Version:
    """ "10.3.0" → (10, 3, 0)."""
    return tuple(int(part) for part in version.split("."))


class Flags:
    """The table.

    Attributes:
        releases: whose source was read, oldest first.
    """

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        self._table = document or json.loads(TABLE.read_text(encoding="utf-8"))
        self.releases: list[str] = [row["version"] for row in self._table["releases"]]

    def release_of(self, version: str) -> str:
        """The newest release that is published and not newer: not every TensorRT's source is."""
        asked = numbers(version)
        fits = [r for r in self.releases if numbers(r)[: len(asked)] <= asked]
        assert fits, f"trtexec of {version} is not in the table"
        return fits[-1]

    def problems(self, arguments: Sequence[str], version: str) -> list[str]:
        """What that trtexec refuses, or takes and ignores, of some arguments."""
        release, found = self.release_of(version), []
        for argument in arguments:
            name, equals, value = argument.partition("=")
            row = self._table["flags"].get(name)
            if row is None or release not in row.get("releases", self.releases):
                found.append(f"{name} is unknown to trtexec {release}")
            elif row["value"] != bool(equals and value):
                found.append(f"{name} {'needs a' if row['value'] else 'takes no'} value")
            elif release in row.get("ignored", ()):
                found.append(f"{name} does nothing in trtexec {release}")
        return found

    @property
    def names(self) -> frozenset[str]:
        """Every flag of every release."""
        return frozenset(self._table["flags"])


def fake_trtexec(folder: Path, version: str) -> Path:
    """Write a program into a folder that is trtexec of some version by its command line.

    An engine of it is a copy of the ONNX file; it "measures" 1 µs for each token that the file's
    name says (`topk-99.onnx`) and for `STEP` more, and writes `--exportTimes` as
    sampleReporting.cpp does.
    Every call is added to `calls` beside it, a list of arguments a line.
    """
    folder, root = folder.resolve(), Path(__file__).resolve().parents[2]
    program = folder / "trtexec"
    program.write_text(
        f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        f"from tests.support.trtexec import act\nact({version!r}, sys.argv[1:], {str(folder)!r})\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def calls(folder: Path) -> list[list[str]]:
    """The arguments of each call of the program there, but for `--help`."""
    lines = (folder / "calls").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def act(version: str, arguments: Sequence[str], folder: str) -> None:
    """Do what the program does."""
    two = [f"{part:02d}" for part in (*numbers(version), 0, 0)[:3]]
    banner = f"[TensorRT v{''.join(two)}] [b1]"
    print(f"&&&& RUNNING TensorRT.trtexec {banner} # trtexec {' '.join(arguments)}")
    if "--help" in arguments:
        return
    with Path(folder, "calls").open("a", encoding="utf-8") as log:
        log.write(json.dumps(list(arguments)) + "\n")
    problems = Flags().problems(arguments, version)
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for name in ("--onnx", "--loadEngine", "--dynamicPlugins"):
        if name in given and not Path(given[name]).is_file():
            problems.append(f"cannot open {given[name]}")
    if problems:
        print(f"[E] {'; '.join(problems)}", file=sys.stderr)
        print(f"&&&& FAILED TensorRT.trtexec {banner}", file=sys.stderr)
        sys.exit(1)
    if "--saveEngine" in given:
        Path(given["--saveEngine"]).write_bytes(Path(given["--onnx"]).read_bytes())
    if "--timingCacheFile" in given:
        Path(given["--timingCacheFile"]).write_bytes(b"timings")
    if "--exportTimes" in given:
        model = given.get("--loadEngine") or given["--onnx"]
        _export(Path(given["--exportTimes"]), Path(model), version, given)
    print(f"&&&& PASSED TensorRT.trtexec {banner}")


def _export(path: Path, model: Path, version: str, given: Mapping[str, str]) -> None:
    """Times of ten runs; with transfers of 0.5 ms unless they are left out, as trtexec 10 has to be
    told and 11 does."""
    tokens = int("".join(c for c in model.name.split(".")[0] if c.isdecimal()) or 0)
    if not tokens:  # the dense model of a kit
        tokens = int(json.loads(Path("kit.json").read_text(encoding="utf-8"))["tokens"]) - STEP
    left_out = "--noDataTransfers" in given or numbers(version) >= (11,)
    moved = 0.0 if left_out else 0.25
    rows = []
    for run in range(10):
        compute, start = (tokens + STEP) / 1000 * (1 + 0.01 * run), 10.0 * run
        rows.append(
            f'{{ "startEnqMs" : {start}, "endEnqMs" : {start + 0.1}, "startH2dMs" : {start}, '
            f'"endH2dMs" : {start + moved}, "startComputeMs" : {start + moved}, '
            f'"endComputeMs" : {start + moved + compute}, "startD2hMs" : {start + moved + compute},'
            f' "endD2hMs" : {start + 2 * moved + compute}, "h2dMs" : {moved}, '
            f'"computeMs" : {compute:.6g}, "d2hMs" : {moved}, '
            f'"latencyMs" : {compute + 2 * moved:.6g} }}'
        )
    path.write_text("[\n  " + "\n, ".join(rows) + "\n]\n", encoding="utf-8")
