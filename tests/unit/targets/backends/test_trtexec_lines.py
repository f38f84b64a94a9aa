"""Every trtexec line that tcompile prints, against the flags of the trtexec that it is for.

The table is made from NVIDIA's published source (`tools/trtexec_flags.py`). Scripts are run with a
program that takes the flags of one version and no others; lines of texts are looked for everywhere.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tcompile
from tcompile.artifact.directory import load_artifact
from tcompile.targets import load_target
from tcompile.targets.backends import jetson, jetson_texts
from tcompile.targets.versions import all_jetpacks, jetpacks_for, parse_version
from tests.support.tiny_vit import VitSpec, save_tiny_vit
from tests.support.trtexec import TABLE, Flags, calls, fake_trtexec

ROOT = Path(__file__).parents[4]
FLAGS = Flags()
#: One release for each JetPack and major version that lines are for.
VERSIONS = ("10.3.0", "10.13.3", "10.16.2", "11.1.0", "11.4.1")
SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=2)
#: A word with a capital inside is no option of ours: it is one of trtexec's, wherever it stands.
_CAMEL = re.compile(r"(?<![\w-])--[a-z]+[A-Z]\w*")


def lines_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """(line, arguments) of each trtexec command in a text; a line may go on behind a backslash."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for found in re.finditer(
            r"(?<![\w./$-])trtexec((?:\s+(?:--?\w[^\s`]*|\[[^\]]*\]))+)", line
        ):
            arguments = [a for a in shlex.split(found[1].replace("'", "")) if a.startswith("-")]
            yield line, [a.rstrip(".,;:") for a in arguments]


def problems(text: str, version: str) -> list[str]:
    return [p for _, given in lines_of(text) for p in FLAGS.problems(given, version)]


def _built(folder: Path, name: str = "out", **asked: Any) -> Path:
    """A bundle with all flags that one may have: a free batch and a workspace."""
    return tcompile.build(
        save_tiny_vit(folder / "vit.onnx", SPEC, batch=None),
        target="jetson-orin",
        method="topk",
        keep="0.5",
        workspace=512,
        output=folder / name,
        **asked,
    )


