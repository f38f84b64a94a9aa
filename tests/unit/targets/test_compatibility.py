"""What engines are made compatible with: the rules, the options, the builder's settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tcompile
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core.errors import UsageError
from tcompile.targets import load_target
from tcompile.targets.backends import rtx, tensorrt
from tcompile.targets.compatibility import (
    LEVELS,
    Compatibility,
    checked_compatibility,
    rule_words,
    runs_in,
)
from tcompile.targets.versions import TENSORRT, parse_version
from tests.support.compatibility import CASES, PLUGINS, WITH, WITHOUT
from tests.support.tiny_vit import VitSpec, save_tiny_vit

ROOT = Path(__file__).parents[3]
API = json.loads((ROOT / "tests/support/tensorrt/api.json").read_text(encoding="utf-8"))
SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=2)
Rule = Callable[..., bool]


def told_apart(rule: Rule) -> list[str]:
    """The cases in which a rule says another thing than is expected."""
    found = []
    for case in CASES:
        refused = " installed is " in case.says and "without its lean" not in case.says
        if rule(case.built, case.installed, compatible=case.made.version) == refused:
            found.append(str(case))
    return found


def test_the_cases_tell_wrong_rules() -> None:
    """Mutants: older ones run it too, any major version, none but its own, the same alone, all."""

    def major(version: str) -> str:
        return version.split(".")[0]

    mutants: list[Rule] = [
        lambda built, installed, compatible: (
            runs_in(built, installed, compatible=compatible)
            or (compatible and major(built) == major(installed))
        ),
        lambda built, installed, compatible: (
            runs_in(built, installed, compatible=compatible)
            or (compatible and int(major(built)) < int(major(installed)))
        ),
        lambda built, installed, compatible: (
            runs_in(built, installed, compatible=compatible) and major(built) == major(installed)
        ),
        lambda built, installed, compatible: runs_in(built, installed, compatible=False),
        lambda built, installed, compatible: runs_in(built, installed, compatible=True),
    ]
    assert told_apart(runs_in) == []
    assert all(told_apart(mutant) for mutant in mutants)


def test_odd_versions() -> None:
    assert runs_in("10.3", "10.3.0.26", compatible=False)
    assert runs_in("10.3.0rc1", "10.3.0", compatible=True)
    assert not runs_in("10.3.0rc1", "10.3.0", compatible=False)
    assert rule_words("11.0") == "11.x from 11.0 on"


def test_the_data_names_what_each_version_has() -> None:
    """Levels are looked up by name in TensorRT's enumeration: from that version on, not before."""
    levels = TENSORRT.compatibility.hardware.levels
    assert tuple(levels) == LEVELS
    members = API["classes"]["HardwareCompatibilityLevel"]
    for rule in levels.values():
        for version in (v for v in API["versions"] if not v.startswith("rtx")):
            there = not members[rule.member] or version in members[rule.member]
            assert there == (parse_version(version) >= parse_version(rule.since)), version
    for source in (r.source for r in vars(TENSORRT.compatibility).values()):
        assert "documentation of TensorRT" in source


@pytest.mark.parametrize(
    ("target", "asked", "where", "words"),
    [
        ("cpu", {"version": True}, "--version-compatible", "cpu has no engine"),
        (
            "cpu-openvino",
            {"hardware": "ampere-plus"},
            "--hardware-compatibility-level",
            "has no engine",
        ),
        (
            "jetson-orin",
            {"hardware": "ampere-plus"},
            "--hardware-compatibility-level",
            "on JetPack",
        ),
        ("jetson-orin", {"hardware": LEVELS[1]}, "--hardware-compatibility-level", "on JetPack"),
        ("jetson-orin", {"exclude_lean_runtime": True}, "--exclude-lean-runtime", "only a version"),
        ("jetson-orin", {"version": True, "token_ops": "aot"}, "--version-compatible", "ahead of"),
        (
            "jetson-orin",
            {"version": True, "token_ops": "plugin", "exclude_lean_runtime": True},
            "--exclude-lean-runtime",
            "together with the lean runtime",
        ),
        ("rtx-4090", {"version": True}, "--version-compatible", "the release that built it"),
        ("rtx-4090", {"hardware": "any"}, "--hardware-compatibility-level", "no level 'any'"),
        (
            "t4",
            {"hardware": "ampere-plus"},
            "--hardware-compatibility-level",
            "t4 has compute capability 7",
        ),
        (
            "rtx-4090",
            {"hardware": "ampere-plus", "precision": "fp8"},
            "--hardware-compatibility-level ampere-plus",
            "do not compute in fp8",
        ),
    ],
)
def test_what_a_target_does_not_have(
    target: str, asked: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        checked_compatibility(load_target(target), **asked)
    assert caught.value.where == where
    assert words in caught.value.what
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_what_is_asked_is_what_is_made() -> None:
    orin, ada = load_target("jetson-orin"), load_target("rtx-4090")
    assert checked_compatibility(orin) is None
    assert checked_compatibility(orin, version=True) == WITH
    assert checked_compatibility(orin, version=True, exclude_lean_runtime=True) == WITHOUT
    assert checked_compatibility(orin, version=True, token_ops="plugin") == PLUGINS
    assert checked_compatibility(ada, hardware=LEVELS[1], precision="fp8") == Compatibility(
        hardware="same-compute-capability"
    )
    assert [made.host_code for made in (WITH, PLUGINS, WITHOUT)] == [True, True, False]


def trt_of(version: str) -> Any:
    """The enumerations of TensorRT-RTX, which are TensorRT's, under a version of that."""
    real = pytest.importorskip("tensorrt_rtx")
    loaded: list[str] = []
    registry = SimpleNamespace(load_library=lambda path: loaded.append(path) or "a handle")
    return SimpleNamespace(
        __version__=version,
        BuilderFlag=real.BuilderFlag,
        HardwareCompatibilityLevel=real.HardwareCompatibilityLevel,
        get_plugin_registry=lambda: registry,
        loaded=loaded,
    )


class Config:
    """A builder configuration: what `_make_compatible` may set, which test_tensorrt_api.py holds
    against the real ones (that of TensorRT-RTX takes these settings and keeps none)."""

    __slots__ = ("flags", "hardware_compatibility_level", "plugins_to_serialize")

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.plugins_to_serialize: list[str] = []
        self.hardware_compatibility_level: Any = SimpleNamespace(name="NONE")

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)


