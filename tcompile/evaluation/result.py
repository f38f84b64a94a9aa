"""The result of an evaluation, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tcompile.core.errors import UsageError, VerificationError
from tcompile.data.base import Unreadable
from tcompile.evaluation.findings import Gate, Measure, OutputFindings, Overlap

#: Every measure there is, and whether more of it is better.
MEASURES = {
    **dict.fromkeys(
        (
            *("top1", "top5", "agreement", "zeroshot1", "zeroshot5", "zeroshot_agreement"),
            *("cosine", "neighbours", "own", "knn", "recall1", "map"),
            *("correlation", "miou", "pixel", "pixel_agreement", "ap", "ap50", "ap75"),
        ),
        True,
    ),
    **dict.fromkeys(("error", "error_p95", "absolute_error"), False),
}
#: Those that compare the two models: there is none of the reduced model alone.
COMPARED = frozenset(
    (
        *("agreement", "zeroshot_agreement", "pixel_agreement", "cosine", "neighbours", "own"),
        *("correlation", "error", "error_p95", "absolute_error"),
    )
)
INTERVALS = (
    "95 %, over images: Agresti-Min of paired shares (with McNemar's exact p), Wilson of single "
    "shares, jackknife of AP over 20 groups, bootstrap with 1000 resamples of everything else"
)
#: 1 − 0.95 is not 0.05 to a computer.
_ROUNDING = 1e-9
#: Share of the images that cannot be read, beyond which the others show nothing of all.
_UNREADABLE = 0.1
#: Which output a reader is told of first.
_ORDER = ("classes", "boxes", "label map", "embedding", "features", "number")


@dataclass(frozen=True)
class Evaluation:
    """Dense and reduced on the same data.

    Attributes:
        artifact, dense: what was compared; dense None: the artifact alone.
        same_source: whether the dense model is, byte for byte, what the artifact was built from;
            None: the artifact is a plain ONNX file, or there is no dense model.
        runtime, precision: of the artifact; the dense model ran in ONNX Runtime as it is.
        data: its name; images: how many were evaluated; labelled: those with a label.
        unreadable: which were not, and why.
        outputs: the figures, the output that says most first.
        overlaps: of the sets of kept tokens.
        gates: bounds that were asked for.
        notes: a sentence each.
    """

    artifact: str
    dense: str | None
    same_source: bool | None
    runtime: str
    precision: str
    data: str
    images: int
    labelled: int
    unreadable: tuple[Unreadable, ...]
    outputs: tuple[OutputFindings, ...]
    overlaps: tuple[Overlap, ...] = ()
    gates: tuple[Gate, ...] = ()
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether no bound was missed; one that rests on too few of the images is."""
        return all(gate.passed for gate in self.gates) and not (self.gates and self.too_few)

    @property
    def too_few(self) -> bool:
        """Tell whether more than a tenth of the images could not be read."""
        unread = len(self.unreadable)
        return unread > _UNREADABLE * (self.images + unread)

    def measure(self, name: str, output: str | None = None) -> Measure:
        """A measure by its name, of an output or of the first that has it.

        Raises:
            KeyError: there is none.
        """
        for found in self.outputs:
            for measure in found.measures if output in (None, found.output) else ():
                if measure.name == name:
                    return measure
        raise KeyError(f"no measure '{name}'")

    def require(self) -> None:
        """Raise `VerificationError` with the first bound that is missed, if there is one."""
        if self.gates and self.too_few:
            unread = len(self.unreadable)
            raise VerificationError(
                f"no bound holds: {unread} of {self.images + unread} images could not be read",
                where=self.data,
            )
        for gate in self.gates:
            if not gate.passed:
                raise VerificationError(fault(gate), where=self.artifact)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values; `worst` has the images of all outputs."""
        worst = [{"output": o.output, **asdict(d)} for o in self.outputs for d in o.worst]
        return {
            "schema": 1,
            "passed": self.passed,
            **asdict(self),
            "worst": worst,
            "intervals": INTERVALS,
        }


def in_order(findings: Sequence[OutputFindings]) -> tuple[OutputFindings, ...]:
    """The output that says most first."""
    return tuple(sorted(findings, key=lambda found: _ORDER.index(found.task)))


@dataclass(frozen=True)
class Bound:
    """A bound on a measure of the reduced model (`under`), or on what it loses (`drop`)."""

    measure: str
    value: float
    drop: bool = False

    @property
    def option(self) -> str:
        """The option that says it."""
        return "--fail-drop" if self.drop else "--fail-under"

    def check(self) -> None:
        """Raise UsageError where there is no such measure, or it has no such bound."""
        if self.measure not in MEASURES:
            raise UsageError(
                f"there is no measure '{self.measure}'",
                where=self.option,
                hint=f"one of {', '.join(MEASURES)}",
            )
        if not self.drop and not MEASURES[self.measure]:
            raise UsageError(
                f"'{self.measure}' is an error, less of it is better", where=self.option
            )
        if MEASURES[self.measure] and (self.value >= 1 if self.drop else self.value > 1):
            raise UsageError(
                f"'{self.measure}' is 1 at most: a bound of {self.value:g} "
                + ("always holds" if self.drop else "never holds"),
                where=self.option,
                hint=f"of {self.value:g} %: {self.measure}={self.value / 100:g}",
            )


def judged(bounds: Sequence[Bound], findings: Sequence[OutputFindings]) -> tuple[Gate, ...]:
    """Each bound for each output that has its measure.

    Raises:
        UsageError: no output has it.
        VerificationError: none can have it, since an output is NaN or Inf.
    """
    gates = []
    for bound in bounds:
        rows = [(o, m) for o in findings for m in o.measures if m.name == bound.measure]
        broken = next((o for o in findings if o.not_finite), None)
        if not rows and broken is not None:
            raise VerificationError(
                f"'{bound.measure}' cannot be told: '{broken.output}' has NaN or Inf in "
                f"{broken.not_finite} images",
                where=bound.option,
            )
        if not rows:
            have = ", ".join(dict.fromkeys(m.name for o in findings for m in o.measures))
            raise UsageError(
                f"'{bound.measure}' was not measured: the data, or the output, is not for it",
                where=bound.option,
                hint=f"measured: {have or 'nothing'}",
            )
        for output, measure in rows:
            found = _lost(measure, bound) if bound.drop else measure.reduced
            over = found - bound.value if bound.drop else bound.value - found
            bad = output.not_finite
            kind: Literal["drop", "under"] = "drop" if bound.drop else "under"
            passed = over <= _ROUNDING and not bad
            gates.append(Gate(measure.name, output.output, kind, bound.value, found, passed, bad))
    return tuple(gates)


def _lost(measure: Measure, bound: Bound) -> float:
    """What the reduced model loses of a measure. What compares the two models would be 1 (errors:
    0) if nothing were lost."""
    if measure.difference is not None:
        return 0.0 - measure.difference if measure.higher_is_better else measure.difference
    return 1 - measure.reduced if measure.higher_is_better else measure.reduced


def fault(gate: Gate) -> str:
    """A missed bound in words."""
    if gate.not_finite:
        count = gate.not_finite
        many = "1 image has" if count == 1 else f"{count} images have"
        return f"no bound on {gate.measure} holds: {many} NaN or Inf in '{gate.output}'"
    words = f"is {gate.found:.4f}, less than"
    if gate.kind == "drop":
        words = f"drops by {gate.found:.4f}, more than"
    return f"{gate.measure} of '{gate.output}' {words} {gate.bound:g}"
