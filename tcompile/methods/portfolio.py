"""The methods that `auto` chooses among."""

from __future__ import annotations

from tcompile.methods.presets import PRESETS

#: What `auto` takes without images: the first that fits the model. What merges lost least of all on
#: trained weights; where merged tokens have no place (rotary tables, position bias), `topk` drops.
#: They are also what a profile is measured for unless told otherwise.
PORTFOLIO = ("tome", "tofu", "evit", "topk")


def weighed() -> list[str]:
    """The presets that `auto` weighs on images: those of `PORTFOLIO` first, so that of equals they
    are taken."""
    others = [p.name for p in PRESETS if p.auto and p.name not in PORTFOLIO]
    return [*PORTFOLIO, *others]
