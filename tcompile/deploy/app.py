"""Writing a program that runs an artifact, or what a server reads of it: `tcompile init-app`."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcompile._version import __version__
from tcompile.artifact.directory import Artifact, load_artifact
from tcompile.core.drafts import new_draft
from tcompile.core.errors import ModelError, UsageError
from tcompile.deploy.checks import AGAIN, check_fault
from tcompile.deploy.serving import write_deepstream, write_triton
from tcompile.examples import FOLDER
from tcompile.runtime.signature import signature
from tcompile.runtime.token_outputs import is_bookkeeping

LANGUAGES = ("cpp", "python")
SERVERS = ("triton", "deepstream")
#: Runtime of a target → the extras of tcompile that run it.
_EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "cpu,openvino",
    "tensorrt-rtx": "rtx,cuda",
    "jetson": "cuda",
}
#: Runtime of a target → the component of CMake's package that runs it; any of a CPU's.
_COMPONENTS = {"tensorrt-rtx": "tensorrt-rtx", "jetson": "tensorrt"}


@dataclass(frozen=True)
class App:
    """A program that was written, or the files of a server.

    Attributes:
        directory: where it lies.
        language: cpp, python, triton or deepstream.
        outputs: of the artifact that it is written for.
        commands: what builds and runs it, from its directory.
    """

    directory: str
    language: str
    outputs: tuple[str, ...]
    commands: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def init_app(artifact: str | Path, output: str | Path, language: str = "cpp") -> App:
    """Write a project that runs an artifact on images: program, a copy of the artifact, README.

    The program prepares images as the artifact records, prints the best classes with their labels,
    and refuses an artifact with other outputs than this one's.

    Args:
        artifact: the directory that a build wrote.
        output: a new or an empty folder.
        language: cpp (C++17, CMake) or python; or, in place of a program, what a server reads:
            triton (a model repository) or deepstream (a configuration of nvinfer).

    Raises:
        UsageError: no artifact there, it does not say how images are prepared, the server cannot
            run it, or the folder holds something or cannot be written.
        ModelError: the artifact is damaged, was altered, or is of a build that failed.
    """
    if language not in (*LANGUAGES, *SERVERS):
        raise UsageError(
            f"there is no '{language}' program",
            where="language",
            hint=f"one of {', '.join((*LANGUAGES, *SERVERS))}",
        )
    found = load_artifact(artifact)
    check_fault(found, allowed=False)
    changed, _ = found.compare_files()
    if changed:
        raise ModelError(
            f"'{changed[0]}' was changed or added since it was written",
            where=str(artifact),
            hint=AGAIN,
        )
    if language != "triton":
        _check_record(found, language)
    final = Path(output).absolute()
    _check_empty(final, found.directory.absolute(), str(output))
    manifest = found.manifest
    names = tuple(t.name for t in manifest.outputs if not is_bookkeeping(t.name))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = new_draft(final)
        try:
            if language in SERVERS:
                write = write_triton if language == "triton" else write_deepstream
                commands, more = write(draft.folder, found)
                page = _SERVED
            else:
                shutil.copytree(found.directory, draft.folder / "artifact")
                (_write_cpp if language == "cpp" else _write_python)(draft.folder, found, names)
                commands = _commands(manifest.target.runtime, language)
                page, more = _README, _CPP if language == "cpp" else ""
            readme = page.format(
                target=manifest.target.name,
                version=__version__,
                outputs=", ".join(f"`{name}`" for name in names),
                commands="\n".join(commands),
                server=_TITLES.get(language, ""),
                more=more,
            )
            (draft.folder / "README.md").write_text(readme, encoding="utf-8")
            draft.put_in_place(final, lambda old: _check_empty(old, None, str(output)))
        finally:
            draft.discard()
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}", where=str(output)
        ) from error
    return App(str(output), language, names, commands)


def _check_record(found: Artifact, language: str) -> None:
    """A program that takes images needs to know how they are prepared."""
    known = bool(found.manifest.preprocess)
    if not known and language == "python" and found.model.is_file():
        known = bool(signature(found.model).preprocessing)  # the manifest may be older
    if not known:
        raise UsageError(
            "does not say how images are prepared for it",
            where=str(found.directory),
            hint="build it again with --preprocess imagenet, clip, siglip, …",
        )


def _check_empty(final: Path, inside: Path | None, where: str) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UsageError("exists and is not empty", where=where, hint="choose another -o")
    # realpath: by a link, too; Path.resolve raises for links that go round before Python 3.13.
    if inside is not None and Path(os.path.realpath(final)).is_relative_to(
        os.path.realpath(inside)
    ):
        raise UsageError("lies within the artifact", where=where, hint="choose another -o")


def _write_cpp(folder: Path, found: Artifact, names: tuple[str, ...]) -> None:
    source = FOLDER / "cpp"
    runtime = folder / "tcompile_runtime"
    runtime.mkdir()
    for path in (*source.glob("*.hpp"), *source.glob("*.cmake")):
        shutil.copyfile(path, runtime / path.name)
    needed = ", ".join(map(_literal, names))
    _copy(source / "classify" / "main.cpp", folder, "needed = {}", f"needed = {{{needed}}}")
    component = _COMPONENTS.get(found.manifest.target.runtime)
    asked = f"REQUIRED COMPONENTS {component}" if component else "REQUIRED"
    _copy(source / "classify" / "CMakeLists.txt", folder, "REQUIRED", asked)


def _write_python(folder: Path, found: Artifact, names: tuple[str, ...]) -> None:
    tail = "," if len(names) == 1 else ""
    needed = f"= ({', '.join(map(_literal, names))}{tail})"
    _copy(FOLDER / "python" / "classify.py", folder, "= ()", needed)
    extras = _EXTRAS.get(found.manifest.target.runtime, "cpu")
    text = f"tcompile[{extras}]=={__version__}\n"
    (folder / "requirements.txt").write_text(text, encoding="utf-8")


def _literal(name: str) -> str:
    """As JSON, C++ and Python write it: beyond U+FFFF JSON's escapes are none of the others."""
    return json.dumps(name, ensure_ascii=False)


