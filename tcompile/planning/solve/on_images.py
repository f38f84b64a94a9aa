"""Plans that are chosen by running them on images that nothing was planned with.

`--max-drop`: the fastest plan that loses no more than it may. Losses of single steps only rank
plans. So plans of the Pareto front are built and run on images of their own, by bisection: what
loses less by the tables is taken to lose less on images. The bound of the drop is one for the best
of as many as may be run (`losses.drop`).

`--objective pomt`: one count by POMT's utility, at one early site (arXiv 2407.05941; restated in
formulas, nothing copied).

    U(n) = α·(1 − L(n)/max L) + (1 − α)·A(n)/max A,   n* = argmax U,   one step at block 3

L(n) is the profile's latency of a model that carries n tokens in every block, prefix included. A(n)
is how good the answers are when all but n tokens leave at random, on images: top-1 accuracy where
they have labels, else agreement with the dense model's top-1, else cosine. α is 1/2. The paper
deletes tokens before block 0; here they leave at the first site there is, behind block 0's
attention, so that A is a little better than the paper's. The released code removes
R = N_patches − (n* + prefix) tokens, so that with one prefix token n* + 2 run, not the n* whose
latency and accuracy were weighed, which may lie beyond a step of latency. Here n* run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import is_free
from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.methods.method import Method
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.planning.losses.data import Calibration
from tcompile.planning.losses.distance import Outputs, class_outputs, dissimilarity
from tcompile.planning.losses.drop import Drop, images_needed, measure_drop
from tcompile.planning.optimise.solver import front
from tcompile.planning.optimise.tables import Floats, Plan, Tables, plan_of
from tcompile.planning.options.budgets import Budget, MethodPlan, dense_plan_of, limits_of
from tcompile.planning.options.method_tables import MethodTables
from tcompile.planning.request import NO_METHOD
from tcompile.runtime.rounded import run_in
from tcompile.runtime.samples import run_graph
from tcompile.targets import Target

#: Of a bound, before it is shared among the plans that are tried.
CONFIDENCE = 0.9
#: Plans of the front that are weighed; a bisection runs log2 of them, and one more.
_POINTS = 40


def fastest_within(
    plans: Sequence[MethodPlan], dense: MethodTables, budget: Budget, most: float, trial: Trial
) -> tuple[MethodPlan, Drop | None]:
    """The fastest plan whose drop on the images is at most `most`, for certain as far as they tell.

    The dense model where no other plan is.

    Args:
        plans: from the least loss to the most, each faster than the one before; one may be solved
            when it is asked for.
        dense: any method, for the dense model.

    Raises:
        UsageError: with a latency or a share of tokens besides: no plan keeps to both; in int8: the
            dense model does not keep to the drop either.
    """
    tables = dense.tables
    if not plans:
        why = (
            f"no plan is predicted to be faster than the dense model's {tables.dense_ms:.4g} ms "
            f"by more than {budget.band:.0%}"
        )
        return dense_plan_of(dense, "drop", why), trial.dense_drop(most, CONFIDENCE)
    tries = math.ceil(math.log2(len(plans) + 1))
    confidence = 1 - (1 - CONFIDENCE) / tries
    best: tuple[MethodPlan, Drop] | None = None
    failed: list[Drop] = []
    low, high = 0, len(plans) - 1  # Of plans that are not known to lose too much.
    while low <= high:
        middle = (low + high) // 2
        one = plans[middle]
        trial.say(f"trying {one.plan.latency_ms:.4g} ms with {one.method}")
        drop = trial.drop(one.schedule(), confidence)
        if drop.upper <= most:
            best, low = (one, drop), middle + 1
        else:
            failed, high = [*failed, drop], middle - 1
    if best is not None:
        return best
    nearest = min(failed, key=attrgetter("upper"))
    why = (
        f"no plan was seen to lose at most {most:.2%}: of those run, the best lost "
        f"{nearest.mean:.2%}, and at most {nearest.upper:.2%} for all that {nearest.images} images "
        "tell"
    )
    need = images_needed(most, confidence, labels=trial.images.labels is not None)
    if nearest.images < need and nearest.exact:
        why += f"; {need} images to check on are needed to show so little"
    within = "" if budget.latency_ms is None else f", within {budget.latency_ms:.4g} ms"
    if budget.final is not None:
        within += f", with {budget.final - tables.prefix} patch tokens kept"
    if within:
        raise UsageError(
            why + within, where="--max-drop", hint="allow more latency or drop, or give more images"
        )
    return dense_plan_of(dense, "drop", why), trial.dense_drop(most, confidence) or nearest


def check_enough(model: Analysed, images: Calibration, most: float, say: Progress) -> None:
    """Look whether so many images can show so small a drop, before anything is measured.

    Args:
        images: to check on.
        most: the drop.

    Raises:
        UsageError: they never can, whatever is planned.
    """
    outputs = {
        t.name: np.broadcast_to(np.zeros((), t.dtype), [1 if is_free(d) else d for d in t.shape])
        for t in model.graph.outputs
    }
    labels = images.labels is not None
    need, count = images_needed(most, CONFIDENCE, labels=labels), len(images)
    if count >= need or not class_outputs(outputs):
        return
    what = f"{count} images to check on cannot show a drop of at most {most:.2%}"
    if labels:  # then each image that turns right makes up for doubt
        say(f"{what}, unless the reduced model is right where the dense one is wrong: {need} can")
        return
    raise UsageError(
        f"{what}, even if not one of them changes; at least {need} are needed",
        where="--max-drop",
        hint=f"give {2 * need} images (half of them are planned with) or more, or allow more drop",
    )


def by_loss(options: Sequence[MethodTables], budget: Budget) -> list[MethodPlan]:
    """Plans of all methods' fronts that no other beats, from the least loss to the most."""
    found: list[MethodPlan] = []
    reason: UsageError | None = None
    for option in options:
        try:
            plans = front(option.tables, limits_of(option, budget), points=_POINTS)
        except UsageError as error:
            reason = reason or error
            continue
        found += [MethodPlan(option, p) for p in plans if _counts(p, budget)]
    if not found and reason is not None:
        raise reason
    if budget.latency_ms is not None and not found:
        raise UsageError(f"no plan takes {budget.latency_ms:.4g} ms", where="--latency")
    kept: list[MethodPlan] = []
    for one in sorted(found, key=lambda c: (c.plan.loss, c.plan.latency_ms)):
        if not kept or one.plan.latency_ms < kept[-1].plan.latency_ms:
            kept.append(one)
    return kept


