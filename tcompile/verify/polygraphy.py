"""The lines of polygraphy that check an artifact, and their tolerances: the rules of `numerics` and
`lowered`, by precision.

polygraphy compares outputs place by place and knows nothing of tokens, so outputs with fewer tokens
are spread first (`postprocess_outputs` in the loader), and against the dense model those that are
kept are compared (`compare_kept_tokens`). Where values are rounded to 8 bits or bf16, places say
nothing: distances are compared.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcompile.artifact.manifest import Manifest
from tcompile.artifact.polygraphy import INPUTS, LOADER, OUTPUTS, VERSIONS, Part
from tcompile.runtime.token_outputs import is_bookkeeping
from tcompile.targets.backends.jetson_texts import PLUGINS
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.verify.lowered import COSINES, DISTANCES
from tcompile.verify.numerics import TOLERANCES

_UNBOUND = 1e30
_GPUS = ("tensorrt-rtx", "jetson")
#: In half precision ONNX Runtime's further fusions on a CPU are not sound: see `OrtRunner`.
_BASIC = ("--graph-optimization-level", "ORT_ENABLE_BASIC")
#: There may be several, of more than one JetPack: `FIND_ENGINE` has the one that fits.
_BUILT_THERE = '"$engine"'


@dataclass(frozen=True)
class Scale:
    """An output's values on the inputs of the artifact, by which tolerances are scaled.

    Attributes:
        largest: magnitude.
        norm: of one run.
        filled: share of its places that hold a value once it is spread; 1 of any other.
    """

    output: str
    largest: float
    norm: float
    filled: float = 1.0


@dataclass(frozen=True)
class Distance:
    """Bounds of the distance between two runs of an output; an empty name: of every output.

    Attributes:
        cosine: at least.
        l2: norm of the difference, at most; None: no bound is known.
    """

    output: str
    cosine: float
    l2: float | None = None


@dataclass(frozen=True)
class Facts:
    """What the lines depend on.

    Attributes:
        precision: of the graph in model.onnx.
        runtime: of the target.
        engine: its file; None where there is none, or where it is built on the device.
        plugins: whether the engine needs the plugin library.
        compatibility: what the engine was made compatible with.
        scales: of the model's outputs on the inputs; empty: not known.
        stored: whether what the model gave for them is in the artifact.
        spread: whether an output has fewer tokens.
        distances: to the dense model, of outputs of the same shape.
        kept: outputs that are compared with it over the tokens that both have.
        apart: outputs that cannot be compared with the dense model's, and why; empty: none.
        only: outputs that are compared with the engine's; empty: all.
        loader: the script that loads inputs.
    """

    precision: str
    runtime: str
    engine: str | None = None
    plugins: bool = False
    compatibility: Compatibility = NONE
    scales: tuple[Scale, ...] = ()
    stored: bool = False
    spread: bool = False
    distances: tuple[Distance, ...] = ()
    kept: tuple[str, ...] = ()
    apart: str = ""
    only: tuple[str, ...] = ()
    loader: str = LOADER

    @property
    def half(self) -> bool:
        """Tell whether the graph computes in 16 or 8 bits: all for a GPU but fp32."""
        return self.runtime in _GPUS and self.precision != "fp32"

    @property
    def in_ort(self) -> bool:
        """Tell whether ONNX Runtime runs the graph as it is: a CPU has no kernels for bf16."""
        return not (self.half and self.precision == "bf16")


def facts_of(manifest: Manifest, loader: str = LOADER) -> Facts:
    """What a manifest says: the runtime, the precision, and the distance to the dense model.

    Args:
        loader: the script that loads inputs.
    """
    m = manifest
    engines = [entry.path for entry in m.files if entry.path.endswith(".engine")]
    shown = m.fidelity if m.fidelity and m.fidelity.kind == "scenes" else None
    same = [out for out in shown.outputs if out.compared == "all"] if shown else []
    made = m.compatibility or NONE
    slack, rounds = 1 - COSINES[m.precision], m.precision == "bf16"
    return Facts(
        # OpenVINO rounds to bf16 while it runs: the graph has fp32.
        precision="fp32" if m.target.runtime == "openvino" and rounds else m.precision,
        runtime=m.target.runtime,
        engine=engines[0] if engines else None,
        plugins=m.token_ops is not None and m.token_ops.form == "plugin" and not made.plugins,
        compatibility=made,
        spread=bool(m.token_index),
        distances=tuple(Distance(o.output, o.cosine_min - slack) for o in same),
        loader=loader,
    )


def parts_for(facts: Facts) -> tuple[Part, ...]:
    """The lines, by what they compare."""
    f, found = facts, []
    if f.stored and f.in_ort:
        about = ["model.onnx in ONNX Runtime here, against what it gave where it was built."]
        if f.runtime == "openvino":
            about.append("polygraphy has no runner for OpenVINO; `tcompile verify` runs it there.")
        line = _run("model.onnx", *_ort(f), _loads(f, stored=True), *_spread(f))
        found.append(Part("onnxruntime", tuple(about), (_joined(line, _close(f, False), OUTPUTS),)))
    if f.runtime in _GPUS:
        found += _engine_parts(f)
    if f.in_ort and (f.distances or f.kept):
        found.append(_dense_part(f))
    return tuple(found)


def head(facts: Facts, what: str) -> tuple[str, ...]:
    """What a person must know before running the lines.

    Args:
        what: the inputs, in words.
    """
    lines = [
        f"Checks of this artifact, for polygraphy {VERSIONS}:",
        "python3 -m pip install polygraphy numpy onnxruntime",
        f"Inputs ({INPUTS}): {what}. For `both` and `dense`, DATA=/PATH takes a folder of images "
        "of yours, .npy or .npz; tcompile must be installed then, which prepares them.",
    ]
    if facts.runtime == "tensorrt-rtx":
        lines.append(
            "The engine needs a GPU that it was built for, the tensorrt-rtx package of the version "
            "that built it, and CUDA's runtime library; POLYGRAPHY_USE_TENSORRT_RTX makes "
            "polygraphy take that package in place of tensorrt."
        )
    if facts.runtime == "jetson":
        lines.append(
            "The engine is the one that `sh build_engine.sh` made on the Jetson. Install "
            "polygraphy there by pip, for the Python that has JetPack's TensorRT (apt install "
            "python3-libnvinfer; a venv needs --system-site-packages). `engine` runs without ONNX "
            "Runtime."
        )
    if facts.compatibility.host_code:
        lines.append(
            "The engine is version-compatible and holds code, TensorRT's lean runtime, which "
            "polygraphy lets run without asking: run `sh check.sh` first, which compares its "
            "sha256."
        )
    elif facts.compatibility.version:
        lines.append(
            "The engine is version-compatible, without TensorRT's lean runtime: to a newer "
            "TensorRT than the one that built it, polygraphy gives that by --load-runtime PATH."
        )
    return tuple(part for line in lines for part in textwrap.wrap(line, 98))


def _engine_parts(f: Facts) -> list[Part]:
    name = shlex.quote(f.engine) if f.engine else _BUILT_THERE
    switch = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if f.runtime == "tensorrt-rtx" else ""
    plugins = ["--plugins", PLUGINS] if f.plugins else []
    trt = ["--trt", "--model-type", "engine", *plugins]
    close, found = _close(f, True), []
    if f.stored:
        line = f"{switch}{_run(name, *trt, _loads(f, stored=True), *_spread(f))}"
        about = ["The engine against what model.onnx gave in ONNX Runtime where it was built."]
        if not f.in_ort:
            about.append("ONNX Runtime has no bf16 on a CPU: every result was rounded to it there.")
        found.append(Part("engine", tuple(about), (_joined(line, close, OUTPUTS),)))
    if not f.in_ort:
        return found
    here = '"$out/onnxruntime.json"'
    only = ["--onnx-outputs", *map(shlex.quote, f.only)] if f.only else []
    first = _run("model.onnx", *_ort(f), *only, _loads(f), "--save-outputs", here)
    line = f"{switch}{_run(name, *trt, _loads(f), *_spread(f))}"
    told = "model.onnx in ONNX Runtime and its engine, both on this machine."
    commands = (first, _joined(line, close, here))
    return [*found, Part("both", (told,), commands)]


def _dense_part(f: Facts) -> Part:
    about = ["The dense model and the reduced one in ONNX Runtime: how far apart they are."]
    bounds = "Bounds: what it was at build, and what rounding may add"
    if not f.scales:
        bounds = "Bounds: what verify or the build found on such scenes; L2 has none"
    about.append(f"{bounds}. With DATA, read the figures.")
    if f.apart:
        about.append(f"Not compared: {f.apart}.")
    here = '"$out/dense.json"'
    same = [shlex.quote(d.output) for d in f.distances]
    every = [*same, *map(shlex.quote, f.kept)]
    # It may be a source in fp16.
    first = ["--model-type", "onnx", "--onnxrt", *_BASIC, "--onnx-outputs", *every, _loads(f)]
    commands = [_run('"$dense"', *first, "--save-outputs", here)]
    if same:
        line = _run("model.onnx", *_ort(f), "--onnx-outputs", *same, _loads(f))
        commands.append(_joined(line, _distance_flags(f.distances), here))
    if f.kept:
        compare = ["--compare-func-script", shlex.quote(f"{f.loader}:compare_kept_tokens")]
        commands.append(_joined(_run("model.onnx", *_ort(f), _loads(f)), compare, here))
    return Part("dense", tuple(about), tuple(commands))


def _close(f: Facts, engine: bool) -> list[str]:
    """What makes polygraphy compare two runs of one model."""
    rule = "fp16" if f.precision in ("fp16", "mixed") else f.precision
    if rule not in TOLERANCES:
        cosine, share = COSINES[f.precision], DISTANCES[f.precision]
        every = [Distance("", cosine)]
        return _distance_flags(
            [Distance(s.output, cosine, share * s.norm) for s in f.scales] or every
        )
    # An engine in fp32 may multiply in TF32, which has the mantissa of fp16.
    tolerance = TOLERANCES["fp16" if engine else rule]
    statistic = ["--check-error-stat", tolerance.statistic]
    if not f.scales:
        return [*statistic, "--atol", f"{tolerance.error:g}", "--rtol", f"{tolerance.error:g}"]
    mean = tolerance.statistic == "mean"
    bounds = [(s.output, tolerance.error * s.largest * (s.filled if mean else 1)) for s in f.scales]
    return [*statistic, "--atol", *_named(bounds), "--rtol", "0"]


def _distance_flags(bounds: Sequence[Distance]) -> list[str]:
    """L2 without a bound is shown, and never too large."""
    norms = [(d.output, _UNBOUND if d.l2 is None else d.l2) for d in bounds]
    return [
        *["--compare", "distance_metrics", "--cosine-similarity-threshold"],
        *_named([(d.output, max(d.cosine, -1.0)) for d in bounds], ".6f"),
        *["--l2-tolerance", *_named(norms)],
    ]


def _named(values: Sequence[tuple[str, float]], form: str = ".4g") -> list[str]:
    return [
        shlex.quote(f"{name}:{value:{form}}") if name else f"{value:{form}}"
        for name, value in values
    ]


def _run(model: str, *arguments: str) -> str:
    return " ".join(["polygraphy run", model, *arguments])


def _ort(f: Facts) -> list[str]:
    return ["--onnxrt", *(_BASIC if f.half else ())]


def _joined(line: str, flags: Sequence[str], outputs: str) -> str:
    return " ".join([line, "--load-outputs", outputs, *flags])


def _loads(f: Facts, stored: bool = False) -> str:
    """Inputs: those of the artifact alone where outputs are stored for them."""
    function = "load_scenes" if stored else "load_data"
    return f"--data-loader-script {shlex.quote(f'{f.loader}:{function}')}"


def _spread(f: Facts) -> list[str]:
    return ["--postprocess-func-script", shlex.quote(f.loader)] if f.spread else []


def without_rows(facts: Facts, manifest: Manifest) -> Facts:
    """Of an artifact without a loader of its own: outputs with fewer tokens are not compared."""
    names = sorted(manifest.token_index)
    if not names:
        return facts
    kept = [t.name for t in manifest.outputs if t.name not in names and not is_bookkeeping(t.name)]
    apart = f"{', '.join(names)}, which have fewer tokens"
    return replace(facts, spread=False, only=tuple(kept), apart=apart)
