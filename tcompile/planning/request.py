"""What is asked of the compiler about tokens: how few, by what method, planned from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from tcompile.core.errors import UsageError

if TYPE_CHECKING:
    from tcompile.core.schedule import Schedule
    from tcompile.passes.normalize.bind_shapes import Shapes
    from tcompile.profiling.profile import Profile

Keep = float | str | Fraction | None
Objective = Literal["loss", "pomt"]
LossKind = Literal["measured", "attention"]
#: The method that is chosen by what it loses; the others are presets' names.
AUTO = "auto"
#: What a schedule calls its method where no token leaves and nobody named one.
NO_METHOD = "none"


class Asked(TypedDict, total=False):
    """The options of `plan`, `price`, `reduce` and `build`; see `Request`."""

    keep: Keep
    exact: bool
    latency: float | None
    max_drop: float | None
    method: str
    schedule: str | Path | Mapping[str, Any] | Schedule | None
    objective: Objective | None
    calibration: str | Path | None
    losses: LossKind
    images: int
    profile: str | Path | Profile | None
    batch: int
    threads: int | None
    seed: int
    outputs: str
    shapes: Shapes | None
    prefix: int | None
    tower: str | None


@dataclass(frozen=True)
class Request:
    """What is asked, checked.

    Attributes:
        keep: share of the patch tokens that leave the encoder, in (0, 1]: at least
            ceil(keep · T) of T; more, by a tenth at most, where a plateau of the target makes them
            free.
        exact: not even those.
        latency: ms that one batch may take on the target.
        max_drop: the most that may be lost on the calibration images: top-1 accuracy where they
            have labels, agreement with the dense model's top-1 where it has classes, else
            1 − cosine.
        method: `auto`, or a preset: `topk`, `evit:rate=0.7`, …
        schedule: instead of budgets and method.
        objective: `loss`: lose the least within the budgets; `pomt`: its utility picks one count;
            None: `loss` where there is something to solve.
        calibration: images: .npz of the model's inputs, a folder, or a loader.py.
        losses: what is looked at on them: `measured` outputs, or the cheaper `attention`.
        images: how many of them sensitivities are measured on at most.
        profile: a profile, its file, `measure` or `model`; None: measured before, else whichever
            suits.
        batch: images in a run, where the model leaves it free.
        threads: of a CPU that is measured.
        seed: of all that is drawn.
        outputs: `reduced` or `restored`, for outputs with a token axis.
        shapes: input name → dims, to bind dynamic dims by hand.
        prefix: tokens at the front that are no patches, where the analysis does not see it.
        tower: the one that loses tokens, of a model that has several; None: all of them.
    """

    keep: Keep = None
    exact: bool = False
    latency: float | None = None
    max_drop: float | None = None
    method: str = AUTO
    schedule: Any = None
    objective: Objective | None = None
    calibration: str | Path | None = None
    losses: LossKind = "measured"
    images: int = 16
    profile: Any = None
    batch: int = 1
    threads: int | None = None
    seed: int = 0
    outputs: str = "reduced"
    shapes: Any = field(default=None)
    prefix: int | None = None
    tower: str | None = None

    def __post_init__(self) -> None:
        for name, unit in (("latency", "ms"), ("max_drop", "a share")):
            number = getattr(self, name)
            option = f"--{name.replace('_', '-')}"
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise UsageError(f"{number!r} is no number", where=option)
            if not 0 < number < float("inf") or (name == "max_drop" and number >= 1):
                raise UsageError(
                    f"{number:g} is no budget: it is {unit}, more than 0"
                    + (" and less than 1" if name == "max_drop" else ""),
                    where=option,
                )
        if self.max_drop is not None and self.calibration is None:
            raise UsageError(
                "needs images to see what is lost",
                where="--max-drop",
                hint="say --calibration DIR, FILE.npz or loader.py",
            )
        if self.objective == "pomt" and self.calibration is None:
            raise UsageError(
                "pomt weighs latency against accuracy on images",
                where="--objective pomt",
                hint="say --calibration",
            )
        budgets = (self.keep, self.latency, self.max_drop)
        if self.objective == "pomt" and any(b is not None for b in budgets):
            raise UsageError(
                "pomt's utility picks the count by itself",
                where="--objective pomt",
                hint="leave --keep, --latency and --max-drop away",
            )
        if self.schedule is not None:
            self._check_alone()
        if self.exact and self.keep is None:
            raise UsageError(
                "says that a share is meant exactly, and none is given",
                where="--exact",
                hint="say --keep R",
            )

    def _check_alone(self) -> None:
        """A schedule says all that budgets and methods would."""
        if self.keep is not None:
            raise UsageError(
                "--keep and --schedule both set the budget",
                where="--schedule",
                hint="give one of them",
            )
        for name in ("latency", "max_drop", "objective"):
            if getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} and --schedule both say how many tokens leave",
                    where="--schedule",
                    hint="give one of them",
                )
        if self.calibration is not None:
            raise UsageError(
                "a schedule learns nothing from images", where="--calibration", hint="leave it away"
            )

    @property
    def solved(self) -> bool:
        """Whether the planner says where tokens leave; otherwise a method's own schedule does, or
        the one given."""
        if self.schedule is not None:
            return False
        wanted = self.latency is not None or self.max_drop is not None
        return wanted or self.objective is not None or self.method.partition(":")[0] == AUTO

    @staticmethod
    def of(asked: Mapping[str, Any]) -> Request:
        """From keyword arguments.

        Raises:
            TypeError: one that there is not.
        """
        unknown = set(asked) - {f.name for f in fields(Request)}
        if unknown:
            raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
        return Request(**asked)
