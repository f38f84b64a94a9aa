"""Sources of the planner's latencies: a profile given, measured before, measured now, or the
roofline of the target's data sheet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tcompile._version import __version__
from tcompile.core.cache import keep, kept
from tcompile.core.errors import UsageError
from tcompile.core.model_files import describe_source
from tcompile.core.progress import Progress
from tcompile.methods.method import Method
from tcompile.passes.lower import REVISION
from tcompile.passes.stages import Analysed
from tcompile.planning.request import Request
from tcompile.profiling.profile import Profile, combine, from_json, read_profile
from tcompile.profiling.runtimes import MEASURED, Runtime
from tcompile.targets import Target, list_targets

KIND = "profiles"


def profile_for(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    request: Request,
    precision: str,
    say: Progress,
) -> Profile:
    """The profile that a request is planned by.

    A file, or `measure` or `model`, where the request says so. Otherwise what was measured before
    under the same conditions, on a machine that did nothing else; else, where there is a budget of
    latency or of what may be lost and the target can be measured from here, a measurement (which is
    kept); else the model of the device. A CPU's int8 and OpenVINO are always measured.

    Raises:
        UsageError: a file that is not a profile, or one of another precision; a target that cannot
            be measured from here.
    """
    given = request.profile
    if isinstance(given, Profile):
        return _in_precision(given, target, precision)
    if given == "model":
        return modelled(model, methods, target, request, precision, say)
    if given == "measure":
        return measured(model, methods, target, request, say, precision=precision)
    if given is not None:
        return _in_precision(read_profile(given), target, precision)
    if target.on_cpu:
        exact = request.latency is not None or request.max_drop is not None
        exact = exact or not _has_roofline(target, precision)
        before = None if exact else _kept(profile_key(model, target, request, precision))
        if before is not None and before.busy:  # no better than the model
            before = None
        known = before is not None and all(m.key in before.reducers for m in methods)
        if exact or known:
            return measured(model, methods, target, request, say, precision=precision)
    return modelled(model, methods, target, request, precision, say)


def _in_precision(profile: Profile, target: Target, precision: str) -> Profile:
    """A profile that was given.

    Raises:
        UsageError: it is of another runtime or precision of a CPU.
    """
    of = profile.conditions.target
    if target.on_cpu and of != target.name and of in (t.name for t in list_targets() if t.on_cpu):
        raise UsageError(
            f"is of {of}, and what is planned is for {target.name}",
            where="--profile",
            hint=f"measure one: tcompile profile --target {target.name}",
        )
    known = MEASURED.get(target.runtime, ())
    needed = precision if precision in known else "fp32"  # fp16 is emulated
    if target.on_cpu and profile.conditions.precision != needed:
        raise UsageError(
            f"is of {profile.conditions.precision}, and what is planned is {needed}",
            where="--profile",
            hint=f"measure one: tcompile profile --precision {needed}",
        )
    return profile


def _has_roofline(target: Target, precision: str) -> bool:
    """Tell whether a target can be modelled: a CPU's roofline is of fp32 in ONNX Runtime."""
    return not target.on_cpu or (target.runtime == "onnxruntime" and precision != "int8")


def modelled(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    request: Request,
    precision: str,
    say: Progress,
) -> Profile:
    """The roofline's profile."""
    from tcompile.profiling.modelled import modelled_profile

    if not _has_roofline(target, precision):
        whose = "OpenVINO" if target.runtime == "openvino" else "a CPU's int8"
        raise UsageError(
            f"{whose} is measured, not modelled", where="--profile", hint="say --profile measure"
        )
    say(f"modelling latency on {target.name}")
    return modelled_profile(
        model.graph,
        model.analysis,
        methods,
        target,
        precision=precision,
        batch=request.batch,
        source=Path(model.source).name,
        threads=request.threads,
    )


def measured(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    request: Request,
    say: Progress,
    *,
    precision: str | None = None,
    fresh: bool = False,
    seconds: float = 240.0,
) -> Profile:
    """The measured profile, kept by content; methods that it lacks are measured and added.

    Args:
        precision: the target's own by default.
        fresh: measure anew what is asked for; what is kept stays until that is done.
        seconds: in all; see `measure.Effort`.

    Raises:
        UsageError: the target cannot be measured from here.
    """
    from tcompile.profiling.measure import Effort, measure

    begun = time.monotonic()
    runtime = _runtime(target, request, precision)
    key = profile_key(model, target, request, precision)
    known = _kept(key)
    old = None if fresh else known
    lacking = [m for m in methods if old is None or m.key not in old.reducers]
    if old is not None and not lacking:
        return old
    left = max(seconds - (time.monotonic() - begun), 0.0)
    made = measure(
        model.graph,
        model.analysis,
        lacking,
        runtime,
        source=Path(model.source).name,
        effort=Effort(seconds=left, seed=request.seed),
        progress=say,
    )
    whole = made if old is None else combine(made, old)
    if known is not None:  # of methods that were not asked for, what was measured stays
        whole = replace(whole, reducers={**known.reducers, **whole.reducers})
    document = whole.to_json()
    keep(KIND, key, document)
    return from_json(document)


def dense_elsewhere(
    model: Analysed, target: Target, request: Request, precision: str
) -> dict[str, float]:
    """ms of the dense model in the other precisions of a CPU, where they were measured before under
    the same conditions; nothing is measured for it."""
    if not target.on_cpu or request.profile is not None:
        return {}
    key, found = profile_key(model, target, request, precision), {}
    for other in MEASURED[target.runtime]:
        conditions = {**key["conditions"], "precision": other}
        before = None if other == precision else _kept({**key, "conditions": conditions})
        if before is not None and before.dense is not None:
            found[other] = before.dense.ms
    return found


def profile_key(
    model: Analysed, target: Target, request: Request, precision: str | None = None
) -> dict[str, Any]:
    """All that a measured profile depends on, the methods apart."""
    conditions = asdict(_runtime(target, request, precision).conditions())
    for changing in ("date", "note"):
        conditions.pop(changing)
    return {
        "version": __version__,
        "lowering": REVISION,
        "model": describe_source(model.source).digests,
        "conditions": conditions,
        "outputs": request.outputs,
        **request.bound,
    }


def _runtime(target: Target, request: Request, precision: str | None) -> Runtime:
    from tcompile.profiling.runtimes import runtime_for

    # A CPU only emulates fp16, and is planned for in fp32 then.
    emulated = target.on_cpu and precision not in MEASURED[target.runtime]
    level = None if emulated else precision
    return runtime_for(target, batch=request.batch, threads=request.threads, precision=level)


def _kept(key: Mapping[str, Any]) -> Profile | None:
    """The profile that was measured before, if there is one."""
    document = kept(KIND, key, from_json)
    return None if document is None else from_json(document)