def _counts(plan: Plan, budget: Budget) -> bool:
    """Tell whether a plan is worth running: in budget, and predicted to be faster than dense by
    more than the band, unless its count of tokens was asked for."""
    if not plan.steps or (budget.latency_ms is not None and plan.latency_ms > budget.latency_ms):
        return False
    return plan.latency_ms < plan.dense_ms * (1 - budget.band) or budget.final is not None


@dataclass(frozen=True)
class Rounding:
    """A CPU target and one of its precisions."""

    target: Target
    precision: str


@dataclass(frozen=True)
class Trial:
    """Runs a model under schedules.

    Attributes:
        images: to check on.
        outputs: `reduced` or `restored`.
        rounding: as they are run on a CPU; None: in fp32, in ONNX Runtime.
    """

    model: Analysed
    images: Calibration
    outputs: str
    say: Progress
    rounding: Rounding | None = None

    @cached_property
    def dense(self) -> Outputs:
        """The dense model's outputs."""
        self.say(f"running {len(self.images)} images")
        return run_graph(self.model.graph, self.images.samples)

    def run(self, schedule: Schedule) -> Outputs:
        """The model's outputs under a schedule."""
        graph, analysis = self.model.graph, self.model.analysis
        if not schedule.reductions:
            return self._outputs(graph)
        made = reduce_graph(graph, analysis, schedule, outputs=self.outputs).graph
        self.say(f"running {len(self.images)} images at {schedule.final} tokens")
        return self._outputs(made)

    def _outputs(self, graph: gs.Graph) -> Outputs:
        how, samples = self.rounding, self.images.samples
        if how is None:
            return run_graph(graph, samples)
        return run_in(graph, samples, how.target, how.precision)

    def dense_drop(self, most: float, confidence: float) -> Drop | None:
        """The loss of the dense model in int8 or bf16; None in fp32, which loses nothing.

        Raises:
            UsageError: it may be more than `most`.
        """
        if self.rounding is None:
            return None
        found = self.drop(Schedule(NO_METHOD, self.model.analysis.shape, ()), confidence)
        if found.upper <= most:
            return found
        raise UsageError(
            f"dense {self.rounding.precision} alone lost {found.mean:.2%}, and at most "
            f"{found.upper:.2%} for all that {found.images} images tell",
            where="--max-drop",
            hint="build with --precision fp32, allow more drop, or give more images",
        )

    def drop(self, schedule: Schedule, confidence: float) -> Drop:
        """The loss of a schedule on the images."""
        found, dense = self.run(schedule), self.dense
        return measure_drop(dense, found, self.images.labels, confidence=confidence)


