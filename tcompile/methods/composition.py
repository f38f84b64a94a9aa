"""Compose a preset for a model: from `--method` and `--keep` to a schedule.

Where a model does not have what a preset's score reads, another score stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.core.errors import UsageError
from tcompile.core.extensions import find
from tcompile.core.parameters import fraction, parse
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, SiteConstraints, Step, Values
from tcompile.methods.presets import ALL, RESOLUTION, Preset
from tcompile.methods.schedulers import Place

if TYPE_CHECKING:
    from tcompile.methods.calibration import Observe


def find_method(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    return find("method", name, ALL, "tcompile.presets", Preset)


def parse_method(text: str) -> tuple[Preset, dict[str, Any]]:
    """`evit:rate=0.7` → the preset and all its parameters.

    Raises:
        UsageError: unknown preset or parameter, a value it cannot have, or a required one missing.
    """
    name, _, rest = text.partition(":")
    try:
        preset = find_method(name)
    except UsageError as error:
        raise UsageError(error.what, where=error.where or "--method", hint=error.hint) from error
    values: dict[str, Any] = {k: p.default for k, p in preset.parameters.items()}
    for item in filter(None, rest.split(",")):
        key, equals, raw = item.partition("=")
        if key not in preset.parameters or not equals:
            known = ", ".join(preset.parameters)
            raise UsageError(
                f"'{item}' is not a parameter of {name}",
                where="--method",
                hint=f"it has: {known}" if known else "it has none",
            )
        values[key] = parse(preset.parameters[key], key, raw)
    for key in preset.required:
        if values[key] is None:
            meaning = preset.parameters[key].meaning
            raise UsageError(
                f"{name} needs {key}: {meaning}",
                where="--method",
                hint=f"say --method {name}:{key}=…",
            )
    return preset, values


def parse_keep(keep: float | str | Fraction) -> Fraction:
    """The keep ratio as the exact decimal that was typed.

    Raises:
        UsageError: not a number in (0, 1].
    """
    try:
        ratio = keep if isinstance(keep, Fraction) else fraction(str(keep))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"'{keep}' is not a number", where="--keep") from error
    if not 0 < ratio <= 1:
        percent = f": {float(ratio / 100):g} for {float(ratio):g} %" if 1 < ratio <= 100 else ""
        raise UsageError(
            f"{keep} is outside (0, 1]",
            where="--keep",
            hint=f"it is the fraction of patch tokens that are kept{percent}",
        )
    return ratio


def compose(
    text: str,
    shape: Shape,
    has_cls: bool,
    keep: float | str | Fraction | None,
    room: SiteConstraints | None = None,
    observe: Observe | None = None,
) -> Schedule:
    """The schedule of a preset on a model.

    Args:
        room: where the model lets tokens leave; None: everywhere.
        observe: gives scores on images (`planning.calibration`), for the presets that need them.

    Raises:
        UsageError: no budget given, two budgets given, or parameters that do not fit the model.
    """
    preset, values = parse_method(text)
    if preset is RESOLUTION:
        raise UsageError(
            "resolution leaves at no site: its schedule is made for a whole model",
            where="--method",
            hint="see `tcompile.planning.resolution`",
        )
    own = [k for k in preset.budget if values[k] is not None]
    if keep is None and not own:
        how = "--keep R" + "".join(f" or --method {preset.name}:{k}=…" for k in preset.budget)
        raise UsageError("no budget given", where="--keep", hint=f"say {how}")
    if keep is not None and own:
        raise UsageError(
            f"--keep and {preset.name}:{own[0]} both set the budget",
            where="--keep",
            hint="give one of them",
        )
    ratio = None if keep is None else parse_keep(keep)
    if observe is not None and not preset.scheduler.observes:
        raise UsageError(
            f"{preset.name} learns nothing from images", where="--calibration", hint="omit it"
        )
    if ratio == 1:
        return Schedule(text, shape, ())
    values = {k: _file(k, v) if isinstance(v, Path) else v for k, v in values.items()}
    context = Context(preset.name, shape, has_cls, ratio, room)
    if preset.scheduler.observes:
        if observe is None:
            raise UsageError(
                f"{preset.name} needs images to learn its counts from",
                where="--calibration",
                hint="say --calibration DIR, FILE.npz or loader.py",
            )
        anywhere = SiteName("")
        wanted = [score_fallback(s, context, anywhere) for s in preset.scheduler.observes]
        context = replace(context, calibration=observe(wanted))
    made = Schedule(text, shape, composed(preset, context, values))
    return replace(made, notes=_notes(preset, context, values, made))


def _file(key: str, path: Path) -> Path:
    """The absolute path, whatever directory the schedule is read in."""
    if not path.is_file():
        raise UsageError(f"{key}={path} is not a file", where="--method")
    return path.absolute()


def composed(preset: Preset, context: Context, values: Values) -> tuple[Reduction, ...]:
    """A preset's reductions for a model, by all its parameters."""
    places = _in_groups(preset.scheduler.run(context, values), context)
    return tuple(_reduction(preset, step) for step in _steps(context, values, places))


