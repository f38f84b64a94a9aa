"""Options that work where those that were asked for do not: found by trying them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from tcompile.core.errors import TcompileError
from tcompile.methods.composition import compose
from tcompile.methods.method import OWN_SCHEDULE, method_for
from tcompile.passes.reduce.check import check_schedule
from tcompile.passes.reduce.towers import reduce_towers
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.planning.request import AUTO, Keep

#: Methods to try: tokens leave, or merge; if neither will do they pass by, or merge for the
#: attention alone.
_METHODS = (("topk", "tome"), ("bypass", "tomesd"))


def remedy(model: Analysed, method: str, keep: Keep, outputs: str, *, planned: bool = False) -> str:
    """Return a hint: what to say in place of a method that the model does not allow.

    Args:
        keep: as it was asked; None: the method's own parameters or other budgets say how many.
        planned: whether a plan is asked for, and not a method's own schedule.
    """
    for other, mode in _others(method, outputs):
        if _works(model, other, keep if other == method else keep or Fraction(1, 2), mode, planned):
            parts = [f"--method {other}"] if other != method else []
            parts += ["--keep R"] if other != method and keep is None and not planned else []
            parts += [f"--outputs {mode}"] if mode != outputs else []
            back = ": outputs get every token back" if mode != outputs == "reduced" else ""
            return f"{' '.join(parts)} works{back}"
    return "no token can leave this model: `tcompile inspect` says why, site by site"


def planned_remedy(model: Analysed, method: str, outputs: str) -> str:
    """Return a hint for a method that cannot be planned: its own schedule, if it has one here."""
    if method.partition(":")[0] != AUTO and _works(model, method, Fraction(1, 2), outputs, False):
        return OWN_SCHEDULE
    return remedy(model, method, None, outputs, planned=True)


def _others(method: str, outputs: str) -> Iterator[tuple[str, str]]:
    """Methods and modes of outputs, those nearest to what was asked for first."""
    modes = [outputs, *({"reduced", "restored"} - {outputs})]
    own = [method]
    yield from ((name, mode) for mode in modes[1:] for name in own)
    for names in _METHODS:
        yield from ((name, mode) for mode in modes for name in names if name not in own)


def _works(model: Analysed, method: str, keep: Keep, outputs: str, planned: bool) -> bool:
    analysis = model.analysis
    method = "topk" if method.partition(":")[0] == AUTO else method
    room = site_constraints(analysis, outputs)
    try:
        if planned:
            method_for(analysis, room, method, outputs)
            return True
        made = compose(method, analysis.shape, analysis.has_cls, keep, room)
        check_schedule(analysis, made, outputs)
        reduce_towers(model.graph, analysis, made, outputs=outputs, prefix=model.prefix)
    except TcompileError:
        return False
    return not made.dense
