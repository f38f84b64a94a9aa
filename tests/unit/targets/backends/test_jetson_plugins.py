"""Bundles whose token ops are plugins: which file and which library trtexec is given."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

from tcompile import pipeline
from tcompile.api.verify import verify
from tcompile.artifact.directory import check_destination, load_artifact
from tcompile.plugins.build import SOURCES
from tcompile.targets.backends import jetson, tensorrt
from tcompile.targets.backends.fusion import expected_fused
from tests.support.tiny_vit import save_tiny_vit


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build for a Jetson with plugins."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("bundle")
    return pipeline.build(
        save_tiny_vit(folder / "vit.onnx"),
        target="jetson-orin",
        method="tome:r=3",
        token_ops="plugin",
        output=folder / "out",
    )


def test_the_manifest_says_so(bundle: Path) -> None:
    artifact = load_artifact(bundle)
    assert artifact.manifest.token_ops is not None
    assert artifact.manifest.token_ops.form == "plugin"
    assert artifact.changed_files() == []
    assert any("tcompile plugins build" in note for note in artifact.manifest.notes)
    assert "Token ops: plugin; asked for." in (bundle / "report.md").read_text()


def test_lines_by_tensorrt(bundle: Path) -> None:
    rows = json.loads((bundle / "trtexec.json").read_text())["commands"]
    assert {r["tensorrt"].rsplit(".", 1)[0] for r in rows} == {"10.3", "10.16", "11.4"}
    for row in rows:
        line = row["command"]
        assert "--dynamicPlugins=plugins/libtcompile_plugins.so" in line
        old = row["tensorrt"].startswith("10.3")
        assert line.startswith("head -c ") == old
        assert ("--onnx=model.plugin.onnx" in line) == old
        assert ("--onnx=model.onnx" in line) != old
        assert line in (bundle / "README.txt").read_text()
    assert "plugins build -o plugins" in (bundle / "README.txt").read_text()


def build_with(
    bundle: Path, folder: Path, number: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the script with a trtexec that keeps the model it is given and writes its arguments."""
    trtexec = folder / "trtexec"
    trtexec.write_text(
        f"""#!/bin/sh
if [ "$1" = --help ]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{number}]"; exit; fi
for each; do case $each in
  --onnx=*) cp "${{each#--onnx=}}" "{folder}/model";;
  --saveEngine=*) touch "${{each#--saveEngine=}}";;
esac; done
echo "$*" > "{folder}/arguments"
"""
    )
    trtexec.chmod(0o755)
    return subprocess.run(
        [str(bundle / "build_engine.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "TRTEXEC": str(trtexec), **env},
    )


@pytest.mark.parametrize("number", ["100300", "101303"])
def test_what_the_script_makes_is_expected(bundle: Path, tmp_path: Path, number: str) -> None:
    """The bundle after its own README: checked as it is, and replaced by another build."""
    made = tmp_path / "made"
    shutil.copytree(bundle, made)
    (made / "plugins").mkdir(exist_ok=True)
    (made / "plugins/libtcompile_plugins.so").touch()
    assert build_with(made, tmp_path, number).returncode == 0
    engine = f"engine/model.trt{number[:2]}.{int(number[2:4])}.engine"
    assert (made / engine).is_file()
    changed, new = load_artifact(made).compare_files()
    assert changed == []
    assert {engine, f"{engine}.sha256", "plugins/libtcompile_plugins.so"} <= set(new)
    checks = {c.name: c for c in verify(made, samples=1).checks}
    assert checks["files"].outcome == "passed"
    assert engine in checks["files"].detail
    assert check_destination(made) == made
    # An engine that is not the one that was built there, and files that no script makes.
    (made / engine).write_text("cut off")
    (made / "notes.txt").touch()
    assert load_artifact(made).changed_files() == [engine, "notes.txt"]


def test_an_engine_of_the_build_may_be_built_again_by_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Jetson the build lists an engine: the script's digest tells another from damage."""
    monkeypatch.setattr(jetson, "is_jetson", lambda: True)
    monkeypatch.setattr(tensorrt, "version", lambda: "10.3.0")
    monkeypatch.setattr(tensorrt, "build", lambda path, **_: b"plan")
    monkeypatch.setattr(tensorrt, "layers", lambda plan: '{"Layers": []}')
    made = pipeline.build(
        save_tiny_vit(tmp_path / "vit.onnx"),
        target="jetson-orin",
        method="topk",
        keep=0.5,
        output=tmp_path / "out",
    )
    engine = "engine/model.trt10.3.engine"
    assert load_artifact(made).changed_files() == []
    (made / engine).write_bytes(b"damaged")
    assert load_artifact(made).changed_files() == [engine]
    assert build_with(made, tmp_path, "100300").returncode == 0
    assert load_artifact(made).changed_files() == []


@pytest.mark.parametrize(("number", "bodies"), [("100300", 0), ("101303", 2), ("110401", 2)])
def test_the_script_gives_each_what_it_understands(
    bundle: Path, tmp_path: Path, number: str, bodies: int
) -> None:
    (bundle / "plugins").mkdir(exist_ok=True)
    (bundle / "plugins/libtcompile_plugins.so").touch()
    done = build_with(bundle, tmp_path, number)
    assert done.returncode == 0, done.stderr
    assert "--dynamicPlugins=plugins/libtcompile_plugins.so" in (tmp_path / "arguments").read_text()
    model = onnx.load(str(tmp_path / "model"))
    assert len(model.functions) == bodies
    assert [n.op_type for n in model.graph.node] == [
        n.op_type for n in onnx.load(str(bundle / "model.onnx")).graph.node
    ]


def test_the_script_wants_the_library(bundle: Path, tmp_path: Path) -> None:
    done = build_with(bundle, tmp_path, "101602", PLUGINS="nowhere.so")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere.so" in done.stderr
    assert not (tmp_path / "model").exists()


def test_native_bundles_say_nothing_of_plugins(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for form in ("native", "aot"):
        made = pipeline.build(
            save_tiny_vit(tmp_path / "vit.onnx"),
            target="jetson-orin",
            keep=0.6,
            token_ops=form,
            output=tmp_path / form,
        )
        assert "lugins" not in (made / "build_engine.sh").read_text()
        assert "lugins" not in (made / "README.txt").read_text()


def inspected(names: list[str]) -> str:
    """As trtexec's --exportLayerInfo has it of an engine whose attentions are these."""
    rows = [
        {"Name": "__myl_FcAdd_0", "LayerType": "gemm", "Metadata": "[ONNX Layer: qkv]"},
        *(
            {"Name": f"_gemm_mha_v2_{i}", "Metadata": f"[ONNX Layer: scale]\x1f[ONNX Layer: {n}]"}
            for i, n in enumerate(names)
        ),
    ]
    return json.dumps({"Layers": rows, "Bindings": ["image"]})


def test_verify_reads_what_trtexec_says_of_the_layers(bundle: Path, tmp_path: Path) -> None:
    """All attentions fused; one missing, which is TensorRT's matter; and no list at all."""
    made = tmp_path / "made"
    shutil.copytree(bundle, made)
    (made / "engine").mkdir(exist_ok=True)
    layers = made / "engine" / "model.trt10.3.layers.json"
    expected = expected_fused(onnx.load(str(made / "model.onnx")))
    assert len(expected) > 1
    for text, outcome, says in (
        (inspected(expected), "passed", f"all {len(expected)} attention layers are fused, says "),
        (inspected(expected[1:]), "skipped", f"are not fused: {expected[0]}, says engine/"),
        ('{"Layers": ["a", "b"]}', "skipped", "no engine"),
        ("cut off {", "skipped", "no engine"),
    ):
        layers.write_text(text)
        found = verify(made, samples=1)
        (check,) = [c for c in found.checks if c.name == "fused attention"]
        assert (check.outcome, says in check.detail) == (outcome, True), check
        assert found.passed
    (numerics,) = [c for c in found.checks if c.name == "numerics"]
    assert "check.sh does that on the device" in numerics.detail


def test_the_library_is_built_from_the_sources_in_the_bundle(bundle: Path, tmp_path: Path) -> None:
    """With a CMake that writes what it is given and makes the file that the real one makes."""
    made = tmp_path / "made"
    shutil.copytree(bundle, made, ignore=shutil.ignore_patterns("*.so"))
    sources = made / "plugins" / "source"
    assert (sources / "CMakeLists.txt").read_bytes() == (SOURCES / "CMakeLists.txt").read_bytes()
    text = (sources / "CMakeLists.txt").read_text()
    for name in re.findall(r"(?:cuda|trt|cmake)/[\w.-]+\.\w+", text):
        assert (sources / name).is_file(), name
    assert {p.name for p in (sources / "cuda").iterdir()} == {
        p.name for p in (SOURCES / "cuda").iterdir() if p.is_file()
    }
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvcc").write_text("#!/bin/sh\n")
    (tools / "cmake").write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/cmake.log\n'
        'if [ "$1" = --build ]; then touch "$2/libtcompile_plugins.so"; fi\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    command = ["sh", str(made / "build_plugins.sh"), "-DTENSORRT_ROOT=/opt/trt"]
    path = {"PATH": f"{tools}:/usr/bin:/bin"}
    done = subprocess.run(command, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (made / "plugins/libtcompile_plugins.so").is_file()
    configure, build = (tmp_path / "cmake.log").read_text().splitlines()
    folder = build.removeprefix("--build ")
    assert configure == (
        f"-S plugins/source -B {folder} -DCMAKE_BUILD_TYPE=Release "
        "-DCMAKE_CUDA_ARCHITECTURES=87 -DTENSORRT_ROOT=/opt/trt"
    )
    assert not Path(folder).exists()
    assert load_artifact(made).changed_files() == []
