"""What was measured elsewhere, as a profile: `tcompile profile --import`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.profiling.curve import Curve, StepCost
from tcompile.profiling.profile import Conditions, Profile
from tcompile.profiling.structure import Layout
from tcompile.targets import Target

if TYPE_CHECKING:
    from tcompile.passes.stages import Analysed
    from tcompile.profiling.kit import Measured


def tables_of(given: Sequence[str]) -> tuple[Curve, dict[str, StepCost], str] | None:
    """A curve of whole models, costs of steps by method, and what they were measured with; None
    where nothing is imported.

    Raises:
        UsageError: no table or several, a count given twice, a file that is not what it should be.
    """
    from tcompile.profiling.imported import read_csv, read_steps, whole_curve

    if not given:
        return None
    tables: list[str] = []
    runs: dict[int, str] = {}
    steps: dict[str, StepCost] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            tables.append(text)
        elif name.isdecimal():
            if int(name) in runs:
                raise UsageError(f"gives {name} tokens twice", where="--import")
            runs[int(name)] = path
        else:
            name, _, path = text.rpartition("=")
            steps[name] = read_steps(path)
    if len(tables) + bool(runs) != 1:
        raise UsageError(
            "needs one table of (tokens, ms), or files of trtexec",
            where="--import",
            hint="FILE.csv, or 197=times.json 100=times.json",
        )
    curve = whole_curve(runs) if runs else read_csv(tables[0])
    return curve, steps, "TensorRT, trtexec" if runs else "not told"


def of_kit(
    imports: Sequence[str], target: Target, precision: str, batch: int, outputs: str
) -> Measured | None:
    """What the script of a kit measured, where that is imported.

    Raises:
        UsageError: it is damaged, beside other imports, or of another target, precision or batch.
    """
    from tcompile.profiling.kit import is_measured, read_measured

    files = [text for text in imports if is_measured(text)]
    if not files:
        return None
    if len(imports) > 1:
        raise UsageError("is all that is needed; give it alone", where=f"--import {files[0]}")
    found = read_measured(files[0])
    kit = found.kit
    for option, asked, own in (
        ("--target", target.name, kit.target),
        ("--precision", precision, kit.precision),
        ("--batch", str(batch), str(kit.batch)),
        ("--outputs", outputs, kit.outputs),
    ):
        if asked != own:
            raise UsageError(
                f"was measured with {option} {own}, not {asked}",
                where=files[0],
                hint=f"give {option} {own}",
            )
    return found


def from_kit(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    layout: Layout,
    measured: Measured,
    notes: list[str],
    where: str,
) -> Profile:
    """A profile from what a kit's models took on the device.

    Args:
        where: the file that `measured` was read from.

    Raises:
        UsageError: the kit is of another model, has no models of a method, or is damaged.
    """
    from tcompile.profiling.imported import Work, imported_profile
    from tcompile.profiling.kit import NOTE, check_sites, curve_and_steps, source_digest
    from tcompile.profiling.sizing import structures

    kit = measured.kit
    if source_digest(model.source) != kit.sha256 or kit.tokens != model.analysis.shape.tokens:
        raise UsageError(
            f"the kit is of another file, {kit.source}",
            where=model.source,
            hint="give the model that the kit was written of",
        )
    unknown = [m.text for m in methods if m.text not in kit.methods]
    if unknown:
        raise UsageError(
            f"{unknown[0]} was not measured: the kit has {', '.join(kit.methods)}", where="--method"
        )
    found = structures(model.graph, model.analysis, methods)
    work = Work.of_model(model.graph, found, methods[0])
    check_sites(measured, layout, work, where)
    curve, steps = curve_and_steps(measured, methods, layout, work)
    conditions = Conditions(
        target=target.name,
        device=measured.board or target.title,
        runtime="TensorRT, trtexec on the device",
        software={"tensorrt": measured.version},
        precision=kit.precision,
        batch=kit.batch,
        power_mode=measured.power_mode,
        date=measured.date,
        note=NOTE,
    )
    if not fits_board(target.title, measured.board):
        notes.append(
            f"measured on '{measured.board}', which does not look like the target, {target.title}: "
            "the profile is of the device that was measured"
        )
    if measured.drift_note:
        notes.append(measured.drift_note)
    return imported_profile(
        model.graph,
        model.analysis,
        methods,
        curve,
        conditions,
        source=Path(model.source).name,
        steps=steps,
        found=found,
    )


def fits_board(title: str, board: str) -> bool:
    """Return whether a board, as it tells its model, may be the device of that title: it has the
    words of the title up to the first number (Jetson Orin NX 16 GB). True where nothing is told."""
    words = re.findall(r"[A-Za-z]+", re.split(r"[\d(]", title)[0].lower())
    return not board or set(words) <= {*re.findall(r"[a-z]+", board.lower()), "jetson"}


def from_tables(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    precision: str,
    batch: int,
    given: tuple[Curve, dict[str, StepCost], str],
) -> Profile:
    """A profile from tables, `given` by `tables_of`.

    Raises:
        UsageError: steps of a method that is not among `methods`; see `imported_profile`.
    """
    from tcompile.profiling.imported import imported_profile

    curve, steps, runtime = given
    keys = {m.text: m.key for m in methods}
    unknown = sorted(set(steps) - set(keys))
    if unknown:
        raise UsageError(
            f"has steps of {unknown[0]}, which is not in the profile",
            where="--import",
            hint=f"add --method {unknown[0]}",
        )
    conditions = Conditions(
        target=target.name,
        device=target.title,
        runtime=runtime,
        software={},
        precision=precision,
        batch=batch,
    )
    return imported_profile(
        model.graph,
        model.analysis,
        methods,
        curve,
        conditions,
        source=Path(model.source).name,
        steps={keys[k]: v for k, v in steps.items()},
    )
