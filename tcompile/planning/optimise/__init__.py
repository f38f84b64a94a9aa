"""The optimiser: at which sites how many tokens stay, for tables of what each choice costs."""

from tcompile.planning.optimise.limits import Limits
from tcompile.planning.optimise.pareto import Front, front
from tcompile.planning.optimise.plan import Plan, Step, dense_plan, plan_of
from tcompile.planning.optimise.plateaus import (
    Plateau,
    flattened,
    free_edge,
    grid,
    plateaus,
    right_edge,
    sitting,
)
from tcompile.planning.optimise.pomt import PomtChoice, pomt_choice
from tcompile.planning.optimise.prior import PRIORS, Prior, prior_loss
from tcompile.planning.optimise.solver import Goal, solve
from tcompile.planning.optimise.tables import SiteRule, Tables

__all__ = [
    "PRIORS",
    "Front",
    "Goal",
    "Limits",
    "Plan",
    "Plateau",
    "PomtChoice",
    "Prior",
    "SiteRule",
    "Step",
    "Tables",
    "dense_plan",
    "flattened",
    "free_edge",
    "front",
    "grid",
    "plan_of",
    "plateaus",
    "pomt_choice",
    "prior_loss",
    "right_edge",
    "sitting",
    "solve",
]
