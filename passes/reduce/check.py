"""Checking a schedule against a model, before anything is written."""

from __future__ import annotations

from dataclasses import replace

from tcompile.analysis.effects import Effects
from tcompile.analysis.model import Analysis
from tcompile.analysis.sites import Site
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.core.site import SiteName
from tcompile.passes.reduce.reducers import drops, find_reducer, needs_score, reducer_of, traits_of
from tcompile.passes.reduce.reducers.base import Ask, Grid
from tcompile.passes.reduce.scores import leaves
from tcompile.passes.reduce.steps import Step


class IllegalSiteError(UsageError):
    """A site at which a reducer may not work.

    Attributes:
        site: its name.
        reason: why not.
    """

    def __init__(self, site: SiteName, reason: str, hint: str = "") -> None:
        super().__init__(f"site '{site}' is illegal: {reason}", where="schedule", hint=hint)
        self.site, self.reason = site, reason


def without_schedule(error: TcompileError) -> str:
    """What an error says to those who wrote no schedule."""
    if isinstance(error, IllegalSiteError):
        return f"tokens cannot leave at {error.site}: {error.reason}"
    place = error.where.partition("site ")[2]
    return f"at {place.strip(chr(39))}: {error.what}" if place else error.what


def check_schedule(analysis: Analysis, schedule: Schedule, outputs: str = "reduced") -> list[Step]:
    """The steps of a schedule, in order.

    Args:
        outputs: `reduced`, or `restored`, which makes sites legal that need every token at the end.

    Raises:
        UsageError: for another model, unknown or illegal site, counts that do not shrink, a score
            or reducer that the model has no room for.
    """
    try:
        return _checked(analysis, schedule, outputs)
    except IllegalSiteError as error:
        hint = _nearest_legal(analysis, schedule, error.site, outputs)
        raise IllegalSiteError(error.site, error.reason, hint) from error


def _checked(analysis: Analysis, schedule: Schedule, outputs: str) -> list[Step]:
    if schedule.model != analysis.shape:
        raise UsageError(
            f"made for {schedule.model}, the model has {analysis.shape}", where="schedule"
        )
    order = {s.name: i for i, s in enumerate(analysis.sites)}
    whole = dense_grid(analysis)
    count, grid, last = analysis.shape.patches, whole, -1
    steps: list[Step] = []
    for one in schedule.reductions:
        site = analysis.site(one.site)
        if site is None:
            raise UsageError(
                f"no site '{one.site}'", where="schedule", hint="`tcompile inspect` lists them"
            )
        reducer, values = find_reducer(one.reducer.name).bind(one.reducer)
        later = schedule.reductions[len(steps) + 1 :]
        back = any(reducer_of(r.reducer).returns for r in later)
        if reducer.returns:
            _check_return(analysis, site, one, count)
        else:
            _check_place(analysis, site, one, outputs, back)
        if order[site.name] <= last:
            raise UsageError(f"site '{site.name}' is out of order", where="schedule")
        if steps and not reducer.returns:
            _check_after(steps[-1].site, site)
        _check_score(analysis, site, one)
        if site.until:
            count, grid = analysis.shape.patches, whole
        ask = Ask(
            count=count,
            keep=one.keep,
            parameters=values,
            find=find_reducer,
            grid=grid,
            dense_grid=whole,
        )
        segments = analysis.space.segments
        _check_count(one, ask, segments if back else site.step(outputs), segments)
        steps.append(Step(site, one, grid))
        count, last = (count if site.until else one.keep), order[site.name]
        grid = grid if site.until else reducer.grid(ask)
    return steps


def dense_grid(analysis: Analysis) -> Grid:
    """The grid (h, w) or (t, h, w) of the patches in raster order; empty where they are none."""
    axis = analysis.space.whole_patches or ()
    plain = len({d.root for d in axis}) == len(axis) and len(axis) in (2, 3)
    return tuple(d.size for d in axis) if plain else ()


def _check_return(analysis: Analysis, site: Site, one: Reduction, count: int) -> None:
    """Tell if tokens may come back at the site."""
    where, total = f"schedule, site '{one.site}'", analysis.shape.patches
    if site.kind != "block":
        raise UsageError("tokens come back behind a block only (block:I)", where=where)
    if count == total:
        raise UsageError("no token has left that could come back", where=where)
    if one.keep != total:
        raise UsageError(f"all {total} tokens come back, not {one.keep}", where=where)
    if analysis.space.segments > 1:
        raise UsageError(
            "tokens of frames or windows that attend apart do not come back", where=where
        )


def _check_place(analysis: Analysis, site: Site, one: Reduction, outputs: str, back: bool) -> None:
    """Tell if the reducer may work at the site.

    Args:
        back: tokens come back later, so that what follows then does not matter.
    """
    reducer, traits = reducer_of(one.reducer), traits_of(one.reducer)
    if (site.kind == "around") != reducer.around:
        raise UsageError(
            f"site '{site.name}' and reducer '{reducer.name}' do not go together",
            where="schedule",
            hint="tokens are bypassed around a block (around:I), and only there",
        )
    if site.kind == "inside" and "merge" not in traits:
        raise UsageError(
            f"site '{site.name}' and reducer '{reducer.name}' do not go together",
            where="schedule",
            hint="before an attention tokens can only be merged (tomesd)",
        )
    if back:
        return
    reason = _reason(analysis, site, one.reducer, outputs)
    if reason:
        raise IllegalSiteError(site.name, reason)


