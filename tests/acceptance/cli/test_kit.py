"""The loop by way of a Jetson: a kit is written, measured with trtexec, imported, planned with."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support.command import Command, Outcome
from tests.support.tiny_vit import VitSpec, save_tiny_vit
from tests.support.trtexec import STEP, calls, fake_trtexec

SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=3)
PROFILE = ("profile", "vit.onnx", "--target", "jetson-orin")


@pytest.fixture
def vit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=None)


def printed(outcome: Outcome) -> str:
    """What a command wrote that ended well."""
    assert outcome.code == 0, outcome.err
    return outcome.out


def measure(trtexec: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "kit/measure.sh"],
        env={**os.environ, "TRTEXEC": str(trtexec)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version", ["10.3.0", "11.1.0"])
def test_the_loop(tcompile: Command, vit: Path, version: str, tmp_path: Path) -> None:
    kit = tcompile(*PROFILE, "--kit", "kit", "--method", "topk", "--counts", "9,13")
    assert "wrote kit: 4 models" in printed(kit)
    names = [m["name"] for m in json.loads(Path("kit/kit.json").read_text())["models"]]
    assert names == ["dense", "topk-16", "topk-13", "topk-9"]
    for name in names:  # whole models, that run from where the kit lies, with shared weights
        onnx.checker.check_model(f"kit/{name}.onnx")
        session = onnxruntime.InferenceSession(f"kit/{name}.onnx")
        image = np.zeros((1, 3, 32, 32), np.float32)
        assert session.run(None, {"image": image})[0].shape == (1, 10)
    sizes = {p.suffix: p.stat().st_size for p in Path("kit").iterdir()}
    assert sum(p.stat().st_size for p in Path("kit").glob("*.onnx")) < 4 * sizes[".bin"]

    (tmp_path / "bin").mkdir()
    trtexec = fake_trtexec(tmp_path / "bin", version)
    done = measure(trtexec)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # also where nothing tells the board
    given = calls(tmp_path / "bin")
    assert len(given) == 4 + 3 * 4  # built once, measured in three rounds
    assert all("--minShapes=image:1x3x32x32" in each for each in given[:4])
    assert all("--shapes=image:1x3x32x32" in each for each in given[4:])
    assert all(("--useCudaGraph" in each) == version.startswith("10") for each in given[4:])
    document = json.loads(Path("kit/measured.json").read_text())
    assert [len(r) for r in document["rounds"].values()] == [3] * 4
    assert len(document["rounds"]["dense"][0]) == 10

    made = tcompile(*PROFILE, "--import", "kit/measured.json", "-o", "orin.json")
    assert "TensorRT, trtexec on the device" in printed(made)
    profile = json.loads(Path("orin.json").read_text())
    assert profile["kind"] == "measured"
    assert profile["conditions"]["software"] == {"tensorrt": version}
    assert profile["dense"][0] == pytest.approx(17e-3 * 1.045)
    ((before, after, ms, *_),) = profile["reducers"]["topk"]
    assert (before, after) == (17, 16)
    assert ms == pytest.approx((STEP - 1) * 1e-3 * 1.045, rel=0.01)
    if version.startswith("11"):
        return  # planning is the same with both
    again = measure(trtexec)
    assert "building" not in again.stdout
    built = tcompile(
        *("build", "vit.onnx", "--target", "jetson-orin", "--method", "topk"),
        *("--latency", "0.016", "--profile", "orin.json", "-o", "out"),
    )
    assert "asked at most 0.016 ms" in printed(built)
    report = Path("out/report.md").read_text()
    assert "from: measured, Jetson AGX Orin 64 GB, TensorRT, trtexec on the device" in report


def on_board(folder: Path, name: str, script: str = "kit/measure.sh") -> None:
    """Let a script take a file for what tells the board."""
    (folder / "model").write_bytes(name.encode() + b"\0")
    text = Path(script).read_text()
    Path(script).write_text(text.replace("/proc/device-tree/model", str(folder / "model")))


def test_a_kit_that_was_measured_on_another_board_starts_anew(
    tcompile: Command, vit: Path, tmp_path: Path
) -> None:
    """Engines and timings stay on one kind of board only; a note tells of one that is not the
    target's."""
    printed(tcompile(*PROFILE, "--kit", "kit", "--method", "topk", "--counts", "9"))
    (tmp_path / "bin").mkdir()
    trtexec = fake_trtexec(tmp_path / "bin", "10.3.0")
    for board, built in (
        ("NVIDIA Jetson AGX Orin Developer Kit", True),
        ("NVIDIA Jetson AGX Orin Developer Kit", False),
        ("NVIDIA Orin NX Developer Kit", True),
    ):
        Path("kit/engine").mkdir(exist_ok=True)
        stale = Path("kit/engine/timing.trt10.2.cache")
        if built:
            stale.touch()
        on_board(tmp_path, board)
        done = measure(trtexec)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("building") == (3 if built else 0)
        assert not stale.exists()
        assert json.loads(Path("kit/measured.json").read_text())["board"] == board
        made = tcompile(*PROFILE, "--import", "kit/measured.json", "-o", "orin.json")
        assert ("does not look like the target" in printed(made) + made.err) == ("NX" in board)


def test_what_goes_wrong_on_the_device(tcompile: Command, vit: Path, tmp_path: Path) -> None:
    printed(tcompile(*PROFILE, "--kit", "kit", "--method", "topk", "--counts", "9"))
    (tmp_path / "bin").mkdir()
    done = measure(fake_trtexec(tmp_path / "bin", "8.6.1"))
    assert (done.returncode, "needs TensorRT 10.0 or newer" in done.stderr) == (2, True)
    trtexec = fake_trtexec(tmp_path / "bin", "10.3.0")
    (tmp_path / "kit" / "topk-9.onnx").unlink()
    done = measure(trtexec)
    assert done.returncode == 1
    assert "cannot open topk-9.onnx" in done.stderr
    assert "topk-9 cannot be built: all of it is in times/topk-9.log" in done.stderr
    assert not Path("kit/measured.json").exists()
    assert list(Path("kit").rglob("*.part")) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target", "cpu"), "a kit is measured with trtexec, on a Jetson; cpu is not one"),
        (("--precision", "int8"), "jetson-agx-orin is not profiled in int8"),
        (("--counts", "17"), "17 is not between the prefix, 1, and the model's 17 tokens"),
        (("--method", "topk", "--counts", "16"), "--counts: 16 gives topk one model only, and a"),
        (("--counts", "a"), "'a' is not a list of numbers"),
        (("--modelled",), "and --modelled are not for one command"),
        (("--method", "tome"), "no method here may keep any number of tokens in one step"),
    ],
)
def test_a_kit_that_cannot_be_written(
    tcompile: Command, vit: Path, options: tuple[str, ...], says: str
) -> None:
    done = tcompile(*PROFILE, "--kit", "kit", *options)
    assert done.code == 2
    assert says in done.err
    assert not Path("kit").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tcompile: Command, vit: Path) -> None:
    Path("kit").mkdir()
    Path("kit/mine").touch()
    done = tcompile(*PROFILE, "--kit", "kit")
    assert (done.code, "is not an empty folder" in done.err) == (2, True)
    assert [p.name for p in Path("kit").iterdir()] == ["mine"]
    done = tcompile(*PROFILE, "--counts", "9")
    assert (done.code, "--counts: is for --kit" in done.err) == (2, True)
