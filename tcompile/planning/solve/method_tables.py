"""The planner's options: methods on a model, each with the optimiser's tables of what it costs and
loses.

Losses are of images, of their attention, or a prior. Measured ones are kept by content: measured
once for a model, a method, data and settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile._version import __version__
from tcompile.core.cache import cached
from tcompile.core.errors import UsageError
from tcompile.core.model_files import describe_source
from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.methods.method import OWN_SCHEDULE, Method, method_for
from tcompile.methods.portfolio import PORTFOLIO
from tcompile.methods.schedulers import Place
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.planning.losses.attention_mass import attention_losses
from tcompile.planning.losses.base import SCHEMA, SiteLosses
from tcompile.planning.losses.data import Calibration, read_calibration, split
from tcompile.planning.losses.sensitivity import measured_losses
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


def methods_for(model: Analysed, request: Request) -> list[Method]:
    """The methods that are to be planned; with images that outputs are compared on, `auto` tries
    several.

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
    for name in PORTFOLIO:
        try:
            found.append(method_for(model.analysis, constraints, name, request.outputs))
        except UsageError as error:
            reasons.append(error)
    if not found:
        hint = planned_remedy(model, text, request.outputs)
        raise UsageError(reasons[-1].what, where=f"--method {text}", hint=hint) from reasons[-1]
    several = request.calibration is not None and request.losses == "measured"
    return found if several else found[:1]


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
    if grain > 1 or shape.tokens <= 8 * _ALIGN:
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


#: Shares of the patches that single steps are measured at; between them losses are interpolated.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Sites that are measured at most, evenly spread, the first and the last among them; the others lie
#: between them in depth.
SITES = 8
#: The kind of their entries in the cache.
KIND = "losses"
#: Where losses come from that nothing was measured for.
PRIOR = "a documented prior, not a measurement"


def images_for(source: str, request: Request) -> tuple[Calibration, Calibration]:
    """The calibration images of a request: those to plan with, and those to check on.

    Half are to plan with, at most `request.images`; all others are to check on.

    Raises:
        UsageError: they cannot be read, or are fewer than two.
    """
    assert request.calibration is not None
    data = read_calibration(source, request.calibration, request.preprocess)
    fit, check = split(data, request.seed)
    if len(fit) > request.images:
        words = f"{request.images} of {data.samples.source} to plan with (seed {request.seed})"
        fit = fit.rows(np.arange(request.images), words)
    return fit, check


def prior_of(method: Method, words: str = f"{PRIOR} (no --calibration)") -> Losses:
    """The losses without calibration images."""
    shape = method.context.shape
    step = prior_loss(
        method.preset.family, tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks
    )
    return step, words


def losses_on(
    model: Analysed, request: Request, images: Calibration, say: Progress, method: Method
) -> Losses:
    """The losses of a method on images; measured once, then cached."""
    measure = {"measured": measured_losses, "attention": attention_losses}[request.losses]
    shape = method.context.shape
    spread = np.linspace(0, len(method.sites) - 1, min(SITES, len(method.sites)))
    sites = [method.sites[i] for i in sorted({round(x) for x in spread})]
    few = [shape.prefix + max(round(s * shape.patches), 1) for s in SHARES]
    names = [site.name for site in sites]

    def make() -> dict[str, Any]:
        def progress(text: str) -> None:
            say(f"{method.preset.name}: {text}")

        made = measure(model.graph, method, sites, few, images.samples, progress=progress)
        return made.to_json()

    key = losses_key(model.source, method.text, images.digest, names, few, request)
    found = SiteLosses.from_json(cached(KIND, key, make, SiteLosses.from_json))
    words = f"{found.unit}, {found.kind} on {found.images} images ({found.source})"
    return found.step(), words


def losses_key(
    model: str | Path,
    method: str,
    digest: str,
    sites: Sequence[str],
    counts: Sequence[int],
    request: Request,
) -> dict[str, Any]:
    """All that losses depend on, as JSON values.

    Args:
        method: as in `--method`, parameters included.
        digest: of the calibration data.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": describe_source(model).digests,
        "method": method,
        "data": digest,
        "sites": list(sites),
        "counts": sorted(set(counts)),
        "kind": request.losses,
        "outputs": request.outputs,
        "seed": request.seed,
        "bound": {**request.bound, "tower": request.tower},
    }
