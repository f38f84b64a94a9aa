"""`resolution`: fewer tokens since the image is smaller, as a schedule like any other.

`resolutions` gives the schedules of all grids that a model can be had on, `resolution_schedule` the
one of a request, `best_rule` the rule for its positions; `resized_model` is what
`pipeline.apply_schedule` does with either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcompile.core.copies import copied
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Resized, Schedule
from tcompile.methods.composition import parse_keep, parse_method
from tcompile.methods.presets import RESOLUTION
from tcompile.models.positions import read_positions
from tcompile.models.preprocess import PREPROCESS_KEY, read_preprocessing
from tcompile.passes.resize import (
    DEFAULT_RULE,
    RULES,
    OnGrid,
    Rules,
    finish,
    grids,
    image_grid,
    on_grid,
)
from tcompile.passes.stages import Analysed, Reduced
from tcompile.planning.losses.data import calibration_samples
from tcompile.planning.losses.distance import distance
from tcompile.planning.request import NO_IMAGES, Keep, Request
from tcompile.runtime.host_image import HostImage
from tcompile.runtime.samples import run_graph

Pair = tuple[int, int]

_DEFAULT_SAID = f"table {DEFAULT_RULE}: the default, since the file does not say"


@dataclass(frozen=True)
class Resolutions:
    """The smaller images that a model can take.

    Attributes:
        grids: rows and columns of patches, the largest first.
        restored: the outputs for which that needs `--outputs restored`.
        reason: why there is none; empty where there is one.
    """

    grids: tuple[Pair, ...] = ()
    restored: tuple[str, ...] = ()
    reason: str = ""


def is_resolution(method: str) -> bool:
    """Return whether a method is `resolution`, with or without parameters."""
    return method.partition(":")[0] == RESOLUTION.name


def resolutions(
    model: Analysed, method: str = "resolution", *, image: str = "graph"
) -> tuple[Schedule, ...]:
    """The schedules of all smaller grids that a model can be had on, the largest first.

    Args:
        method: `resolution`, with its rules: `resolution:rule=bicubic`.
        image: who resizes it: `graph` or `host`.

    Raises:
        ModelError: there is none; says why.
    """
    _, values = parse_method(method)
    return tuple(_schedule(model, grid, method, values, image) for grid in grids(model))


def problem(model: Analysed, outputs: str = "reduced") -> str:
    """Return why no smaller image can be taken with these outputs; empty where one can."""
    found = describe_grids(model)
    if found.reason or outputs == "restored" or not found.restored:
        return found.reason
    return f"output '{found.restored[0]}' has a row for each patch: it needs --outputs restored"


def describe_grids(model: Analysed) -> Resolutions:
    """Tell which smaller images a model can take, or why none; for `tcompile inspect`."""
    try:
        found = grids(model)
        carrying = on_grid(model, found[0]).outputs if found else ()
    except ModelError as error:
        return Resolutions(reason=error.what)
    if not found:
        return Resolutions(reason="it has too few rows of patches")
    return Resolutions(found, carrying)


def resolution_schedule(
    model: Analysed, keep: Keep, method: str, outputs: str = "reduced", image: str = "graph"
) -> Schedule:
    """The schedule of `--method resolution`: the smallest grid with as many patches as are asked
    for, or the one that is named.

    Raises:
        UsageError: no budget or two, no such grid, or one that the model cannot be had on.
    """
    _, values = parse_method(method)
    given = [k for k in RESOLUTION.budget if values[k] is not None]
    if (keep is not None) + len(given) != 1:
        raise UsageError(
            "two budgets given" if given else "no budget given",
            where="--keep",
            hint="say one of --keep R, --method resolution:grid=HxW and resolution:size=HxW",
        )
    if keep is not None and parse_keep(keep) == 1:
        return Schedule(method, model.analysis.shape, ())
    where = f"--method {method}"
    try:
        grid = _grid(model, keep, values)
        _check_outputs(on_grid(model, grid, _rules(model, values)[0]), outputs)
    except ModelError as error:
        raise UsageError(error.what, where=where, hint=error.hint) from error
    return _schedule(model, grid, method, values, image)


def _grid(model: Analysed, keep: Keep, values: Mapping[str, Any]) -> Pair:
    whole = image_grid(model.graph, model.analysis)
    if keep is not None:
        frames = model.analysis.shape.patches // math.prod(whole.grid)
        least = math.ceil(parse_keep(keep) * model.analysis.shape.patches)
        fit = [g for g in grids(model) if frames * math.prod(g) >= least]
        if not fit:
            raise ModelError(
                f"has no smaller grid of {least} patches or more",
                hint="say a smaller --keep, or resolution:grid=HxW",
            )
        return fit[-1]
    if values["grid"] is not None:
        grid = _pair("grid", values["grid"])
    else:
        size = _pair("size", values["size"])
        grid = tuple(  # type: ignore[assignment]
            n * g // old for n, g, old in zip(size, whole.grid, whole.size, strict=True)
        )
        if whole.size_for(grid) != size:
            h, w = whole.size_for(grid)
            raise UsageError(
                f"size={values['size']} is not a whole number of patches",
                where="--method resolution",
                hint=f"say size={h}x{w}",
            )
    if not all(1 <= n <= old for n, old in zip(grid, whole.grid, strict=True)) or (
        grid == whole.grid
    ):
        raise UsageError(
            f"{grid[0]} x {grid[1]} patches is not a smaller grid than {whole.grid[0]} x "
            f"{whole.grid[1]}",
            where="--method resolution",
        )
    return grid


def _pair(key: str, text: str) -> Pair:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and len(p) < 6 for p in parts):
        raise UsageError(f"{key}={text} is not ROWSxCOLUMNS", where="--method resolution")
    return int(parts[0]), int(parts[-1])


def _rules(model: Analysed, values: Mapping[str, Any]) -> tuple[Rules, list[str]]:
    """The rules of a request, else of the model's metadata, else the default; and where from."""
    known = read_positions(model.normalized.metadata)
    asked = {"table": values["rule"], "relative": values["relative"], "rotary": values["rotary"]}
    found = {k: v or known.get(k) for k, v in asked.items()}
    said = [f"{k} {v}: as asked" for k, v in asked.items() if v]
    said += [f"{k} {v}: as the export recorded" for k, v in known.items() if not asked.get(k)]
    if not found["table"]:
        said.append(_DEFAULT_SAID)
    default = Rules()
    return Rules(
        found["table"] or default.table, found["relative"] or default.relative, found["rotary"]
    ), said


