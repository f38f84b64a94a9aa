"""The forms of token ops: what is emitted for each TensorRT, and what runtimes make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.save import save, without_bodies
from tcompile.passes.lower import lower
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.passes.stages import Reduced
from tcompile.plugins.ops import find_op
from tcompile.targets import load_target
from tcompile.targets.versions import TENSORRT, parser_rule
from tests.support.tiny_vit import save_tiny_vit
from tests.unit.passes.lower.blocks import run

#: What becomes of a call, by hand, as (plugin registered, not registered).
PARSERS = {
    (10, 3): ("plugin", "error"),
    (10, 6): ("plugin", "error"),
    (10, 7): ("plugin", "function"),
    (10, 8): ("plugin", "function"),
    (10, 13): ("plugin", "function"),
    (10, 14): ("plugin", "function"),
    (10, 15): ("plugin", "function"),
    (10, 16): ("plugin", "function"),
    (11, 4): ("plugin", "function"),
}


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reduced]:
    """A tiny model reduced by two methods."""
    path = save_tiny_vit(tmp_path_factory.mktemp("vit") / "vit.onnx")
    return {
        "tome": pipeline.reduce(path, method="tome:r=3"),
        "evit": pipeline.reduce(path, method="evit", keep=0.6),
    }


def emitted(
    reduced: Reduced, folder: Path, form: str, precision: str = "fp32", target: str = "jetson-orin"
) -> Path:
    """The model as a build would save it."""
    graph = lower(
        reduced.graph,
        target=load_target(target),
        precision=precision,  # type: ignore[arg-type]
        fp32_nodes=reduced.fp32_nodes,
        token_ops=form,  # type: ignore[arg-type]
    )
    path = folder / f"{form}-{precision}.onnx"
    save(graph, path)
    return path


def alone(path: Path) -> Path:
    """The file that a parser reads which would prefer the bodies."""
    cut = path.with_suffix(".plugin.onnx")
    cut.write_bytes(path.read_bytes()[: without_bodies(path)])
    return cut


def calls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == "tcompile"]


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def parsed(model: onnx.ModelProto, version: tuple[int, int], registered: bool) -> set[str]:
    """Return what a parser of that version, written down independently, takes calls for."""
    bodies = {f.name for f in model.functions}

    def meaning(node: onnx.NodeProto) -> str:
        says = attributes(node)
        plugin = registered and (
            says.get("plugin_namespace", b"") == b"tcompile"
            and says.get("plugin_version", b"1") == b"1"
        )
        function = node.op_type in bodies
        if version < (10, 7):
            return "function" if function else "plugin" if plugin else "error"
        return "plugin" if plugin else "function" if function else "error"

    return {meaning(node) for node in calls(model)}


@pytest.mark.parametrize("version", PARSERS)
def test_each_parser_finds_the_plugin(
    reduced: dict[str, Reduced], tmp_path: Path, version: tuple[int, int]
) -> None:
    path = emitted(reduced["tome"], tmp_path, "plugin")
    file = alone(path) if parser_rule(version).takes_body_first else path
    model = onnx.load(str(file))
    assert len(calls(model)) >= 2
    found = tuple(parsed(model, version, registered) for registered in (True, False))
    assert found == tuple({each} for each in PARSERS[version])
    # Native: the body, whatever is registered.
    native = onnx.load(str(emitted(reduced["tome"], tmp_path, "native")))
    assert {m for r in (True, False) for m in parsed(native, version, r)} == {"function"}


def test_rules_follow_each_other() -> None:
    for rule, following in pairwise(TENSORRT.parsers):
        assert rule.before == following.since
    assert TENSORRT.parsers[-1].before is None
    assert [parser_rule(v).aot for v in ((10, 8), (10, 9), (11, 4))] == [False, True, True]
    with pytest.raises(UsageError, match=r"8\.6 is too old"):
        parser_rule((8, 6))


@pytest.mark.parametrize("form", ["native", "plugin", "aot"])
@pytest.mark.parametrize("name", ["tome", "evit"])
def test_whole_files_are_onnx_and_run(
    reduced: dict[str, Reduced], tmp_path: Path, form: str, name: str
) -> None:
    pytest.importorskip("onnxruntime")
    path = emitted(reduced[name], tmp_path, form)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    ours = calls(model)
    assert {f.name for f in model.functions} == {n.op_type for n in ours}
    marks = {"plugin_namespace": b"tcompile", "plugin_version": b"1"}
    for node in ours:
        says = attributes(node)
        fields = {k: v for k, v in says.items() if not k.startswith("plugin_")}
        assert set(fields) == set(find_op(node.op_type).fields)
        assert {k: v for k, v in says.items() if k in marks} == ({} if form == "native" else marks)
        # What the body has as a tensor, TensorRT's parser needs as a plain number.
        numbers = {f"plugin_{k}": int(onnx.numpy_helper.to_array(v)[0]) for k, v in fields.items()}
        plain = {k: v for k, v in says.items() if k.startswith("plugin_") and k not in marks}
        assert plain == ({} if form == "native" else numbers)
    want = run(emitted(reduced[name], tmp_path, "native"))
    got = run(path)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])


def test_a_file_without_bodies_is_the_same_model(
    reduced: dict[str, Reduced], tmp_path: Path
) -> None:
    whole_path = emitted(reduced["evit"], tmp_path, "plugin")
    whole, cut = onnx.load(str(whole_path)), onnx.load(str(alone(whole_path)))
    assert len(whole.functions) >= 3
    assert len(cut.functions) == 0
    onnx.checker.check_model(cut)
    assert cut.graph == whole.graph
    assert cut.opset_import == whole.opset_import
    # A model with nothing of ours is its own.
    plain = save_tiny_vit(tmp_path / "plain.onnx")
    assert without_bodies(plain) == plain.stat().st_size
    plain.write_bytes(b"\x0b" + plain.read_bytes())
    with pytest.raises(ModelError, match="is not an ONNX file that tcompile wrote"):
        without_bodies(plain)


def test_onnx_runtime_needs_the_bodies(reduced: dict[str, Reduced], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(Exception, match=r"Tc[A-Z]"):
        run(alone(emitted(reduced["tome"], tmp_path, "plugin")))


@pytest.mark.parametrize("name", ["tome", "evit"])
def test_casts_move_into_bodies(reduced: dict[str, Reduced], tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    native = emitted(reduced[name], tmp_path, "native", "fp16")
    path = emitted(reduced[name], tmp_path, "plugin", "fp16")
    graph = gs.import_onnx(onnx.load(str(path)))
    summing = {"tome": "TcMergeTokens", "evit": "TcFuseTokens"}[name]
    moved = [n for n in graph.nodes if n.op == summing]
    assert moved
    for node in moved:
        assert node.inputs[0].dtype == np.float16
        assert node.outputs[0].dtype == np.float16
        assert all(user.op != "Cast" for user in node.outputs[0].outputs)
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    want, got = run(native), run(path)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])


def kernel_names(*models: Path) -> list[list[str]]:
    """The kernels of each model's engine, built in a new process: what TensorRT-RTX built before in
    this one decides which of equal kernels it takes."""
    code = """
