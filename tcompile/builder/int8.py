"""int8 in a build: both kinds are made of the lowered file, run on images and timed; one is taken.

By then the lowered file is known to compute what the reduced graph does. What quantising adds is no
fault of rewriting, so that it is not judged by its tolerances but by what is left on images.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tcompile.artifact.manifest import Fidelity, Manifest, Quantization, Rival, SpeedUp
from tcompile.builder.checks import calibration_of
from tcompile.core.errors import FailedBuildError, ModelError
from tcompile.core.memory import release
from tcompile.passes.lower.int8 import Kind, nothing_to_quantize, quantizable, quantized
from tcompile.runtime.metrics import not_finite
from tcompile.runtime.samples import Samples, feeds, run_all
from tcompile.runtime.signature import signature
from tcompile.runtime.timing import speedup, time_models
from tcompile.runtime.token_outputs import showing_choice, token_overlap
from tcompile.verify.fidelity import compare, loss_of, rounding_fault

if TYPE_CHECKING:
    from tcompile.builder.emit import Models
    from tcompile.builder.job import Job
    from tcompile.core.progress import Progress
    from tcompile.runtime.samples import Array
    from tcompile.verify.lowered import Judgement

KINDS: tuple[Kind, ...] = ("dynamic", "static")
#: How many times what dynamic int8 loses static int8 may lose.
_MOST_LOSS = 1.5
#: Least speed-up to take static int8, as its interval may leave 1 by chance.
_LEAST_GAIN = 1.01
#: Rounds at least, and at most while it is not sure which kind is faster.
_ROUNDS, _MOST_ROUNDS = 5, 15


@dataclass(frozen=True)
class Candidate:
    """A model in one kind of int8.

    Attributes:
        fidelity: to the dense model as it came.
        fault: what is wrong with it; empty where nothing is.
        same_tokens: share of the tokens that the same model in fp32 chooses as well; None: it
            chooses none.
        times: milliseconds, a round each; empty where it was not timed.
    """

    kind: Kind
    path: Path
    fidelity: Fidelity
    fault: str = ""
    same_tokens: float | None = None
    times: Sequence[float] = ()

    @property
    def words(self) -> str:
        """Its kind, what it takes and what it loses."""
        took = f" takes {np.median(self.times):.4g} ms and" if len(self.times) else ""
        return f"{self.kind}{took} loses {loss_of(self.fidelity):.2g}"


@dataclass(frozen=True)
class Int8:
    """The model in int8 that is shipped, and the dense one that it is compared with.

    Attributes:
        entry: how it was made, for the manifest.
        fidelity: of it to the dense model as it came.
        rival: the dense model in int8; None where that is what is shipped.
        notes: why these kinds.
        fault: what is wrong with it; None where nothing is.
    """

    entry: Quantization
    fidelity: Fidelity
    rival: Candidate | None
    notes: tuple[str, ...]
    fault: FailedBuildError | None

    @property
    def rival_path(self) -> Path | None:
        """The file of the dense model in int8."""
        return None if self.rival is None else self.rival.path

    def noted(self, manifest: Manifest, gain: SpeedUp | None) -> Manifest:
        """A copy that says how it was put into int8, and of the dense model in int8.

        Args:
            gain: speed-up of the artifact over that.
        """
        dense = self.rival
        rival = None if dense is None else Rival(dense.kind, dense.fidelity, gain)
        return replace(manifest, quantization=self.entry, rival=rival)

    def added_to(self, judged: Judgement) -> Judgement:
        """What was judged of the lowered model, with what there is to say of int8."""
        notes = (*judged.notes, *self.notes)
        return replace(judged, notes=notes, fault=judged.fault or self.fault)


def choose_kind(found: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The better of the kinds, and why: static where it is measured to be faster, by more than the
    noise, and loses no more than half as much again as dynamic; one that is sound before one that
    is not."""
    sound = [one for one in found if not one.fault]
    if len(sound) == 1 and len(found) > 1:
        (other,) = (one for one in found if one.fault)
        return sound[0], f"{sound[0].words}; {other.kind}: {other.fault}"
    if len(found) == 1:
        return found[0], f"{found[0].words}; the other kind was not to be had"
    dynamic, static = sorted(found, key=lambda one: KINDS.index(one.kind))
    gain = speedup(dynamic.times, static.times)
    faster = gain.lower > 1 and gain.ratio >= _LEAST_GAIN
    near = loss_of(static.fidelity) <= _MOST_LOSS * loss_of(dynamic.fidelity)
    both = f"{dynamic.words}, {static.words}"
    if faster and near:
        return static, f"{both}: static is faster and loses at most {_MOST_LOSS:g} times as much"
    more = f"loses more than {_MOST_LOSS:g} times as much"
    return dynamic, f"{both}: static {more if faster else 'is not shown to be faster'}"


