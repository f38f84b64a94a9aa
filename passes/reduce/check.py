"""Checking a schedule against a model, before anything is written."""

from __future__ import annotations

from tcompile.analysis.effects import Effects
from tcompile.analysis.model import Analysis
from tcompile.analysis.sites import Site
from tcompile.errors import UsageError
from tcompile.passes.reduce.reducers import check_parameters, find_reducer
from tcompile.passes.reduce.scores import find_score
from tcompile.planning.schedule import Reduction, Schedule


def check_schedule(analysis: Analysis, schedule: Schedule, outputs: str = "reduced") -> list[Site]:
    """The sites of a schedule, in order.

    Args:
        outputs: `reduced`, or `restored`, which makes sites legal that need every token at the end.

    Raises:
        UsageError: for another model, unknown or illegal site, counts that do not shrink.
    """
    if schedule.model != analysis.shape:
        raise UsageError(
            f"made for {schedule.model}, the model has {analysis.shape}", where="schedule"
        )
    order = {s.name: i for i, s in enumerate(analysis.sites)}
    count, last = analysis.shape.patches, -1
    sites: list[Site] = []
    for step in schedule.reductions:
        find_reducer(step.reducer.name)
        check_parameters(step.reducer)
        if step.score is not None:
            find_score(step.score.name)
            check_parameters(step.score)
        site = analysis.site(step.site)
        if site is None:
            raise UsageError(f"no site '{step.site}'", where="schedule",
                             hint="`tcompile inspect` lists them")  # fmt: skip
        if (site.until != "") != (step.reducer.name == "bypass"):
            raise UsageError(
                f"site '{site.name}' and reducer '{step.reducer.name}' do not go together",
                where="schedule",
                hint="tokens are bypassed around a block (around:I), and only there",
            )
        reason = site.verdict(outputs).of(step.reducer.name)
        if reason:
            raise UsageError(
                f"site '{site.name}' is illegal: {reason}", where="schedule",
                hint=_nearest_legal(analysis, site, step.reducer.name, outputs),
            )  # fmt: skip
        if step.score is not None and step.score.name in ("cls", "attn") and not site.scored:
            raise UsageError(
                f"score '{step.score.name}' reads the attention of block {site.block}, which is "
                "not over all the tokens",
                where="schedule",
                hint="use the score norm there",
            )
        if site.until:
            count = analysis.shape.patches
        if not 1 <= step.keep < count:
            raise UsageError(
                f"site '{site.name}' keeps {step.keep} of {count} tokens; it must keep fewer, and "
                "at least one",
                where="schedule",
            )
        _check_count(step, count, site.step(outputs), analysis.space.segments)
        if order[site.name] <= last:
            raise UsageError(f"site '{site.name}' is out of order", where="schedule")
        # Scores read Q and K, merging reads K: they must still have the tokens of the stream.
        if sites and (sites[-1].until == "") != (site.until == ""):
            raise UsageError("bypass does not mix with tokens that leave for good",
                             where="schedule")  # fmt: skip
        if sites and sites[-1].block == site.block:
            raise UsageError(
                f"site '{site.name}' reads an attention whose tokens were already reduced at "
                f"'{sites[-1].name}'",
                where="schedule",
                hint="reduce once in a block",
            )
        count, last = (count if site.until else step.keep), order[site.name]
        sites.append(site)
    return sites


def _check_count(step: Reduction, count: int, group: int, segments: int) -> None:
    """What the reducer can do with the count it is given, before anything is written."""
    where = f"schedule, site '{step.site}'"
    if step.keep % group:
        near = -(-step.keep // group) * group
        raise UsageError(
            f"tokens leave {group} at a time there, and {step.keep} is no multiple of it",
            where=where,
            hint=f"keep {near}",
        )
    if step.reducer.name != "merge" and step.score is None:
        raise UsageError(f"reducer '{step.reducer.name}' needs a score", where=where)
    if step.reducer.name == "fuse" and step.keep < 2:
        raise UsageError(
            "a fused token needs at least one token kept beside it", where=where, hint="keep more"
        )
    most = segments * (count // segments // 2)
    if step.reducer.name == "merge" and count - step.keep > most:
        raise UsageError(
            f"at most {most} of {count} tokens can merge in one step, not {count - step.keep}",
            where=where,
            hint=f"keep at least {count - most} there",
        )


def _nearest_legal(analysis: Analysis, site: Site, reducer: str, outputs: str) -> str:
    names = [s.name for s in analysis.sites]
    here = names.index(site.name)
    sites = [(i, s) for i, s in enumerate(analysis.sites) if bool(s.until) == bool(site.until)]
    legal = [i for i, s in sites if not s.verdict(outputs).of(reducer)]
    if legal:
        return f"the nearest legal site is '{names[min(legal, key=lambda i: abs(i - here))]}'"
    if outputs == "reduced" and not site.restored.of(reducer):
        return "--outputs restored makes it legal: outputs get every token back"
    around = [s.name for s in analysis.sites if s.until and s.legal]
    if around and not site.until:
        return f"tokens can be bypassed around a block: --method bypass ({', '.join(around)})"
    if reducer in ("merge", "fuse") and any(s.legal for _, s in sites):
        return "tokens can leave there without merging: --method topk"
    return "this model has no legal site"


def raise_on_barrier(found: Effects, schedule: Schedule) -> None:
    reducers = {r.reducer.name for r in schedule.reductions}
    barriers = found.barriers + (found.merge_barriers if "merge" in reducers else [])
    barriers += found.fuse_barriers if "fuse" in reducers else []
    if barriers:
        raise UsageError(f"tokens cannot leave as scheduled: {barriers[0]}", where="schedule")
