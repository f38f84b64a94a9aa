"""Schedules tried on images that nothing was planned with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.planning.losses import Calibration, Drop, measure_drop
from tcompile.planning.losses.distance import Outputs
from tcompile.runtime.samples import run_graph


@dataclass(frozen=True)
class Trial:
    """Runs a model under schedules.

    Attributes:
        images: to check on.
        outputs: `reduced` or `restored`.
    """

    model: Analysed
    images: Calibration
    outputs: str
    say: Progress

    @cached_property
    def dense(self) -> Outputs:
        """The dense model's outputs."""
        self.say(f"running {len(self.images)} images")
        return run_graph(self.model.graph, self.images.samples)

    def run(self, schedule: Schedule) -> Outputs:
        """The model's outputs under a schedule."""
        graph, analysis = self.model.graph, self.model.analysis
        made = reduce_graph(graph, analysis, schedule, outputs=self.outputs).graph
        self.say(f"running {len(self.images)} images at {schedule.final} tokens")
        return run_graph(made, self.images.samples)

    def drop(self, schedule: Schedule, confidence: float) -> Drop:
        """The loss of a schedule on the images."""
        found, dense = self.run(schedule), self.dense
        return measure_drop(dense, found, self.images.labels, confidence=confidence)
