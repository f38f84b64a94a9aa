"""The plugin library: what TensorRT does with it, with a stand-in for TensorRT and in
TensorRT-RTX's registry; and what the check says of libraries that do not fit.

Needs TensorRT's headers, named by TCOMPILE_TENSORRT_INCLUDE; is skipped where there are none.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tcompile.plugins.check import SYMBOLS, TABLE, VERSION, check_library
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import PLUGIN_NAMESPACE, PLUGIN_VERSION, TokenOp
from tests.unit.plugins.plugin_probe import FLOAT32, INT32, INT64, NOTHING, Plugins, includes

#: Of legal calls.
NUMBERS = {"k": 5, "prefix": 2, "r": 4, "half": 6, "rest": 2}

_RTX = """
import sys, numpy as np, tensorrt_rtx as trt
from tcompile.plugins.fields import field_names
from tcompile.plugins.ops import OPS
class Log(trt.ILogger):
    def log(self, severity, text):
        if severity == trt.ILogger.Severity.ERROR:
            print("error:", text)
log = Log()
runtime = trt.Runtime(log)
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
numbers = {"k": 5, "prefix": 2, "r": 4, "half": 6, "rest": 2}
def create(op, fields):
    creator = registry.get_creator(op.name, "1", "tcompile")
    assert [f.name for f in creator.field_names] == list(field_names(op))
    made = [trt.PluginField(n, np.asarray([v], np.int32), trt.PluginFieldType.INT32)
            for n, v in fields]
    return [creator.create_plugin("n", trt.PluginFieldCollection(made), phase)
            for phase in (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME)]
for op in OPS:
    for plugin in create(op, [("plugin_" + f, numbers[f]) for f in op.fields]):
        assert plugin is not None, op.name
        kinds = [plugin.get_capability_interface(c) for c in (
            trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD,
            trt.PluginCapabilityType.RUNTIME)]
        assert all(kinds)
    if op.fields:
        assert create(op, []) == [None, None]
    print(op.name)
"""


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_plan_makes_the_same_plugin_again(library: Plugins, op: TokenOp) -> None:
    with library.plugin(op, NUMBERS) as plugin:
        about = library.about(plugin)
        assert about[:4] == [op.name, PLUGIN_VERSION, PLUGIN_NAMESPACE, str(len(op.gives))]
        kept = " ".join(f"plugin_{f}={NUMBERS[f]}" for f in op.fields)
        assert about[5] == kept
        for made in (
            library.again(plugin),
            ctypes.c_void_p(library.probe.probe_clone(plugin)),
            ctypes.c_void_p(library.probe.probe_attach(plugin)),
        ):
            assert library.about(made) == about
            library.probe.probe_destroy(made)


def test_timing_cache_ids_tell_fields_and_ops_apart(library: Plugins) -> None:
    ids = []
    for op in OPS:
        for k in (5, 6):
            with library.plugin(op, {**NUMBERS, "k": k}) as plugin:
                ids.append(library.about(plugin)[4])
    with_k = sum("k" in op.fields for op in OPS)
    assert len(set(ids)) == len(OPS) + with_k


def test_fields_may_be_wide_or_narrow_and_of_either_name(library: Plugins) -> None:
    for name, kind in product(("k", "plugin_k"), (INT32, INT64)):
        for phase in (0, 1):
            made = library.create("TcTopKTokens", [(name, kind, 7, 1)], phase)
            assert made is not None
            assert library.about(made)[5] == "plugin_k=7"
            library.probe.probe_destroy(made)


@pytest.mark.parametrize(
    ("op", "fields", "words"),
    [
        ("TcTopKTokens", [], "plugin_k is missing"),
        ("TcTopKTokens", [("plugin_k", FLOAT32, 3, 1)], "plugin_k is of field type 1"),
        ("TcTopKTokens", [("plugin_k", INT32, 3, 2)], "plugin_k has 2 values"),
        ("TcTopKTokens", [("plugin_k", NOTHING, 3, 1)], "plugin_k has 0 values"),
        ("TcTopKTokens", [("plugin_k", INT32, -1, 1)], "plugin_k is -1"),
        ("TcTopKTokens", [("plugin_k", INT64, 1 << 40, 1)], "plugin_k is 1099511627776"),
        ("TcTopKTokens", [("plugin_k", INT32, 3, 1), ("k", INT32, 3, 1)], "k is given twice"),
        ("TcTopKTokens", [("plugin_q", INT32, 3, 1)], "no field plugin_q"),
        ("TcSelectTokens", [("plugin_k", INT32, 3, 1)], "plugin_prefix is missing"),
        (
            "TcMatchTokens",
            [("r", INT32, 4, 1), ("half", INT32, 6, 1), ("rest", INT32, 3, 1)],
            "rest==half-r does not hold where r=4 half=6 rest=3",
        ),
        (
            "TcMatchTokens",
            [("r", INT32, 0, 1), ("half", INT32, 6, 1), ("rest", INT32, 6, 1)],
            "1<=r does not hold",
        ),
        ("TcGatherTokens", [("plugin_k", INT32, 3, 1)], "no field plugin_k"),
    ],
)
def test_wrong_fields_are_named(
    library: Plugins, op: str, fields: list[tuple[str, int, int, int]], words: str
) -> None:
    assert library.create(op, fields) is None
    said = library.log()
    assert said.startswith(f"1 {op}: ")
    assert words in said


def test_the_library_is_what_the_check_takes(library: Plugins) -> None:
    report = check_library(library.path)
    assert report.problems == ()
    assert report.ops == tuple(op.name for op in OPS)
    assert "nothing wrong" in report.text()
    named = symbols(library.path, "--defined-only")
    assert {*SYMBOLS, VERSION, TABLE} <= set(named)
    # Nothing else that could meet a symbol of the process: C++ names only of what is declared.
    rest = [n for n in named if not n.startswith("tc_") and n not in (*SYMBOLS, VERSION, TABLE)]
    assert all("tcompile16register_plugins" in n for n in rest), rest
    undefined = " ".join(symbols(library.path, "--undefined-only"))
    assert "nvinfer" not in undefined
    assert "getPluginRegistry" not in undefined


def symbols(path: Path, which: str) -> list[str]:
    """The dynamic table is read by another reader than ours."""
    command = ["nm", "-D", which, "-j", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_tensorrt_rtx_takes_every_plugin(library: Plugins) -> None:
    pytest.importorskip("tensorrt_rtx")
    # A process of its own: what is in a registry stays there.
    done = subprocess.run(
        [sys.executable, "-c", _RTX, str(library.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [x for x in lines if not x.startswith("error:")] == [op.name for op in OPS]
    refused = [x for x in (*lines, *done.stderr.splitlines()) if "is missing" in x]
    assert len(refused) == 2 * sum(bool(op.fields) for op in OPS)


@pytest.mark.heavy
def test_cmake_builds_installs_and_exports(plugin_library: Plugins, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("nvcc") is None:
        pytest.skip("no cmake or no nvcc")
    from tests.unit.plugins.cmake_build import build_and_use

    made, output = build_and_use(includes()[-1], tmp_path)
    report = check_library(made, architecture=86)
    assert report.problems == ()
    assert report.facts["architectures"] == "86"
    assert output.split() == [op.name for op in OPS] + [str(len(OPS))]