def _reason(analysis: Analysis, site: Site, spec: Spec, outputs: str) -> str:
    """Return why the reducer may not work at the site; empty if it may."""
    reducer, segments = reducer_of(spec), analysis.space.segments
    traits = {*traits_of(spec), *(["drop"] if drops(spec) else [])}
    reason = site.verdict(outputs).of(traits)
    grouped = site.step(outputs) // segments
    if not reason and grouped > 1 and not reducer.groups:
        return f"tokens leave in whole groups of {grouped}, which '{reducer.name}' would break"
    if not reason and segments > 1 and not reducer.segments:
        return (
            f"as many tokens leave each of {segments} segments of the tokens, which "
            f"'{reducer.name}' does not see to"
        )
    return reason


def _check_after(before: Site, site: Site) -> None:
    """Tell if a step may follow another."""
    # Scores read Q and K, merging reads K: they must still have the tokens of the stream.
    if before.until and site.until and before.block >= site.block:
        raise UsageError(
            f"sites '{before.name}' and '{site.name}' are of one block",
            where="schedule",
            hint="reduce once in a block",
        )
    if (before.until == "") != (site.until == ""):
        raise UsageError("bypass does not mix with tokens that leave for good", where="schedule")
    if before.block == site.block:
        raise UsageError(
            f"site '{site.name}' reads an attention whose tokens were already reduced at "
            f"'{before.name}'",
            where="schedule",
            hint="reduce once in a block",
        )


def _check_score(analysis: Analysis, site: Site, one: Reduction) -> None:
    """Tell if the model has what the scores read."""
    reducer, values = find_reducer(one.reducer.name).bind(one.reducer)
    for own in reducer.scores(values):
        _check_leaves(analysis, site, own)
    if one.score is None:
        if needs_score(one.reducer):
            raise UsageError(
                f"reducer '{reducer.name}' needs a score", where=f"schedule, site '{one.site}'"
            )
        return
    _check_leaves(analysis, site, one.score)


def _check_leaves(analysis: Analysis, site: Site, spec: Spec) -> None:
    """Tell if the model has what a score and all that it is made of read."""
    for score, values in leaves(spec):
        if score.reads(values) and not site.scored:
            raise UsageError(
                f"score '{score.name}' reads the attention of block {site.block}, which "
                f"{site.unread}",
                where="schedule",
                hint="use the score norm there",
            )
        for need in score.needs(values):
            if not _has(analysis, need):
                raise UsageError(
                    f"score '{score.name}' needs {NEEDS[need]}, which this model does not have",
                    where="schedule",
                    hint="`tcompile methods` says what each method needs",
                )


#: What a score may need of a model.
NEEDS = {
    "cls": "a CLS token that the model reads",
    "grid": "patches in a grid of rows and columns",
    "frames": "a video's frames",
    "probe": "a learned query that pools the tokens",
}


def _has(analysis: Analysis, need: str) -> bool:
    """Tell if the model has what a score needs."""
    grid = dense_grid(analysis)
    if need == "probe":
        return any(a.columns == analysis.space.axis != a.rows for a in analysis.attentions)
    return {"cls": analysis.has_cls, "grid": len(grid) >= 2, "frames": len(grid) == 3}[need]


def _check_count(one: Reduction, ask: Ask, group: int, segments: int) -> None:
    """Check that the reducer can do what it is asked, before anything is written."""
    where, count = f"schedule, site '{one.site}'", ask.count
    reducer = reducer_of(one.reducer)
    if reducer.returns:
        group = 1
    elif not 1 <= one.keep < count:
        raise UsageError(
            f"site '{one.site}' keeps {one.keep} of {count} tokens; it must keep fewer, and "
            "at least one",
            where="schedule",
        )
    if one.keep % group:
        near = -(-one.keep // group) * group
        raise UsageError(
            f"tokens leave {group} at a time there, and {one.keep} is not a multiple of it",
            where=where,
            hint=f"keep {near}",
        )
    each = replace(ask, count=count // segments, keep=one.keep // segments)
    problem = reducer.problem(each)
    if problem:
        raise UsageError(problem, where=where)


#: Steps that may work where another one does not.
_OTHER_STEPS = ((Spec("norm"), Spec("topk")), (None, Spec("merge")))


def _nearest_legal(analysis: Analysis, schedule: Schedule, name: SiteName, outputs: str) -> str:
    """Return what to change in a schedule so that it fits; each change was tried."""

    def fits(one: Reduction, mode: str = outputs) -> bool:
        steps = [one if r.site == name else r for r in schedule.reductions]
        ordered = tuple(sorted(steps, key=lambda r: order.get(r.site, 0)))
        try:
            return bool(_checked(analysis, replace(schedule, reductions=ordered), mode))
        except UsageError:
            return False

    order = {s.name: i for i, s in enumerate(analysis.sites)}
    step = next(r for r in schedule.reductions if r.site == name)
    nearest = sorted(analysis.sites, key=lambda s: abs(order[s.name] - order[name]))
    for site in nearest:
        may = not _reason(analysis, site, step.reducer, outputs)
        if may and fits(replace(step, site=site.name)):
            return f"the nearest legal site is '{site.name}'"
    if outputs == "reduced" and fits(step, "restored"):
        return "--outputs restored makes it legal: outputs get every token back"
    for score, reducer in _OTHER_STEPS:
        if fits(replace(step, score=score, reducer=reducer)):
            scored = f" and score '{score.name}'" if score else ""
            return f"reducer '{reducer.name}'{scored} may work there"
    return "omit this step"


def raise_on_barrier(found: Effects, schedule: Schedule) -> None:
    traits = {t for r in schedule.reductions for t in traits_of(r.reducer)}
    barriers = found.barriers + (found.merge_barriers if "merge" in traits else [])
    barriers += found.fuse_barriers if "fuse" in traits else []
    if any(drops(r.reducer) for r in schedule.reductions):
        barriers += found.drop_barriers
    if barriers:
        raise UsageError(f"tokens cannot leave as scheduled: {barriers[0]}", where="schedule")
