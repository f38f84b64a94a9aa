"""Methods that choose once, at the end of a vision tower."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F

from tests.oracles.choices import Step
from tests.oracles.moments import Moment
from tests.oracles.presets.base import PresetOracle, keep_best, with_margin
from tests.oracles.presets.merging import boundary, ranked
from tests.oracles.presets.scores import cls, received, unlike_pivots
from tests.oracles.stream import gather


def _fopru(moment: Moment) -> Step:
    """By the attention received, mean over heads: the best tokens, or the rows of the grid with the
    largest sums."""
    score = received(moment).mean(dim=1)
    if moment.values["unit"] == "token":
        return keep_best(moment, score)
    wide = moment.grid[1]
    rows = score.unflatten(1, (-1, wide)).sum(dim=2)
    best = rows.sort(dim=1, descending=True).values
    keep = moment.cut.keep // wide
    # Each token is as good as its row; what is inside a row stays together.
    kept = torch.zeros_like(rows).scatter(1, ranked(rows)[:, :keep], 1.0)
    step = keep_best(moment, kept.repeat_interleave(wide, dim=1))
    gap = (best[:, keep - 1] - best[:, keep]) / best[:, 0]
    return with_margin(step, "relative", gap)


def _dart(moment: Moment) -> Step:
    score, gap = unlike_pivots(moment, moment.values["pivots"])
    step = keep_best(moment, score)
    return with_margin(step, "relative", torch.minimum(gap, dict(step.margins)["relative"]))


def _vispruner(moment: Moment) -> Step:
    """A share of those that stay by `cls`; of the others, best first, in rounds: even places look
    at odd ones, up to 8 that are most like one of them leave, until as many are left as should.
    """
    keep, values = moment.cut.keep, moment.values
    score, unit = cls(moment), F.normalize(moment.x, dim=-1)
    important = int(Fraction(str(values["important"])) * keep)
    order = ranked(score)
    ordered = gather(score, order)
    best, rest = order[:, :important], order[:, important:]
    gaps = [(ordered[:, :-1] - ordered[:, 1:])[:, important - 1 :].amin(dim=1) / ordered[:, 0]]
    while rest.shape[1] > keep - important:
        leave = min(8, rest.shape[1] - (keep - important))
        even, odd = rest[:, 0::2], rest[:, 1::2]
        alike = (gather(unit, even) @ gather(unit, odd).transpose(1, 2)).amax(dim=2)
        gaps.append(boundary(alike, leave))
        away = torch.zeros_like(rest).scatter(1, 2 * ranked(alike)[:, :leave], 1)
        rest = gather(rest, away.argsort(dim=1, stable=True)[:, : rest.shape[1] - leave])
    kept = torch.zeros_like(score).scatter(1, torch.cat([best, rest], dim=1), 1.0)
    return with_margin(keep_best(moment, kept), "relative", torch.stack(gaps).amin(dim=0))


def _dycoke(moment: Moment) -> Step:
    """The first of every four frames stays whole.  The second is held against it, the fourth
    against the third, the third against the first, each token against that in its place: of each
    frame as many stay, those least alike."""
    frames, total = moment.encoder.frames, moment.total
    each = total // frames
    unit = F.normalize(moment.x, dim=-1).unflatten(1, (frames, each))
    whole = [i for i in range(frames) if i % 4 == 0]
    share = (moment.cut.keep - len(whole) * each) // (frames - len(whole))
    stays = torch.zeros(len(unit), frames, each, dtype=unit.dtype)
    stays[:, whole] = 1
    gaps = []
    for i in range(frames):
        if i % 4:
            unlike = -(unit[:, i] * unit[:, i - (1, 2, 1)[i % 4 - 1]]).sum(dim=-1)
            stays[:, i].scatter_(1, ranked(unlike)[:, :share], 1.0)
            gaps.append(boundary(unlike, share))
    step = keep_best(moment, stays.flatten(1))
    return with_margin(step, "relative", torch.stack(gaps).amin(dim=0))


TOWERS: tuple[PresetOracle, ...] = (
    PresetOracle("fastervlm", step=lambda m: keep_best(m, cls(m))),
    PresetOracle("fopru", step=_fopru, defaults={"unit": "token"}),
    PresetOracle("dart", step=_dart, defaults={"pivots": 4}),
    PresetOracle("dycoke", step=_dycoke),
    PresetOracle("vispruner", step=_vispruner, defaults={"important": 0.5}),
)
