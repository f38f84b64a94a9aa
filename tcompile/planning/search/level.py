"""Levels of calibration: how many images, and how much is run on them.

A level follows from the model's FLOPs, never from the clock, so that one input gives one plan on
every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.planning.request import LevelName


@dataclass(frozen=True)
class Level:
    """How thorough a search is.

    Attributes:
        images: on which schedules are compared at most, before the last comparison.
        look: images of the first look.
        last: images on which the best few are compared in the end, which differ by less than a
            few images can tell.
        methods: that are left after it.
        refine: methods around whose best shape is searched, in each of `rounds`.
        promote: schedules that are run on more images.
        moves: changes of the best schedule that are tried.
    """

    name: LevelName
    images: int
    look: int
    last: int
    methods: int
    refine: int
    rounds: int
    promote: int
    moves: int

    def work(self, methods: int) -> float:
        """Roughly how many images a search runs in all, for an estimate of the time that is left:
        first shapes, their neighbours, promotions, changes."""
        first = methods * 5 * self.look
        around = self.rounds * min(self.refine, methods) * 7 * self.look
        more = self.promote * self.images + methods * self.images
        more += (FINALISTS + methods) * (self.last - self.images)
        return first + around + more + self.moves * (self.look + self.images / 4)


#: Schedules that are compared in the end, beside the best one of each method.
FINALISTS = 3
LEVELS: dict[LevelName, Level] = {
    "coarse": Level("coarse", 6, 2, 12, 2, 1, 1, 3, 3),
    "medium": Level("medium", 12, 3, 24, 2, 2, 1, 4, 6),
    "fine": Level("fine", 16, 4, 32, 3, 2, 1, 6, 12),
}
#: FLOPs of one image up to which a level is taken; a multiplication and an addition are two. ViT-S
#: has 9 · 10⁹, ViT-B 35 · 10⁹, ViT-L 123 · 10⁹.
_FINE, _MEDIUM = 20e9, 60e9


def level_for(flops: float) -> Level:
    """The level of a model of so many FLOPs an image."""
    return LEVELS["fine" if flops <= _FINE else "medium" if flops <= _MEDIUM else "coarse"]