def _in_groups(places: list[Place], context: Context) -> list[Place]:
    """Counts rounded up to what may leave together; places that then take nothing are gone."""
    found: list[Place] = []
    count = context.shape.patches
    for place in places:
        size = context.group(place.site)
        keep = math.ceil(place.keep / Fraction(size)) * size
        apart = place.site.returns
        if keep != count or apart:
            found.append(Place(place.site, keep))
            count = count if apart else keep
    return found


def _steps(context: Context, values: Values, places: list[Place]) -> list[Step]:
    found: list[Step] = []
    count = context.shape.patches
    for i, place in enumerate(places):
        found.append(Step(context, values, place.site, count, place.keep, i, len(places)))
        count = count if place.site.returns else place.keep
    return found


def _reduction(preset: Preset, step: Step) -> Reduction:
    score = preset.score_at(step)
    if score is not None:
        score = score_fallback(score, step.context, step.site)
    return Reduction(step.site, score, preset.reducer_at(step), step.keep)


def replaced_scores(
    preset: Preset, context: Context, values: Values, reductions: Sequence[Reduction]
) -> list[str]:
    """Notes on the scores that stand in for those of the preset, which the model cannot give."""
    steps = _steps(context, values, [Place(r.site, r.keep) for r in reductions])
    pairs = [(preset.score_at(s), r.score) for s, r in zip(steps, reductions, strict=True)]
    others = [got.name for wanted, got in pairs if wanted and got and wanted != got]
    notes = []
    if any(name != "norm" for name in others):
        notes.append(
            "this model reads no CLS token: score attn, the attention that evenly "
            "strided patches pay, stands in for cls"
        )
    if "norm" in others:
        known = {} if context.room is None else context.room.unscored
        why = next((known[r.site] for r in reductions if known.get(r.site)), "sees windows only")
        notes.append(
            f"attention that {why} cannot score: score norm, the token's length, stands in"
        )
    return notes


def _notes(preset: Preset, context: Context, values: Values, made: Schedule) -> tuple[str, ...]:
    """Notes on what differs from the paper, or from what was asked."""
    notes = [
        *preset.scheduler.notes(context, values),
        *replaced_scores(preset, context, values, made.reductions),
    ]
    if not made.reductions:
        notes.append("no token leaves with these parameters: this is the dense model")
    left = made.reductions and not made.reductions[-1].site.returns
    if left and context.keep is not None and made.final not in (context.final, made.model.patches):
        notes.append(
            f"{made.final} patch tokens leave where --keep asked for {context.final}: "
            f"{preset.name} cannot come closer here"
        )
    return tuple(notes)


#: Scores that read the attention: blind where it sees windows only, or is no plain softmax.
_ATTENTION = {"cls", "attn", "colsum", "pagerank", "rowmean"}


def score_fallback(score: Spec, context: Context, site: SiteName) -> Spec:
    """The score; `norm` where its attention cannot be read; `attn` for `cls` without CLS."""
    names = names_in(score.to_json())
    # Scores of a windowed model's global blocks would need its position bias for every pair.
    windows = context.room is not None and context.room.windows and site.kind == "around"
    if names & _ATTENTION and (windows or context.blind(site)):
        return Spec("norm")
    if context.has_cls or "cls" not in names:
        return score
    document = _without_cls(score.to_json())
    return Spec(document.pop("name"), document)


def names_in(document: Any) -> set[str]:
    """The names of a score and of all that it is made of."""
    if isinstance(document, Mapping):
        own = {str(document["name"])} if "name" in document else set()
        return own.union(*(names_in(v) for v in document.values()))
    return (
        set[str]().union(*(names_in(v) for v in document)) if isinstance(document, list) else set()
    )


def _without_cls(document: Any) -> Any:
    if isinstance(document, Mapping):
        if document.get("name") == "cls":
            return {"name": "attn"}
        return {k: _without_cls(v) for k, v in document.items()}
    return [_without_cls(v) for v in document] if isinstance(document, list) else document
