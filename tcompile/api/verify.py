"""Checks of an artifact, each answering one question."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from tcompile.api.layers import Layer, layers_of
from tcompile.api.reference import DenseModel, find_dense, gone, reduced_reference
from tcompile.artifact.directory import Artifact, load_artifact
from tcompile.artifact.manifest import Fidelity
from tcompile.core.errors import ModelError, UsageError, VerificationError
from tcompile.core.memory import release
from tcompile.core.model_files import file_entry
from tcompile.core.progress import Progress, silent
from tcompile.deploy.checks import check_host_code
from tcompile.runtime.metrics import not_finite
from tcompile.runtime.samples import Samples, run_all
from tcompile.runtime.scenes import JUDGED_ON, evidence_count, evidence_for, scenes_and_noise
from tcompile.runtime.signature import signature
from tcompile.runtime.token_outputs import showing_choice, token_overlap, tower_of_outputs
from tcompile.targets.backends.base import FusedAttention
from tcompile.targets.backends.cpu import ORT, OnCpu, on_cpu
from tcompile.targets.backends.jetson_texts import CHECK_SCRIPT
from tcompile.targets.devices import HALF, ROUNDED
from tcompile.verify.fidelity import compare, rounding_fault
from tcompile.verify.fusion import fused_attention, fused_on_device, fusion_fault
from tcompile.verify.numerics import TOLERANCES, Numerics, compare_numerics

__all__ = ["Check", "Layer", "Verification", "verify"]

Array = npt.NDArray[Any]
Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One question and its answer; `detail` is a sentence."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Verification:
    """Everything `verify` found out. Fidelity is a figure, not a check; layers are a table."""

    artifact: str
    checks: tuple[Check, ...]
    numerics: Numerics | None
    fidelity: Fidelity | None
    fused_attention: FusedAttention | None
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether no check failed."""
        return all(check.outcome != "failed" for check in self.checks)

    def require(self) -> None:
        """Raise `VerificationError` with the first failure, if there is one."""
        for check in self.checks:
            if check.outcome == "failed":
                raise VerificationError(check.detail, where=f"{self.artifact}: {check.name}")

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {"passed": self.passed, **asdict(self)}


