"""Label setting: all plans that may be best, site by site, pruned by dominance.

A label is a partial plan: its state, latency, loss, tokens carried (summed over the parts run) and
steps. Among labels of one state, a dominates b if it is no worse in latency and loss, and, where
both are equal, carries more tokens or as many in no more steps. All four add up along a plan, so
whatever completes b completes a as well or better: leaving b out is exact.

Where more labels remain than asked for, they are trimmed: the axis (loss or latency) is cut into
buckets of one width, and of each state's labels in a bucket the best on the other axis stays. What
that can cost is counted: the sum over sites of the most that a trimmed label lost on the axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.planning.optimise.bounds import Axis, Bound
from tcompile.planning.optimise.chain import Chain, Ints
from tcompile.planning.optimise.limits import Mask
from tcompile.planning.optimise.paths import Path


@dataclass(frozen=True, eq=False)
class Labels:
    """Parallel arrays, and which label of the site before each one comes from."""

    level: Ints
    forbidden: Ints
    at: Ints
    ms: Ints
    loss: Ints
    tokens: Ints
    steps: Ints
    parent: Ints

    def __len__(self) -> int:
        return len(self.at)

    def take(self, which: Ints | Mask) -> Labels:
        return Labels(*(array[which] for array in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Found:
    """Labels of whole plans, with what came before; none dominates another of the same state.

    Attributes:
        error: what trimming may have cost at most, in quanta of the axis; 0: nothing.
        most: labels held at a site, at most.
    """

    labels: Labels
    history: tuple[Labels, ...]
    error: int
    most: int

    def path(self, number: int) -> Path:
        """The plan of a final label."""
        places, row = [], number
        for labels in reversed((*self.history, self.labels)[1:]):
            places.append(int(labels.at[row]))
            row = int(labels.parent[row])
        final = self.labels
        return Path(int(final.ms[number]), int(final.loss[number]), tuple(reversed(places)))


def search(
    chain: Chain, edges: Mask, bounds: tuple[Bound, ...], axis: Axis, most: int | None
) -> Found:
    """All plans within the bounds that no other dominates.

    Args:
        edges: [S, G, G], the steps to consider.
        axis: what is trimmed on.
        most: labels to hold at a site; None: all, which is exact.
    """
    zero = np.zeros(1, np.int64)
    labels = Labels(zero, zero, zero + len(chain.counts) - 1, zero, zero, zero, zero, zero)
    history, error, peak = [], 0, 1
    for i in range(chain.sites):
        history.append(labels)
        labels = _undominated(chain, _next(chain, edges[i], i, labels, bounds))
        if most is not None and len(labels) > most:
            labels, lost = _trimmed(chain, labels, axis, most)
            error += lost
        peak = max(peak, len(labels))
    ran = _run(chain, chain.sites, labels)
    return Found(ran.take(chain.final[ran.at]), tuple(history), error, peak)


def _run(chain: Chain, i: int, labels: Labels) -> Labels:
    """After what runs before site i."""
    fields = vars(labels) | {
        "ms": labels.ms + chain.before[i, labels.at],
        "tokens": labels.tokens + chain.parts[i] * chain.counts[labels.at],
    }
    return Labels(**fields)


def _next(chain: Chain, edges: Mask, i: int, labels: Labels, bounds: tuple[Bound, ...]) -> Labels:
    """Every label at the next site that the bounds let through."""
    labels = _run(chain, i, labels)
    rows = np.arange(len(labels))
    stay = Labels(**vars(labels) | {"forbidden": labels.forbidden * chain.carry[i], "parent": rows})
    limited = chain.max_steps is not None
    free = labels.forbidden == 0
    if limited:
        free &= labels.level < chain.shape[0] - 1
    rows = rows[free]
    # The steps out of each count, end to end, and where those of a count begin.
    targets, out = np.nonzero(edges)[1], edges.sum(axis=1)
    begins = np.cumsum(out) - out
    fan = out[labels.at[rows]]
    parent = np.repeat(rows, fan)
    within = np.arange(len(parent)) - np.repeat(np.cumsum(fan) - fan, fan)
    came = labels.at[parent]
    to = targets[begins[came] + within]
    step = Labels(
        labels.level[parent] + int(limited),
        np.full(len(to), int(chain.carry[i])),
        to,
        labels.ms[parent] + chain.step_ms[i, came, to],
        labels.loss[parent] + chain.step_loss[i, came, to],
        labels.tokens[parent],
        labels.steps[parent] + 1,
        parent,
    )
    both = Labels(
        *(
            np.concatenate(pair)
            for pair in zip(vars(stay).values(), vars(step).values(), strict=True)
        )
    )
    good = np.ones(len(both), bool)
    for bound in bounds:
        go = bound.go[i + 1, both.level, both.forbidden, both.at]
        cost = bound.weights.ms * both.ms + bound.weights.loss * both.loss
        good &= cost + go <= bound.limit_up_to_rounding
    return both.take(good)


def _states(chain: Chain, labels: Labels) -> Ints:
    _, flags, size = chain.shape
    return (labels.level * flags + labels.forbidden) * size + labels.at


def _undominated(chain: Chain, labels: Labels) -> Labels:
    """The Pareto frontier of each state, by state and then by latency."""
    state = _states(chain, labels)
    order = np.lexsort((labels.steps, -labels.tokens, labels.loss, labels.ms, state))
    labels, state = labels.take(order), state[order]
    # A running minimum over all states at once: each state's values lie below those before it.
    if not len(labels):
        return labels
    key = labels.loss - state * (int(labels.loss.max()) + 1)
    better = np.ones(len(key), bool)
    better[1:] = key[1:] < np.minimum.accumulate(key)[:-1]
    return labels.take(better)


def _trimmed(chain: Chain, labels: Labels, axis: Axis, most: int) -> tuple[Labels, int]:
    """One label a bucket, and the most that this lost on the axis. Takes labels in order."""
    state = _states(chain, labels)
    values = labels.loss if axis == "loss" else labels.ms
    width = 1
    while True:
        bucket = values // width
        # By state, latency rises and loss falls: buckets are runs, in either order.
        new = np.ones(len(labels), bool)
        new[1:] = (state[1:] != state[:-1]) | (bucket[1:] != bucket[:-1])
        if new.sum() <= most or not np.any(bucket):
            break
        width *= 2
    # Of a run, the first has the least latency, the last the least loss.
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(labels)) - 1
    kept = first if axis == "loss" else last
    lost = values[kept][np.cumsum(new) - 1] - values
    return labels.take(kept), int(lost.max())
