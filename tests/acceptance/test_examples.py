"""The programs in examples/python, and the record that docs/deploy.md writes into a model."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import tcompile
from tcompile.core.errors import UsageError
from tests.support.artifacts import make_artifact
from tests.support.tiny_vit import VitSpec, save_tiny_vit

ROOT = Path(__file__).parents[2]


def test_labels_that_the_page_writes_are_what_the_example_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"(?s)```python\n(import json.*?)```", page)
    save_tiny_vit(tmp_path / "mine.onnx", VitSpec(image=224, patch=32, classes=2, depth=1))
    exec(compile(code, "deploy.md", "exec"), {})
    record = {p.key: p.value for p in onnx.load("mine.onnx").metadata_props}
    labels = json.loads(record["tcompile.preprocess"])["labels"]
    built = make_artifact(tmp_path / "mine", tmp_path / "mine.onnx")
    for name in ("a.png", "b.jpg"):
        pixels = np.random.default_rng(0).integers(256, size=(50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    command = [sys.executable, ROOT / "examples" / "python" / "classify.py", built]
    done = subprocess.run([*command, "a.png", "b.jpg"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    best = tcompile.load(built)("b.jpg").top()[0][0]
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["a.png", "b.jpg"]
    assert f"  {best.probability:6.1%}  {best.label}" == lines[4]
    assert best.label in labels
    failed = subprocess.run([*command, "none.png"], capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (2, "error: none.png: no such file\n")


@pytest.fixture
def camera(tmp_path: Path) -> tuple[Path, Any]:
    """An artifact for images of 32 × 32, and the program's module."""
    save_tiny_vit(tmp_path / "m.onnx", VitSpec(depth=1))
    record = {"input": "image", "size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    model = onnx.load(str(tmp_path / "m.onnx"))
    entry = model.metadata_props.add()
    entry.key, entry.value = "tcompile.preprocess", json.dumps(record)
    onnx.save(model, str(tmp_path / "m.onnx"))
    built = make_artifact(tmp_path / "built", tmp_path / "m.onnx", preprocess=record)
    path = ROOT / "examples" / "python" / "camera_loop.py"
    spec = importlib.util.spec_from_file_location("camera_loop", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return built, module


def test_frames_from_standard_input_are_timed(camera: tuple[Path, Any]) -> None:
    built, module = camera
    frames = np.random.default_rng(0).integers(256, size=(6, 24, 40, 3), dtype=np.uint8).tobytes()
    command = [sys.executable, module.__file__, str(built), "--raw", "40x24"]
    done = subprocess.run(command, input=frames, capture_output=True)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.decode("utf-8").splitlines()
    assert first.startswith("5 frames: median ")  # the first one is not counted
    assert len(lines) == 11
    assert sum(int(line.split(" ms ")[1].split()[0]) for line in lines) == 5
    assert lines[-1].startswith("≥ ")


def test_a_folder_of_images_is_run_again_and_again(
    camera: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    built, module = camera
    (tmp_path / "images").mkdir()

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["camera_loop.py", *map(str, arguments)])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    assert run(built, tmp_path / "images")[2] == (
        f"error: {tmp_path}/images: no images in this folder\n"
    )
    for i in range(2):
        Image.new("RGB", (40 + i, 30), (i, 99, 5)).save(tmp_path / "images" / f"{i}.png")
    code, out, _ = run(built, tmp_path / "images", "--frames", 7)
    assert (code, out.split(":")[0]) == (0, "7 frames")
    assert run(built, tmp_path / "images")[1].startswith("100 frames")
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    for arguments, words in (
        ((built, tmp_path / "images"), "2.png: cannot be read as an image"),
        ((built,), "either a folder of images or --raw WxH"),
        ((built, tmp_path / "images", "--raw", "4x4"), "either a folder of images or --raw WxH"),
        ((built, tmp_path / "none"), "none: no such folder"),
        ((built, "--raw", "0x4"), "--raw 0x4: is not WIDTHxHEIGHT, such as 640x480"),
        ((built, "--raw", "4x4", "--frames", "-1"), "-1 is not a whole number"),
        ((tmp_path / "none", tmp_path / "images"), "no such"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert words in err


def test_standard_input_that_ends_within_a_frame_is_refused(
    camera: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module = camera
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(4 * 4 * 3 + 5))))
    frames = module.from_stdin("4x4")
    assert next(frames).shape == (4, 4, 3)
    with pytest.raises(UsageError, match="ends within a frame"):
        next(frames)
