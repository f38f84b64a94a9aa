"""`tcompile profile` as a function: measured here, modelled, or from others' measurements."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.api.imports import from_kit, from_tables, of_kit, tables_of
from tcompile.core.errors import UsageError
from tcompile.core.files import output_file, write_file
from tcompile.core.progress import Progress, silent
from tcompile.methods.method import OWN_SCHEDULE, Method, method_for
from tcompile.methods.portfolio import PORTFOLIO
from tcompile.planning.constraints import site_constraints
from tcompile.profiling.profile import Profile, read_profile
from tcompile.profiling.runtimes import MEASURED
from tcompile.profiling.structure import Layout, layout_of
from tcompile.profiling.totals import Totals, totals
from tcompile.targets import Target, load_target

if TYPE_CHECKING:
    from tcompile.passes.normalize.bind_shapes import Shapes
    from tcompile.passes.stages import Analysed
    from tcompile.profiling.compare import Comparison

#: Methods whose steps a profile has unless told otherwise, where a model has room for them: those
#: that a schedule is planned with.
METHODS = PORTFOLIO


@dataclass(frozen=True, eq=False)
class Profiled:
    """A profile and what it says of the model as a whole.

    Attributes:
        profile: it.
        layout: which parts the model has.
        notes: what was done otherwise than one might expect.
        against: how it compares with another; None where none was given.
    """

    profile: Profile
    layout: Layout
    notes: tuple[str, ...] = ()
    against: Comparison | None = None

    @property
    def totals(self) -> Totals:
        """The whole model by token count."""
        return totals(self.profile, self.layout)

    def to_json(self) -> dict[str, Any]:
        """The profile's document, which `--profile` reads, with notes, comparison, and whether it
        claims plateaus."""
        other = {} if self.against is None else {"against": self.against.to_json()}
        steps = {
            "claims_plateaus": self.profile.claims_plateaus,
            "why_no_plateaus": self.profile.why_no_plateaus,
        }
        return {**self.profile.to_json(), **steps, "notes": list(self.notes), **other}


def profile(
    model: str | Path,
    *,
    target: str,
    methods: Sequence[str] = (),
    batch: int = 1,
    threads: int | None = None,
    precision: str | None = None,
    modelled: bool = False,
    imports: Sequence[str] = (),
    against: str | Path | None = None,
    seconds: float = 240.0,
    fresh: bool = False,
    outputs: str = "reduced",
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
    progress: Progress = silent,
) -> Profiled:
    """Latency against token count of a model's parts on a target.

    Measured where the target can be measured from here (and kept: a second call finds it), else
    modelled from the device's data sheet.

    Args:
        target: see `tcompile targets`.
        methods: whose steps it is to have; by default `METHODS`, those that the model has room for.
        batch: images in a run, where the model leaves it free.
        threads: of a CPU.
        precision: the target's own by default; `int8` is measured on a CPU, modelled on a GPU.
        modelled: do not measure.
        imports: `measured.json` of a kit (`api.kit`); or others' measurements: `FILE.csv` of
            (tokens, ms); `N=FILE` of trtexec, one for each token count; `METHOD=FILE.csv` of
            (before, after, ms).
        against: a profile to compare it with.
        seconds: that all of it may take, reading the model and opening its parts included. What is
            measured in any case (two rounds over the dense model, three token counts and two steps
            of each method) may take longer.
        fresh: measure anew what was measured before.
        outputs, shapes, prefix, tower: see `build`.

    Raises:
        UsageError: options that do not go together, files that are not what they should be, a
            method that cannot be planned, a target that is neither at hand nor can be modelled.
        ModelError: see `pipeline.read`.
    """
    from tcompile.pipeline import read

    begun = time.monotonic()
    chosen = load_target(target)
    level = checked_precision(chosen, precision, modelled=modelled or bool(imports))
    other = None if against is None else read_profile(against)
    if modelled and imports:
        raise UsageError(
            "is measured, not modelled", where="--import", hint="give only one of them"
        )
    measured = of_kit(imports, chosen, level, batch, outputs)
    given = None if measured is not None else tables_of(imports)
    progress(f"reading {model}")
    found = read(model, shapes=shapes, prefix=prefix, tower=tower)
    notes: list[str] = []
    if measured is not None:
        methods = methods or measured.kit.methods
    planned = planned_methods(found, methods, outputs, notes)
    layout = layout_of(found.graph, planned[0])
    if measured is not None:
        made: Profile = from_kit(found, planned, chosen, layout, measured, notes, imports[0])
    elif given is not None:
        made = from_tables(found, planned, chosen, level, batch, given)
    else:
        asked = {
            "batch": batch,
            "threads": threads,
            "outputs": outputs,
            "shapes": shapes,
            "prefix": prefix,
            "tower": tower,
        }
        left = max(seconds - (time.monotonic() - begun), 0.0)
        made = _made(found, planned, chosen, level, modelled, asked, fresh, left, notes, progress)
    compared = None
    if other is not None:
        from tcompile.profiling.compare import compare

        compared = compare(made, other, _uses(layout))
    return Profiled(made, layout, tuple(notes), compared)


def check_output(path: str | Path) -> None:
    """Raise UsageError unless a file can be written there; before minutes are spent."""
    output_file(path)


def write_profile(profiled: Profiled, path: str | Path) -> Path:
    """Write a profile's document as a whole or not at all.

    Raises:
        UsageError: it cannot be written there.
    """
    text = json.dumps(profiled.profile.to_json(), indent=1, allow_nan=False)
    write_file(output_file(path), text + "\n")
    return Path(path)


def draw_profile(profiled: Profiled, path: str | Path) -> Path:
    """Draw latency against tokens; see `plot.plot_latency`."""
    from tcompile.report.plots import plot_latency

    found, subject = profiled.totals, profiled.profile.subject
    why = profiled.profile.why_no_plateaus
    return plot_latency(
        found.counts,
        found.ms,
        path,
        lower=found.lower,
        upper=found.upper,
        halves={"attention halves": found.attention, "MLP halves": found.mlp},
        plateaus=found.plateaus,
        measured=found.known if profiled.profile.kind == "measured" else (),
        measured_ms=found.raw if profiled.profile.kind == "measured" else None,
        title=f"{subject.source}: {profiled.profile.words}{why and f'; no plateaus: {why}'}",
    )


def checked_precision(target: Target, precision: str | None, *, modelled: bool) -> str:
    """The precision asked for, or the target's own.

    Raises:
        UsageError: one that the target, or a measurement, does not have.
    """
    level = precision or target.default_precision
    if target.on_cpu:
        known: tuple[str, ...] = ("fp32",) if modelled else MEASURED[target.runtime]
    else:
        known = tuple(dict.fromkeys(map(target.planned_as, target.precisions)))
        if not modelled:  # Parts in 8 bits would need ranges of each.
            known = tuple(p for p in known if p != "int8")
    if level not in known:
        raise UsageError(
            f"{target.name} is not profiled in {level}",
            where="--precision",
            hint=f"one of {', '.join(known)}",
        )
    return level


def planned_methods(
    model: Analysed, asked: Sequence[str], outputs: str, notes: list[str]
) -> list[Method]:
    """Those asked for; else all usual ones that can be planned, with a note of the others.

    Raises:
        UsageError: one that was asked for cannot be planned on the model, or none of them can.
    """
    constraints = site_constraints(model.analysis, outputs)

    def planned(text: str) -> Method:
        try:
            return method_for(model.analysis, constraints, text, outputs)
        except UsageError as error:
            # A profile takes no --keep, by which a method goes by its own schedule.
            hint = "" if error.hint == OWN_SCHEDULE else error.hint
            raise UsageError(error.what, where=error.where, hint=hint) from error

    if asked:
        return [planned(text) for text in dict.fromkeys(asked)]
    found, last = [], None
    for text in METHODS:
        try:
            found.append(planned(text))
        except UsageError as error:
            last = error
            notes.append(f"left out: {error.one_line()}")
    if not found:
        assert last is not None
        raise last
    return found


def _made(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    precision: str,
    modelled: bool,
    asked: Mapping[str, Any],
    fresh: bool,
    seconds: float,
    notes: list[str],
    say: Progress,
) -> Profile:
    from tcompile.planning.request import Request
    from tcompile.planning.solve import latencies

    request = Request(**asked)
    if not modelled:
        try:
            return latencies.measured(
                model,
                methods,
                target,
                request,
                say,
                precision=precision,
                fresh=fresh,
                seconds=seconds,
            )
        except UsageError as error:
            if target.on_cpu:
                raise
            notes.append(f"modelled: {error.what}")
    return latencies.modelled(model, methods, target, request, precision, say)


def _uses(layout: Layout) -> dict[str, int]:
    """Signature → how many parts of the dense model have it."""
    names: Iterable[str] = (s for pair in layout.dense for s in pair)
    found: dict[str, int] = {}
    for name in (layout.stem, *names, layout.head_dense):
        if name:
            found[name] = found.get(name, 0) + 1
    return found