def quantize_models(
    models: Models, job: Job, samples: Samples, folder: Path, say: Progress
) -> Int8:
    """Put the shipped model into int8, in its place, and for a comparison the dense one.

    Args:
        samples: fidelity is shown on.
        folder: takes the other models.

    Raises:
        ModelError: nothing in it can be int8, or ONNX Runtime's quantizer does not take it.
        FailedBuildError: it is not finite in int8, or loses too much.
    """
    say("quantising to int8")
    ranges = calibration_of(signature(models.shipped).whole, job.request, models.flops.dense)
    products = len(quantizable(onnx.load(models.shipped, load_external_data=False)))
    if not products:
        raise nothing_to_quantize(str(job.path))
    plans = {"reduced": models.shipped}
    if not models.schedule.dense:
        plans["dense"] = models.dense
    made: dict[str, dict[Kind, Path]] = {}
    notes: list[str] = []
    for name, path in plans.items():
        # A drop was shown on dynamic int8: the model that ships must be that one.
        kinds = KINDS if job.request.max_drop is None or name == "dense" else KINDS[:1]
        made[name], failed = _make(path, ranges, folder / f"int8-{name}", str(job.path), kinds)
        notes += [f"the {name} model in static int8 could not be made: {failed}"] if failed else []
    say("running int8 on images")
    want, schedule = run_all(job.path, samples), models.schedule.to_json()
    own = {"reduced": _run(models.shipped, samples), "dense": want}
    found = {
        name: [_candidate(k, p, want, own[name], samples, schedule) for k, p in files.items()]
        for name, files in made.items()
    }
    release()
    say("timing int8")
    found = _timed(models.dense, found, job)
    chosen, why = choose_kind(found["reduced"])
    rival = None
    if "dense" in found:
        rival, reason = choose_kind(found["dense"])
        notes.append(f"dense int8 is {rival.kind}: {reason}")
    _ship(chosen, models.shipped)
    data = ranges.source if chosen.kind == "static" else ""
    fault = _fault(chosen, str(job.path))
    if fault is not None and not job.keep_failed:
        raise fault
    entry = Quantization(chosen.kind, why, products, data, chosen.same_tokens)
    notes.insert(0, f"int8 is {chosen.kind}: {why}")
    return Int8(entry, chosen.fidelity, rival, tuple(notes), fault)


def _ship(chosen: Candidate, place: Path) -> None:
    """Put a model in the place of the one that it was made of."""
    for path in (place, place.with_name(f"{place.name}.data")):
        path.unlink(missing_ok=True)
    shutil.move(chosen.path, place)  # from another disk, maybe


def _make(
    path: Path, ranges: Samples, folder: Path, source: str, kinds: Sequence[Kind]
) -> tuple[dict[Kind, Path], str]:
    """The files of a model in each kind of int8, and why static could not be had; empty: it was."""
    folder.mkdir()
    model, feed = onnx.load(path), list(feeds(signature(path), ranges))
    made: dict[Kind, Path] = {}
    for kind in kinds:
        try:
            result = quantized(model, kind, feed)
        except ModelError as error:
            if not made:
                error.where = source
                error.args = (error.one_line(),)
                raise
            return made, error.what
        made[kind] = folder / f"{kind}.onnx"
        onnx.save(result, made[kind])
    return made, ""


def _candidate(
    kind: Kind,
    path: Path,
    want: Mapping[str, Array],
    own: Mapping[str, Array],
    samples: Samples,
    schedule: Mapping[str, Any],
) -> Candidate:
    """Run a model in int8 on the samples, and compare it with the dense one as it came.

    Args:
        want: what that gives.
        own: what the same model gives in fp32.
    """
    have = _run(path, samples)
    fidelity, fp32 = (compare(want, outputs, samples, schedule) for outputs in (have, own))
    fault = "; ".join(not_finite(have, own)) or rounding_fault(fidelity, fp32)
    overlap = token_overlap(own, have)
    return Candidate(
        kind, path, fidelity, fault, None if overlap is None else float(overlap.mean())
    )


def _run(path: Path, samples: Samples) -> dict[str, Array]:
    """Every output, with what tells of the tokens."""
    with showing_choice(path) as telling:
        return run_all(telling, samples)


def _timed(
    dense: Path, found: Mapping[str, list[Candidate]], job: Job
) -> dict[str, list[Candidate]]:
    """The candidates with their times, all measured in the same rounds, and the dense model too."""
    files = [one.path for each in found.values() for one in each]
    several = len(found["reduced"]) > 1
    rounds = time_models(
        [dense, *files],
        rounds=_ROUNDS,
        decide=(1, 2) if several else (0, 1),
        most=_MOST_ROUNDS,
        threads=job.request.threads,
        batch=job.request.batch,
    )
    times = dict(zip(files, rounds.times[1:], strict=True))
    return {n: [replace(one, times=times[one.path]) for one in each] for n, each in found.items()}


def _fault(chosen: Candidate, source: str) -> FailedBuildError | None:
    if not chosen.fault:
        return None
    return FailedBuildError(
        f"in int8 ({chosen.kind}) the model is not what it is in fp32: {chosen.fault}",
        where=source,
        hint="build with --precision fp32; --keep-failed writes the artifact all the same, to look "
        "into",
    )
