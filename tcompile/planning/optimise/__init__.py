"""The optimiser: at which sites how many tokens stay, for tables of what each choice costs."""

from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.prior import PRIORS, prior_loss
from tcompile.planning.optimise.solver import front, solve
from tcompile.planning.optimise.tables import (
    Plan,
    Step,
    Tables,
    dense_plan,
    flattened,
    plan_of,
    plateau_of,
)

__all__ = [
    "PRIORS",
    "Limits",
    "Plan",
    "Step",
    "Tables",
    "dense_plan",
    "flattened",
    "front",
    "plan_of",
    "plateau_of",
    "prior_loss",
    "solve",
]
