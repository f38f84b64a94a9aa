"""Images that a request is planned with, and what ran on them.

Where a person gives none, they are procedural scenes (`runtime.scenes`), which rank schedules as
photos do; what is said of a plan names them. One's own images always say more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile._version import __version__
from tcompile.analysis.flops import graph_flops
from tcompile.core.cache import digest_of, keep, kept
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.model_files import describe_source
from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.passes.stages import Analysed
from tcompile.planning.losses.data import Calibration, read_calibration, signature_of, split
from tcompile.planning.losses.distance import distance, unit
from tcompile.planning.losses.evaluate import Evaluator
from tcompile.planning.optimise.tables import Floats
from tcompile.planning.request import NO_IMAGES, Request
from tcompile.planning.search.level import LEVELS, Level, level_for
from tcompile.planning.search.search import SUMMED_UP
from tcompile.runtime.samples import run_graph
from tcompile.runtime.scenes import scenes_for

#: The kind of entries in the cache.
KIND = "losses"
#: The loss of outputs that are not finite where the dense model's are: 1 − cosine is 2 at most.
_WORST = 2.0
#: Added to a request's seed, so that nothing is planned with the scenes that fidelity is shown on.
_SEED = 1


@dataclass(frozen=True, eq=False)
class Evidence:
    """Images to plan with.

    Attributes:
        fit: to plan with.
        check: to check on, where a person gave images.
        level: how much is run on them.
    """

    fit: Calibration
    check: Calibration | None
    level: Level


def evidence_for(model: Analysed, request: Request) -> Evidence | None:
    """The images of a request: those it names, else scenes; None where it wants none, or where the
    model takes no images, so that none can be drawn.

    Of a person's images a quarter are to check on, half where a drop is to be shown; of the others
    as many are to plan with as the level says, with scenes beside them where they are fewer.

    Raises:
        UsageError: they cannot be read, or are fewer than two.
    """
    if request.calibration == NO_IMAGES:
        return None
    named = request.calibration_level
    flops = graph_flops(model.graph)
    level = level_for(flops) if named is None else LEVELS[named]
    most = level.last if request.images is None else request.images
    if request.calibration is None:
        drawn = signature_of(model, request.preprocess)
        scenes = scenes_for(drawn, count=most, seed=request.seed + _SEED)
        if not scenes.scenes:
            return None
        fit, check = Calibration.of(scenes, None), None
    else:
        data = read_calibration(signature_of(model, request.preprocess), request.calibration)
        fit, check = split(data, request.seed, bound=request.bounded)
        if len(fit) > most:
            words = f"{most} of {data.samples.source} to plan with (seed {request.seed})"
            fit = fit.rows(np.arange(most), words)
        elif request.images is None:
            fit = _filled_up(fit, most, model, request)
    images = len(fit) if request.images is not None else min(level.images, len(fit))
    level = replace(level, images=images, look=min(level.look, len(fit)), last=len(fit))
    return Evidence(fit, check, level)


def _filled_up(fit: Calibration, most: int, model: Analysed, request: Request) -> Calibration:
    """Images with scenes behind them, as many as a level looks at.

    A plan that is fitted to a handful of images does worse on others than one made on scenes.
    """
    drawn, lacking = signature_of(model, request.preprocess), most - len(fit)
    if lacking <= 0 or len(drawn.inputs) > 1:  # what goes with an image, only its owner knows
        return fit
    scenes = scenes_for(drawn, count=lacking, seed=request.seed + _SEED)
    own = fit.samples.arrays
    if not scenes.scenes or scenes.arrays.keys() != own.keys():
        return fit
    arrays = {name: np.concatenate([own[name], more]) for name, more in scenes.arrays.items()}
    words = f"{fit.samples.source} and {scenes.source}"
    return Calibration.of(
        replace(fit.samples, arrays=arrays, source=words, ids=(), labels=None), None
    )


class Runs:
    """Losses of whole schedules on the images of a request, each run once and kept by content.

    Nothing runs, not even the dense model, for what was run before.
    """

    def __init__(self, model: Analysed, request: Request, evidence: Evidence, say: Progress):
        self.model, self.request, self.level, self.say = model, request, evidence.level, say
        self.samples = evidence.fit.samples
        self.key = {
            "version": __version__,
            "model": describe_source(model.source).digests,
            "data": evidence.fit.digest,
            "outputs": request.outputs,
            "bound": {**request.bound, "tower": request.tower},
        }
        found = kept(KIND, self.key, _check)
        self.known: dict[str, list[float]] = {} if found is None else found["losses"]
        self.unit = "" if found is None else str(found["unit"])
        self.failed: dict[str, str] = {}
        self._evaluator: Evaluator | None = None
        self._begun, self._done, self.expected = time.monotonic(), 0.0, 0.0

    @property
    def evaluator(self) -> Evaluator:
        """Runs the dense model when it is first needed."""
        if self._evaluator is None:
            self.say(f"calibrating: the dense model on {self.samples.source}")
            self._evaluator = Evaluator(
                self.model.graph, self.model.analysis, self.samples, self.request.outputs
            )
            self.unit = unit(self._evaluator.dense)
        return self._evaluator

    def problem(self) -> str:
        """Why the model cannot be judged on the images; empty where it can, or was before."""
        if self.known:
            return ""
        try:
            distance(self.evaluator.dense, self.evaluator.dense)
        except TcompileError as error:
            return error.what
        except Exception as error:  # ONNX Runtime's own, of inputs that no image stands for
            return " ".join(str(error).split())[:200]
        return ""

    def losses(self, schedule: Schedule, images: int) -> Floats:
        """The loss of a schedule on each of the first images.

        Raises:
            UsageError: the model or a reducer cannot do it.
        """
        steps = [r.to_json() for r in schedule.reductions]
        name = digest_of({"steps": steps, "restore": schedule.restore})
        known = self.known.get(name, [])
        if len(known) < images:
            self._show(schedule.method)
            known = _finite(self._run(schedule, images))
            self.known[name] = known
            self._done += images
        return np.asarray(known[:images])

    def _run(self, schedule: Schedule, images: int) -> Floats:
        """Run what nobody asked for by name: if it fails, it is left out and named, and no more."""
        evaluator = self.evaluator
        try:
            return evaluator.losses(schedule, images)
        except UsageError:
            raise
        except Exception as error:  # ours, or ONNX Runtime's own
            why = " ".join(str(error).split())[:200]
            self.failed[schedule.method] = why
            raise UsageError(why, where=f"--method {schedule.method}") from error

    def left_out(self) -> list[str]:
        """Notes on methods of which a schedule could not be run."""
        return [f"could not be run on the images: {m}: {why}" for m, why in self.failed.items()]

    @property
    def mode(self) -> str:
        """`reduced` or `restored`."""
        return self.request.outputs

    def resized(
        self, schedule: Schedule, graph: Callable[[Schedule], gs.Graph], images: int
    ) -> Floats:
        """The loss of a schedule with a smaller image on each of the first images.

        Args:
            graph: gives the graph of it.
        """
        assert schedule.resized is not None
        name = digest_of({"resized": schedule.resized.to_json()})
        known = self.known.get(name, [])
        if len(known) < images:
            self._show("resolution")
            dense = {name: array[:images] for name, array in self.evaluator.dense.items()}
            few = {name: array[:images] for name, array in self.samples.arrays.items()}
            reduced = run_graph(graph(schedule), replace(self.samples, arrays=few))
            known = self.known[name] = _finite(distance(dense, reduced))
        return np.asarray(known[:images])

    def expect(self, images: float) -> None:
        """Note how many images more are likely to be run."""
        self.expected = self._done + images

    def _show(self, method: str) -> None:
        spent, share = time.monotonic() - self._begun, 0.0
        if self.expected:
            share = min(self._done / self.expected, 0.99)
        left = f", about {spent * (1 - share) / share:.0f} s left" if share > 0.05 else ""
        self.say(f"calibrating on {self.samples.source}: {share:.0%}{left} ({method})")

    def save(self) -> None:
        """Keep what was run for the next time."""
        keep(KIND, self.key, {"unit": self.unit, "losses": self.known})

    @property
    def words(self) -> str:
        """The losses, in words: what `search.summed_up` makes of them, too."""
        own = "" if not self.samples.scenes else "; your own images say more (--calibration)"
        return f"{self.unit} ({SUMMED_UP}), measured on {self.samples.source}{own}"

    def to_json(self) -> dict[str, Any]:
        """What the losses rest on, for the manifest."""
        return {
            "images": len(self.samples),
            "source": self.samples.source,
            "level": self.level.name,
            "schedules": len(self.known),
        }


def _finite(losses: Floats) -> list[float]:
    """Losses that can be summed up and written: what is no number is as bad as can be."""
    return [float(v) for v in np.nan_to_num(losses, nan=_WORST, posinf=_WORST)]


def _check(found: Mapping[str, Any]) -> None:
    if not all(isinstance(v, list) and v for v in found["losses"].values()):
        raise UsageError("no losses", where="cache")
