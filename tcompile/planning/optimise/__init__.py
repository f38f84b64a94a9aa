"""The optimiser: at which sites how many tokens stay, for tables of what each choice costs."""

from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.pareto import front
from tcompile.planning.optimise.plan import Plan, Step, dense_plan, plan_of
from tcompile.planning.optimise.plateaus import flattened, plateau_of
from tcompile.planning.optimise.pomt import PomtChoice, pomt_choice
from tcompile.planning.optimise.prior import PRIORS, Prior, prior_loss
from tcompile.planning.optimise.solver import solve
from tcompile.planning.optimise.tables import Tables

__all__ = [
    "PRIORS",
    "Limits",
    "Plan",
    "PomtChoice",
    "Prior",
    "Step",
    "Tables",
    "dense_plan",
    "flattened",
    "front",
    "plan_of",
    "plateau_of",
    "pomt_choice",
    "prior_loss",
    "solve",
]