def _schedule(
    model: Analysed, grid: Pair, method: str, values: Mapping[str, Any], image: str
) -> Schedule:
    whole, (rules, said) = image_grid(model.graph, model.analysis), _rules(model, values)
    patches = model.analysis.shape.patches * math.prod(grid) // math.prod(whole.grid)
    resized = Resized(
        grid,
        patches,
        whole.size_for(grid),
        image,  # type: ignore[arg-type]
        rules.table,
        rules.relative,
        rules.rotary,
    )
    notes = (f"rules of positions: {'; '.join(said)}",)
    return Schedule(method, model.analysis.shape, (), notes, resized=resized)


def under_rules(model: Analysed, schedule: Schedule) -> tuple[Schedule, ...]:
    """A schedule under each rule that a table of positions may go by, the default first; itself
    alone where the request or the file says which."""
    _, values = parse_method(schedule.method)
    if schedule.resized is None or _told(model, values):
        return (schedule,)
    names = (DEFAULT_RULE, *(name for name in RULES if name != DEFAULT_RULE))
    return tuple(replace(schedule, resized=replace(schedule.resized, table=n)) for n in names)


def _told(model: Analysed, values: Mapping[str, Any]) -> bool:
    return bool(values["rule"] or read_positions(model.normalized.metadata).get("table"))


def best_rule(
    model: Analysed, schedule: Schedule, loss_of: Callable[[Schedule], float], source: str
) -> tuple[Schedule, float]:
    """The schedule under the rule for tables of positions that loses least, named in a note; and
    its loss.

    Args:
        schedule: one of `resolutions`.
        loss_of: of a schedule, on images.
        source: of these, in words.
    """
    first, *others = under_rules(model, schedule)
    found = {_table(first): (loss_of(first), first)}
    for one in others:
        found[_table(one)] = (loss_of(one), one)
        if len(found) == 2 and len({loss for loss, _ in found.values()}) == 1:
            return schedule, found[_table(first)][0]  # no table is interpolated
    rule = min(found, key=lambda name: found[name][0])
    loss, best = found[rule]
    if not others:
        return best, loss
    rest = ", ".join(f"{name} {x:.3g}" for name, (x, _) in found.items() if name != rule)
    said = f"table {rule}: loses least on {source}, {loss:.3g} ({rest})"
    notes = tuple(n.replace(_DEFAULT_SAID, said) for n in best.notes)
    return replace(best, notes=notes), loss


