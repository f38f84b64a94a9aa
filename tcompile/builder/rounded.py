"""What is rounded in a build: int8, of which each kind is made of the lowered file, run on images
and timed, and one is taken; and all that OpenVINO runs, where bf16 is a setting, not a file.

By then the lowered file is known to compute what the reduced graph does. What quantising or another
runtime adds is no fault of rewriting, so that it is not judged by its tolerances but by what is
left on images.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx

from tcompile.artifact.manifest import Fidelity, Manifest, Quantization, Rival, RivalKind, SpeedUp
from tcompile.builder.checks import calibration_of
from tcompile.core.errors import FailedBuildError, ModelError
from tcompile.core.memory import release
from tcompile.passes.lower.int8 import Kind, nothing_to_quantize, quantizable, quantized
from tcompile.report.shown import Seen
from tcompile.runtime.metrics import not_finite
from tcompile.runtime.samples import Samples, feeds, run_all
from tcompile.runtime.signature import signature
from tcompile.runtime.smoothing import WEIGHED_ON, smooth_file
from tcompile.runtime.timing import speedup, time_models
from tcompile.runtime.token_outputs import showing_choice, token_overlap
from tcompile.targets.backends.cpu import OnCpu, on_cpu
from tcompile.verify.fidelity import compare, look, loss_of, rounding_fault

if TYPE_CHECKING:
    from tcompile.builder.emit import Models
    from tcompile.builder.job import Job
    from tcompile.core.progress import Progress
    from tcompile.runtime.samples import Array
    from tcompile.verify.lowered import Judgement

#: Runtime and precision → the ways in which such a model can be had. Of OpenVINO's int8 one: where
#: scales are looked up while it runs it is slower than fp32 (2026.4: zoo:glyphs 5.9 ms, fp32 3.3,
#: static 2.6).
KINDS: Mapping[tuple[str, str], tuple[RivalKind, ...]] = {
    ("onnxruntime", "int8"): ("dynamic", "static"),
    ("openvino", "int8"): ("static",),
    ("openvino", "bf16"): ("bf16",),
    ("openvino", "fp32"): ("fp32",),
}
#: How many times what dynamic int8 loses static int8 may lose.
_MOST_LOSS = 1.5
#: Least speed-up to take static int8, as its interval may leave 1 by chance.
_LEAST_GAIN = 1.01
#: Rounds at least, and at most while it is not sure which kind is faster.
_ROUNDS, _MOST_ROUNDS = 5, 15


@dataclass(frozen=True)
class Candidate:
    """A model that is rounded in one way.

    Attributes:
        fidelity: to the dense model as it came.
        fault: what is wrong with it; empty where nothing is.
        same_tokens: share of the tokens that the same model in fp32 chooses as well; None: it
            chooses none.
        times: milliseconds, a round each; empty where it was not timed.
        seen: some of the samples, to show.
    """

    kind: RivalKind
    path: Path
    fidelity: Fidelity
    fault: str = ""
    same_tokens: float | None = None
    times: Sequence[float] = ()
    seen: Seen | None = None

    @property
    def words(self) -> str:
        """Its kind, what it takes and what it loses."""
        took = f" takes {np.median(self.times):.4g} ms and" if len(self.times) else ""
        return f"{self.kind}{took} loses {loss_of(self.fidelity):.2g}"


@dataclass(frozen=True)
class Rounded:
    """The model that is shipped, and the dense one in the same precision.

    Attributes:
        entry: how it was put into int8, for the manifest; None of another precision.
        fidelity: of it to the dense model as it came.
        rival: the dense model in the same precision; None where that is what is shipped, and in
            fp32, where it is compared with anyway.
        notes: why these kinds.
        fault: what is wrong with it; None where nothing is.
        seen: some of the samples of fidelity, to show.
    """

    entry: Quantization | None
    fidelity: Fidelity
    rival: Candidate | None
    notes: tuple[str, ...]
    fault: FailedBuildError | None
    seen: Seen | None = None

    @property
    def rival_path(self) -> Path | None:
        """The file of the dense model in that precision."""
        return None if self.rival is None else self.rival.path

    def noted(self, manifest: Manifest, gain: SpeedUp | None) -> Manifest:
        """A copy that says how it was put into int8, and of the dense model in its precision.

        Args:
            gain: speed-up of the artifact over that.
        """
        dense = self.rival
        rival = None if dense is None else Rival(dense.kind, dense.fidelity, gain)
        return replace(manifest, quantization=self.entry, rival=rival)

    def added_to(self, judged: Judgement) -> Judgement:
        """What was judged of the lowered model, with what there is to say of rounding."""
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
        alone = "; the other kind was not to be had" if found[0].kind == "dynamic" else ""
        return found[0], f"{found[0].words}{alone}"
    dynamic, static = sorted(found, key=attrgetter("kind"))
    gain = speedup(dynamic.times, static.times)
    faster = gain.lower > 1 and gain.ratio >= _LEAST_GAIN
    near = loss_of(static.fidelity) <= _MOST_LOSS * loss_of(dynamic.fidelity)
    both = f"{dynamic.words}, {static.words}"
    if faster and near:
        return static, f"{both}: static is faster and loses at most {_MOST_LOSS:g} times as much"
    more = f"loses more than {_MOST_LOSS:g} times as much"
    return dynamic, f"{both}: static {more if faster else 'is not shown to be faster'}"


def round_models(
    models: Models, job: Job, samples: Samples, folder: Path, say: Progress
) -> Rounded:
    """Put the shipped model into its precision, in its place, and for a comparison the dense one;
    run both as they will be run.

    Args:
        samples: fidelity is shown on.
        folder: takes the other models.

    Raises:
        ModelError: nothing in it can be int8, or ONNX Runtime's quantizer or OpenVINO does not take
            it.
        FailedBuildError: it is not finite in that precision, or loses too much.
    """
    how, precision = on_cpu(job.target, job.precision), job.precision
    int8 = precision == "int8"
    plans = {"reduced": models.shipped}
    if precision != "fp32" and not models.schedule.dense:
        plans["dense"] = models.dense
    made: dict[str, dict[RivalKind, Path]] = {}
    notes: list[str] = []
    products, ranges, smoothed = 0, "", 0
    if int8:
        say("quantising to int8")
        ranged = calibration_of(signature(models.shipped).whole, job.request, models.flops.dense)
        products, ranges = _products(models.shipped, str(job.path)), ranged.source
    for name, path in plans.items():
        kinds = KINDS[how.runtime, precision]
        if not int8:
            made[name] = {kinds[0]: path}
            continue
        # A drop was shown on dynamic int8: the model that ships must be that one.
        kinds = kinds[:1] if job.request.max_drop is not None and name == "reduced" else kinds
        made[name], norms, failed = _make(
            path, ranged, folder / f"int8-{name}", str(job.path), kinds
        )
        smoothed = norms if name == "reduced" else smoothed
        notes += [f"the {name} model in static int8 could not be made: {failed}"] if failed else []
    say(f"running it on images in {precision}")
    want, schedule = run_all(job.path, samples), models.schedule.to_json()
    own = {"reduced": _run(models.shipped, samples), "dense": want}
    found: dict[str, list[Candidate]] = {}
    for name, files in made.items():
        try:
            found[name] = [
                _candidate(k, p, want, own[name], samples, schedule, how) for k, p in files.items()
            ]
        except ModelError as error:  # of a file that is gone when the error is read
            error.where = str(job.path)
            error.args = (error.one_line(),)
            raise
    release()
    if any(len(each) > 1 for each in found.values()):
        say("timing int8")
        found = _timed(models.dense, found, job, how)
    chosen, why = choose_kind(found["reduced"])
    rival = None
    if "dense" in found:
        rival, reason = choose_kind(found["dense"])
        notes += [f"dense int8 is {rival.kind}: {reason}"] if int8 else []
    fault = _fault(chosen, job)
    if fault is not None and not job.keep_failed:
        raise fault
    if not int8:
        notes = _of_tokens(chosen, how)
        return Rounded(None, chosen.fidelity, rival, tuple(notes), fault, chosen.seen)
    _ship(chosen, models.shipped)
    data = ranges if chosen.kind == "static" else ""
    kind = cast("Kind", chosen.kind)
    weighed = f"{smoothed} norms, weighed on {WEIGHED_ON}" if smoothed else ""
    entry = Quantization(kind, why, products, data, weighed, chosen.same_tokens)
    notes.insert(0, f"int8 is {kind}: {why}")
    return Rounded(entry, chosen.fidelity, rival, tuple(notes), fault, chosen.seen)


def _products(path: Path, source: str) -> int:
    """How many products of a file int8 is for.

    Raises:
        ModelError: none.
    """
    found = len(quantizable(onnx.load(path, load_external_data=False)))
    if not found:
        raise nothing_to_quantize(source)
    return found


def _of_tokens(chosen: Candidate, how: OnCpu) -> list[str]:
    """A note of the tokens that are chosen otherwise than in fp32 in ONNX Runtime."""
    same = chosen.same_tokens
    if same is None:
        return []
    where = f"{how.words}, {chosen.kind}"
    return [f"{where}: {same:.1%} of the tokens are chosen as in ONNX Runtime in fp32"]


def _ship(chosen: Candidate, place: Path) -> None:
    """Put a model in the place of the one that it was made of."""
    for path in (place, place.with_name(f"{place.name}.data")):
        path.unlink(missing_ok=True)
    shutil.move(chosen.path, place)  # from another disk, maybe


def _make(
    path: Path, ranges: Samples, folder: Path, source: str, kinds: Sequence[RivalKind]
) -> tuple[dict[RivalKind, Path], int, str]:
    """The files of a model in each kind of int8, how many norms were smoothed for it, and why
    static could not be had; empty: it was."""
    folder.mkdir()
    feed, model, smoothed = list(feeds(signature(path), ranges)), None, 0
    made: dict[RivalKind, Path] = {}
    for kind in kinds:
        try:
            if model is None:
                smoothed = smooth_file(path, folder / "smoothed.onnx")
                model = onnx.load(folder / "smoothed.onnx")
            result = quantized(model, cast("Kind", kind), feed)
        except ModelError as error:
            if not made:
                error.where = source
                error.args = (error.one_line(),)
                raise
            return made, smoothed, error.what
        made[kind] = folder / f"{kind}.onnx"
        onnx.save(result, made[kind])
    return made, smoothed, ""


def _candidate(
    kind: RivalKind,
    path: Path,
    want: Mapping[str, Array],
    own: Mapping[str, Array],
    samples: Samples,
    schedule: Mapping[str, Any],
    how: OnCpu,
) -> Candidate:
    """Run a rounded model on the samples, and compare it with the dense one as it came.

    Args:
        want: what that gives.
        own: what the same model gives in fp32 in ONNX Runtime.
    """
    have = _run(path, samples, how)
    fidelity, fp32 = (compare(want, outputs, samples, schedule) for outputs in (have, own))
    fault = "; ".join(not_finite(have, own)) or rounding_fault(fidelity, fp32)
    overlap = token_overlap(own, have)
    same = None if overlap is None else float(overlap.mean())
    seen = look(want, have, samples, schedule)
    return Candidate(kind, path, fidelity, fault, same, seen=seen)


def _run(path: Path, samples: Samples, how: OnCpu | None = None) -> dict[str, Array]:
    """Every output, with what tells of the tokens."""
    with showing_choice(path) as telling:
        return run_all(telling, samples, how)


def _timed(
    dense: Path, found: Mapping[str, list[Candidate]], job: Job, how: OnCpu
) -> dict[str, list[Candidate]]:
    """The candidates with their times, all measured in the same rounds, and the dense model too."""
    files = [one.path for each in found.values() for one in each]
    several = len(found["reduced"]) > 1
    rounds = time_models(
        [dense, *files],
        [how.exact, *(how for _ in files)],
        rounds=_ROUNDS,
        decide=(1, 2) if several else (0, 1),
        most=_MOST_ROUNDS,
        threads=job.request.threads,
        batch=job.request.batch,
    )
    times = dict(zip(files, rounds.times[1:], strict=True))
    return {n: [replace(one, times=times[one.path]) for one in each] for n, each in found.items()}


def _fault(chosen: Candidate, job: Job) -> FailedBuildError | None:
    if not chosen.fault:
        return None
    precision = job.precision
    if precision == "fp32":
        what = f"in {job.target.runtime} the model is not what it is in ONNX Runtime"
    else:
        kind = f" ({chosen.kind})" if precision == "int8" else ""
        what = f"in {precision}{kind} the model is not what it is in fp32"
    return FailedBuildError(
        f"{what}: {chosen.fault}",
        where=str(job.path),
        hint="build with --target cpu, which is ONNX Runtime; --keep-failed writes the artifact "
        "all the same, to look into"
        if precision == "fp32"
        else "build with --precision fp32; --keep-failed writes the artifact all the same, to look "
        "into",
    )