def verify(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    preprocess: str | None = None,
    samples: int | None = None,
    seed: int = JUDGED_ON,
    layers: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Check an artifact: its files, its numerics, its fused attention; and measure its fidelity.

    What is built for OpenVINO is run there, all else in ONNX Runtime. Numerics of a model in int8
    or bf16, or in another runtime, are not near those of the fp32 graph in ONNX Runtime: it may
    lose so much of the fidelity that the graph has there, `verify.fidelity.FLOOR`.

    Args:
        against: the dense model; by default the source, where the manifest says it lies.
        data: see `tcompile.data.opening.FORMS`; by default procedural scenes.
        samples, seed: of the scenes; by default those that the build showed fidelity on.
        preprocess: how images are prepared, in place of what the artifact records.
        layers: compare the model with the reduced fp32 graph layer by layer too, on the data or,
            without any, on procedural scenes and noise.

    Raises:
        UsageError, ModelError: something given cannot be used; layers without the source. A check
            that does not hold is not an exception here: see `Verification.require`.
    """
    opened = load_artifact(artifact)
    own = signature(opened.model)
    model = own.whole.prepared(preprocess)
    count = samples or evidence_count(opened.manifest.flops.dense)
    inputs = evidence_for(model, data, count=count, seed=seed)
    dense = find_dense(opened, against)
    if layers and (dense is None or not dense.same):
        raise UsageError(
            f"layers are compared with the source, which {gone(artifact)}",
            where="--layers",
            hint="give it as --against",
        )
    schedule = opened.manifest.schedule
    how = on_cpu(opened.manifest.target.runtime, opened.manifest.precision)
    towers = tower_of_outputs(schedule)
    progress(f"running {opened.model} on {inputs.source}")
    with showing_choice(opened.model) as telling:
        actual = _run(telling, inputs, how)
    fault = opened.manifest.fault
    checks = [] if fault is None else [Check("build", "failed", fault)]
    checks.append(_files(opened))
    # Everything is run before anything is compared: what compares may import a great deal.
    wanted = original = None
    if dense is not None and dense.same:
        progress("making the fp32 reference again from the source")
        with reduced_reference(opened, dense.path) as path, showing_choice(path) as telling:
            wanted = _run(telling, inputs)
    if dense is not None:
        progress(f"running the dense model {dense.path}")
        original = _run(dense.path, inputs)
    fidelity = None if original is None else compare(original, actual, inputs, schedule)
    precision = opened.manifest.precision
    numerics, rounded = None, precision in ROUNDED or how.runtime == "openvino"
    if wanted is not None and not rounded:
        tolerance = TOLERANCES["fp16" if precision in HALF else precision]
        numerics = compare_numerics(wanted, actual, tolerance, towers)
    checks.append(_finite(actual, wanted or {}))
    if rounded and fidelity is not None and original is not None and wanted is not None:
        fp32 = compare(original, wanted, inputs, schedule)
        checks.append(_rounding(fidelity, fp32, token_overlap(wanted, actual), precision, how))
    else:
        checks.append(_numerics(numerics, dense, opened))
    fused = fused_attention(opened)
    on_device = fused_on_device(opened) if fused is None else None
    checks.append(_fusion(fused) if on_device is None else _fusion_on_device(*on_device))
    rows: tuple[Layer, ...] = ()
    if layers and dense is not None:
        progress("comparing layer by layer")
        seen = inputs if data else scenes_and_noise(model, seed=seed)
        if own.host is not None:
            seen = replace(seen, arrays=own.host.fed(seen.arrays))
        rows = layers_of(opened, dense.path, seen)
    notes = list(model.notes)
    if dense is None:
        notes.append(
            f"fidelity is not known: the dense model {gone(artifact)} (--against names one)"
        )
    return Verification(str(artifact), tuple(checks), numerics, fidelity, fused, rows, tuple(notes))


def _run(path: Path, inputs: Samples, how: OnCpu = ORT) -> dict[str, Any]:
    """Every output; the memory that it takes is free afterwards."""
    try:
        return run_all(path, inputs, how)
    finally:
        release()


def _files(artifact: Artifact) -> Check:
    changed, made = artifact.compare_files()
    if changed:
        return Check("files", "failed", f"not as they were written: {', '.join(changed)}")
    for name in (each for each in made if each.endswith(".engine")):
        try:
            check_host_code(artifact, file_entry(artifact.directory / name, artifact.directory))
        except ModelError as error:
            return Check("files", "failed", f"{name} {error.what}")
    same = sum(entry.path not in made for entry in artifact.manifest.files)
    detail = f"{same} files are as they were written"
    if made:
        detail += f"; made on the device since: {', '.join(made)}"
    return Check("files", "passed", detail)


def _finite(outputs: dict[str, Any], expected: dict[str, Any]) -> Check:
    faults = not_finite(outputs, expected)
    if faults:
        return Check("finite", "failed", "; ".join(faults))
    if not_finite(outputs, {}):
        return Check("finite", "passed", "NaN and Inf only where the fp32 reduced graph has them")
    return Check("finite", "passed", "no NaN or Inf in any output")


def _numerics(numerics: Numerics | None, dense: DenseModel | None, artifact: Artifact) -> Check:
    if numerics is None:
        why = "the source was not found" if dense is None else f"{dense.path} is not the source"
        how = f"give {artifact.manifest.source.file} as --against"
        return Check("numerics", "skipped", f"{why}; {how}")
    if not numerics.passed:
        faults = "; ".join(numerics.faults)
        if artifact.manifest.precision in HALF:
            wider = "fp32" if artifact.manifest.precision == "mixed" else "mixed or fp32"
            faults += f"; if a build with --precision {wider} passes, fp16 is too coarse for it"
        return Check("numerics", "failed", faults)
    worst = max((o.error for o in numerics.outputs), default=0.0)
    overlap = numerics.token_overlap
    tokens = "" if overlap is None else f"{overlap:.1%} of tokens the same, "
    detail = f"{tokens}relative error {worst:.1e} against the fp32 reduced graph"
    if (artifact.directory / "engine").exists():
        detail += "; of model.onnx, the engine was not run"
        if artifact.manifest.target.runtime == "jetson":
            detail += f", {CHECK_SCRIPT} does that on the device"
    return Check("numerics", "passed", detail)


def _rounding(
    rounded: Fidelity, fp32: Fidelity, overlap: Array | None, precision: str, how: OnCpu
) -> Check:
    """A rounded model is not near the fp32 graph bit by bit: what it keeps of the dense model is
    held against what the same graph keeps in fp32."""
    fault = rounding_fault(rounded, fp32)
    if fault and precision == "fp32":
        return Check("numerics", "failed", f"in {how.words} {fault}; build with --target cpu")
    if fault:
        return Check("numerics", "failed", f"in {precision} {fault}; build with --precision fp32")
    tokens = "" if overlap is None else f"{overlap.mean():.1%} of tokens the same as in fp32, "
    figures = ", ".join(
        f"{name} {have:.4f} of '{out.output}' to the dense model ({want.likeness[0]:.4f} in fp32)"
        for out, want in zip(rounded.outputs, fp32.outputs, strict=True)
        for have, name in [out.likeness]
    )
    return Check("numerics", "passed", f"{precision}, judged by fidelity: {tokens}{figures}")


def _fusion_on_device(file: str, fused: FusedAttention) -> Check:
    """What TensorRT did on the device is not ours to fail for: it is said."""
    fault = fusion_fault(fused)
    if fault:
        return Check("fused attention", "skipped", f"{fault}, says {file}")
    detail = f"all {fused.expected} attention layers are fused, says {file}"
    return Check("fused attention", "passed", detail)


def _fusion(fused: FusedAttention | None) -> Check:
    if fused is None:
        return Check("fused attention", "skipped", "no engine in half precision to inspect")
    fault = fusion_fault(fused)
    if fault:
        return Check("fused attention", "failed", fault)
    return Check("fused attention", "passed", f"all {fused.expected} attention layers are fused")
