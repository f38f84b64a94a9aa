"""The lines of polygraphy.sh by precision and runtime: their tolerances are those of `verify`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcompile.artifact.polygraphy import FIND_ENGINE, Part, page, read_parts, script_text, setup
from tcompile.examples import FOLDER
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.verify.lowered import COSINES, DISTANCES
from tcompile.verify.numerics import TOLERANCES
from tcompile.verify.polygraphy import Distance, Facts, Scale, head, parts_for
from tests.support.polygraphy import parsed

#: A package `tensorrt` whose version is $FAKE_TENSORRT.
DEVICE = Path(__file__).parents[2] / "support" / "device"
SCALES = (Scale("logits", 4.0, 8.0), Scale("tokens", 2.0, 16.0, 0.5))


def parts(precision: str, runtime: str = "onnxruntime", **changes: object) -> dict[str, Part]:
    known: dict[str, object] = {
        "scales": SCALES,
        "stored": True,
        "distances": (Distance("logits", 0.9, 1.5),),
        "engine": "engine/a.engine" if runtime == "tensorrt-rtx" else None,
        **changes,
    }
    return {p.name: p for p in parts_for(Facts(precision, runtime, **known))}  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "mixed"])
def test_places_are_compared_within_the_bounds_of_verify(precision: str) -> None:
    runtime = "onnxruntime" if precision == "fp32" else "jetson"
    found = parts(precision, runtime)
    tolerance = TOLERANCES["fp32" if precision == "fp32" else "fp16"]
    line = parsed(found["onnxruntime"].commands[0])
    assert line.check_error_stat == [tolerance.statistic]
    half = 0.5 if tolerance.statistic == "mean" else 1  # of the places, once it is spread
    assert [float(v.split(":")[1]) for v in line.atol] == pytest.approx(
        [4 * tolerance.error, 2 * tolerance.error * half]
    )
    assert line.rtol == ["0"]


def test_an_engine_in_fp32_may_round_as_tf32_does() -> None:
    (line,) = parts("fp32", "tensorrt-rtx")["engine"].commands
    assert parsed(line).atol[0] == f"logits:{4 * TOLERANCES['fp16'].error:.4g}"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_are_compared_by_distance(precision: str) -> None:
    found = parts(precision, "jetson")
    for name in ("onnxruntime", "engine"):
        line = parsed(found[name].commands[0])
        assert line.atol is None
        assert line.compare == ["distance_metrics"]
        assert line.cosine_similarity_threshold[0] == f"logits:{COSINES[precision]:.6f}"
        assert line.l2_threshold[0] == f"logits:{8 * DISTANCES[precision]:.4g}"


def test_half_precision_runs_in_onnx_runtime_without_its_fusions_and_bf16_does_not() -> None:
    for precision, runtime, level in (
        ("fp32", "jetson", None),
        ("int8", "onnxruntime", None),
        ("fp16", "jetson", "ORT_ENABLE_BASIC"),
        ("int8", "jetson", "ORT_ENABLE_BASIC"),
    ):
        line = parsed(parts(precision, runtime)["onnxruntime"].commands[0])
        assert line.graph_optimization_level == level, (precision, runtime)
    assert list(parts("bf16", "tensorrt-rtx")) == ["engine"]
    assert list(parts("fp32", "openvino")) == ["onnxruntime", "dense"]


def test_what_is_not_stored_or_cannot_be_compared_has_no_line() -> None:
    assert list(parts("fp16", "jetson", stored=False)) == ["both", "dense"]
    assert list(parts("fp32", distances=())) == ["onnxruntime"]
    told = parts("fp32", apart="maps (another shape, or not finite)")["dense"].about
    assert "Not compared: maps (another shape, or not finite)." in told


@pytest.mark.parametrize("name", ["1234", "a b", "größe:0", "it's", "/head/Gemm_output_0"])
def test_names_of_outputs_reach_polygraphy_as_they_are(name: str) -> None:
    found = parts(
        "fp32", "jetson", scales=(Scale(name, 1.0, 1.0),), distances=(Distance(name, 0.5, 2.0),)
    )
    script = script_text(tuple(found.values()), ["words"])
    assert read_parts(script) == tuple(found.values())
    assert parsed(found["onnxruntime"].commands[0]).atol == [f"{name}:2e-05"]
    first, second = found["dense"].commands
    assert parsed(first).onnx_outputs == [name]
    assert parsed(second).l2_threshold == [f"{name}:2"]


def test_an_engine_with_plugins_is_given_their_library() -> None:
    (line,) = parts("fp16", "jetson", plugins=True)["engine"].commands
    assert parsed(line).plugins == ["plugins/libtcompile_plugins.so"]
    words = shlex.split(line)
    assert words[2] == "$engine"  # one word, which the shell fills in


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (NONE, ""),
        (Compatibility(version=True, lean_runtime=True), "lets run without asking"),
        (Compatibility(version=True), "by --load-runtime PATH"),
    ],
)
def test_code_in_an_engine_is_told(made: Compatibility, words: str) -> None:
    """polygraphy itself allows it: `EngineFromBytes` sets engine_host_code_allowed."""
    told = " ".join(head(Facts("fp16", "jetson", compatibility=made), "two scenes"))
    assert words in told
    assert ("version-compatible" in told) == bool(words)
    lines = parts("fp16", "jetson", compatibility=made, plugins=True)["engine"].commands
    assert all("--plugins" in line for line in lines)
    parsed("polygraphy run a.engine --trt --model-type engine --load-runtime libnvinfer_lean.so")


@pytest.mark.parametrize(
    ("installed", "compatible", "taken"),
    [
        ("10.3.0", False, "10.3"),
        ("10.16.2.10", False, "10.16"),
        ("11.4.1", False, ""),
        ("11.4.1", True, "10.16"),
        ("10.9.0", True, "10.3"),
        ("none", False, ""),
    ],
)
def test_of_several_engines_the_one_that_fits_is_taken(
    installed: str, compatible: bool, taken: str, tmp_path: Path
) -> None:
    """A polygraphy that says what it is given, and a TensorRT that has a version alone."""
    found = parts("fp16", "jetson")
    script = tmp_path / "polygraphy.sh"
    script.write_text(script_text(tuple(found.values()), ["head"]))
    (tmp_path / "engine").mkdir()
    for version in ("10.16", "10.3"):
        (tmp_path / "engine" / f"model.trt{version}.engine").touch()
    (tmp_path / "checks").mkdir()
    shutil.copy(FOLDER / "device" / "check.py", tmp_path / "checks")
    made = {"version": compatible, "across": [[10, 11]]}
    (tmp_path / "checks" / "check.json").write_text(json.dumps({"compatibility": made}))
    (tmp_path / "polygraphy").write_text('#!/bin/sh\necho "given $2"\n')
    (tmp_path / "polygraphy").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    other = {"PYTHONPATH": str(DEVICE)} if installed != "none" else {}
    done = subprocess.run(
        ["sh", str(script), "engine"],
        env={**os.environ, "PATH": path, "PYTHON": sys.executable, **other}
        | {"FAKE_TENSORRT": installed},
        capture_output=True,
        encoding="utf-8",
    )
    name = f"engine/model.trt{taken}.engine"
    if installed == "none":
        assert done.returncode == 2
        assert "TensorRT's Python package cannot be imported" in done.stderr
    elif not taken:
        assert done.returncode == 2
        assert done.stderr == (
            "error: there is no engine for this TensorRT; there is model.trt10.3.engine, "
            "model.trt10.16.engine: run sh build_engine.sh\n"
        )
    else:
        assert (done.returncode, done.stdout) == (0, f"{name}\ngiven {name}\n"), done.stderr
    assert FIND_ENGINE in page(tuple(found.values()))
    rtx = tuple(parts("fp16", "tensorrt-rtx", engine="engine/a.engine").values())
    assert FIND_ENGINE not in setup(rtx)
    if taken:  # the line that a person types
        (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tmp_path / "python3").chmod(0o755)
        said = subprocess.check_output(
            ["sh", "-c", f"{FIND_ENGINE}; echo $engine"],
            env={**os.environ, **other, "FAKE_TENSORRT": installed, "PATH": path},
            cwd=tmp_path,
            encoding="utf-8",
        )
        assert said == f"{name}\n"
