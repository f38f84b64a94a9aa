"""Results of the passes: a model that was analysed, a model that was reduced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.schedule import Schedule
from tcompile.passes.normalize import Normalized


@dataclass(frozen=True)
class Analysed:
    """A model in normal form and what is known of it.

    Attributes:
        prefix: tokens at the front that a person stated not to be patches.
    """

    source: str
    normalized: Normalized
    analysis: Analysis
    prefix: int | None = None

    @property
    def graph(self) -> gs.Graph:
        return self.normalized.graph


@dataclass(frozen=True)
class Reduced:
    """A reduced model before lowering.

    Attributes:
        graph: reduced, fp32, token ops as model-local functions.
        dense: the normalised dense graph it came from.
        schedule: what was applied.
        fp32_nodes: nodes that must stay fp32 when the rest goes to fp16.
        written: name of each node and tensor that the reduction wrote → the site that it is for;
            empty for what follows from several.
        metadata: the source's metadata_props, and `token_index` where some output has fewer tokens.
        token_index: output with fewer tokens → the output that says which tokens its rows are.
        widened: whether the source computed in fp16.
        quantized: whether the source quantises while it runs.
    """

    graph: gs.Graph
    dense: gs.Graph
    schedule: Schedule
    fp32_nodes: frozenset[str]
    written: Mapping[str, str]
    metadata: dict[str, str]
    widened: bool
    quantized: bool = False
    token_index: Mapping[str, str] = field(default_factory=dict)
