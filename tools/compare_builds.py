"""Builds the same models with two versions of tcompile, and compares what they write.

    VERSION="--python PYTHON --checkout FOLDER"
    python -m tools.compare_builds exports --out EXPORTS $VERSION
    python -m tools.compare_builds build --exports EXPORTS --out DIR $VERSION
    python -m tools.compare_builds compare DIR DIR

The versions are reached through their command line only. `build` goes on where it was stopped. Of
each artifact the model and the manifest are kept; the models are compared by `tools.canonical`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from tools.canonical import difference

TARGETS = ("cpu", "rtx-4090", "jetson-orin")
_KEEP = ("--keep", "0.6")
COMMON: Mapping[str, tuple[str, ...]] = {
    "auto": ("--method", "auto", *_KEEP),
    "topk-restored": ("--method", "topk", *_KEEP, "--outputs", "restored"),
    "evit": ("--method", "evit", *_KEEP),
    "tome": ("--method", "tome", *_KEEP),
}
#: Two more for each export, so that nearly all presets are built once.
MORE: Mapping[str, tuple[str, str]] = {
    "average-half": ("pitome", "llava-zip"),
    "beit-bias": ("zero-tprune", "as-vit"),
    "clip-towers": ("turbo", "pomt"),
    "clip-vision": ("mctf", "visionzip"),
    "deit-distilled": ("diffrate", "evo-vit"),
    "dinov2-registers": ("tofu", "vispruner"),
    "dinov3-rotary": ("spatten", "prumerge"),
    "eva02-rotary": ("gtp", "ats"),
    "qwen25-merger": ("fopru", "dart"),
    "sam-windows": ("bypass", "idlevit"),
    "siglip-pool": ("ficoco", "algm"),
    "vit-cls": ("pyra", "tomesd"),
}
#: In the manifest: what a clock, the machine or the version decides.
_UNSTEADY = ("tool", "versions", "faster")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_FIGURE = re.compile(r"\d+(\.\d+)?(?= ?(ms|%|x|times|interleaved rounds))")
_TIMED = re.compile(r"\bmeasured\b|faster than dense here|speed-up of")
#: On a CPU a modelled plan is made from a short look at the machine: what it takes differs from run
#: to run, and what `auto` chooses may, if other programs run beside one of the two builds.
_LATENCIES = ("predicted_ms", "dense_ms", "ms", "latency_ms", "measured_off")


@dataclass(frozen=True)
class Build:
    """One build.

    Attributes:
        model: name of the export.
        method: label, and the options that it stands for.
        target: name of the device.
    """

    model: str
    method: str
    options: tuple[str, ...]
    target: str

    @property
    def folder(self) -> Path:
        return Path(self.model, self.method, self.target)


@dataclass(frozen=True)
class Result:
    """End of a build: its exit code, what it said on stderr, the seconds that it took."""

    code: int
    error: str
    seconds: float


def builds(exports: Path) -> Iterator[Build]:
    """Yield the builds of all exports in a folder."""
    for path in sorted(exports.glob("*.onnx")):
        more = {m: ("--method", m, *_KEEP) for m in MORE.get(path.stem, ())}
        for method, options in {**COMMON, **more}.items():
            for target in TARGETS:
                yield Build(path.stem, method, options, target)


def export(python: Path, checkout: Path, out: Path) -> None:
    """Make the exports with a version."""
    script = Path(__file__).with_name("comparison_models.py")
    command = [str(python), str(script), str(out.resolve())]
    subprocess.run(command, cwd=checkout, env=os.environ | _ENVIRONMENT, check=True)


def build_all(python: Path, checkout: Path, exports: Path, out: Path, nice: int) -> None:
    """Build what is not yet there, one after another."""
    os.nice(nice - os.nice(0))
    asked = list(builds(exports))
    for i, build in enumerate(asked, 1):
        folder = out / build.folder
        if not (folder / "result.json").exists():
            result = _build(python, checkout, exports.resolve(), build, folder)
            said = result.error.splitlines()[:1] if result.code else []
            head = f"{i}/{len(asked)} {build.folder} {result.seconds:.1f} s, exit {result.code}"
            print(head, *said, flush=True)


def _build(python: Path, checkout: Path, exports: Path, build: Build, folder: Path) -> Result:
    """Build with an empty cache, and keep the model and the manifest."""
    with tempfile.TemporaryDirectory() as scratch:
        artifact = Path(scratch, "artifact")
        started = time.monotonic()
        done = subprocess.run(
            [
                *(str(python), "-m", "tcompile", "build", str(exports / f"{build.model}.onnx")),
                *("--target", build.target, *build.options, "--profile", "model", "--threads", "1"),
                *("--force", "-o", str(artifact)),
            ],
            cwd=checkout,
            env={
                **(os.environ | _ENVIRONMENT),
                "TCOMPILE_CACHE": str(Path(scratch, "cache")),
                "PYTHONSAFEPATH": "1",  # Only the version that the interpreter has installed.
            },
            capture_output=True,
            text=True,
        )
        error = done.stderr.strip().replace(scratch, "SCRATCH").replace(str(exports), "EXPORTS")
        result = Result(done.returncode, error, time.monotonic() - started)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in (*artifact.glob("model.onnx*"), *artifact.glob("manifest.json")):
            shutil.copy(path, folder)
    (folder / "result.json").write_text(json.dumps(asdict(result), indent=1))
    return result


# ---- comparing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Differences between two builds.

    Attributes:
        kind: `missing`, `different`, `wording` (only of what a person reads), or `equal`.
        lines: each difference.
    """

    kind: str
    lines: tuple[str, ...] = ()


