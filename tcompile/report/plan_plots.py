"""A plan drawn: latency against tokens, tokens over depth, latency against loss."""

from __future__ import annotations

from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.planning.solve.planned import PlanReport


def draw(planned: PlanReport | None, path: Path) -> list[Path]:
    """Write NAME-latency, NAME-depth and, where plans were weighed, NAME-front beside each other.

    Raises:
        UsageError: nothing was solved, or a suffix that is neither .png nor .svg.
        MissingExtraError: matplotlib is not installed.
    """
    from tcompile.report.plots import plot_front, plot_latency, plot_schedule

    if planned is None:
        raise UsageError(
            "only a solved schedule is drawn",
            where="--plot",
            hint="leave --method away, or give --latency or --max-drop",
        )

    def named(what: str) -> Path:
        return path.with_name(f"{path.stem}-{what}{path.suffix}")

    counts, ms = zip(*planned.curve, strict=True)
    plan, dense = planned.plan, planned.curve[-1][0]
    chosen = [step.after for step in plan.steps]
    made = [named("latency"), named("depth")]
    plot_latency(counts, ms, made[0], chosen=chosen, title=planned.profile)
    plot_schedule(plan, dense, made[1], title=planned.schedule.method)
    if planned.front:
        made.append(named("front"))
        plot_front(planned.front, made[2], chosen=plan, losses=planned.losses)
    return made