def _table(schedule: Schedule) -> str:
    assert schedule.resized is not None
    return schedule.resized.table or DEFAULT_RULE


def with_position_rule(
    model: Analysed, request: Request, schedule: Schedule, say: Progress = silent
) -> Schedule:
    """A schedule that was not solved, with the rule for tables of positions that loses least on a
    person's images, where there are any and neither the request nor the file says which.

    Raises:
        UsageError: images that cannot be read.
    """
    if schedule.resized is None or request.calibration in (None, NO_IMAGES):
        return schedule
    if request.schedule is not None:  # which names its rule
        return schedule
    if len(under_rules(model, schedule)) == 1:
        return schedule
    samples = calibration_samples(model, request)
    dense = run_graph(model.graph, samples)

    def loss_of(one: Schedule) -> float:
        say(f"interpolating positions by {_table(one)} on {len(samples)} samples")
        found = run_graph(resized_model(model, one, request.outputs).graph, samples)
        return float(np.mean(distance(dense, found)))

    return best_rule(model, schedule, loss_of, samples.source)[0]


def resized_model(model: Analysed, schedule: Schedule, outputs: str = "reduced") -> Reduced:
    """The model of a schedule that takes a smaller image.

    Raises:
        UsageError: the schedule is for another model, has reductions too, or an output has a row
            for each patch and is not restored.
        ModelError: the model cannot be had on that grid.
    """
    asked, shape = schedule.resized, model.analysis.shape
    assert asked is not None
    if schedule.model != shape:
        raise UsageError(f"made for {schedule.model}, the model has {shape}", where="schedule")
    if schedule.reductions or schedule.towers:
        raise UsageError(
            "has `resized` and `reductions`",
            where="schedule",
            hint="a smaller image takes the place of what leaves at sites: omit one",
        )
    default = Rules()
    rules = Rules(asked.table or default.table, asked.relative or default.relative, asked.rotary)
    found = on_grid(model, asked.grid, rules)
    if (found.model.analysis.shape.patches, found.size) != (asked.patches, asked.size):
        raise UsageError(
            f"says {asked.patches} patches and an image of {asked.size}, the model has "
            f"{found.model.analysis.shape.patches} and {found.size}",
            where="schedule, resized",
        )
    _check_outputs(found, outputs)
    host = asked.image == "host"
    graph = copied(found.model.graph)
    written = finish(graph, found, host=host)
    normal = model.normalized
    notes = (*schedule.notes, *normal.notes, *_notes(found, host))
    return Reduced(
        graph=graph,
        dense=normal.graph,
        schedule=replace(schedule, notes=tuple(dict.fromkeys(notes))),
        fp32_nodes=frozenset(),
        written=written,
        metadata={**normal.metadata, **(_host_metadata(found) if host else {})},
        token_index={},
        widened=normal.widened,
        quantized=bool(normal.quantized),
    )


def _host_metadata(found: OnGrid) -> dict[str, str]:
    """The entries of the metadata by which images are made as small as the input is."""
    image = found.image
    made = HostImage(image.name, image.dims, image.size, found.size).record()
    known = read_preprocessing(found.model.normalized.metadata)
    if known and "size" in known:
        made[PREPROCESS_KEY] = json.dumps({**known, "size": list(found.size)}, ensure_ascii=False)
    return made


def _check_outputs(found: OnGrid, outputs: str) -> None:
    if outputs not in ("reduced", "restored"):
        raise UsageError(f"'{outputs}' is not reduced or restored", where="--outputs")
    if outputs == "reduced" and found.outputs:
        raise UsageError(
            f"output '{found.outputs[0]}' has a row for each patch, and those of a smaller grid "
            "are not tokens of the dense model: there is no token_index",
            where="--method resolution",
            hint="say --outputs restored: it is interpolated to the old grid",
        )


def _notes(found: OnGrid, host: bool) -> Sequence[str]:
    (h, w), (rows, columns) = found.image.size, found.size
    who = (
        f"input '{found.image.name}' is the image of {rows} x {columns} pixels, which the host "
        "resizes"
        if host
        else f"input '{found.image.name}' keeps {h} x {w} pixels and is resized to {rows} x "
        f"{columns} in the graph, bilinear with antialiasing"
    )
    notes = [who, *(f"positions: {words}" for words in found.tables)]
    if found.outputs:
        names = ", ".join(f"'{n}'" for n in found.outputs)
        notes.append(f"interpolated to the old grid, bilinear: {names}")
    return notes
