"""polygraphy.sh of an artifact, and what `verify --print-polygraphy` prints: run as they stand on
the CPU, parsed by polygraphy where they are for TensorRT."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tcompile
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.polygraphy import SCRIPT, VERSIONS, read_parts
from tests.support.artifacts import make_artifact
from tests.support.command import Command
from tests.support.polygraphy import parsed, run_here, shell
from tests.support.tiny_vit import VitSpec, save_tiny_vit

Run = Callable[..., list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of class scores and one of tokens, `NAME.onnx`, and their builds, `NAME`."""
    folder = tmp_path_factory.mktemp("polygraphy")
    for name, pool in (("classes", "cls"), ("tokens", "none")):
        save_tiny_vit(folder / f"{name}.onnx", VitSpec(pool=pool))  # type: ignore[arg-type]
        method = "tome" if name == "tokens" else "topk"
        tcompile.build(
            folder / f"{name}.onnx",
            target="cpu",
            method=method,
            keep=0.5,
            output=folder / name,
            force=True,
        )
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def damaged(artifact: Path, into: Path) -> Path:
    """A copy in which the weights of one layer of the model are a tenth larger."""
    shutil.copytree(artifact, into)
    model = onnx.load(str(into / "model.onnx"))
    largest = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    array = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(array * np.float32(1.1), largest.name))
    onnx.save(model, str(into / "model.onnx"))
    return into


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the lines of a part of an artifact in this process; gives their exit codes."""

    def run(artifact: Path, part: str, dense: Path | None = None) -> list[int]:
        monkeypatch.chdir(artifact)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setenv("dense", str(dense))
        monkeypatch.setenv("out", str(tmp_path))
        parts = {p.name: p for p in read_parts((artifact / SCRIPT).read_text(encoding="utf-8"))}
        return [run_here(line) for line in parts[part].commands]

    return run


def test_what_is_printed_runs(folder: Path, command: Command, tmp_path: Path) -> None:
    printed = command("verify", folder / "classes", "--print-polygraphy").out
    done = shell(printed, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED | Runtime") == 3
    assert not load_artifact(folder / "classes").changed_files()


def test_outputs_with_fewer_tokens_are_compared(folder: Path, run: Run) -> None:
    assert run(folder / "tokens", "onnxruntime") == [0]
    assert run(folder / "tokens", "dense", folder / "tokens.onnx") == [0, 0]


@pytest.mark.parametrize("name", ["classes", "tokens"])
def test_a_damaged_model_fails_every_part(
    name: str, folder: Path, tmp_path: Path, run: Run
) -> None:
    bad = damaged(folder / name, tmp_path / "bad")
    assert run(bad, "onnxruntime") == [1]
    assert run(bad, "dense", folder / f"{name}.onnx") == [0, 1]


def test_the_script_runs_what_report_and_command_show(
    folder: Path, command: Command, tmp_path: Path
) -> None:
    script = folder / "classes" / SCRIPT
    bad = damaged(folder / "classes", tmp_path / "bad")
    failed = shell(f"sh {bad}/{SCRIPT} onnxruntime", tmp_path)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "FAILED" in failed.stdout
    for arguments, words in (
        ("", "usage: sh polygraphy.sh onnxruntime | dense DENSE.onnx"),
        ("engine", "usage"),
        ("dense none.onnx", f"no dense model at '{tmp_path}/none.onnx'"),
    ):
        refused = shell(f"sh {script} {arguments}", tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr
    report = (folder / "classes" / "report.md").read_text(encoding="utf-8")
    shown = command("verify", folder / "classes", "--print-polygraphy", "--json").json()
    assert shown["versions"] == VERSIONS
    parts = read_parts(script.read_text(encoding="utf-8"))
    assert [part.name for part in parts] == ["onnxruntime", "dense"]
    for part, said in zip(parts, shown["parts"], strict=True):
        assert list(part.commands) == said["commands"]
        assert all(line in report for line in part.lines)


def test_images_of_a_person_take_the_place_of_scenes(
    folder: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "own.npy", own)
    monkeypatch.setenv("DATA", str(tmp_path / "own.npy"))
    run(folder / "classes", "dense", folder / "classes.onnx")
    assert "Iteration: 2" in capsys.readouterr().out
    assert run(folder / "classes", "onnxruntime") == [0]  # outputs are stored for scenes alone


def older(artifact: Path, into: Path) -> Path:
    """As an artifact was before there was a polygraphy.sh."""
    shutil.copytree(artifact, into)
    shutil.rmtree(into / "checks")
    (into / "polygraphy.sh").unlink()
    document = json.loads((into / "manifest.json").read_text(encoding="utf-8"))
    document["files"] = [
        f for f in document["files"] if not f["path"].startswith(("checks/", "polygraphy"))
    ]
    (into / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    return into


def test_an_older_artifact_has_lines_too(
    folder: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = older(folder / "classes", tmp_path / "old")
    assert command("verify", old, "--against", folder / "classes.onnx").code == 0
    shown = command(
        "verify", old, "--against", folder / "classes.onnx", "--print-polygraphy", "--json"
    ).json()
    assert f"export ARTIFACT={old}" in shown["setup"]
    assert f"dense={folder / 'classes.onnx'}" in shown["setup"]
    (part,) = shown["parts"]
    monkeypatch.chdir(old)
    for name, value in (("ARTIFACT", old), ("dense", folder / "classes.onnx"), ("out", tmp_path)):
        monkeypatch.setenv(name, str(value))
    assert [run_here(line) for line in part["commands"]] == [0, 0]
    made = make_artifact(tmp_path / "made", folder / "classes.onnx")
    nothing = command("verify", made, "--print-polygraphy")
    assert nothing.code == 2
    assert "holds nothing that polygraphy could compare" in nothing.err


def test_an_altered_script_is_not_printed(folder: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(folder / "classes", tmp_path / "a")
    with (tmp_path / "a" / "polygraphy.sh").open("a", encoding="utf-8") as stream:
        stream.write("echo more\n")
    refused = command("verify", tmp_path / "a", "--print-polygraphy")
    assert (refused.code, refused.out) == (2, "")


@pytest.fixture(scope="module")
def for_gpus(folder: Path) -> dict[str, Path]:
    """Builds for a Jetson and, where TensorRT-RTX is installed, for an RTX GPU."""
    pytest.importorskip("tensorrt_rtx")
    return {
        target: tcompile.build(
            folder / "tokens.onnx",
            target=target,
            method="topk",
            keep=0.5,
            output=folder / target,
            force=True,
        )
        for target in ("jetson-orin", "rtx-4090")
    }


def test_lines_for_an_engine_are_what_polygraphy_parses(for_gpus: dict[str, Path]) -> None:
    for target, built in for_gpus.items():
        parts = {p.name: p for p in read_parts((built / "polygraphy.sh").read_text("utf-8"))}
        assert list(parts) == ["onnxruntime", "engine", "both", "dense"]
        for part in parts.values():
            for line in part.commands:
                parsed(line)
        (line,) = parts["engine"].commands
        found = parsed(line)
        assert found.runners == ["trt"]
        assert found.model_type == "engine"
        assert ("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy" in line) == (target == "rtx-4090")
        assert found.load_outputs_paths == ["checks/out.json"]
        assert found.check_error_stat == ["mean"]
        assert line.partition("--load-outputs")[0] in parts["both"].commands[1].replace(
            "load_data", "load_scenes"
        )
    assert "--trt" not in parts["dense"].commands[0]
    with pytest.raises(SystemExit):
        parsed("polygraphy run model.engine --trt --no-such-option")


def test_the_engine_of_an_rtx_gpu_is_opened_by_its_package(
    for_gpus: dict[str, Path], tmp_path: Path
) -> None:
    """Here without a driver: the line comes as far as that."""
    done = shell(f"sh {for_gpus['rtx-4090']}/polygraphy.sh engine", tmp_path)
    said = done.stdout + done.stderr
    assert "Unrecognized Options" not in said
    assert "PASSED" in said if done.returncode == 0 else "deserializeCudaEngine" in said
