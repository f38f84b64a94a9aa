"""Judging a lowered model: it must compute what the reduced fp32 graph does. Part of every build.

Both run on scenes and noise; in 8 bits on images like those that its scales are from. The lowered
model is given the reference's choices (`pair`), so that each output is comparable, and rounds as a
GPU does (`spell_rounding`). Where an output is not finite or has left the fp32 values, the first
tensor that did so is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import FailedBuildError, InternalError, ModelError
from tcompile.core.progress import Progress, silent
from tcompile.runtime.metrics import jaccard
from tcompile.runtime.samples import Samples, batches, feed, rows_of
from tcompile.runtime.scenes import scenes_and_noise
from tcompile.runtime.signature import signature
from tcompile.targets.backends.ort import OrtRunner
from tcompile.verify.fidelity import FLOOR
from tcompile.verify.pair import Pair, Shared, with_outputs

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
FLOAT16_MAX = 65504
#: Least cosine of an output to the fp32 one, on the worst sample.
COSINES = {"fp16": 0.99, "mixed": 0.99, "bf16": 0.98, "fp32": 0.9999, "int8": FLOOR, "fp8": FLOOR}
#: Largest distance from it, of its norm: what the angle allows, and a little in length.
DISTANCES = {"fp16": 0.15, "mixed": 0.15, "bf16": 0.2, "fp32": 0.015, "int8": 0.5, "fp8": 0.5}
#: An output of so few values has no direction: its distance counts, of the largest sample's norm.
_FEW = 4
#: Share of choices that agree, below which it is worth a note.
_SAME = 0.95
#: Bytes of tensors that are looked at in one run, for one sample.
_AT_ONCE = 48 << 20


@dataclass(frozen=True)
class Difference:
    """A tensor of the lowered model against the fp32 one, where that is finite.

    Attributes:
        largest: the largest magnitude in fp32.
        relative: the largest difference, over `largest`; 1 where nothing is finite.
        distance: the norm of the difference, over the norm; 1 where nothing is finite.
        cosine: between the two, of what is finite; 0 where nothing is.
        not_finite: NaN and Inf in the lowered tensor alone.
        size: values.
    """

    largest: float
    relative: float
    distance: float
    cosine: float
    not_finite: int
    size: int

    def departs(self, precision: str) -> bool:
        """Tell whether it is not the same tensor any more."""
        near = self.cosine >= COSINES[precision] and self.distance <= DISTANCES[precision]
        return self.not_finite > 0 or not near


@dataclass(frozen=True)
class Judgement:
    """The result of judging a lowered model.

    Attributes:
        fault: what is wrong, in a sentence; None where nothing is.
        notes: what else a reader should know.
        data: the inputs, in words.
    """

    fault: FailedBuildError | None
    notes: tuple[str, ...]
    data: str


def difference(want: Array, have: Array) -> Difference:
    """Compare two arrays of one shape."""
    here = np.isfinite(want)
    bad = int((here & ~np.isfinite(have)).sum())
    both = here & np.isfinite(have)
    a, b = want[both].astype(np.float64), have[both].astype(np.float64)
    largest = float(np.abs(want[here]).max(initial=0))
    if bad and not a.size:
        return Difference(largest, 1.0, 1.0, 0.0, bad, want.size)
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    apart = a - b
    relative = float(np.abs(apart).max(initial=0)) / (largest or 1.0)
    if not any(norms) or (norms[0] == 0 and norms[1] <= 1e-3 * max(b.size, 1) ** 0.5):
        return Difference(largest, relative, 0.0, 1.0, bad, want.size)
    distance = float(np.linalg.norm(apart)) / (norms[0] or 1.0)
    cosine = float(a @ b) / (norms[0] * norms[1]) if all(norms) else 0.0
    return Difference(largest, relative, distance, float(np.clip(cosine, -1, 1)), bad, want.size)


def judge(
    pair: Pair,
    original: Path,
    *,
    precision: str,
    source: str,
    precisions: Sequence[str],
    samples: Samples | None = None,
    progress: Progress = silent,
) -> Judgement:
    """Run both models and compare them.

    Args:
        original: the lowered model as it is shipped; says what its inputs are.
        precision: it was lowered to.
        source: the user's file, for messages.
        precisions: that the target has.
        samples: to run both on; None: scenes and noise.

    Raises:
        InternalError: ONNX Runtime does not accept what became of the model.
    """
    samples = samples or scenes_and_noise(signature(original))
    try:
        found, choices = _compare(pair, samples)
    except InternalError as error:
        raise InternalError(error.what, where=source, hint=error.hint) from error
    worst = _worst(found, precision)
    notes = tuple(_other_choices(choices, precision, samples.source))
    if worst is None:
        return Judgement(None, notes, samples.source)
    output, sample, how = worst
    progress("looking for the first tensor that leaves the fp32 values")
    first = first_departure(pair, samples, sample, precision)
    what = f"in {precision} the model does not compute what the reduced fp32 graph does: "
    what += f"output '{output}' {_words(how, precision)}"
    if first is not None:
        what += f"; the first tensor to leave fp32 is {describe(*first, precision)}"
    instead = {
        "fp16": ("mixed", "fp32"),
        "mixed": ("fp32",),
        "bf16": ("mixed", "fp32"),
        "int8": ("fp8", "mixed"),
        "fp8": ("mixed",),
    }
    others = [p for p in instead.get(precision, ()) if p in precisions]
    hint = "--keep-failed writes the artifact all the same, to look into"
    ways = " or ".join(f"--precision {p}" for p in others)
    hint = f"build with {ways}; {hint}" if others else hint
    if precision == "fp32":
        hint = f"this is a fault of tcompile, please report it; {hint}"
    return Judgement(FailedBuildError(what, where=source, hint=hint), notes, samples.source)


def runs(
    pair: Pair, samples: Samples, more: Sequence[str] = ()
) -> Iterator[tuple[list[int], Arrays, Arrays]]:
    """Run the reference on everything, then the lowered model; yields batch after batch the
    samples' numbers, what the reference gives and what the lowered model.

    Args:
        more: tensors to give beside the outputs.
    """
    kept: list[tuple[Arrays, int, Arrays]] = []
    # One after the other: a session holds all weights, and some of them twice.
    with with_outputs(pair.reference, more) as path:
        runner = _open(path, "reduced")
    for arrays, true_rows in batches(samples, rows_of(runner) or 1):
        given = feed(runner.inputs, arrays)
        kept.append((given, true_rows, runner.run(given)))
    del runner
    with with_outputs(pair.judged, more) as path:
        runner = _open(path, "lowered")
    wanted, start = {info.name for info in runner.inputs}, 0
    for given, true_rows, want in kept:
        have = runner.run({n: a for n, a in {**given, **want}.items() if n in wanted})
        yield list(range(start, start + true_rows)), want, have
        start += true_rows


def _open(path: Path, which: str) -> OrtRunner:
    """Raise `InternalError` where ONNX Runtime does not accept what became of an accepted file."""
    try:
        return OrtRunner(path)
    except ModelError as error:
        reason = re.sub(r"Load model from \S+ failed:", "", error.what)
        raise InternalError(f"of the {which} graph: {reason}", hint="please report it") from error


def first_departure(
    pair: Pair, samples: Samples, sample: int, precision: str
) -> tuple[Shared, Difference] | None:
    """The first tensor of the lowered model that is not what it is in fp32, for one sample."""
    one = {name: array[sample : sample + 1] for name, array in samples.arrays.items()}
    for tensors, want, have in each_tensor(pair, Samples(one, "", real=False), pair.shared):
        for tensor in tensors:
            how = difference(tensor.compared(want[tensor.name]), have[tensor.name])
            if how.departs(precision):
                return tensor, how
    return None


def each_tensor(
    pair: Pair, samples: Samples, tensors: Sequence[Shared]
) -> Iterator[tuple[list[Shared], Arrays, Arrays]]:
    """Values of tensors, so many at once as fit into memory, in their order; of these, batch after
    batch."""
    given = set(pair.outputs) | set(pair.scores)
    part: list[Shared] = []
    for i, tensor in enumerate(tensors):
        part.append(tensor)
        full = sum(t.bytes for t in part) >= _AT_ONCE
        if full or i == len(tensors) - 1:
            for _, want, have in runs(pair, samples, [t.name for t in part if t.name not in given]):
                yield part, want, have
            part = []


def describe(tensor: Shared, how: Difference, precision: str) -> str:
    """A tensor and its node, in the user's names, and how it differs."""
    if tensor.own:
        before = f", behind the user's node '{tensor.owner}'" if tensor.owner else ""
        node = f"tcompile's node '{tensor.node}' ({tensor.op}){before}"
    else:
        node = f"node '{tensor.owner}' ({tensor.op})"
    return f"'{tensor.name}' of {node}: {_words(how, precision)}"


