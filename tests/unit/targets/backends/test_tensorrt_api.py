"""Every class, method and constant of TensorRT that our code names, against each version's API.

The table is made from the bindings of each version (`tools/tensorrt_api.py`); TensorRT itself is
not here, and nothing of it is run. What a name stands for is told by the name of the variable.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcompile.targets.versions import first_with_aot, parse_version
from tests.support.trtexec import numbers

ROOT = Path(__file__).parents[4]
API = json.loads((ROOT / "tests/support/tensorrt/api.json").read_text(encoding="utf-8"))
VERSIONS: list[str] = API["versions"]
RTX = [v for v in VERSIONS if v.startswith("rtx")]
TRT = [v for v in VERSIONS if not v.startswith("rtx")]
AOT = [v for v in TRT if parse_version(v) >= parse_version(first_with_aot())]

#: Variable, or attribute of `self` → its class; the module has no name.
ROLES = {
    "trt": "",
    "rtx": "",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "cache": "ITimingCache",
}
#: File → the versions that its code is for, and roles that are others there; None: of ours.
FILES: dict[str, tuple[list[str], dict[str, str | None]]] = {
    "targets/backends/trt_common.py": (VERSIONS, {"error": "ParserError"}),
    "targets/backends/build_watch.py": (VERSIONS, {}),
    "targets/backends/tensorrt.py": (TRT, {}),
    "targets/backends/rtx.py": (RTX, {}),
    "targets/backends/engine.py": (VERSIONS, {"profile": None, "config": "IRuntimeConfig"}),
    "plugins/aot/register.py": (AOT, {}),
    "examples/device/check.py": (TRT, {}),
    "tests/support/device/tensorrt.py": (TRT, {"engine": None, "context": None}),
}
#: What is only reached with some versions.
ONLY = {
    "trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS": AOT,
    "trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": RTX,
    "trt.CudaGraphStrategy": RTX,
    "engine.create_runtime_config": RTX,
    "config.cuda_graph_strategy": RTX,
}


def has(version: str, kind: str, member: str) -> bool:
    found = API["classes"].get(kind, {}).get(member)
    return found is not None and (not found or version in found)


def names_of(
    text: str, other: dict[str, str | None]
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(as written, [(class, member), …]) of what a source takes from TensorRT's objects."""
    roles: dict[str, str | None] = {**ROLES, **other}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Attribute):
            continue
        chain = [node.attr]
        inner: ast.expr = node.value
        while isinstance(inner, ast.Attribute | ast.Call):
            if isinstance(inner, ast.Call):
                inner = inner.func
                chain.append("()")
            else:
                chain.append(inner.attr)
                inner = inner.value
        if not isinstance(inner, ast.Name):
            continue
        parts = [inner.id, *reversed(chain)]
        if parts[0] == "self":
            parts = [parts[1].lstrip("_"), *parts[2:]]
        kind = roles.get(parts[0])
        if len(parts) < 2 or kind is None or "__" in parts[1]:
            continue
        if parts[1:3] == ["get_plugin_registry", "()"] and len(parts) > 3:
            yield ".".join(parts), [("", "get_plugin_registry"), ("IPluginRegistry", parts[3])]
        elif "()" not in parts:
            taken = [(kind, parts[1])]
            if kind == "" and len(parts) > 2:
                taken.append((parts[1], parts[2]))
            yield ".".join(parts[:3] if kind == "" else parts[:2]), taken


def missing(text: str, versions: list[str], other: dict[str, str | None]) -> list[str]:
    """What some version does not have, in words."""
    found = []
    for written, taken in names_of(text, other):
        for version in ONLY.get(written, versions):
            if version in versions and not all(has(version, *each) for each in taken):
                found.append(f"{written} is not in {version}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_version_has_what_is_used(file: str) -> None:
    versions, other = FILES[file]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert versions
    assert missing(text, versions, other) == []


def test_enough_is_looked_at() -> None:
    """The names that matter are among those found: the test would not see others' absence."""
    found = {
        written
        for file, (_, other) in FILES.items()
        for written, _ in names_of((ROOT / file).read_text(encoding="utf-8"), other)
    }
    assert {
        "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "trt.ProfilingVerbosity.DETAILED",
        "trt.MemoryPoolType.WORKSPACE",
        "trt.LayerInformationFormat.JSON",
        "trt.TensorIOMode.INPUT",
        "trt.get_plugin_registry.().load_library",
        "config.set_memory_pool_limit",
        "config.progress_monitor",
        "config.set_timing_cache",
        "builder.build_serialized_network",
        "parser.parse_from_file",
        "network.get_input",
        "profile.set_shape",
        "engine.create_execution_context",
        "context.execute_async_v3",
        "runtime.deserialize_cuda_engine",
        "runtime.engine_host_code_allowed",
        "runtime.load_runtime",
        "config.set_flag",
        "config.plugins_to_serialize",
        "config.hardware_compatibility_level",
        "parser.get_used_vc_plugin_libraries",
        "trt.BuilderFlag.VERSION_COMPATIBLE",
        "trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME",
        "trt.HardwareCompatibilityLevel",
        "error.node_name",
    } <= found


def test_all_files_that_import_it_are_looked_at() -> None:
    for folder in ("targets", "plugins", "tcompile", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if any(True for _ in names_of(path.read_text(encoding="utf-8"), {}) if "trt" in _[0]):
                assert name in FILES, name


@pytest.mark.parametrize(
    ("mutant", "says"),
    [
        ("config.int8_calibrator = 1", ["config.int8_calibrator is not in 11.1.0.106"]),
        ("x = trt.BuilderFlag.FP16", ["trt.BuilderFlag.FP16 is not in 11.4.0.106"]),
        ("network.add_plugin(a)", ["network.add_plugin is not in 10.3.0"]),
        ("trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", ["not in 10.3.0"]),
        ("self._engine.create_weights_manager()", ["not in 10.3.0"]),
        ("config.no_such_thing", [f"config.no_such_thing is not in {v}" for v in VERSIONS]),
        ("trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS", []),
        ("trt.get_plugin_registry().plugin_creator_list", ["not in 11.1.0.106"]),
    ],
)
def test_a_name_that_a_version_does_not_have_is_seen(mutant: str, says: list[str]) -> None:
    found = missing(mutant, VERSIONS if "PREFER" not in mutant else TRT, {})
    for each in says:
        assert any(each in line for line in found), found
    assert bool(found) == bool(says)


def test_the_table_is_of_each_major_version() -> None:
    assert {numbers(v)[0] for v in TRT} == {10, 11}
    assert TRT[0] == "10.3.0"
    assert len(RTX) == 1
