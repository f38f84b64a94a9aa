"""The command that makes an artifact again, as it is typed."""

from __future__ import annotations

import shlex
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.planning.request import Request

if TYPE_CHECKING:
    from tcompile.builder.job import Job

#: Said in another way than by their own name and value.
_APART = ("schedule", "shapes", "profile")


def command_of(job: Job) -> str:
    """The `tcompile build` of a job. What is not typed (a schedule or a profile given as an object)
    is a comment at its end."""
    words = ["tcompile", "build", str(job.path), "--target", job.target.name]
    if job.precision != job.target.default_precision:
        words += ["--precision", job.precision]
    if job.token_ops.form != choose_token_ops(job.target, None).form:
        words += ["--token-ops", job.token_ops.form]
    request, missing = job.request, []
    for field in fields(Request):
        value = getattr(request, field.name)
        if field.name not in _APART and value != field.default:
            words += _option(field.name, value)
    for name, dims in (request.shapes or {}).items():
        words += ["--shape", f"{name}={','.join(map(str, dims))}"]
    for name in ("schedule", "profile"):
        value = getattr(request, name)
        if isinstance(value, (str, Path)):
            words += [f"--{name}", str(value)]
        elif value is not None:
            words += [f"--{name}", f"{name.upper()}.json"]
            missing.append(f"{name.upper()}.json: the {name} that was given as an object")
    if job.workspace is not None:
        words += ["--workspace", str(job.workspace)]
    if (wanted := job.compatibility) is not None:
        words += ["--version-compatible"] if wanted.version else []
        words += ["--exclude-lean-runtime"] if wanted.version and not wanted.lean_runtime else []
        words += ["--hardware-compatibility-level", wanted.hardware] if wanted.hardware else []
    for option, size in job.batches.asked.items():
        words += [option, str(size)]
    for name in ("force", "refine", "keep_failed"):
        words += _option(name, getattr(job, name)) if getattr(job, name) else []
    comment = f"  # {'; '.join(missing)}" if missing else ""
    return shlex.join(words) + comment


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, Fraction):
        short = f"{float(value):g}"
        value = short if Fraction(short) == value else value
    return [option] if value is True else [option, str(value)]
