"""Any preset on any model: refused in one line, or right (`judge_presets`). A seed makes a case.

python -m tests.support.fuzz_presets 0 500      # seeds 0 to 499; prints what is found
"""

from __future__ import annotations

import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
from onnx.version_converter import convert_version

from tcompile import pipeline
from tcompile.core.errors import InternalError, TcompileError
from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Schedule
from tcompile.methods.presets import PRESETS, Preset
from tcompile.passes.stages import Analysed
from tcompile.planning.method_schedule import checked_schedule, schedule_for
from tcompile.planning.request import Request
from tests.support.fuzz_schedules import random_schedule
from tests.support.grid_vit import GridVit, grid_vit, grid_weights, images
from tests.support.judge_presets import Subject, WrongError, check

Array = np.ndarray[Any, Any]
KEEPS = ("0.99", "0.9", "0.75", "0.5", "0.5", "0.3", "0.1", "0.02")
#: Values that a person types by mistake, and what else a parameter may be.
SILLY = (
    "",
    "nan",
    "inf",
    "-inf",
    "-5",
    "0",
    "1",
    "7",
    "1000",
    "1e999",
    "0.5",
    "1/3",
    "1/0",
    "true",
    "x",
    "2+3",
    "a=b",
    "None",
    "1e-9",
    "0.001",
    "-1",
)
SOUND: Mapping[type, tuple[str, ...]] = {
    int: ("0", "1", "2", "3", "5", "8"),
    float: ("0", "0.1", "0.5", "0.9", "1", "2", "-0.5"),
    Fraction: ("0.05", "0.3", "0.5", "2/3", "0.9", "1"),
    bool: ("true", "false"),
}
GRIDS = ((4, 4), (3, 5), (5, 3), (2, 2), (1, 1), (1, 6), (6, 1), (2, 3), (7, 4), (6, 6), (3, 3))


@dataclass(frozen=True)
class Ask:
    """Request to the compiler; `schedule` in place of keep and method; `scale` is that of the
    images, 0 for black ones."""

    seed: int
    spec: GridVit
    batch: int | None
    outputs: str
    method: str = ""
    keep: str | None = None
    calibration: str | None = None
    schedule: Mapping[str, Any] | None = field(default=None)
    opset: int = 17
    scale: float = 1.0

    def words(self) -> str:
        asked = f"--schedule {self.schedule}" if self.schedule else f"--method {self.method}"
        asked += f" --keep {self.keep}" * (self.keep is not None)
        asked += f" --calibration {self.calibration}" * (self.calibration is not None)
        model = f"{self.spec}, batch {self.batch}, opset {self.opset}, images x {self.scale}"
        return f"seed {self.seed}: {model}: {asked} {self.outputs}"


@dataclass(frozen=True)
class Outcome:
    """kind: refused, or how far it could be checked. note: why it was refused."""

    kind: str
    note: str = ""


def ask(seed: int, preset: str = "") -> Ask:
    """The case of a seed, of any preset or of one, or a `schedule`, as every fifth or so is."""
    rng = random.Random(seed)
    rows, columns = rng.choice(GRIDS)
    chosen = next((p for p in PRESETS if p.name == preset), None) or rng.choice(PRESETS)
    video = "frames" in chosen.needs or rng.random() < 0.1
    spec = GridVit(
        depth=rng.choice((1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 6, 12)),
        width=16,
        heads=rng.choice((1, 2, 4)),
        prefix=rng.choice((0, 1, 1, 1, 2, 5)),
        classes=3,
        pool=rng.choice(("none", "none", "none", "avg", "cls")),
        rows=rows,
        columns=columns,
        frames=rng.choice((2, 4, 5, 8)) if video else 1,
    )
    if spec.pool == "cls" and spec.prefix == 0:
        spec = GridVit(**{**vars(spec), "pool": "avg"})
    made = Ask(
        seed,
        spec,
        rng.choice((None, None, None, 1, 2)),
        rng.choice(("reduced", "reduced", "reduced", "restored")),
        opset=rng.choice((17, 17, 18, 20, 23)),
        scale=rng.choice((1.0, 1.0, 1.0, 0.0, 100.0)),
    )
    if preset == "schedule" or (not preset and rng.random() < 0.2):
        return Ask(**{**vars(made), "schedule": random_schedule(spec, rng, head_file)})
    method, budget = _method(chosen, spec, rng)
    keep = rng.choice(KEEPS) if not budget or rng.random() < 0.05 else None
    images_at = None
    if "calibration" in chosen.needs:
        images_at = _calibration(spec, rng)
    return Ask(**{**vars(made), "method": method, "keep": keep, "calibration": images_at})


def _method(preset: Preset, spec: GridVit, rng: random.Random) -> tuple[str, bool]:
    """The preset with some parameters; whether they set the budget."""
    values: dict[str, str] = {}
    own = rng.random() < 0.4 and bool(preset.budget)
    for key, parameter in preset.parameters.items():
        if key == "head":
            if rng.random() < 0.98:
                values[key] = head_file(spec.width, rng)
        elif (key in preset.budget) == own and rng.random() < (0.9 if own else 0.35):
            values[key] = _value(parameter, rng)
    text = ",".join(f"{k}={v}" for k, v in values.items())
    return preset.name + (f":{text}" if text else ""), any(k in values for k in preset.budget)


def _value(parameter: Parameter, rng: random.Random) -> str:
    if rng.random() < 0.12:
        return rng.choice(SILLY)
    if parameter.choices:
        return str(rng.choice(parameter.choices))
    return rng.choice(SOUND.get(parameter.type, SILLY))


