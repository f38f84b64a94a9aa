"""Presets that keep the map whole, for dense heads."""

from __future__ import annotations

from tcompile.planning.presets.base import Preset
from tcompile.planning.presets.common import CLS, count
from tcompile.planning.schedule import Spec
from tcompile.planning.schedulers import around

BYPASS = Preset(
    name="bypass",
    family="dense",
    summary="let the tokens that matter least skip blocks; the map stays whole",
    formula="around each block: x_S' = block(x_S), the rest unchanged, S the K = ceil(keep·T) "
    "best by what the block's own attention pays them (topk's score over all tokens), or by length "
    "‖x_j‖ in models with windows, whose global blocks alone are bypassed",
    reference="Xu et al., No Token Left Behind (IdleViT), AJCAI 2023; Liu et al., Revisiting Token "
    "Pruning for Object Detection (SViT), WACV 2024",
    scheduler=around(),
    score=CLS,
    reducer=Spec("bypass"),
    parameters={"first": count("first block that may be bypassed; default L//4, with windows 0")},
)

DENSE: tuple[Preset, ...] = (BYPASS,)