def compare(one: Path, other: Path) -> Verdict:
    """Compare two folders of one build."""
    sides = (one, other)
    if lacking := [str(f) for f in sides if not (f / "result.json").exists()]:
        return Verdict("missing", tuple(f"no build in {f}" for f in lacking))
    a, b = (Result(**json.loads((f / "result.json").read_text())) for f in sides)
    if a.code != b.code:
        return Verdict("different", (f"exit {a.code} against {b.code}: {a.error} / {b.error}",))
    if a.code:
        return _worded([], [(a.error, b.error)])
    faults = difference(*(onnx.load(f / "model.onnx") for f in sides))
    read = [json.loads((f / "manifest.json").read_text()) for f in sides]
    data, words = manifest_difference(*read)
    return _worded([*faults, *data], words)


def _worded(faults: Sequence[str], words: Sequence[tuple[str, str]]) -> Verdict:
    lines = [*faults, *(f"'{x}' became '{y}'" for x, y in words if x != y)]
    return Verdict("different" if faults else "wording" if lines else "equal", tuple(lines))


def manifest_difference(a: Any, b: Any, where: str = "") -> tuple[list[str], list[tuple[str, str]]]:
    """Return the data in which two manifests differ, and the sentences in which they do.

    Left out is what a clock, the machine or the version decides.
    """
    if not where:
        a, b = ({k: v for k, v in _steady(x).items() if k not in _UNSTEADY} for x in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(f"{where}.{k}", a.get(k), b.get(k)) for k in {**a, **b}]
    elif isinstance(a, list) and isinstance(b, list):
        a, b = ([x for x in side if not _timed(x)] for side in (a, b))
        if len(a) != len(b):
            return [f"manifest{where}: {_short(a)} against {_short(b)}"], []
        pairs = [(f"{where}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, str) and isinstance(b, str) and " " in a + b:
        x, y = (_FIGURE.sub("#", text) for text in (a, b))
        return [], [(x, y)] if x != y else []
    elif a == b or (isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-6 * abs(a)):
        return [], []
    else:
        return [f"manifest{where}: {_short(a)} against {_short(b)}"], []
    found = [manifest_difference(x, y, place) for place, x, y in pairs]
    return [line for data, _ in found for line in data], [p for _, words in found for p in words]


def _steady(manifest: Any) -> dict[str, Any]:
    """Leave out digests and sizes of files, their folders, and what was timed."""
    found = dict(manifest)
    found["source"] = {**found["source"], "file": Path(found["source"]["file"]).name}
    found["files"] = sorted(entry["path"] for entry in found["files"])
    found["latency"] = [
        {k: v for k, v in entry.items() if k not in ("milliseconds", "spread")}
        if entry["kind"] == "measured"
        else entry
        for entry in found["latency"]
    ]
    on_cpu = found["target"]["name"] in ("cpu", "cpu-openvino")
    return _without(_LATENCIES, found) if on_cpu else found


def _without(keys: Sequence[str], value: Any) -> Any:
    """Leave out keys, however deep they are, and the sentences that say the same."""
    if isinstance(value, dict):
        return {k: _without(keys, v) for k, v in value.items() if k not in keys}
    if isinstance(value, list):
        return [
            _without(keys, v) for v in value if not str(v).startswith("a modelled profile predicts")
        ]
    return value


def _timed(value: Any) -> bool:
    """Tell whether a value is a sentence on what was timed."""
    return isinstance(value, str) and _TIMED.search(value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}…"


def compare_all(one: Path, other: Path) -> int:
    """Print a line for each build that differs, the words that did, and a table; 1 if any does."""
    names = {p.parent.relative_to(f) for f in (one, other) for p in f.rglob("result.json")}
    counts: dict[str, Counter[str]] = {target: Counter() for target in TARGETS}
    words: Counter[str] = Counter()
    for name in sorted(names):
        verdict = compare(one / name, other / name)
        counts[name.name][verdict.kind] += 1
        if verdict.kind == "wording":
            words.update(verdict.lines)
        elif verdict.kind != "equal":
            print(f"{verdict.kind}: {name}", *verdict.lines, sep="\n    ")
    for line, count in words.most_common():
        print(f"{count} builds: {line}")
    kinds = ("equal", "wording", "different", "missing")
    print(f"{'':12}", *(f"{k:>10}" for k in kinds))
    for target, found in counts.items():
        print(f"{target:12}", *(f"{found[k]:10}" for k in kinds))
    return int(any(found["different"] or found["missing"] for found in counts.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="compare_builds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("exports", "build"):
        command = commands.add_parser(name)
        for option in ("--python", "--checkout", "--out"):
            command.add_argument(option, type=Path, required=True)
        if name == "build":
            command.add_argument("--exports", type=Path, required=True)
            command.add_argument("--nice", type=int, default=19)
    command = commands.add_parser("compare")
    command.add_argument("one", type=Path)
    command.add_argument("other", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command == "compare":
        return compare_all(asked.one, asked.other)
    if asked.command == "exports":
        export(asked.python, asked.checkout, asked.out)
    else:
        build_all(asked.python, asked.checkout, asked.exports, asked.out, asked.nice)
    return 0


if __name__ == "__main__":
    sys.exit(main())
