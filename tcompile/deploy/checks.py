"""Checks of an artifact before anything in it is opened: each one question, one clear error.

A manifest of another version or with an unknown field is refused where it is read
(`artifact.directory.load_artifact`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tcompile.artifact.directory import MODEL, Artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.model_files import FileEntry, TensorInfo, file_entry
from tcompile.targets.backends.jetson import digest_beside, made_on_device
from tcompile.targets.backends.jetson_texts import DIGEST, SCRIPT

#: What runs an artifact: `runtime=` of `load`.
RUNTIMES = ("onnxruntime", "openvino", "tensorrt-rtx", "tensorrt")
ENGINES = ("tensorrt-rtx", "tensorrt")


def runtime_of(manifest: Manifest | None, asked: str | None, where: str) -> str:
    """The runtime that runs an artifact, or a plain ONNX file (None): the one asked for, or that
    of its target.

    Raises:
        UsageError: no such runtime, or the artifact holds no engine for it.
    """
    own = "onnxruntime" if manifest is None else manifest.target.runtime
    own = {"jetson": "tensorrt"}.get(own, own)
    runtime = own if asked is None else asked
    if runtime not in RUNTIMES:
        raise UsageError(
            f"there is no runtime '{runtime}'",
            where="runtime",
            hint=f"one of {', '.join(RUNTIMES)}",
        )
    if runtime in ENGINES and runtime != own:
        target = "is an ONNX file" if manifest is None else f"was built for {manifest.target.name}"
        raise UsageError(
            f"{target}, there is no engine for {runtime} in it",
            where=where,
            hint="build it for a target that runs it there",
        )
    return runtime


def check_fault(artifact: Artifact, allowed: bool) -> None:
    """Raise ModelError for a build that failed and was kept, unless it is asked for."""
    fault = artifact.manifest.fault
    if fault is not None and not allowed:
        raise ModelError(
            f"this build failed and was kept for debugging: {fault}",
            where=str(artifact.directory),
            hint="build it again; allow_failed=True loads it all the same",
        )


def check_model_files(artifact: Artifact) -> None:
    """Raise ModelError unless model.onnx, and the weights beside it, are as they were written."""
    listed = [entry.path for entry in artifact.manifest.files]
    for name in [MODEL, *(n for n in listed if n.startswith(f"{MODEL}."))]:
        check_file(artifact, name)


def read_engine(artifact: Artifact, name: str) -> bytes:
    """Read an engine once, and check what was read: a file may be another by the time that TensorRT
    opens it.

    Raises:
        ModelError: as `check_file` and `check_host_code`, or it cannot be read.
    """
    path = artifact.directory / name
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    read = FileEntry(name, len(content), hashlib.sha256(content).hexdigest())
    check_file(artifact, name, read)
    check_host_code(artifact, read)
    return content


def check_file(artifact: Artifact, name: str, read: FileEntry | None = None) -> None:
    """Raise ModelError unless a file is there, and as it was written or as the device made it.

    Args:
        read: what was read of it; None: it is read here.
    """
    path = artifact.directory / name
    if not path.is_file():
        raise ModelError("is missing", where=str(path), hint=AGAIN)
    listed = {entry.path: entry for entry in artifact.manifest.files}
    entry = listed.get(name)
    jetson = artifact.manifest.target.runtime == "jetson"
    digest = None if read is None else read.sha256
    if jetson and made_on_device(artifact.directory, name, listed=entry is not None, digest=digest):
        return
    if entry is None:
        fault = "is not what the script of this bundle made" if jetson else "is not in the manifest"
        raise ModelError(fault, where=str(path), hint=AGAIN)
    size = path.stat().st_size if read is None else read.bytes
    if size < entry.bytes:
        raise ModelError(
            f"is truncated: {size} of {entry.bytes} bytes", where=str(path), hint=AGAIN
        )
    if size > entry.bytes or (read or file_entry(path, artifact.directory)) != entry:
        raise ModelError(
            "is not as it was written: its sha256 is not that in the manifest",
            where=str(path),
            hint=AGAIN,
        )


def check_host_code(artifact: Artifact, read: FileEntry) -> None:
    """Raise ModelError for an engine that holds code which would run here, where no SHA-256 of it
    is known; `check_file` has compared it where one is."""
    compatibility = artifact.manifest.compatibility
    if compatibility is None or not compatibility.host_code:
        return
    listed = {entry.path for entry in artifact.manifest.files}
    path = artifact.directory / read.path
    if read.path not in listed and digest_beside(path) != read.sha256:
        raise ModelError(
            "holds code that would run in this process, and there is no sha256 of it",
            where=str(path),
            hint=f"`sh {SCRIPT}` builds it and writes {path.name}{DIGEST}",
        )


def check_contract(
    artifact: Artifact, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], path: Path
) -> None:
    """Raise ModelError where a model has other inputs or outputs than the manifest says."""
    manifest = artifact.manifest
    for kind, found, told in (
        ("inputs", inputs, manifest.inputs),
        ("outputs", outputs, manifest.outputs),
    ):
        have, want = ({t.name: t.shape for t in tensors} for tensors in (found, told))
        if set(have) != set(want) or any(_differ(have[n], want[n]) for n in have):
            raise ModelError(
                f"its {kind} are {shown(found)}, the manifest says {shown(told)}",
                where=str(path),
                hint=AGAIN,
            )


#: What to do with files that are not as they were written.
AGAIN = "copy the whole artifact again, or build it anew"


def _differ(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> bool:
    """Whether two shapes cannot be of one tensor; a free dim may have another name."""
    return len(a) != len(b) or any(
        x != y and not (isinstance(x, str) and isinstance(y, str))
        for x, y in zip(a, b, strict=True)
    )


def shown(tensors: Sequence[TensorInfo]) -> str:
    """Names and shapes, for messages."""
    return ", ".join(f"'{t.name}' {list(t.shape)}" for t in tensors) or "none"
