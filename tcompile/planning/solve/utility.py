"""`--objective pomt`: one count by POMT's utility, at one early site (arXiv 2407.05941).

L(n) is the profile's latency of a model that carries n tokens in every block. A(n) is how good the
answers are when all but n tokens leave at random, on images: top-1 accuracy where they have labels,
else agreement with the dense model's top-1, else cosine. The paper deletes tokens before block 0;
here they leave at the first site there is, behind block 0's attention, so that A is a little better
than the paper's; and n* tokens run, not the n* + 2 of the released code (`optimise.pomt`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.planning.losses.distance import class_outputs, dissimilarity
from tcompile.planning.optimise import Plan, PomtChoice, Tables, plan_of, pomt_choice
from tcompile.planning.optimise.pomt import BLOCK
from tcompile.planning.solve.candidates import MethodTables
from tcompile.planning.solve.max_drop import Outputs

#: Shares of the patches at which accuracy is measured; between them it is interpolated.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Utility:
    """What POMT weighs, by count.

    Attributes:
        counts, latency, accuracy: n, L(n) in ms, A(n).
        choice: what follows.
    """

    counts: tuple[int, ...]
    latency: tuple[float, ...]
    accuracy: tuple[float, ...]
    choice: PomtChoice


def whole_latency(tables: Tables) -> npt.NDArray[np.float64]:
    """[G] ms of a model that carries each count of tokens in every part."""
    halves = tables.attn_ms.sum(axis=0) + tables.mlp_ms.sum(axis=0)
    return np.asarray(tables.stem_ms + halves + tables.head_ms)


def utility_of(
    tables: Tables,
    random: Method,
    run: Callable[[Schedule | None], Outputs],
    labels: npt.NDArray[np.int64] | None,
    alpha: float = 0.5,
) -> Utility:
    """POMT's utility of every count of the tables.

    Args:
        random: the preset `random` on the model.
        run: gives what the model answers under a schedule; None: the dense model.
        alpha: the weight of latency.
    """
    shape = random.context.shape
    dense = run(None)
    keeps = sorted({max(round(s * shape.patches), 1) for s in SHARES})
    found = {shape.tokens: _good(dense, dense, labels)}
    for keep in keeps:
        places: list[Place] = random.descend(keep)
        reached = places[-1].keep + shape.prefix
        found[reached] = _good(dense, run(random.schedule(places)), labels)
    counts = [n for n in tables.counts if n >= min(found)]
    accuracy = np.interp(counts, sorted(found), [found[n] for n in sorted(found)])
    at = [tables.index(n) for n in counts]
    latency = whole_latency(tables)[at]
    choice = pomt_choice(counts, latency, accuracy, alpha)
    return Utility(tuple(counts), tuple(latency), tuple(accuracy), choice)


def _good(dense: Outputs, found: Outputs, labels: npt.NDArray[np.int64] | None) -> float:
    """A(n) in [0, 1]."""
    names = [n for n in class_outputs(dense) if n in found]
    if not names:
        return float(np.clip(1 - dissimilarity(dense, found).mean(), 0, 1))
    answers = found[names[0]].argmax(axis=-1)
    right = dense[names[0]].argmax(axis=-1) if labels is None else labels
    return float((answers == right).mean())


def pomt_plan(candidate: MethodTables, tokens: int) -> Plan:
    """One step to so many tokens at block 3, or the first legal site behind it.

    Raises:
        UsageError: no site lies there.
    """
    tables = candidate.tables
    sites = [s for s in tables.sites if s.place(tables.blocks)[0] >= BLOCK]
    if not sites:
        raise UsageError(f"no legal site from block {BLOCK} on", where="--objective pomt")
    first = tables.sites.index(sites[0])
    behind = [tables.tokens] * first + [tokens] * (len(tables.sites) - first)
    return plan_of(tables, behind)
