"""Oracles with a mistake in them, each of which the comparison must catch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.choices import Step
from tests.oracles.moments import Moment
from tests.oracles.presets.base import PresetOracle, fuse_rest, keep_best
from tests.oracles.presets.pruning import zero_tprune
from tests.oracles.presets.registry import ORACLES
from tests.oracles.presets.scores import (
    cls,
    cls_by_context,
    cls_by_values,
    pagerank,
    per_head,
    pomt,
    received,
)


def _stay(score, moment: Moment) -> Step:  # type: ignore[no-untyped-def]
    return keep_best(moment, score(moment))


def _pomt_of_sums(moment: Moment) -> Tensor:
    """The largest of the heads' sums, not the sum of the largest."""
    a = moment.attention.weights[:, :, moment.inner, moment.inner].sum(dim=2).amax(dim=1)
    whole = moment.attention.weights[:, :, moment.inner, moment.inner].amax(dim=1).sum(dim=1)
    right = whole / whole.amax(dim=1, keepdim=True)
    return a / a.amax(dim=1, keepdim=True) + pomt(moment) - right


def _pomt_without_values(moment: Moment) -> Tensor:
    """Attention received alone."""
    return moment.attention.weights[:, :, moment.inner, moment.inner].amax(dim=1).sum(dim=1)


def _mean_of_all(moment: Moment) -> Step:
    """The package is the mean of all tokens, not of those that leave."""
    step = fuse_rest(moment, moment.values["weights"](moment), mean=True)
    return replace(step, x=torch.cat([step.x[:, :-1], moment.x.mean(dim=1, keepdim=True)], dim=1))


def _after_softmax(moment: Moment) -> Tensor:
    """Probabilities where logits are meant."""
    return per_head(moment).mean(dim=1)


def _last_block(moment: Moment) -> Tensor:
    """Only the block before, not all so far."""
    past = moment.past[-1]
    return past.carried(per_head(moment, past.attention).sum(dim=1))


def _this_block(moment: Moment) -> Tensor:
    """Not summed over the blocks so far."""
    return received(moment).sum(dim=1)


def _from_patches(moment: Moment) -> Step:
    """Return what the class token pays is left out."""
    inner = moment.inner
    return keep_best(moment, moment.attention.weights[:, :, inner, inner].sum(dim=2).mean(dim=1))


def _pivots_leave(moment: Moment) -> Step:
    """The pivots are like themselves."""
    unit = F.normalize(moment.x, dim=-1)
    pivots = moment.x.abs().sum(dim=-1).topk(4, dim=1).indices
    few = unit.gather(1, pivots.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
    return keep_best(moment, -(unit @ few.transpose(1, 2)).amax(dim=-1))


def _as_zeros(moment: Moment) -> Tensor:
    """Return what had left comes back empty."""
    here = torch.zeros_like(moment.last[..., :1]).scatter(1, moment.places.unsqueeze(-1), 1.0)
    return moment.last * here


def _by_rank(moment: Moment) -> Step:
    """Tokens in the order of their scores."""
    step = keep_best(moment, cls(moment))
    kept = cls(moment).argsort(dim=1, descending=True)[:, : moment.cut.keep]
    return replace(step, source=kept, x=moment.x.gather(1, kept.unsqueeze(-1).expand_as(step.x)))


def _one_ranking(moment: Moment) -> Step:
    """The first vote decides who leaves in the end."""
    middle, _ = moment.cut.counts
    return zero_tprune(moment, middle, pagerank(moment, 1), pagerank(moment, 1))


#: Of a preset, by what is wrong.
MUTANTS: dict[str, PresetOracle] = {
    name: replace(ORACLES[name.partition(" ")[0]], **change)
    for name, change in {
        "pomt largest of sums": {"step": lambda m: fuse_rest(m, _pomt_of_sums(m), mean=True)},
        "pomt without values": {"step": lambda m: fuse_rest(m, _pomt_without_values(m), mean=True)},
        "pomt fused by score": {"step": lambda m: fuse_rest(m, pomt(m), mean=False)},
        "ats without values": {"step": partial(_stay, cls)},
        "ats by context": {"step": partial(_stay, cls_by_context)},
        "as-vit by values": {"step": partial(_stay, cls_by_values)},
        "spatten forgets": {"step": partial(_stay, _this_block)},
        "spvit mean of all": {"step": _mean_of_all},
        "idlevit softmaxed": {"around": _after_softmax},
        "evo-vit forgets": {"around": _last_block},
        "cropr zeros": {"back": _as_zeros},
        "fopru without cls": {"step": _from_patches},
        "zero-tprune one ranking": {"step": _one_ranking},
        "dart loses pivots": {"step": _pivots_leave},
        "fastervlm by rank": {"step": _by_rank},
    }.items()
}
