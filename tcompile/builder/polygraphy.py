"""Checks by polygraphy that go into an artifact: inputs of its own, what the model gives for them
in ONNX Runtime, the loader, and the script with the tolerances that these settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.artifact.directory import MODEL
from tcompile.artifact.manifest import Manifest
from tcompile.artifact.polygraphy import CHECKS, LOADER, OUTPUTS, SCRIPT, script_text
from tcompile.builder.check_inputs import check_inputs, write_inputs
from tcompile.core.memory import release
from tcompile.core.progress import Progress
from tcompile.examples import FOLDER
from tcompile.runtime.metrics import cosine
from tcompile.runtime.signature import signature
from tcompile.runtime.token_outputs import is_bookkeeping
from tcompile.targets.backends.ort import OrtRunner, is_half
from tcompile.verify.lowered import COSINES, DISTANCES
from tcompile.verify.polygraphy import Distance, Facts, Scale, facts_of, head, parts_for

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
#: Output with fewer tokens → its index, the axis of its rows, the dense model's tokens.
Rows = dict[str, tuple[str, int, int]]
#: Bytes of inputs and of outputs that are stored at most: of more, one run is, or none.
_MOST = 8 << 20


def write_checks(folder: Path, dense: Path, manifest: Manifest, say: Progress) -> None:
    """Write polygraphy.sh and what it needs beside a model and its engine.

    Args:
        folder: the artifact while it is written.
        dense: the model as it came.
        manifest: of the artifact; its files are not listed yet.

    Raises:
        ModelError: ONNX Runtime does not run one of the models.
    """
    say("writing checks for polygraphy")
    model = signature(folder / MODEL)
    least = manifest.batch_sizes.smallest if manifest.batch_sizes else 1
    facts, (every, scenes) = facts_of(manifest), check_inputs(model, least)
    # In fp16 ONNX Runtime's second run may be wrong, and polygraphy cannot tell it what helps.
    once = facts.half or is_half(dense)
    given = every[:1] if once else every
    outputs = _run(folder / MODEL, given)
    originals = _run(dense, given) if model.host is None else []
    rows = _rows(manifest.token_index, outputs, originals)
    engines = sorted(folder.glob("engine/*.engine"))
    against, kept = _against(originals, outputs, rows, facts.precision)
    facts = replace(
        facts,
        engine=engines[0].relative_to(folder).as_posix() if engines else None,
        spread=bool(rows),
        scales=_scales(outputs, rows),
        stored=_size(outputs[:1]) <= _MOST,
        distances=tuple(d for d in against if d.output not in rows),
        kept=tuple(kept),
        apart=_apart(originals, outputs, [d.output for d in against]),
    )
    if max(_size(given), _size(outputs) if facts.stored else 0) > _MOST:
        given, outputs = given[:1], outputs[:1]
    _fill_loader(folder, rows, kept, runs=int(once), stored=len(given))
    shown = scenes.first(len(given) * (model.batch or least))
    _write(folder, given, outputs, facts, shown.source)


def _write(
    folder: Path, given: Sequence[Arrays], outputs: Sequence[Arrays], facts: Facts, source: str
) -> None:
    write_inputs(folder, given)
    if facts.stored:
        _store_outputs(folder / OUTPUTS, outputs)
    script = folder / SCRIPT
    text = script_text(parts_for(facts), head(facts, source))
    script.write_text(text, encoding="utf-8", newline="\n")
    script.chmod(0o755)


def _fill_loader(
    folder: Path, rows: Rows, kept: Mapping[str, tuple[float, float]], *, runs: int, stored: int
) -> None:
    """Copy the loader, with what it must know of the model.

    Args:
        runs: at most, of any inputs; 0: any number.
        stored: runs that outputs are stored for.
    """
    (folder / CHECKS).mkdir(exist_ok=True)
    text = (FOLDER / "polygraphy" / "polygraphy_data.py").read_text(encoding="utf-8")
    for old, new in (
        ("ROWS: dict[str, tuple[str, int, int]] = {}", f"{rows!r}"),
        ("KEPT: dict[str, tuple[float, float]] = {}", f"{kept!r}"),
        ('os.environ.get("RUNS", "0")', f'os.environ.get("RUNS", "{runs}")'),
        ("STORED = 0", f"STORED = {stored}"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, old.removesuffix("{}") + new if old.endswith("{}") else new)
    (folder / LOADER).write_text(text, encoding="utf-8", newline="\n")


def _run(path: Path, given: Sequence[Arrays]) -> list[Arrays]:
    """Every output of each run; the memory that it takes is free afterwards."""
    runner = OrtRunner(path)
    found: list[Arrays] = [
        runner.run({t.name: run[t.name] for t in runner.inputs}) for run in given
    ]
    del runner
    release()
    return found


def _size(runs: Sequence[Arrays]) -> int:
    return sum(array.nbytes for run in runs for array in run.values())


def _store_outputs(path: Path, outputs: Sequence[Arrays]) -> None:
    """As polygraphy's `--save-outputs` does."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.logger import G_LOGGER

    results = RunResults()
    found = [IterationResult(dict(run), runtime=0.0, runner_name="at build") for run in outputs]
    results.append(("at build", found))
    with G_LOGGER.verbosity():  # it reports on stdout, which is for our results
        results.save(str(path))


