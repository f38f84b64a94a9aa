"""The planner's options: methods on a model, each with the optimiser's tables of what it costs and
loses.

Losses are of images, of their attention, or a prior. Measured ones are kept by content: measured
once for a model, a method, data and settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.methods.method import OWN_SCHEDULE, Method, method_for
from tcompile.methods.portfolio import PORTFOLIO, weighed
from tcompile.methods.schedulers import Place
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.planning.losses.attention_mass import attention_losses
from tcompile.planning.losses.data import Calibration
from tcompile.planning.optimise.prior import prior_loss
from tcompile.planning.optimise.tables import Floats, Plan, StepFunction, Tables
from tcompile.planning.remedy import planned_remedy
from tcompile.planning.request import AUTO, Request
from tcompile.profiling.curve import Curve
from tcompile.profiling.plateaus import grid
from tcompile.profiling.profile import Profile
from tcompile.profiling.structure import Layout, layout_of

#: Counts on the grid are multiples of it, or the right edges of plateaus.
_ALIGN = 8

Ints = npt.NDArray[np.int64]


#: The losses of a method's steps, and what they are, in words.
Losses = tuple[StepFunction, str]


@dataclass(frozen=True, eq=False)
class MethodTables:
    """An option of the planner: a method, and what its steps cost and lose.

    Attributes:
        method: on the model.
        tables: for the optimiser.
        words: of the losses: where they come from, and their unit.
    """

    method: Method
    tables: Tables
    words: str

    def schedule(self, plan: Plan, notes: Sequence[str] = ()) -> Schedule:
        """The method's steps at a plan's sites; counts lose the prefix.

        Raises:
            UsageError: the reducer cannot do them one after another.
        """
        places = [Place(step.site, step.after - self.tables.prefix) for step in plan.steps]
        return self.method.schedule(places, notes)


def methods_for(model: Analysed, request: Request, *, calibrated: bool) -> list[Method]:
    """The methods that are to be planned. On images, `auto` weighs all that fit the model; without,
    it takes the first that fits, since priors of different methods cannot be compared.

    Raises:
        UsageError: one that was named cannot be planned on the model; or none of `auto` can.
    """
    constraints = site_constraints(model.analysis, request.outputs)
    text = request.method
    if request.objective == "pomt" and text == AUTO:
        text = "pomt"
    if text.partition(":")[0] != AUTO:
        try:
            return [method_for(model.analysis, constraints, text, request.outputs)]
        except UsageError as error:
            if error.hint != OWN_SCHEDULE:
                raise
            hint = planned_remedy(model, text, request.outputs)
            raise UsageError(error.what, where=f"--method {text}", hint=hint) from error
    found: list[Method] = []
    reasons: list[UsageError] = []
    for name in weighed() if calibrated else PORTFOLIO:
        try:
            found.append(method_for(model.analysis, constraints, name, request.outputs))
        except UsageError as error:
            reasons.append(error)
    if not found:
        hint = planned_remedy(model, text, request.outputs)
        raise UsageError(reasons[-1].what, where=f"--method {text}", hint=hint) from reasons[-1]
    return found if calibrated else found[:1]


def tables_on_one_grid(
    graph: gs.Graph, methods: Sequence[Method], profile: Profile, *, least: int | None, eps: float
) -> list[MethodTables]:
    """Several methods with their latencies, all at the same counts, so that steps of one can follow
    those of another. Losses are the prior's, which schedules that are run can begin with.

    Args:
        least, eps: see `counts_for`; 0: the profile has no plateaus, and any count is as good.

    Raises:
        UsageError: the profile lacks a part of the model, or a method's steps.
    """
    layouts = [layout_of(graph, method) for method in methods]
    pairs = list(zip(layouts, methods, strict=True))
    grids = [counts_for(profile, *pair, eps=eps, least=least) for pair in pairs]
    counts = tuple(sorted(set().union(*grids)))
    return [
        MethodTables(method, tables_for(profile, layout, method, prior_of(method)[0], counts), "")
        for layout, method in pairs
    ]


def method_tables(
    graph: gs.Graph,
    method: Method,
    profile: Profile,
    losses_of: Callable[[Method], Losses],
    *,
    least: int | None,
    eps: float,
) -> MethodTables:
    """A method with its tables.

    Args:
        least, eps: see `counts_for`.

    Raises:
        UsageError: the profile lacks a part of the model, or the method's steps.
    """
    layout = layout_of(graph, method)
    counts = counts_for(profile, layout, method, eps=eps, least=least)
    step, words = losses_of(method)
    return MethodTables(method, tables_for(profile, layout, method, step, counts), words)


def counts_for(
    profile: Profile, layout: Layout, method: Method, *, eps: float = 0.01, least: int | None = None
) -> tuple[int, ...]:
    """Token counts to plan with: those that can be, aligned or at a plateau's right edge.

    Args:
        eps: latencies that differ by no more than this share count as one plateau.
        least: a count, prefix included, such as the one asked for: the first from there on that
            can be is among them.
    """
    shape = method.context.shape
    grain = max(rule.granularity for rule in method.sites)
    first = min(rule.least for rule in method.sites)
    all_counts = [n for n in range(first, shape.tokens) if (n - shape.prefix) % grain == 0]
    all_counts.append(shape.tokens)
    curves = [c for c in _curves(profile, layout, method).values() if len(c.points) > 1]
    found = set(grid(all_counts, [c.at(all_counts) for c in curves], align=_ALIGN, eps=eps))
    if grain > 1 or shape.tokens <= 8 * _ALIGN or not eps:
        found |= set(all_counts[:: max(len(all_counts) // 200, 1)]) | {shape.tokens}
    if least is not None:
        patches = math.ceil((max(least, first) - shape.prefix) / grain) * grain
        found.add(min(shape.prefix + patches, shape.tokens))
    return tuple(sorted(found))


def tables_for(
    profile: Profile, layout: Layout, method: Method, loss: StepFunction, counts: Sequence[int]
) -> Tables:
    """The optimiser's tables of a model, a method and a profile.

    Raises:
        UsageError: the profile lacks a part of the model, or the method's steps.
    """
    n = np.asarray(counts, np.int64)
    curves = _curves(profile, layout, method)
    pairs = list(zip(layout.dense, layout.reduced, strict=True))
    attn, mlp = (
        np.stack([_row(curves, dense[half], later[half], n) for dense, later in pairs])
        for half in (0, 1)
    )
    head = _row(dict(profile.heads), layout.head_dense, layout.head, n)
    stem = profile.stem[layout.stem].ms if layout.stem else 0.0
    costs = profile.reducers[method.key]

    def reducer_ms(_: str, before: Ints, after: Ints) -> Floats:
        return costs.at(before, np.minimum(after, before))

    scale = _calibration_scale(profile, stem, attn, mlp, head)
    return Tables.of(
        [int(c) for c in n],
        method.context.shape.prefix,
        attn_ms=scale * attn,
        mlp_ms=scale * mlp,
        head_ms=scale * head,
        stem_ms=stem,
        sites=method.sites,
        reducer_ms=reducer_ms,
        loss=loss,
    )


def _calibration_scale(profile: Profile, stem: float, *parts: Floats) -> float:
    """The factor by which the parts of the dense model add up to the whole.

    Each part that was timed by itself wakes the runtime's threads and finds other caches than in
    its place; in a small model that shows. The whole was timed in the same rounds.
    """
    if profile.dense is None:
        return 1.0
    total = float(sum(part[..., -1].sum() for part in parts))
    return max(profile.dense.ms - stem, 0.5 * total) / total if total > 0 else 1.0


def _row(curves: dict[str, Curve], dense: str, later: str, n: Ints) -> Floats:
    """ms by count: of the structure behind a step, and at the last count of the dense one."""
    row = np.asarray(curves[later].at(n)) if later else np.zeros(len(n))
    if dense:
        row[-1] = float(curves[dense].at(n[-1:])[0])
    return row


def _curves(profile: Profile, layout: Layout, method: Method) -> dict[str, Curve]:
    names = {s for pair in (*layout.dense, *layout.reduced) for s in pair if s}
    lacking = sorted(names - set(profile.halves))
    if lacking:
        raise _missing(profile, f"{len(lacking)} of {len(names)} kinds of halves of blocks")
    if {s for s in (layout.head_dense, layout.head) if s} - set(profile.heads):
        raise _missing(profile, "the head")
    if layout.stem and layout.stem not in profile.stem:
        raise _missing(profile, "the stem")
    if method.key not in profile.reducers:
        raise _missing(profile, f"the steps of {method.key}", f"--method {method.text}")
    return {name: profile.halves[name] for name in names}


def _missing(profile: Profile, what: str, options: str = "") -> UsageError:
    """A profile of another model, or one that was measured without the method."""
    extra = f" {options}" if options else ""
    return UsageError(
        f"the profile of {profile.subject.source} does not have {what}",
        where="--profile",
        hint=f"`tcompile profile MODEL --target T{extra}` measures it",
    )


#: Shares of the patches that losses are known at; between them they are interpolated.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Where losses come from that nothing was measured for.
PRIOR = "a documented prior, not a measurement"


def prior_of(method: Method, words: str = PRIOR) -> Losses:
    """The losses without calibration images."""
    shape = method.context.shape
    step = prior_loss(
        method.preset.family, tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks
    )
    return step, words


def losses_on(images: Calibration, graph: gs.Graph, say: Progress, method: Method) -> Losses:
    """The losses of a method by the attention of one dense pass on images."""
    shape = method.context.shape
    few = [shape.prefix + max(round(s * shape.patches), 1) for s in SHARES]

    def progress(text: str) -> None:
        say(f"{method.preset.name}: {text}")

    found = attention_losses(graph, method, method.sites, few, images.samples, progress=progress)
    words = f"{found.unit}, on {found.images} images ({found.source})"
    return found.step(), words