def settings(config: Config) -> tuple[list[str], list[str], str]:
    level: str = config.hardware_compatibility_level.name
    return config.flags, config.plugins_to_serialize, level


VERSION, EXCLUDE = "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"


@pytest.mark.parametrize(
    ("wanted", "used", "want"),
    [
        (Compatibility(), ["vc.so"], ([], [], "NONE")),
        (WITH, [], ([VERSION], [], "NONE")),
        (WITH, ["vc.so"], ([VERSION], ["vc.so"], "NONE")),
        (PLUGINS, ["vc.so"], ([VERSION], ["vc.so", "ours.so"], "NONE")),
        (WITHOUT, [], ([VERSION, EXCLUDE], [], "NONE")),
        (Compatibility(hardware="ampere-plus"), [], ([], [], "AMPERE_PLUS")),
        (replace(WITH, hardware=LEVELS[1]), [], ([VERSION], [], "SAME_COMPUTE_CAPABILITY")),
    ],
)
def test_what_the_builder_is_told(
    wanted: Compatibility, used: list[str], want: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcompile.plugins.build.built_library", lambda: Path("ours.so"))
    monkeypatch.setattr(tensorrt, "_LOADED", {})
    trt, config = trt_of("10.9.0"), Config()
    parser = SimpleNamespace(get_used_vc_plugin_libraries=lambda: used)
    tensorrt._make_compatible(trt, config, parser, wanted)
    assert settings(config) == want
    assert trt.loaded == (used if wanted.version else [])


def test_plugins_of_tensorrt_need_the_lean_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_LOADED", {})
    parser = SimpleNamespace(get_used_vc_plugin_libraries=lambda: ["libnvinfer_vc_plugin.so.10"])
    with pytest.raises(UsageError, match=r"--exclude-lean-runtime: .*libnvinfer_vc_plugin"):
        tensorrt._make_compatible(trt_of("10.3.0"), Config(), parser, WITHOUT)


def test_a_build_is_told_and_keeps_its_own_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(tensorrt, "build_plan", lambda *_, **given: asked.append(given))
    monkeypatch.setattr(tensorrt, "require", lambda *_: trt_of("10.3.0"))
    made = []
    monkeypatch.setattr(tensorrt, "_make_compatible", lambda *given: made.append(given[-1]))
    for wanted in (None, WITH, Compatibility(hardware="ampere-plus")):
        tensorrt.build(tmp_path / "m.onnx", compatibility=wanted)
        asked[-1]["configure"]("config", "parser")
    assert made == [Compatibility(), WITH, Compatibility(hardware="ampere-plus")]
    assert [given["timings"].name for given in asked] == [
        "tensorrt-10.3.0.cache",
        "tensorrt-10.3.0-version-compatible.cache",
        "tensorrt-10.3.0-ampere-plus.cache",
    ]
    with pytest.raises(UsageError, match=r"same-compute-capability, 10\.9 is the first that does"):
        tensorrt.build(tmp_path / "m.onnx", compatibility=Compatibility(hardware=LEVELS[1]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("model") / "vit.onnx", SPEC, batch=None)


def test_an_rtx_engine_for_several_gpus(model: Path, tmp_path: Path) -> None:
    """A real one."""
    pytest.importorskip("tensorrt_rtx")
    built = tcompile.build(
        model,
        target="rtx-4090",
        method="topk",
        keep="0.5",
        hardware_compatibility_level="ampere-plus",
        output=tmp_path / "out",
    )
    manifest = load_artifact(built).manifest
    made = manifest.compatibility
    assert made is not None
    assert (made.version, made.hardware) == (False, "ampere-plus")
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(made.capabilities)
    assert "7.5" not in made.capabilities
    assert list(made.capabilities) == sorted(made.capabilities, key=parse_version)
    assert (built / "engine" / "model.ampere-plus.engine").stat().st_size
    assert manifest.fused_attention is not None
    assert manifest.fused_attention.found == manifest.fused_attention.expected == 2
    assert any("for GPUs of compute capability 8.0, 8.6" in note for note in manifest.notes)
    document = manifest.to_json()
    assert Manifest.from_json(document) == manifest
    del document["compatibility"]  # as older versions wrote it
    assert Manifest.from_json(document) == replace(manifest, compatibility=None)
    assert rtx.capabilities("8.9", "same-compute-capability") == ("8.9",)
