"""What the stages of the compiler hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.cost import Cost
from tcompile.passes.normalize import Normalized
from tcompile.planning.schedule import Schedule
from tcompile.planning.solve.planned import Followed, Planned


@dataclass(frozen=True)
class Analysed:
    """A model in normal form and what is known of it.

    Attributes:
        prefix: tokens at the front that a person stated to be no patches.
    """

    source: str
    normalized: Normalized
    analysis: Analysis
    prefix: int | None = None

    @property
    def graph(self) -> gs.Graph:
        return self.normalized.graph


@dataclass(frozen=True)
class Priced:
    """A schedule and what following it costs.

    Attributes:
        schedule, cost: they.
        chosen: how the schedule was solved, or whose it is; what was asked, what is kept, and why.
    """

    schedule: Schedule
    cost: Cost
    chosen: Planned | Followed

    @property
    def planned(self) -> Planned | None:
        """How it was solved; None where a method's own schedule or a given one is followed."""
        return self.chosen if isinstance(self.chosen, Planned) else None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.chosen.outcome.to_json(), **self.schedule.to_json(),
            "cost": self.cost.to_json(), "plan": self.chosen.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class Reduced:
    """A reduced model before lowering.

    Attributes:
        graph: reduced, fp32, token ops as model-local functions.
        dense: the normalised dense graph it came from.
        schedule: what was applied.
        fp32_nodes: nodes that must stay fp32 when the rest goes to fp16.
        attention_layers: attentions with more than one query row: the fused kernels to expect.
        metadata: the source's metadata_props.
        widened: whether the source computed in fp16.
    """

    graph: gs.Graph
    dense: gs.Graph
    schedule: Schedule
    fp32_nodes: frozenset[str]
    attention_layers: int
    metadata: dict[str, str]
    widened: bool