def _words(how: Difference, precision: str) -> str:
    large = f"; in fp32 it reaches {how.largest:.3g}"
    if precision == "fp16" and how.largest > FLOAT16_MAX:
        large += f", beyond fp16's {FLOAT16_MAX}"
    if how.not_finite:
        return f"has {how.not_finite} NaN or Inf among {how.size} values{large}"
    return f"has cosine {how.cosine:.4f} and is {how.distance:.1%} of its norm away{large}"


def _compare(
    pair: Pair, samples: Samples
) -> tuple[dict[str, list[Difference]], dict[str, list[float]]]:
    """Return the difference of each sample for each output and score, and for each choice the share
    that is the same."""
    kept: dict[str, list[tuple[Array, Array]]] = {n: [] for n in (*pair.outputs, *pair.scores)}
    choices: dict[str, list[float]] = {name: [] for name in pair.pins}
    for numbers, want, have in runs(pair, samples):
        for name, rows in kept.items():
            rows += [(a, b) for a, b in _rows(want[name], have[name], len(numbers))]
        for name, own in pair.pins.items():
            a, b = want[name], have[own]
            if a.ndim == 2 and a.dtype == np.int64 and a.shape == b.shape:
                choices[name] += jaccard(a, b).tolist()
    found = {name: [_fair(row, rows) for row in rows] for name, rows in kept.items()}
    for name in pair.scores:
        # What scores say is in the choice; here they only have to be finite.
        found[name] = [replace(how, distance=0.0, cosine=1.0) for how in found[name]]
    return found, choices