@pytest.fixture(scope="module", params=["native", "plugin"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(tmp_path_factory.mktemp("bundle"), token_ops=request.param)


#: A version-compatible engine, by what else is asked; flags of trtexec that it takes.
COMPATIBLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "native": ({}, ["--versionCompatible"]),
    "plugin": (
        {"token_ops": "plugin"},
        ["--versionCompatible", "--setPluginsToSerialize=plugins/libtcompile_plugins.so"],
    ),
    "without": ({"exclude_lean_runtime": True}, ["--versionCompatible", "--excludeLeanRuntime"]),
}


@pytest.fixture(scope="module", params=list(COMPATIBLE))
def compatible(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, asked = tmp_path_factory.mktemp("compatible"), COMPATIBLE[request.param][0]
    return _built(folder, request.param, version_compatible=True, **asked)


def of_compatibility(arguments: list[str]) -> list[str]:
    names = ("--versionCompatible", "--excludeLeanRuntime", "--setPluginsToSerialize")
    return [a for a in arguments if a.partition("=")[0] in names]


def test_the_table_is_of_published_releases() -> None:
    document = json.loads(TABLE.read_text())
    assert {"10.3.0", "10.13.3", "10.16", "11.0", "11.1"} <= {
        r["version"] for r in document["releases"]
    }
    assert all(re.fullmatch("[0-9a-f]{40}", r["commit"]) for r in document["releases"])
    assert FLAGS.release_of("11.4.1") == "11.1"
    assert FLAGS.release_of("10.16.2") == "10.16"
    assert FLAGS.release_of("10.13.2") == "10.13.2"


@pytest.mark.parametrize(
    ("argument", "version", "says"),
    [
        ("--fp16", "11.1", "unknown"),
        ("--fp16", "10.3", ""),
        ("--stronglyTyped", "11.0", "does nothing"),
        ("--stronglyTyped", "10.3", ""),
        ("--useCudaGraph", "11.1", "does nothing"),
        ("--includeDataTransfers", "10.16", "unknown"),
        ("--saveEngine", "10.3", "needs a value"),
        ("--skipInference=1", "10.3", "takes no value"),
        ("--memPoolSize=workspace:512", "11.1", ""),
        ("--noSuchFlag", "10.3", "unknown"),
    ],
)
def test_the_table_tells_wrong_lines(argument: str, version: str, says: str) -> None:
    found = FLAGS.problems([argument], version)
    assert (says in found[0]) if says else found == []


def test_a_line_in_a_text_is_found_wherever_it_stands() -> None:
    text = "run `trtexec --a=b --c`, or\n  trtexec --d \\\n    --e='f g'\n"
    text += "$trtexec --no tool/trtexec --no"
    assert [given for _, given in lines_of(text)] == [["--a=b", "--c"], ["--d", "--e=f"]]


def test_the_lines_for_each_jetpack(bundle: Path) -> None:
    rows = json.loads((bundle / "trtexec.json").read_text())["commands"]
    assert len(rows) > 5
    for row in rows:
        assert len(list(lines_of(row["command"]))) == 1
        assert problems(row["command"], row["tensorrt"]) == []


def test_the_lines_of_the_readme(bundle: Path) -> None:
    """Each stands under its JetPack or behind its TensorRT, or is for all."""
    version, seen = "", 0
    readme = (bundle / "README.txt").read_text()
    for line in readme.splitlines():
        head = re.search(r"\(TensorRT ([\d.]+)\)$", line)
        version = head[1] if head else version
        version = "" if line.startswith("To measure") else version
        own = re.match(r"\s+TensorRT (\d+):", line)
        for _, given in lines_of(line):
            seen += 1
            of = [v for v in VERSIONS if v.startswith(f"{own[1]}.")] if own else [version]
            for each in of if of[0] else VERSIONS:
                assert FLAGS.problems(given, each) == [], line
    assert seen >= 5


@pytest.mark.parametrize("version", VERSIONS)
def test_the_script_gives_a_trtexec_what_it_takes(
    bundle: Path, tmp_path: Path, version: str
) -> None:
    (bundle / "plugins").mkdir(exist_ok=True)
    (bundle / "plugins/libtcompile_plugins.so").touch()
    trtexec = fake_trtexec(tmp_path, version)
    times = 2 if version == VERSIONS[0] else 1  # the second one finds what the first one timed
    for _ in range(times):
        done = subprocess.run(
            ["sh", bundle / "build_engine.sh", "--verbose"],
            env={**os.environ, "TRTEXEC": str(trtexec)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    given = calls(tmp_path)
    assert len(given) == times
    assert given[0] == given[-1]
    name = "{}.{}".format(*parse_version(version))
    assert f"--timingCacheFile=engine/timing.trt{name}.cache" in given[0]
    assert "--memPoolSize=workspace:512" in given[0]
    assert of_compatibility(given[0]) == []
    assert (bundle / f"engine/model.trt{name}.engine").is_file()
    changed, made = load_artifact(bundle).compare_files()
    assert changed == []
    assert f"engine/timing.trt{name}.cache" in made


@pytest.mark.parametrize(
    "argument", ["--useDLACore=0", "--buildDLAStandalone", "--layerDeviceTypes=a:DLA"]
)
def test_no_engine_is_built_for_the_dla(bundle: Path, tmp_path: Path, argument: str) -> None:
    trtexec = fake_trtexec(tmp_path, "10.3.0")
    assert FLAGS.problems([argument], "10.3.0") == []
    done = subprocess.run(
        ["sh", bundle / "build_engine.sh", argument],
        env={**os.environ, "TRTEXEC": str(trtexec)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{argument}: the DLA is for convolutional networks")
    assert "11.4.1 and newer on Jetson AGX Orin" in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_the_script_builds_what_newer_versions_run(
    compatible: Path, tmp_path: Path, version: str
) -> None:
    (compatible / "plugins").mkdir(exist_ok=True)
    (compatible / "plugins/libtcompile_plugins.so").touch()
    done = subprocess.run(
        ["sh", compatible / "build_engine.sh", "--refit"],  # which goes with it
        env={**os.environ, "TRTEXEC": str(fake_trtexec(tmp_path, version))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (given,) = calls(tmp_path)
    assert of_compatibility(given) == COMPATIBLE[compatible.name][1]
    assert "--refit" in given
    # The lean runtime has no inspector, and trtexec does not ask for one.
    assert not any(a.startswith("--exportLayerInfo") for a in given)
    name = "{}.{}".format(*parse_version(version))
    assert (compatible / f"engine/model.trt{name}.engine.sha256").is_file()
    assert load_artifact(compatible).compare_files()[0] == []


@pytest.mark.parametrize("argument", ["--versionCompatible", "--vc", "--excludeLeanRuntime"])
def test_what_the_manifest_has_to_say_is_no_argument(
    bundle: Path, tmp_path: Path, argument: str
) -> None:
    done = subprocess.run(
        ["sh", bundle / "build_engine.sh", argument],
        env={**os.environ, "TRTEXEC": str(fake_trtexec(tmp_path, "10.3.0"))},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"{argument}: what loads an engine goes by the manifest")
    assert not (tmp_path / "calls").exists()


def _says(folder: Path) -> str:
    """The README, whose lines are for every version as those of other bundles are."""
    test_the_lines_of_the_readme(folder)
    return (folder / "README.txt").read_text()


def test_a_readme_says_what_runs_the_engine(compatible: Path, bundle: Path) -> None:
    for row in json.loads((compatible / "trtexec.json").read_text())["commands"]:
        given = shlex.split(row["command"])
        assert of_compatibility(given) == COMPATIBLE[compatible.name][1]
        assert problems(row["command"], row["tensorrt"]) == []
    readme, plain = _says(compatible), _says(bundle)
    without = compatible.name == "without"
    assert "An engine runs only on the TensorRT version" in plain
    assert "An engine runs only on the TensorRT version" not in readme
    assert "10.x also in 11.x" in readme
    assert ("setEngineHostCodeAllowed(true)" in readme) != without
    assert ("loadRuntime(PATH)" in readme) == without
    (measured,) = (line for line in readme.splitlines() if "TensorRT 11:" in line)
    assert "--versionCompatible" in measured
    assert "--dynamicPlugins" not in measured
    assert ("which is loaded without it" in readme) == (compatible.name == "plugin")
    made = load_artifact(compatible).manifest.compatibility
    assert made is not None
    assert (made.version, made.lean_runtime) == (True, not without)
    assert made.plugins == (compatible.name == "plugin")
    assert load_artifact(bundle).manifest.compatibility is None


def test_a_script_of_another_version_would_be_seen(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: `--stronglyTyped` for all versions, as before TensorRT 11."""
    monkeypatch.setattr(jetson, "precision_flags", lambda version: (jetson_texts.TYPED,))
    inputs = ()
    made = jetson.lines(load_target("jetson-orin"), "model.onnx", inputs, jetson.Batch())
    wrong = [line for line in made if problems(line.text, line.jetpack.tensorrt)]
    assert [line.jetpack.jetpack for line in wrong] == ["7.2.2"]


def _strings(tree: ast.AST) -> Iterator[str]:
    """All strings of a module; what is put into one stands as X."""
    if isinstance(tree, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in tree.values)
        tree = ast.Tuple([v for v in tree.values if isinstance(v, ast.FormattedValue)])
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    for child in ast.iter_child_nodes(tree):
        yield from _strings(child)


def _texts() -> Iterator[tuple[str, str]]:
    """Pages, and what the sources of the package can print: their strings."""
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "plugins" / "README.md"):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for folder in ("tcompile", "targets", "passes", "plugins", "models", "examples"):
        for path in (ROOT / folder).rglob("*"):
            name = str(path.relative_to(ROOT))
            if path.suffix == ".py":
                yield name, "\n".join(_strings(ast.parse(path.read_text(encoding="utf-8"))))
            elif path.suffix in (".md", ".hpp", ".cpp", ".sh", ".txt"):
                yield name, path.read_text(encoding="utf-8")


def test_every_flag_that_is_named_anywhere_exists() -> None:
    """Lines in texts are for every supported version unless they name one; words for some."""
    seen = 0
    for name, text in _texts():
        for line, given in lines_of(text) if "trtexec" in text else ():
            named = re.findall(r"TensorRT (\d+)\b", line)
            for version in VERSIONS:
                if not named or version.split(".")[0] in named:
                    assert FLAGS.problems(given, version) == [], (name, line)
            seen += 1
        unknown = {flag for flag in _CAMEL.findall(text) if flag not in FLAGS.names}
        assert unknown == set(), name
    assert seen >= 3


def test_jetpacks_and_lines_agree() -> None:
    """No JetPack is for a TensorRT whose trtexec is not in the table, but for those too old."""
    assert [j.jetpack for j in all_jetpacks() if not j.supported] == ["6.0"]
    for target in ("jetson-orin", "jetson-agx-thor"):
        for jetpack in jetpacks_for(load_target(target)):
            assert FLAGS.release_of(jetpack.tensorrt)
