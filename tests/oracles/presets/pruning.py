"""Tokens that are dropped, or fused into one, by a score."""

from __future__ import annotations

from tests.oracles.presets.base import PresetOracle, fuse_rest, keep_best
from tests.oracles.presets.scores import cls

PRUNING: tuple[PresetOracle, ...] = (
    PresetOracle("topk", step=lambda m: keep_best(m, cls(m))),
    PresetOracle("evit", step=lambda m: fuse_rest(m, cls(m), mean=False)),
    PresetOracle("fastervlm", step=lambda m: keep_best(m, cls(m))),
    PresetOracle("bypass", around=cls),
)
