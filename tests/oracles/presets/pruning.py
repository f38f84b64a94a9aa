"""Tokens that are dropped inside the encoder, or fused into one, by a score.

Sources: for each method the paper named there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tests.oracles.choices import Step
from tests.oracles.moments import Moment
from tests.oracles.presets.base import PresetOracle, exact, fuse_rest, keep_best, then
from tests.oracles.presets.merging import alternating, boundary, cosines, matched, ranked
from tests.oracles.presets.scores import (
    cls,
    cls_by_context,
    cls_by_values,
    drawn,
    evenly,
    from_centre,
    pagerank,
    paid_and_received,
    pomt,
    received_so_far,
)
from tests.oracles.stream import gather


def _strided(moment: Moment) -> Step:
    score = torch.zeros(moment.total, dtype=moment.x.dtype)
    score[evenly(moment.total, moment.cut.keep)] = 1
    return exact(keep_best(moment, score.expand(len(moment.x), -1)))


def _of_place(moment: Moment, table: Tensor) -> Step:
    return exact(keep_best(moment, table.to(moment.x)[moment.places]))


def _radial(moment: Moment) -> Step:
    return _of_place(moment, from_centre(moment.grid[0], moment.values["norm"]))


def _random(moment: Moment) -> Step:
    return _of_place(moment, drawn(moment.embedded.shape[1], moment.values["seed"]))


def _votes(moment: Moment) -> int:
    """30 in the first third of the depth, then 5, then 1."""
    return (30, 5, 1)[3 * moment.block // moment.blocks]


def _zero_tprune(moment: Moment) -> Step:
    """I′, S, I: one vote ranks the tokens, and as many votes as the depth has decide at last."""
    middle, _ = moment.cut.counts
    return zero_tprune(moment, middle, pagerank(moment, 1), pagerank(moment, _votes(moment)))


def zero_tprune(moment: Moment, middle: int, score: Tensor, last: Tensor) -> Step:
    """Drop from the half with the lower score those most like one of the other half (keys) until
    `middle` are left; then those that are least by the other score."""
    half = moment.total // 2
    order = ranked(score)
    most, least = (part.sort(dim=1).values for part in order.split([moment.total - half, half], 1))
    edges = cosines(gather(moment.keys, least), gather(moment.keys, most))
    clear = (("relative", boundary(score, moment.total - half) / score.amax(dim=1)),)
    dropped = matched(
        moment.x, None, least, most, edges, moment.total - middle, "drop", None, clear, True
    )
    return then(dropped, keep_best(moment, gather(last, dropped.source), dropped.x))


def _tnt(moment: Moment) -> Step:
    """The best by the head stay; of these, even places match odd ones, and the most alike leave."""
    best = keep_best(moment, moment.values["weights"](moment), keep=moment.cut.counts[0])
    left, right = alternating(best.x)
    edges = cosines(gather(best.x, left), gather(best.x, right))
    leave = best.x.shape[1] - moment.cut.keep
    dropped = matched(best.x, None, left, right, edges, leave, "drop")
    return then(best, replace(dropped, sizes=None))


def _head(moment: Moment) -> Tensor:
    found: Tensor = moment.values["weights"](moment)
    return found


def _by(score, moment: Moment) -> Step:  # type: ignore[no-untyped-def]
    return keep_best(moment, score(moment))


PRUNING: tuple[PresetOracle, ...] = (
    *(
        PresetOracle(name, step=partial(_by, score))
        for name, score in {
            "topk": cls,
            "ats": cls_by_values,
            "as-vit": cls_by_context,
            "spatten": received_so_far,
            "fitprune": paid_and_received,
            "g-search": cls,
            "p-sigmoid": cls,
            "dynamicvit": _head,
        }.items()
    ),
    PresetOracle("evit", step=lambda m: fuse_rest(m, cls(m), mean=False)),
    PresetOracle("pomt", step=lambda m: fuse_rest(m, pomt(m), mean=True)),
    PresetOracle("spvit", step=lambda m: fuse_rest(m, _head(m), mean=True)),
    PresetOracle("strided", step=_strided),
    PresetOracle("radial", step=_radial, defaults={"norm": "l2"}),
    PresetOracle("random", step=_random, defaults={"seed": 0}),
    PresetOracle("zero-tprune", step=_zero_tprune),
    PresetOracle("tnt", step=_tnt),
)