def _copy(source: Path, folder: Path, old: str, new: str) -> None:
    text = source.read_text(encoding="utf-8")
    assert text.count(old) == 1, (source, old)
    (folder / source.name).write_text(text.replace(old, new), encoding="utf-8")


def _commands(runtime: str, language: str) -> tuple[str, ...]:
    first = ("sh artifact/build_engine.sh",) if runtime == "jetson" else ()
    if language == "python":
        install = "pip install -r requirements.txt"
        return (*first, install, "python classify.py artifact IMAGE...")
    build = ("cmake -S . -B build", "cmake --build build")
    return (*first, *build, "build/classify artifact IMAGE...")


_TITLES = {"triton": "Triton", "deepstream": "DeepStream"}
_SERVED = """\
# An artifact for {target}, in {server}

Written by tcompile {version}, from the artifact's manifest. It gives the outputs {outputs}.

```sh
{commands}
```
{more}
"""
_README = """\
# An artifact for {target}, as a program

Written by tcompile {version}. `artifact/` is a copy of what was built: the program checks it before
it opens anything of it, prepares images as it records, and prints the best classes. It is written
for the outputs {outputs}; another artifact that has them
may take the place of this one, any other is refused.

```sh
{commands}
```
{more}"""
_CPP = """
It takes CMake 3.18, a compiler of C++17 and nlohmann's JSON; without stb_image it reads PPM files
alone:

```sh
apt install cmake g++ nlohmann-json3-dev libstb-dev
```

The runtime is looked for by `tcompile_runtime/tcompile_runtimeConfig.cmake`:

- OpenVINO: `pip install openvino`, or `-DOpenVINO_DIR=...`
- ONNX Runtime: `-DONNXRUNTIME_ROOT=...`, with `include/` and `lib/` of its release
- TensorRT 10.3 to 11.x: `-DTENSORRT_ROOT=...` where it is in no usual place
- TensorRT-RTX: `-DTENSORRT_RTX_ROOT=...`
"""
