"""The plans that were looked at, by latency and loss: those that no other beats in both, the best
in each precision, and the dense model in each.

Nothing is run for it. What an int8 schedule loses was mostly seen in fp32: each plan says in what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tcompile.core.decode import Count, NonNegative

#: The method of the dense model, in a front.
DENSE = "dense"
#: Plans beside the chosen one and the dense models, at most.
_MOST = 12


@dataclass(frozen=True)
class FrontPlan:
    """A plan that was looked at, or the dense model.

    Attributes:
        precision: that its latency is in.
        method: that its tokens leave by, or `dense`.
        patches: patch tokens that are left in the end.
        latency_ms: predicted.
        loss: in the unit of the plan; None: it was not run in that precision.
        seen_in: precision that it was run in for its loss; None: not on images.
        images: that it was run on; None: on none.
        chosen: whether it is the plan that is followed.
        beaten: whether another one is as fast and loses less, or is faster and loses no more.
    """

    precision: str
    method: str
    patches: Count
    latency_ms: NonNegative
    loss: NonNegative | None = None
    seen_in: str | None = None
    images: Count | None = None
    chosen: bool = False
    beaten: bool = False

    @property
    def dense(self) -> bool:
        """Tell whether it is the dense model: a rival that can be had without tcompile."""
        return self.method == DENSE

    def beats(self, other: FrontPlan) -> bool:
        """Tell whether it is better in one of latency and loss, and in the other no worse."""
        if self.loss is None or other.loss is None:
            return False
        # A loss that was seen in fp32 lacks that of rounding.
        if self.seen_in != self.precision and self.seen_in != other.seen_in:
            return False
        mine, theirs = (self.latency_ms, self.loss), (other.latency_ms, other.loss)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def front_of(plans: Iterable[FrontPlan]) -> tuple[FrontPlan, ...]:
    """Return what no other plan beats, the chosen one, those that were run in a precision other
    than fp32, and every dense model, by rising latency.

    Of a plan that is there twice the loss that was seen in its own precision counts.
    """
    known: dict[tuple[object, ...], FrontPlan] = {}
    for plan in plans:
        which = () if plan.dense else (plan.patches, round(plan.latency_ms, 6))
        key = (plan.precision, plan.method, *which)
        old = known.get(key, plan)
        better = plan if plan.seen_in == plan.precision or old.loss is None else old
        known[key] = replace(better, chosen=plan.chosen or old.chosen)
    each = list(known.values())
    told = [replace(p, beaten=any(other.beats(p) for other in each)) for p in each]
    sure = [p for p in told if p.chosen or p.dense or p.seen_in not in (None, "fp32")]
    kept = sorted((p for p in told if not p.beaten and p not in sure), key=lambda p: p.latency_ms)
    kept = [*_some(kept), *sure]
    return tuple(sorted(kept, key=lambda p: (p.latency_ms, p.precision)))


def _some(plans: Sequence[FrontPlan]) -> list[FrontPlan]:
    """Return as many as are shown, from the first to the last."""
    if len(plans) <= _MOST:
        return list(plans)
    return [plans[i * (len(plans) - 1) // (_MOST - 1)] for i in range(_MOST)]


def front_table(front: Sequence[FrontPlan]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table for people."""
    head = ["precision", "plan", "patch tokens", "predicted", "loss", "loss seen in", ""]
    rows = []
    for plan in front:
        seen = f"{plan.seen_in}, {plan.images} images" if plan.seen_in else ""
        loss = "not run" if plan.loss is None else f"{plan.loss:.3g}"
        said = "chosen" if plan.chosen else "beaten by another" if plan.beaten else ""
        ms = f"{plan.latency_ms:.4g} ms"
        rows.append([plan.precision, plan.method, str(plan.patches), ms, loss, seen, said])
    return head, rows
