"""Where a model lets tokens leave, as methods see it."""

from __future__ import annotations

from tcompile.analysis.model import Analysis
from tcompile.methods.context import SiteConstraints
from tcompile.passes.reduce.check import dense_grid


def site_constraints(analysis: Analysis, outputs: str = "reduced") -> SiteConstraints:
    """Describe where a model lets tokens leave, as methods see it."""
    legal = [s for s in analysis.sites if not s.verdict(outputs).reason]
    groups = {s.name: s.step(outputs) for s in legal if s.step(outputs) > 1}
    unscored = {s.name: s.unread for s in analysis.sites if s.unread}
    windows = any(b.window for b in analysis.blocks)
    parallel = frozenset(b.index for b in analysis.blocks if b.parallel)
    names, grid = frozenset(s.name for s in legal), dense_grid(analysis)
    return SiteConstraints(names, groups, windows, parallel, unscored, grid)