import json, sys
from pathlib import Path
from tcompile.targets.backends.fusion import kernels
from tcompile.targets.backends.rtx import build
found = [sorted(k.name for k in kernels(build(Path(p), "8.9"))) for p in sys.argv[1:]]
print(json.dumps(found))
"""
    command = [sys.executable, "-c", code, *map(str, models)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[4], check=True, capture_output=True, text=True
    )
    names: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return names


@pytest.mark.heavy
def test_tensorrt_rtx_takes_bodies_and_never_a_plugin(
    reduced: dict[str, Reduced], tmp_path: Path
) -> None:
    """Its parser is that of 10.15 and newer; nothing is registered, since it would not survive."""
    pytest.importorskip("tensorrt_rtx")
    from tcompile.targets.backends.rtx import build

    native = emitted(reduced["tome"], tmp_path, "native", "fp16", "rtx-4090")
    marked = emitted(reduced["tome"], tmp_path, "plugin", "fp16", "rtx-4090")
    names = kernel_names(native, marked)
    assert names[0]
    assert names[0] == names[1]
    with pytest.raises(ModelError, match=r"Tc[A-Za-z]+Tokens.*[Pp]lugin not found"):
        build(alone(marked), "8.9")


@pytest.mark.parametrize("form", ["plugin", "aot"])
@pytest.mark.parametrize(
    ("target", "why"), [("cpu", "ONNX Runtime"), ("rtx-4090", "TensorRT-RTX"), ("t4", "1.7.1")]
)
def test_refused_where_nothing_could_take_them(target: str, why: str, form: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        choose_token_ops(load_target(target), form)
    assert "--token-ops" in str(refused.value)
    assert "\n" not in str(refused.value)
    own = choose_token_ops(load_target(target))
    assert own.form == "native"
    assert why in own.reason


def test_forms_of_a_jetson() -> None:
    orin = load_target("jetson-orin")
    assert choose_token_ops(orin).form == "native"
    assert choose_token_ops(orin).reason
    assert [choose_token_ops(orin, f).form for f in ("plugin", "aot")] == ["plugin", "aot"]
    with pytest.raises(UsageError, match="no form 'plugins'"):
        choose_token_ops(orin, "plugins")