#: The block, from 0, between whose attention and MLP tokens leave; POMT does not search it.
BLOCK = 3
#: Shares of the patches at which accuracy is measured; between them it is interpolated.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def whole_latency(tables: Tables) -> Floats:
    """[G] ms of a model that carries each count of tokens in every part."""
    halves = tables.attn_ms.sum(axis=0) + tables.mlp_ms.sum(axis=0)
    return np.asarray(tables.stem_ms + halves + tables.head_ms)


def accuracies(random: Method, trial: Trial) -> dict[int, float]:
    """A(n) in [0, 1] at some whole counts, the dense model's among them.

    Args:
        random: the preset `random` on the model.
    """
    shape, labels = random.context.shape, trial.images.labels
    found = {shape.tokens: _good(trial.dense, trial.dense, labels)}
    for keep in sorted({max(round(s * shape.patches), 1) for s in SHARES}):
        places = random.descend(keep)
        answers = trial.run(random.schedule(places))
        found[places[-1].keep + shape.prefix] = _good(trial.dense, answers, labels)
    return found


def most_useful(counts: Sequence[int], latency: Floats, known: Mapping[int, float]) -> int:
    """The count n* of most utility; of several, the largest.

    Args:
        counts: n, prefix included, ascending.
        latency: L(n), any unit.
        known: A(n) at some counts; between them it is interpolated.

    Raises:
        UsageError: no latency or no accuracy is more than 0, or one is not finite.
    """
    n = np.asarray(counts)
    measured = n >= min(known)
    n, t = n[measured], latency[measured]
    a = np.interp(n, sorted(known), [known[k] for k in sorted(known)])
    for name, values in (("latencies", t), ("accuracies", a)):
        if not np.isfinite(values).all() or values.max() <= 0:
            raise UsageError(f"{name} must be finite and not all 0", where="--objective pomt")
    utility = (1 - t / t.max()) / 2 + a / a.max() / 2
    return int(n[utility == utility.max()].max())


def _good(dense: Outputs, found: Outputs, labels: npt.NDArray[np.int64] | None) -> float:
    names = [n for n in class_outputs(dense) if n in found]
    if not names:
        return float(np.clip(1 - dissimilarity(dense, found).mean(), 0, 1))
    answers = found[names[0]].argmax(axis=-1)
    right = dense[names[0]].argmax(axis=-1) if labels is None else labels
    return float((answers == right).mean())


def pomt_plan(tables: Tables, tokens: int) -> Plan:
    """One step to so many tokens at block 3, or the first legal site behind it.

    Raises:
        UsageError: no site lies there.
    """
    sites = [s for s in tables.sites if s.place(tables.blocks)[0] >= BLOCK]
    if not sites:
        raise UsageError(f"no legal site from block {BLOCK} on", where="--objective pomt")
    first = tables.sites.index(sites[0])
    behind = [tables.tokens] * first + [tokens] * (len(tables.sites) - first)
    return plan_of(tables, behind)