def head_file(width: int, rng: random.Random) -> str:
    """Weights of a scorer: mostly sound ones."""
    kinds = ["sound"] * 20 + ["deep", "deep", "two", "normed", "normed"] * 2
    return _head(
        width,
        rng.choice(
            [
                *kinds,
                "wide",
                "missing",
                "garbage",
                "empty",
                "nan",
                "folder",
                "half",
                "flat",
                "words",
            ]
        ),
    )


@lru_cache(maxsize=50)
def _head(width: int, kind: str) -> str:
    rng = np.random.default_rng(1)
    folder = Path(mkdtemp())
    path = folder / f"{kind}.npz"
    hidden, rows = {"deep": 8, "half": 8}.get(kind, 0), 2 if kind == "two" else 1
    given = width + 3 if kind == "wide" else width
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (hidden or rows, given)}
    shapes["0.bias"] = (hidden or rows,)
    if hidden and kind != "half":
        shapes |= {"1.weight": (rows, hidden), "1.bias": (rows,)}
    if kind == "normed":
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    if kind == "flat":
        shapes["0.weight"] = (width,)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    if kind == "nan":
        arrays["0.weight"][0, 0] = np.nan
    if kind == "words":
        arrays = {n: np.array(["a"]) for n in arrays}
    if kind == "garbage":
        path.write_bytes(b"PK\x03\x04 no archive")
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        np.savez(path, **({} if kind == "empty" else arrays))  # type: ignore[arg-type]
    return str(path)


def _calibration(spec: GridVit, rng: random.Random) -> str | None:
    kind = rng.choice(
        ["sound"] * 12
        + ["one", "shape", "name", "empty", "missing", "garbage", "nan", "none", "words"]
    )
    return None if kind == "none" else _images(spec.side, kind)


@lru_cache(maxsize=200)
def _images(side: int, kind: str) -> str:
    rng = np.random.default_rng(2)
    path = Path(mkdtemp()) / "images.npz"
    count = {"one": 1, "empty": 0}.get(kind, 3)
    array: Array = rng.standard_normal((count, 3, side, side)).astype(np.float32)
    if kind == "shape":
        array = array[:, :, :-1]
    if kind == "nan":
        array[0] = np.nan
    if kind == "words":
        array = np.array(["a", "b"])
    if kind == "garbage":
        path.write_bytes(b"no archive")
    elif kind != "missing":
        np.savez(path, **{"picture" if kind == "name" else "image": array})
    return str(path)


@lru_cache(maxsize=32)
def subject(spec: GridVit, batch: int | None, opset: int = 17, scale: float = 1.0) -> Subject:
    """The model, read, and images for it."""
    weights = grid_weights(spec, spec.patches)
    path = Path(mkdtemp()) / "vit.onnx"
    model = grid_vit(spec, weights, batch)
    onnx.save(model if opset == 17 else convert_version(model, opset), str(path))
    feed = {"image": np.float32(scale) * images(spec, batch or 3)}
    return Subject(pipeline.read(path), batch or 0, feed, (spec, weights))


def _scheduled(model: Analysed, made: Ask) -> Schedule:
    """The schedule that is asked for; contradictions are refused."""
    asked = {"keep": made.keep, "schedule": made.schedule, "calibration": made.calibration}
    Request.of(asked)
    if made.schedule is not None:
        return checked_schedule(model, made.schedule, made.outputs)
    return schedule_for(model, made.keep, made.method or "topk", made.outputs, made.calibration)


def tried(made: Ask) -> Outcome:
    """Build what is asked for and check it.

    Raises:
        WrongError: it is wrong, or refused otherwise than in one line with exit code 2.
        Anything that tcompile raises and is not a TcompileError.
    """
    try:
        model = subject(made.spec, made.batch, made.opset, made.scale)
        schedule = _scheduled(model.model, made)
        return Outcome(check(model, schedule, made.outputs))
    except InternalError as error:
        raise WrongError(f"calls itself a bug: {error}") from error
    except TcompileError as error:
        text = error.one_line()
        if error.exit_code != 2 or not text or "\n" in str(error) or not error.where:
            raise WrongError(f"exit code {error.exit_code}: {text!r}") from error
        return Outcome("refused", text)


def _too_long(*_: object) -> None:
    raise TimeoutError("takes too long")


def main(first: int, last: int, preset: str = "") -> None:
    """Try the seeds; print what is wrong, and what was refused with what words."""
    kinds: Counter[str] = Counter()
    notes: dict[str, str] = {}
    signal.signal(signal.SIGALRM, _too_long)
    for seed in range(first, last):
        made = ask(seed, preset)
        name = made.method.partition(":")[0] or "schedule"
        signal.alarm(60)
        try:
            outcome = tried(made)
        except Exception as error:
            kinds[f"{name} WRONG"] += 1
            print(f"{made.words()}\n    {type(error).__name__}: {error}", flush=True)
            cause = error.__cause__ or error
            if not isinstance(cause, WrongError):
                lines = traceback.format_tb(cause.__traceback__)[-2:]
                print("    " + "".join(lines).replace("\n", "\n    "), flush=True)
            continue
        finally:
            signal.alarm(0)
        kinds[f"{name} {outcome.kind}"] += 1
        notes.setdefault(f"{name}: {outcome.note}" if outcome.note else "", made.words())
    for kind, number in sorted(kinds.items()):
        print(f"{number:6} {kind}")
    for note, words in sorted(notes.items()):
        if "--notes" in sys.argv:
            print(f"{note}\n        {words}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *[a for a in sys.argv[3:4] if a[0] != "-"])
