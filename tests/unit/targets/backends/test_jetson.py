"""The Jetson bundle: commands for each JetPack, and a script that picks by TensorRT's version."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tcompile.core.errors import ModelError, UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.targets import load_target
from tcompile.targets.backends import emit, jetson, tensorrt
from tcompile.targets.backends.base import Batch
from tcompile.targets.compatibility import Compatibility
from tests.unit.passes.lower.blocks import attention_blocks, save

SHAPES = "--minShapes=x:1x33x64 --optShapes=x:2x33x64 --maxShapes=x:4x33x64"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = save(attention_blocks(depth=1, batch="batch"), tmp_path)
    emitted = emit(
        path, tmp_path, target=load_target("jetson-orin"), precision="fp16", batch=(1, 2, 4)
    )
    assert set(emitted.files) == {"build_engine.sh", "check.sh", "trtexec.json", "README.txt"}
    assert emitted.fused is None
    return tmp_path


def commands(folder: Path) -> dict[str, str]:
    rows = json.loads((folder / "trtexec.json").read_text())["commands"]
    return {row["jetpack"]: row["command"] for row in rows}


def test_each_jetpack_has_its_line(bundle: Path) -> None:
    lines = commands(bundle)
    assert list(lines) == ["6.1", "6.2", "6.2.1", "6.2.2", "7.2", "7.2.1", "7.2.2"]
    for jetpack, line in lines.items():
        assert line.startswith("trtexec --onnx=model.onnx ")
        assert SHAPES in line
        assert "--fp16" not in line
        assert ("--stronglyTyped" in line) == (jetpack != "7.2.2")  # TensorRT 11 ignores it
    readme = (bundle / "README.txt").read_text()
    assert "JetPack 6.1, 6.2, 6.2.1, 6.2.2 (TensorRT 10.3.0)" in readme
    assert all(line in readme for line in lines.values())


def test_a_fixed_batch_needs_no_shapes(tmp_path: Path) -> None:
    path = save(attention_blocks(depth=1), tmp_path)
    emit(path, tmp_path, target=load_target("jetson-agx-thor"), precision="fp16")
    lines = commands(tmp_path)
    assert list(lines) == ["7.0", "7.1", "7.2", "7.2.1", "7.2.2"]
    assert not any("Shapes" in line for line in lines.values())
    assert "--shapes" not in (tmp_path / "README.txt").read_text()


def program_with(folder: Path, banner: str) -> Path:
    """A trtexec that prints its banner, and writes what it was asked for."""
    program = folder / "trtexec"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "{banner}"\n'
        'case "$1" in --help) exit 0;; esac\n'
        'for each in "$@"; do case "$each" in\n'
        '  --saveEngine=*) echo "$@" > "${each#--saveEngine=}";;\n'
        "esac; done\n"
    )
    program.chmod(0o755)
    return program


def run_script(bundle: Path, trtexec: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(bundle / "build_engine.sh"), "--verbose"],
        env={"PATH": "/usr/bin:/bin", "TRTEXEC": str(trtexec)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("number", "engine", "flag"),
    [("100300", "10.3", True), ("101602", "10.16", True), ("110401", "11.4", False)],
)
def test_the_script_picks_by_version(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, number: str, engine: str, flag: bool
) -> None:
    banner = f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help"
    done = run_script(bundle, program_with(tmp_path_factory.mktemp("bin"), banner))
    assert done.returncode == 0, done.stderr
    name = f"engine/model.trt{engine}.engine"
    assert done.stdout.splitlines()[-1] == name
    asked = (bundle / name).read_text()
    assert ("--stronglyTyped" in asked) == flag
    assert SHAPES in asked
    assert asked.rstrip().endswith("--verbose")
    assert not (bundle / f"{name}.part").exists()


@pytest.mark.parametrize(
    ("banner", "reason"),
    [
        ("[TensorRT v8602]", "10.3 or newer (JetPack 6.1 or newer)"),
        ("[TensorRT v100000]", "10.3 or newer (JetPack 6.1 or newer)"),
        ("[TensorRT v100200]", "10.3 or newer (JetPack 6.1 or newer)"),
        ("no libnvinfer.so.10", "no libnvinfer.so.10\ncannot tell the TensorRT version"),
    ],
)
def test_the_script_says_what_is_wrong(bundle: Path, banner: str, reason: str) -> None:
    done = run_script(bundle, program_with(bundle, banner))
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (bundle / "engine").exists()
    done = run_script(bundle, bundle / "nowhere")
    assert done.returncode == 2
    assert "no trtexec" in done.stderr


@pytest.mark.parametrize(
    ("given", "path"), [("trtexec", "bin"), ("", "bin"), ("bin/trtexec", ""), ("./bin/trtexec", "")]
)
def test_trtexec_is_found_from_where_one_stands(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, given: str, path: str
) -> None:
    """By its name on PATH, and by a path, relative to the folder of the caller."""
    here = tmp_path_factory.mktemp("here")
    (here / "bin").mkdir()
    program_with(here / "bin", "[TensorRT v100300]")
    (here / "trtexec").mkdir()  # a folder is no program
    done = subprocess.run(
        ["sh", str(bundle / "build_engine.sh")],
        env={"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin", "TRTEXEC": given},
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "engine/model.trt10.3.engine"


def test_thor_needs_what_its_first_jetpack_has(tmp_path: Path) -> None:
    path = save(attention_blocks(depth=1), tmp_path)
    emit(path, tmp_path, target=load_target("jetson-agx-thor"), precision="fp16")
    readme = (tmp_path / "README.txt").read_text()
    assert "It needs TensorRT 10.13 or newer (JetPack 7.0 or newer)." in readme
    done = run_script(tmp_path, program_with(tmp_path, "[TensorRT v100300]"))
    assert done.returncode == 2
    assert "TensorRT 10.13 or newer" in done.stderr


@pytest.mark.parametrize("ends", ["exit 1", "kill -INT $PPID; sleep 1; exit 1"])
def test_a_build_that_fails_leaves_no_half_engine(bundle: Path, tmp_path: Path, ends: str) -> None:
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(
        '#!/bin/sh\necho "[TensorRT v100300]"\ncase "$1" in --help) exit 0;; esac\n'
        f"echo half > engine/model.trt10.3.engine.part\n{ends}\n"
    )
    trtexec.chmod(0o755)
    assert run_script(bundle, trtexec).returncode != 0
    assert [p.name for p in (bundle / "engine").iterdir()] == ["board"]


def test_timings_of_another_board_are_left_out(bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / "board-model"
    script = bundle / "build_engine.sh"
    script.write_text(script.read_text().replace("/proc/device-tree/model", str(model)))
    trtexec = program_with(tmp_path, "[TensorRT v100300]")
    timings = bundle / "engine/timing.trt10.3.cache"
    (bundle / "engine").mkdir()
    timings.touch()  # not told by which board
    for board, kept in ((b"Jetson AGX Orin\0", 0), (b"Jetson AGX Orin\0", 1), (b"Orin NX", 0)):
        model.write_bytes(board)
        assert run_script(bundle, trtexec).returncode == 0
        assert timings.exists() == kept
        timings.touch()
    assert (bundle / "engine/board").read_text() == "OrinNX\n"
    assert jetson.made_on_device(bundle, "engine/board")


def test_a_build_that_is_killed_leaves_nothing_that_is_in_the_way(
    bundle: Path, tmp_path: Path
) -> None:
    """Neither a half engine, nor a digest of another one."""
    name = "engine/model.trt10.3.engine"
    trtexec = program_with(tmp_path, "[TensorRT v100300]")
    assert run_script(bundle, trtexec).returncode == 0
    text = trtexec.read_text()
    trtexec.write_text(text + "kill -KILL $PPID\n")
    assert run_script(bundle, trtexec).returncode != 0
    assert jetson.made_on_device(bundle, f"{name}.part")
    assert not jetson.made_on_device(bundle, f"{name}.part", listed=True)
    assert not jetson.made_on_device(bundle, "engine/other.part")
    assert jetson.made_on_device(bundle, name)  # still the one before
    trtexec.write_text(text)
    script = bundle / "build_engine.sh"
    script.write_text(script.read_text().replace("sha256sum", "kill -KILL $$; sha256sum"))
    assert run_script(bundle, trtexec).returncode != 0
    assert jetson.made_on_device(bundle, name)
    assert not (bundle / f"{name}.sha256").exists()


def test_a_free_axis_other_than_the_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="'x' has a free axis"):
        jetson.shape_flags((TensorInfo("x", "float32", ("b", "n", 4)),), Batch())


def test_on_a_jetson_the_engine_is_built_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "board"
    board.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\x00")
    monkeypatch.setattr(jetson, "_BOARD", board)
    monkeypatch.setattr(tensorrt, "version", lambda: "10.3.0")
    monkeypatch.setattr(tensorrt, "build", lambda path, **_: b"plan")
    monkeypatch.setattr(tensorrt, "layers", lambda plan: '{"Layers": []}')
    path = save(attention_blocks(depth=1), tmp_path)
    emitted = emit(path, tmp_path, target=load_target("jetson-orin"), precision="fp16")
    assert "engine/model.trt10.3.engine" in emitted.files
    assert "engine/model.trt10.3.layers.json" in emitted.files
    assert (tmp_path / "engine/model.trt10.3.engine").read_bytes() == b"plan"
    assert emitted.versions == {"tensorrt": "10.3.0"}
    wanted = Compatibility(version=True, lean_runtime=True)
    (tmp_path / "engine/model.trt10.3.layers.json").unlink()
    emitted = emit(
        path, tmp_path, target=load_target("jetson-orin"), precision="fp16", compatibility=wanted
    )
    assert emitted.compatibility == wanted
    assert not any(name.endswith(".layers.json") for name in emitted.files)


def test_a_precision_that_a_target_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        emit(
            tmp_path / "model.onnx",
            tmp_path,
            target=load_target("jetson-orin"),
            precision="int4",  # type: ignore[arg-type]
        )
