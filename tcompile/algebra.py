"""The parts of which a score, a reducer or a preset of your own is made (docs/extending.md).

Everything here is public: names stay, parameters may be added.
"""

from __future__ import annotations

from onnx_graphsurgeon import Tensor

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Reduction, Spec
from tcompile.methods import schedulers
from tcompile.methods.context import Context, Step, Values
from tcompile.methods.presets.base import Preset
from tcompile.methods.schedulers.base import Place, Scheduler
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers import find_reducer
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.scores import find_score
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.token_state import TokenState

__all__ = [
    "Ask",
    "AttentionView",
    "Builder",
    "Context",
    "Parameter",
    "Place",
    "Preset",
    "Reducer",
    "ReducerInput",
    "Reduction",
    "Scheduler",
    "Score",
    "ScoreInput",
    "Spec",
    "Step",
    "Tensor",
    "TokenState",
    "Values",
    "find_reducer",
    "find_score",
    "schedulers",
]
