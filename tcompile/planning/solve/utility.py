"""`--objective pomt`: one count by POMT's utility, at one early site (arXiv 2407.05941).

L(n) is the profile's latency of a model that carries n tokens in every block. A(n) is how good the
answers are when all but n tokens leave at random, on images: top-1 accuracy where they have labels,
else agreement with the dense model's top-1, else cosine. The paper deletes tokens before block 0;
here they leave at the first site there is, behind block 0's attention, so that A is a little better
than the paper's; and n* tokens run, not the n* + 2 of the released code (`optimise.pomt`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.planning.losses.distance import Outputs, class_outputs, dissimilarity
from tcompile.planning.optimise import Plan, PomtChoice, Tables, plan_of, pomt_choice
from tcompile.planning.optimise.pomt import BLOCK
from tcompile.planning.solve.trial import Trial

#: Shares of the patches at which accuracy is measured; between them it is interpolated.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def whole_latency(tables: Tables) -> npt.NDArray[np.float64]:
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


def most_useful(tables: Tables, known: Mapping[int, float], alpha: float = 0.5) -> PomtChoice:
    """POMT's choice among the counts of the tables.

    Args:
        known: A(n) at some counts; between them it is interpolated.
        alpha: the weight of latency.
    """
    counts = [n for n in tables.counts if n >= min(known)]
    accuracy = np.interp(counts, sorted(known), [known[n] for n in sorted(known)])
    latency = whole_latency(tables)[[tables.index(n) for n in counts]]
    return pomt_choice(counts, latency, accuracy, alpha)


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
