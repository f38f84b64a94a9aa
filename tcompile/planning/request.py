"""A request about tokens: how few to keep, by what method, planned from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from tcompile.core.errors import UsageError
from tcompile.core.schedule import known_rule
from tcompile.models.preprocess_option import parse_preprocess

if TYPE_CHECKING:
    from tcompile.core.schedule import Schedule
    from tcompile.passes.normalize.bind_shapes import Shapes
    from tcompile.profiling.profile import Profile

Keep = float | str | Fraction | None
Objective = Literal["loss", "pomt"]
LossKind = Literal["measured", "attention"]
LevelName = Literal["coarse", "medium", "fine"]
#: In place of calibration data: nothing is run on images, and a prior says what is lost.
NO_IMAGES = "none"
#: The method that is chosen by what it loses; the others are presets' names.
AUTO = "auto"
#: What a schedule calls its method where no token leaves and none was named.
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
    preprocess: str | None
    losses: LossKind
    images: int | None
    calibration_level: LevelName | None
    profile: str | Path | Profile | None
    batch: int
    threads: int | None
    seed: int
    outputs: str
    restore: str | None
    shapes: Shapes | None
    prefix: int | None
    tower: str | None
    resize: str


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        keep: share of the patch tokens that leave the encoder, in (0, 1]: at least
            ceil(keep · T) of T; more, by a tenth at most, where a plateau of the target makes them
            free.
        exact: not even those.
        latency: ms that one batch may take on the target.
        max_drop: the most that may be lost on the calibration images: top-1 accuracy where they
            have labels, agreement with the dense model's top-1 where it has classes, else
            1 − cosine or correlation of its outputs.
        method: `auto`, or a preset: `topk`, `evit:rate=0.7`, …
        schedule: instead of budgets and method.
        objective: `loss`: lose the least within the budgets; `pomt`: its utility picks one count;
            None: `loss` where there is something to solve.
        calibration: images: .npz of the model's inputs, a folder, or a loader.py; None: procedural
            scenes, where there is something to solve; `none`: no images, but a prior.
        preprocess: how images are prepared for the model, in place of what it records: `imagenet`,
            `clip,size=336`, `mean=0.5,std=0.5`, …
        losses: what is looked at on them: `measured` outputs, or the cheaper `attention`.
        images: how many of them schedules are compared on at most; None: as the level says.
        calibration_level: how much is run on them: `coarse`, `medium` or `fine`; None: by the
            FLOPs of the model.
        profile: a profile, its file, `measure` or `model`; None: measured before, else whichever
            suits.
        batch: images in a run, where the model leaves it free.
        threads: of a CPU that is measured.
        seed: of all that is drawn.
        outputs: `reduced` or `restored`, for outputs with a token axis.
        restore: what restored outputs give dropped tokens, one of `core.schedule.RESTORES`; None:
            what loses least on the calibration images, else by the method.
        shapes: input name → dims, to bind dynamic dims by hand.
        prefix: tokens at the front that are not patches, where the analysis does not see it.
        tower: the one that loses tokens, of a model that has several; None: all of them.
        resize: who makes the image smaller for `resolution`: the `graph`, whose input keeps its
            size, or the `host`.
    """

    keep: Keep = None
    exact: bool = False
    latency: float | None = None
    max_drop: float | None = None
    method: str = AUTO
    schedule: Any = None
    objective: Objective | None = None
    calibration: str | Path | None = None
    preprocess: str | None = None
    losses: LossKind = "measured"
    images: int | None = None
    calibration_level: LevelName | None = None
    profile: Any = None
    batch: int = 1
    threads: int | None = None
    seed: int = 0
    outputs: str = "reduced"
    restore: str | None = None
    shapes: Any = None
    prefix: int | None = None
    tower: str | None = None
    resize: str = "graph"

    def __post_init__(self) -> None:
        _check_number("--latency", self.latency, "in ms, more than 0", float("inf"))
        _check_number("--max-drop", self.max_drop, "a share, more than 0 and less than 1", 1)
        if str(self.calibration) == NO_IMAGES:  # as a path, from the command line
            object.__setattr__(self, "calibration", NO_IMAGES)
        if self.preprocess is not None:
            parse_preprocess(self.preprocess)
        known_rule(self.restore, "--restore")
        for wrong, where, what, hint in self._conflicts():
            if wrong:
                raise UsageError(what, where=where, hint=hint)

    def _conflicts(self) -> Iterator[tuple[bool, str, str, str]]:
        """Options that need or exclude each other: (wrong, where, what, hint)."""
        pomt, given = self.objective == "pomt", self.schedule is not None
        unseen = self.calibration in (None, NO_IMAGES)
        yield (
            self.max_drop is not None and unseen,
            "--max-drop",
            "needs images to see what is lost",
            "say --calibration DIR, FILE.npz or loader.py",
        )
        yield (
            pomt and unseen,
            "--objective pomt",
            "pomt weighs latency against accuracy on images",
            "say --calibration",
        )
        yield (
            pomt and any(b is not None for b in (self.keep, self.latency, self.max_drop)),
            "--objective pomt",
            "pomt's utility picks the count by itself",
            "omit --keep, --latency and --max-drop",
        )
        for name in ("keep", "latency", "max_drop", "objective"):
            yield (
                given and getattr(self, name) is not None,
                "--schedule",
                f"--{name.replace('_', '-')} and --schedule both say how many tokens leave",
                "give one of them",
            )
        restored = self.outputs == "restored"
        yield (
            given and not unseen and (self.restore is not None or not restored),
            "--calibration",
            "a schedule learns nothing from images but how restored outputs give tokens back",
            "omit it" if self.restore is None else "omit it, or --restore",
        )
        yield (
            self.restore is not None and not restored,
            "--restore",
            "says what restored outputs give dropped tokens, and the outputs are reduced",
            "say --outputs restored, or omit it",
        )
        yield (
            self.resize not in ("graph", "host"),
            "--resize",
            f"'{self.resize}' is not graph or host",
            "",
        )
        yield (
            self.exact and self.keep is None,
            "--exact",
            "says that a share is meant exactly, and none is given",
            "omit it, or say --keep R",
        )

    @property
    def solved(self) -> bool:
        """True where the planner says where tokens leave; otherwise a method's own schedule does,
        or the one given."""
        asked = (self.latency, self.max_drop, self.objective)
        wanted = any(a is not None for a in asked) or self.method.partition(":")[0] == AUTO
        return wanted and self.schedule is None

    @property
    def bounded(self) -> bool:
        """True where images must show what a plan loses, and not only rank plans."""
        return self.max_drop is not None or self.objective == "pomt"

    @property
    def bound(self) -> dict[str, Any]:
        """The options that the model is read with, as JSON values, for keys of caches."""
        shapes = {k: list(map(str, v)) for k, v in (self.shapes or {}).items()}
        return {"prefix": self.prefix, "shapes": shapes}

    @staticmethod
    def of(asked: Mapping[str, Any]) -> Request:
        """A request from keyword arguments.

        Raises:
            TypeError: an unknown one.
        """
        unknown = set(asked) - {f.name for f in fields(Request)}
        if unknown:
            raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
        return Request(**asked)


def _check_number(option: str, number: Any, words: str, limit: float) -> None:
    """Refuse a budget that is not a number between 0 and its limit."""
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise UsageError(f"{number!r} is not a number", where=option)
    if not 0 < number < limit:
        raise UsageError(f"{number:g} is not a budget: it is {words}", where=option)
