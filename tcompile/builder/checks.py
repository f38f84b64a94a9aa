"""Measurements of a build: the normal form against the source, fidelity, latency on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.artifact.manifest import Fidelity, Latency, SpeedUp
from tcompile.core.errors import InternalError, ModelError
from tcompile.planning.losses.data import read_calibration, split
from tcompile.planning.request import NO_IMAGES, Request
from tcompile.planning.solve.plan_report import PlanReport
from tcompile.report.shown import Seen
from tcompile.runtime.metrics import without_equal_nonfinite
from tcompile.runtime.samples import Samples, run_all, samples_for
from tcompile.runtime.scenes import calibration_for, evidence_count, evidence_for
from tcompile.runtime.signature import Signature, signature
from tcompile.targets import Target
from tcompile.targets.backends.cpu import on_cpu
from tcompile.verify.fidelity import compare, look

if TYPE_CHECKING:
    from tcompile.runtime.timing import Speedup

#: Largest difference, relative to the largest value, that reordering fp32 sums may make.
_TOLERANCE = 1e-3
#: The same where the source rounds to fp16 after every operation and the normal form does not.
_HALF_TOLERANCE = 5e-2
#: The same where it rounds to whole numbers: more than rounding does, less than another model.
_QUANTIZED_TOLERANCE = 0.3
#: Rounds at least, and at most where it is not sure yet which of the two is faster.
_ROUNDS, _MOST_ROUNDS = 5, 60
#: Least speed-up to call one faster: an interval that is looked at again and again leaves 1 by
#: chance more often than once in twenty times.
_LEAST_GAIN = 1.01
_WIDENED = "the fp32 normal form of an fp16 source; "
#: Images of a person's own that fidelity is shown on, at most.
_MOST_IMAGES = 64


@dataclass(frozen=True)
class Evidence:
    """Figures for the manifest.

    Attributes:
        faster: whether the reduced model was measured to be faster than the dense one in the same
            precision: the whole 95 % interval of the speed-up lies above 1, and it is 1 % at least.
            None where nothing was measured.
        speedup: over the dense model in fp32; None as above.
        rival: over the dense model in int8 or bf16, of a model that is; None of any other.
        seen: some of the samples of fidelity, to show; None where no output can be compared.
    """

    fidelity: Fidelity
    latency: tuple[Latency, ...]
    notes: tuple[str, ...]
    faster: bool | None = None
    speedup: SpeedUp | None = None
    rival: SpeedUp | None = None
    seen: Seen | None = None


def check_normal_form(
    source: Path, normal: Path, *, half: bool = False, quantized: bool = False
) -> None:
    """Run the source and its normal form on the same input; they must agree.

    Args:
        half: whether the source computes in fp16.
        quantized: whether it quantises while it runs, which the normal form does not.

    Raises:
        ModelError: ONNX Runtime rejects the source (a broken export); what it quantises while it
            runs means something else without.
        InternalError: they differ.
    """
    samples = samples_for(signature(normal), count=1)
    try:
        expected = run_all(source, samples)
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if "numpy type" in reason.lower():
            raise ModelError(
                f"ONNX Runtime's Python cannot hold its outputs: {reason}",
                where=str(source),
                hint="export it with outputs of float32 or float16",
            ) from error
        free = signature(normal).batch is None
        hint = "it does not run with one image" if free else "the export is broken"
        raise ModelError(
            f"ONNX Runtime rejects it: {reason}", where=str(source), hint=hint
        ) from error
    actual = run_all(normal, samples)
    for name, want in expected.items():
        if want.dtype.kind != "f":
            continue
        want, have = without_equal_nonfinite(want, actual[name])
        scale = max(float(np.abs(want).max(initial=0)), 1e-6)
        error_size = float(np.abs(want - have).max(initial=0)) / scale
        if quantized:
            if not error_size <= _QUANTIZED_TOLERANCE:
                raise ModelError(
                    f"without the rounding that it does while it runs, output '{name}' differs by "
                    f"{error_size:.0%} of its largest value",
                    where=str(source),
                    hint="build from the model as it was before it was quantised",
                )
            continue
        if not error_size <= (_HALF_TOLERANCE if half else _TOLERANCE):
            raise InternalError(
                f"normalising changed output '{name}' by {error_size:.1e}", where=str(source)
            )


def evidence_of(
    model: Path, request: Request, planned: object, flops: int, calibrated: bool = False
) -> Samples:
    """Return what fidelity is shown on: images that were given to plan with, else scenes.

    Some of a person's images are not planned with: those it is shown on. Where a
    method learns from all of them, it is shown on these, and says so.

    Args:
        model: the shipped one, which records how images are prepared.
        planned: how the schedule was found.
        flops: of the dense model, for one image.
        calibrated: whether ranges are taken from the others, `calibration_of`.
    """
    if request.calibration in (None, NO_IMAGES):
        return evidence_for(signature(model).whole, count=evidence_count(flops))
    given = read_calibration(model, request.calibration)
    words = f"{given.samples.source}, which the plan was made with"
    solved = isinstance(planned, PlanReport)
    if solved or calibrated:
        total = given.samples.source
        _, given = split(given, request.seed, bound=request.bounded)
        what = "the plan was not made with" if solved else "ranges were not taken from"
        words = f"{len(given)} of {total} that {what} (seed {request.seed})"
    rows = np.arange(len(given))
    if len(rows) > _MOST_IMAGES:
        rows, words = rows[:_MOST_IMAGES], f"{_MOST_IMAGES} of {words}"
    return given.rows(rows, words).samples


def calibration_of(model: Signature, request: Request, flops: int) -> Samples:
    """Return what ranges of int8 and of mixed precision are taken from: images that were given,
    else scenes; none of those that fidelity is shown on.

    Args:
        model: inputs of the dense model.
        flops: as for `evidence_of`.
    """
    count = evidence_count(flops)
    if request.calibration in (None, NO_IMAGES):
        return calibration_for(model, count=count)
    given = read_calibration(model, request.calibration)
    fit, _ = split(given, request.seed, bound=request.bounded)
    rows = np.arange(min(len(fit), count))
    return fit.rows(rows, f"{len(rows)} of {given.samples.source}").samples


def measure(
    source: Path,
    reduced: Path,
    target: Target,
    *,
    samples: Samples | None = None,
    threads: int | None = None,
    batch: int = 1,
    decide: bool = True,
    seconds: float = 0.0,
    normal: Path | None = None,
    half: bool = False,
    precision: str = "fp32",
    schedule: Mapping[str, Any] | None = None,
    fidelity: Fidelity | None = None,
    seen: Seen | None = None,
    rival: Path | None = None,
) -> Evidence:
    """Fidelity of the reduced model on samples; on a CPU, also how long both take.

    Where the reduced model is not faster, a note says so.

    Args:
        samples: to show fidelity on; None: a few scenes.
        normal: the fp32 normal form of the source, which latency is compared with: of one that
            computes in fp16, and in OpenVINO.
        half: whether the source computes in fp16: it is timed apart from that, as it came.
        precision: of the reduced model.
        decide: measure on while it is not sure which is faster; of the dense model against itself
            it never will be.
        seconds: to measure for at least.
        threads, batch: to measure with; a fixed batch is what it is.
        schedule: of the reduced model, as JSON.
        fidelity, seen: where they are known already.
        rival: the dense model in int8 or bf16, of a reduced one that is too: which of them is
            faster counts then.
    """
    how = on_cpu(target, precision)
    if fidelity is None:
        samples = samples or evidence_for(signature(reduced).whole, count=2)
        both = run_all(source, samples), run_all(reduced, samples, how)
        fidelity = compare(*both, samples, schedule)
        seen = look(*both, samples, schedule)
        del both
    if not target.on_cpu:
        return Evidence(fidelity, (), (), seen=seen)
    from tcompile.runtime.timing import EMULATED, bench_models, dense_in

    most = _MOST_ROUNDS if decide else None
    timed = bench_models(
        normal or source,
        reduced,
        source=source if half else None,
        rival=rival,
        how=how,
        precision=precision,
        rounds=_ROUNDS,
        most=most,
        seconds=seconds,
        threads=threads,
        batch=batch,
    )
    latency = tuple(
        Latency(
            which,  # type: ignore[arg-type]
            "measured",
            timing.median,
            timed.machine,
            timed.runtime,
            timed.batch,
            (timing.lower, timing.upper),
            f"{words}{timed.rounds} interleaved rounds, {timed.threads} threads",
            timed.times[name],
        )
        for name, which, timing, words in (
            ("dense", "dense", timed.dense, _WIDENED if half else ""),
            ("reduced", "reduced", timed.reduced, ""),
            ("source", "source", timed.source, "fp16, as it came; "),
            ("rival", f"dense {precision}", timed.rival, ""),
        )
        if timing is not None
    )
    same, over = timed.rival_speedup, dense_in(precision)
    if same is None:
        same, over = timed.speedup, timed.compared
    faster = same.lower > 1 and same.ratio >= _LEAST_GAIN
    notes: list[str] = []
    if not faster:
        notes.append(f"not shown to be faster than dense here: {_times(same)} over {over}")
    if timed.source_speedup is not None:
        over = f"{_times(timed.speedup)} over {timed.compared}"
        notes.append(
            f"speed-up of the reduced model: {over}; {_times(timed.source_speedup)} over {EMULATED}"
        )
    gain = _entry(timed.speedup, timed.compared)
    rivals = (
        None if timed.rival_speedup is None else _entry(timed.rival_speedup, dense_in(precision))
    )
    return Evidence(fidelity, latency, tuple(notes), faster, gain, rivals, seen)


def _entry(found: Speedup, over: str) -> SpeedUp:
    return SpeedUp(found.ratio, found.lower, found.upper, over)


def _times(found: Speedup) -> str:
    return f"{found.ratio:.2f} × [{found.lower:.2f}, {found.upper:.2f}]"
