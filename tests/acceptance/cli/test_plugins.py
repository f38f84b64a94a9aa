"""`tcompile plugins`, `--token-ops`, and the page that is made of the specifications."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from tcompile.plugins.build import LIBRARY, SOURCES, architectures
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import KINDS
from tests.support.command import Command
from tools.token_ops import page

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but what a test puts into this folder; a cache of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "cache"))
    for name in ("CUDACXX", "TENSORRT_ROOT", "TCOMPILE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tcompile.plugins.build._HEADERS", ())
    monkeypatch.setattr("tcompile.plugins.build._first", lambda *paths: None)
    return folder


def program(folder: Path, name: str, text: str = "") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
    path.chmod(0o755)
    return path


#: Says its version; "builds" a library that holds how it was configured; fails where told to.
CMAKE = """
case $1 in
  --version) echo "cmake version ${0##*/}"; echo "3.25.1";;
  --build) [ -f "$2/fail" ] && { echo "x.cu(3): error: no"; exit 1; }
           mkdir -p "$2/lib"; cp "$2/args" "$2/lib/libtcompile_plugins.so";;
  *) mkdir -p "$4"; echo "$*" > "$4/args";;
esac
"""


def everything(tools: Path) -> Path:
    """All that a build needs; returns TensorRT's root."""
    program(tools, "cmake", CMAKE.replace("${0##*/}", "3.25.1"))
    program(tools, "nvcc")
    program(tools, "nvidia-smi")
    root = tools / "trt"
    (root / "include").mkdir(parents=True)
    (root / "include" / "NvInfer.h").touch()
    return root


def test_the_list(tcompile: Command) -> None:
    shown = tcompile("plugins", "list")
    assert shown.code == 0
    rows = [line.split()[0] for line in shown.out.splitlines()[2:] if line.startswith("Tc")]
    assert rows == [op.name for op in OPS]
    listed = tcompile("plugins", "list", "--json").json()
    for op, told in zip(OPS, listed, strict=True):
        assert (told["name"], told["version"], told["namespace"]) == (op.name, "1", "tcompile")
        assert [f["name"] for f in told["fields"]] == list(op.fields)
        assert all(f["meaning"] for f in told["fields"])
        assert [t["name"] for t in told["inputs"]] == [t.name for t in op.takes]
        assert all(t["types"] == list(KINDS[t["kind"]]) for t in told["outputs"])


def test_the_page_is_current() -> None:
    made = "python -m tools.token_ops > docs/token-ops.md"
    text = (DOCS / "token-ops.md").read_text(encoding="utf-8")
    assert text == page(), made
    for op in OPS:
        assert f"### {op.name}\n" in text


def test_the_sources_are_in_the_package() -> None:
    for name in ("CMakeLists.txt", "cuda/tcompile_ops.h", "cuda/select.cu", "cuda/check.cpp"):
        assert (SOURCES / name).is_file()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("native", "native"),
        ("87", "87"),
        ("8.7", "87"),
        ("sm_87,110", "87;110"),
        ("90a", "90a"),
        ("orin", ""),
        ("", ""),
        ("87;rm", ""),
    ],
)
def test_architectures(text: str, wanted: str) -> None:
    if wanted:
        assert architectures(text) == wanted
    else:
        with pytest.raises(Exception, match="not a GPU architecture"):
            architectures(text)


def refused(tcompile: Command, *arguments: object, says: str, code: int = 2) -> None:
    shown = tcompile("plugins", *arguments)
    assert shown.code == code, shown.err
    assert says in shown.err
    assert shown.err.count("\n") == 1


def test_what_a_build_needs_is_named(tcompile: Command, tools: Path) -> None:
    refused(tcompile, "build", says="needs CMake, which is not installed")
    program(tools, "cmake", "echo 'cmake version 3.22.1'")
    refused(tcompile, "build", says="CMake 3.24 or newer")
    root = everything(tools)
    (tools / "nvcc").unlink()
    refused(tcompile, "build", says="needs nvcc")
    program(tools, "nvcc")
    refused(tcompile, "build", says="no NvInfer.h in the usual places")
    refused(tcompile, "build", "--tensorrt", tools, says=f"no NvInfer.h in {tools}")
    refused(tcompile, "build", "--tensorrt", root, "--arch", "orin", says="'orin' is not a GPU")
    (tools / "nvidia-smi").unlink()
    refused(tcompile, "build", "--tensorrt", root, says="no GPU to build for")