def _rows(
    token_index: Mapping[str, str], outputs: Sequence[Arrays], dense: Sequence[Arrays]
) -> Rows:
    """Where rows of outputs with fewer tokens lie."""
    found: Rows = {}
    for name, index in token_index.items():
        want = dense[0][name].shape if dense and name in dense[0] else ()
        have = outputs[0][name].shape
        axes = [i for i, (n, k) in enumerate(zip(want, have, strict=False)) if n != k]
        if len(want) == len(have) and len(axes) == 1 and index in outputs[0]:
            found[name] = (index, axes[0], want[axes[0]])
    return found


def _scales(outputs: Sequence[Arrays], rows: Rows) -> tuple[Scale, ...]:
    found = []
    for name, first in outputs[0].items():
        if first.dtype.kind != "f" or is_bookkeeping(name):
            continue
        runs = [run[name][np.isfinite(run[name])].astype(np.float64) for run in outputs]
        filled = first.shape[rows[name][1]] / (rows[name][2] + 1) if name in rows else 1.0
        largest = max(float(np.abs(a).max(initial=0)) for a in runs)
        norm = max(float(np.linalg.norm(a)) for a in runs)
        found.append(Scale(name, largest or 1.0, norm or 1.0, filled))
    return tuple(found)


def _against(
    dense: Sequence[Arrays], outputs: Sequence[Arrays], rows: Rows, precision: str
) -> tuple[list[Distance], dict[str, tuple[float, float]]]:
    """Bounds of the distance to the dense model, of outputs that can be compared; and of those with
    fewer tokens once more by name, rounded as the loader has them."""
    found = []
    for name, first in (dense[0] if dense else {}).items():
        have = outputs[0].get(name)
        if have is None or first.dtype.kind != "f":
            continue
        if have.shape != first.shape and name not in rows:
            continue
        pairs = [_pair(a, b, name, rows) for a, b in zip(dense, outputs, strict=True)]
        if not all(np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs):
            continue
        alike = min(float(cosine(a, b)[0]) for a, b in pairs)
        far = max(float(np.linalg.norm(a - b)) for a, b in pairs)
        norm = max(float(np.linalg.norm(a)) for a, _ in pairs)
        bound = alike - (1 - COSINES[precision])
        found.append(Distance(name, bound, far + DISTANCES[precision] * norm))
    kept = {d.output: (round(d.cosine, 6), float(f"{d.l2:.4g}")) for d in found if d.output in rows}
    return found, kept


def _pair(dense: Arrays, reduced: Arrays, name: str, rows: Rows) -> tuple[Array, Array]:
    """An output of both as one row [1, values], of tokens those that both have."""
    want, have = (a[name].astype(np.float64) for a in (dense, reduced))
    if name in rows:
        index_name, axis, _ = rows[name]
        index = reduced[index_name]
        batch, row = np.nonzero(index >= 0)
        have = np.moveaxis(have, axis, 1)[batch, row]
        want = np.moveaxis(want, axis, 1)[batch, index[batch, row]]
    return want.reshape(1, -1), have.reshape(1, -1)


def _apart(dense: Sequence[Arrays], outputs: Sequence[Arrays], compared: Sequence[str]) -> str:
    """Outputs of the dense model that are not compared, and why not, in words."""
    names = [
        name
        for name, array in (dense[0] if dense else {}).items()
        if array.dtype.kind == "f" and name not in compared
    ]
    return f"{', '.join(names)} (another shape, or not finite)" if names else ""