def _rows(want: Array, have: Array, count: int) -> Iterator[tuple[Array, Array]]:
    """One pair of arrays a sample, or one alone where samples lie along another axis."""
    if want.ndim and want.shape[0] >= count and count > 1:
        yield from zip(want[:count], have[:count], strict=True)
    else:
        for _ in range(count):
            yield want, have


def _fair(row: tuple[Array, Array], rows: Sequence[tuple[Array, Array]]) -> Difference:
    how = difference(*row)
    if row[0].size >= _FEW or how.not_finite:
        return how
    largest = max(float(np.linalg.norm(np.nan_to_num(want))) for want, _ in rows)
    apart = float(np.linalg.norm(np.nan_to_num(row[0]) - np.nan_to_num(row[1])))
    return replace(how, distance=apart / (largest or 1.0), cosine=1.0)


def _worst(
    found: Mapping[str, list[Difference]], precision: str
) -> tuple[str, int, Difference] | None:
    """The output and sample that is furthest away; None where all are near enough."""
    bad = [
        (-how.not_finite, how.cosine, -how.distance, name, sample, how)
        for name, rows in found.items()
        for sample, how in enumerate(rows)
        if how.departs(precision)
    ]
    if not bad:
        return None
    *_, name, sample, how = min(bad, key=lambda b: b[:5])
    return name, sample, how


def _other_choices(
    choices: Mapping[str, list[float]], precision: str, source: str
) -> Iterator[str]:
    least: dict[str, float] = {}
    for name, shares in choices.items():
        if shares and np.mean(shares) < _SAME:
            place = name.split("/")[1].replace("_", ":", 1) if name.count("/") > 1 else name
            least[place] = min(float(np.mean(shares)), least.get(place, 1.0))
    if not least:
        return
    worst = min(least, key=lambda place: least[place])
    more = f" (at {len(least) - 1} other places more)" if len(least) > 1 else ""
    alike = f"{precision} and fp32 choose {least[worst]:.0%} of the tokens at {worst} alike{more}"
    yield f"{alike}, on {source}"