def test_build_and_path(tcompile: Command, tools: Path, tmp_path: Path) -> None:
    refused(tcompile, "path", says="`tcompile plugins build` makes one")
    root = everything(tools)
    built = tcompile("plugins", "build", "--tensorrt", root, "--arch", "8.7")
    assert built.code == 0, built.err
    library = Path(built.out.strip())
    assert library.name == LIBRARY
    assert tmp_path / "cache" in library.parents
    assert tcompile("plugins", "path").out.strip() == str(library)
    assert tcompile("plugins", "path", "--json").json() == {"library": str(library)}
    asked = library.read_text()
    assert f"-S {SOURCES} " in asked
    assert "-DCMAKE_CUDA_ARCHITECTURES=87" in asked
    assert f"-DTENSORRT_ROOT={root.resolve()}" in asked
    other = tcompile("plugins", "build", "--tensorrt", root, "-o", tmp_path / "out", "--json")
    assert Path(other.json()["library"]) == tmp_path / "out" / LIBRARY
    assert "-DCMAKE_CUDA_ARCHITECTURES=native" in (tmp_path / "out" / LIBRARY).read_text()
    (library.parent / "build-87" / "fail").touch()
    refused(
        tcompile,
        "build",
        "--tensorrt",
        root,
        "--arch",
        "87",
        code=1,
        says="compiling the plugin library failed: x.cu(3): error: no",
    )
    assert library.read_text() == asked  # what was there stays
    assert "--fresh" in asked, "headers found before may be another TensorRT's"
    file = tmp_path / "file"
    file.touch()
    refused(tcompile, "build", "--tensorrt", root, "-o", file, says="is a file")


def test_check(tcompile: Command, tmp_path: Path) -> None:
    refused(tcompile, "check", tmp_path / "none.so", says="none.so")
    refused(tcompile, "check", "/dev/zero", says="not a regular file")
    text = tmp_path / "text.so"
    text.write_text("hello")
    refused(tcompile, "check", text, says="text.so")
    # A shared library that is not ours.
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    other = next(Path(np.__file__).parent.rglob(f"*{suffix}"))
    shown = tcompile("plugins", "check", other)
    assert shown.code == 1
    assert "not a plugin library of tcompile" in shown.err
    told = tcompile("plugins", "check", other, "--json")
    assert told.code == 1
    assert json.loads(told.out)["problems"]


def test_forms_are_refused_in_one_line(tcompile: Command, vit: Path) -> None:
    asked = ("build", vit, "--keep", "0.6", "--token-ops")
    for target, says in (("cpu", "ONNX Runtime"), ("rtx-4090", "TensorRT-RTX")):
        for form in ("plugin", "aot"):
            shown = tcompile(*asked, form, "--target", target)
            assert shown.code == 2
            assert says in shown.err
            assert shown.err.count("\n") == 1
    assert not list(vit.resolve().parent.glob("vit-*"))


def test_the_manifest_has_the_form_and_why(tcompile: Command, vit: Path) -> None:
    pytest.importorskip("onnxruntime")
    asked = ("build", vit, "--keep", "0.6", "--json", "--target")
    own = tcompile(*asked, "cpu", "-o", "a").json()["manifest"]["token_ops"]
    assert own["form"] == "native"
    assert "ONNX Runtime" in own["reason"]
    plugin = ("jetson-orin", "--token-ops", "plugin", "-o")
    told = tcompile(*asked, *plugin, "b", "--method", "evit").json()
    assert told["manifest"]["token_ops"] == {"form": "plugin", "reason": "asked for"}
    # The dense model meets such a latency: nothing leaves, and nothing needs plugins.
    met = ("build", vit, "--latency", "1000", "--json", "--target")
    dense = tcompile(*met, *plugin, "d").json()["manifest"]
    assert dense["schedule"]["reductions"] == []
    assert dense["token_ops"]["form"] == "native"
    assert "plugin was asked for" in dense["token_ops"]["reason"]
    assert not any("plugins/" in note for note in dense["notes"])
    shown = tcompile("build", vit, "--keep", "0.6", "--target", "jetson-orin", "-o", "c", "-v")
    assert "token ops" in shown.out
