"""The programs in examples/python, and the record that docs/deploy.md writes into a model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import tcompile
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
