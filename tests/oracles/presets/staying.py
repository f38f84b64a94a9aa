"""Methods that keep the map whole, or bring it back."""

from __future__ import annotations

from torch import Tensor

from tests.oracles.moments import Moment
from tests.oracles.presets.base import PresetOracle, keep_best
from tests.oracles.presets.scores import cls, cls_logits, cls_so_far


def _head(moment: Moment) -> Tensor:
    found: Tensor = moment.values["weights"](moment)
    return found


STAYING: tuple[PresetOracle, ...] = (
    PresetOracle("bypass", around=cls),
    PresetOracle("idlevit", around=cls_logits),
    PresetOracle("evo-vit", around=cls_so_far),
    PresetOracle("svit", around=_head),
    # Last-layer fusion: what left comes back as it was.
    PresetOracle("cropr", step=lambda m: keep_best(m, _head(m)), back=lambda m: m.last),
)
