"""`init_app`: the project that it writes, and what it refuses. tests/acceptance/test_cpp_app.py
builds one and runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import tcompile
from tcompile.artifact.manifest import TargetEntry
from tcompile.core.errors import ModelError, UsageError
from tcompile.deploy.app import LANGUAGES
from tcompile.models.preprocess import PREPROCESS_KEY
from tests.support.artifacts import make_artifact
from tests.support.command import Command
from tests.support.tiny_vit import VitSpec, save_tiny_vit

RECORD = {"input": "image", "size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
LABELS = tuple(f"kind {i}" for i in range(10))


@pytest.fixture
def tcompile_command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def artifact(folder: Path, name: str = "built", **changes: Any) -> Path:
    save_tiny_vit(folder / "m.onnx", VitSpec(depth=1))
    model = onnx.load(str(folder / "m.onnx"))
    entry = model.metadata_props.add()
    entry.key, entry.value = PREPROCESS_KEY, json.dumps(RECORD)
    onnx.save(model, str(folder / "m.onnx"))
    changes = {"preprocess": RECORD, "labels": LABELS, **changes}
    return make_artifact(folder / name, folder / "m.onnx", **changes)


def test_a_python_program_runs_and_refuses_what_is_foreign(
    tcompile_command: Command, tmp_path: Path
) -> None:
    built = artifact(tmp_path)
    said = tcompile_command("init-app", built, "--python", "-o", tmp_path / "app", "--json").json()
    assert said["outputs"] == ["logits"]
    assert said["commands"][-1] == "python classify.py artifact IMAGE..."
    Image.fromarray(np.full((40, 30, 3), 99, np.uint8)).save(tmp_path / "app" / "a.png")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "classify.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "app")

    done = run("artifact", "a.png")
    best = tcompile.load(built)(tmp_path / "app" / "a.png").top()[0][0]
    assert done.stdout.splitlines()[1] == f"  {best.probability:6.1%}  {best.label}"
    other = onnx.load(str(tmp_path / "m.onnx"))
    other.graph.output[0].name = other.graph.node[-1].output[0] = "scores"
    onnx.save(other, str(tmp_path / "other.onnx"))
    foreign = make_artifact(tmp_path / "foreign", tmp_path / "other.onnx", preprocess=RECORD)
    done = run(str(foreign), "a.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {foreign}: has no output 'logits', which this program is written for; it has "
        "'scores' [1, 10] (`tcompile init-app` writes a program for it)\n"
    )


@pytest.mark.parametrize(
    ("runtime", "component", "extras"),
    [
        ("onnxruntime", "REQUIRED\n", "cpu"),
        ("openvino", "REQUIRED\n", "cpu,openvino"),
        ("tensorrt-rtx", "REQUIRED COMPONENTS tensorrt-rtx\n", "rtx,cuda"),
        ("jetson", "REQUIRED COMPONENTS tensorrt\n", "cuda"),
    ],
)
def test_a_project_asks_for_its_runtime(
    tmp_path: Path, runtime: str, component: str, extras: str
) -> None:
    built = artifact(tmp_path, target=TargetEntry("a device", runtime))
    apps = {name: tcompile.init_app(built, tmp_path / name, name) for name in LANGUAGES}
    assert component in (tmp_path / "cpp" / "CMakeLists.txt").read_text()
    assert f"[{extras}]==" in (tmp_path / "python" / "requirements.txt").read_text()
    assert 'needed = {"logits"};' in (tmp_path / "cpp" / "main.cpp").read_text()
    header = tmp_path / "cpp" / "tcompile_runtime" / "tcompile_runtime.hpp"
    assert header.stat().st_size > 10_000
    for name, app in apps.items():
        page = (tmp_path / name / "README.md").read_text()
        assert all(command in page for command in app.commands)
        on_device = "sh artifact/build_engine.sh" in app.commands
        assert on_device == (runtime == "jetson")
        assert sorted(p.name for p in (tmp_path / name / "artifact").iterdir()) == sorted(
            p.name for p in built.iterdir()
        )


def test_names_of_outputs_are_written_as_they_are(tmp_path: Path) -> None:
    artifact(tmp_path)
    model = onnx.load(str(tmp_path / "m.onnx"))
    model.graph.output[0].name = model.graph.node[-1].output[0] = 'größe "😀"'
    onnx.save(model, str(tmp_path / "other.onnx"))
    built = make_artifact(tmp_path / "other", tmp_path / "other.onnx", preprocess=RECORD)
    for language, file in (("cpp", "main.cpp"), ("python", "classify.py")):
        tcompile.init_app(built, tmp_path / language, language)
        text = (tmp_path / language / file).read_text(encoding="utf-8")
        assert '"größe \\"😀\\""' in text


def test_what_is_refused_leaves_nothing(tcompile_command: Command, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    altered = artifact(tmp_path, "altered")
    (altered / "model.onnx").write_bytes(b"?")
    built = artifact(tmp_path)
    save_tiny_vit(tmp_path / "plain.onnx", VitSpec(depth=1))
    silent = make_artifact(tmp_path / "silent", tmp_path / "plain.onnx")
    (tmp_path / "link").symlink_to(built)
    before = sorted(tmp_path.rglob("*"))
    cases: list[tuple[Path, str, Path, str]] = [
        (built, "--cpp", full, "exists and is not empty (choose another -o)"),
        (built, "--cpp", built / "app", "lies within the artifact (choose another -o)"),
        (built, "--cpp", tmp_path / "link" / "app", "lies within the artifact"),
        (tmp_path / "link", "--cpp", built / "app", "lies within the artifact"),
        (built, "--cpp", tmp_path / "m.onnx" / "app", "cannot be written"),
        (altered, "--cpp", tmp_path / "new", "'model.onnx' was changed or added since"),
        (tmp_path / "none", "--python", tmp_path / "new", "no such directory"),
        (artifact(tmp_path, "bad", fault="it is odd"), "--cpp", tmp_path / "new", "it is odd"),
        (silent, "--cpp", tmp_path / "new", "(build it again with --preprocess imagenet, clip"),
        (silent, "--python", tmp_path / "new", "does not say how images are prepared for it"),
    ]
    for given, language, output, words in cases:
        said = tcompile_command("init-app", given, language, "-o", output)
        assert (said.code, said.out) == (2, ""), (given, said)
        assert words in said.err
        assert said.err.count("\n") == 1
    assert set(tmp_path.rglob("*")) - set(before) == {
        tmp_path / "bad",
        *(tmp_path / "bad").rglob("*"),
    }
    said = tcompile_command("init-app", built, "-o", "x").err
    assert "what to write is not said (--cpp, --python, --triton or --deepstream)" in said
    with pytest.raises(UsageError, match="there is no 'rust' program"):
        tcompile.init_app(built, tmp_path / "new", "rust")
    with pytest.raises(ModelError):
        tcompile.init_app(altered, tmp_path / "new")
