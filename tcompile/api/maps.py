"""Maps of the tokens of images, as pictures: what each step of an artifact's schedule left of them.

They come from the model that was compiled and the schedule in the manifest. Where that model is
gone, the artifact itself tells what is left at the end, if an output of it has tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.api.reference import analyse_again, find_dense, gone
from tcompile.artifact.directory import Artifact, load_artifact
from tcompile.core.drafts import new_draft, scratch
from tcompile.core.errors import UsageError
from tcompile.core.memory import release
from tcompile.core.packages import require
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.deploy.load import load
from tcompile.deploy.result import Tokens
from tcompile.report.map_pictures import composed, picture_of
from tcompile.report.token_maps import (
    MapCounts,
    MapStep,
    counts_of,
    last_map,
    run_trace,
    write_trace,
)
from tcompile.runtime.samples import Samples
from tcompile.runtime.scenes import evidence_for
from tcompile.runtime.signature import Signature, signature

#: Scenes that are drawn where no images are given.
_SCENES = 4
#: Said where no output tells the rows that patches are in.
_FUSED = (
    "patches that left are drawn as one region, that of the fused token: no output tells those "
    "that were fused from those that were dropped"
)


@dataclass(frozen=True)
class Picture:
    """A map that was written.

    Attributes:
        file: its name in the folder.
        image: the image, by its path within the data or its number.
        step: what was done, where: `merge at attn:3`.
        keep: patch tokens that are left.
        patches: of the image, by what became of them.
        region: [T], for each patch the one whose token stands for it; -1: dropped; from T on: a
            token without a position.
    """

    file: str
    image: str
    step: str
    keep: int
    patches: MapCounts
    region: tuple[int, ...]


@dataclass(frozen=True)
class Maps:
    """The maps of some images.

    Attributes:
        directory: that they lie in, with `maps.json`, which holds the same as this.
        data: what the images are.
        grid: rows and columns of patches.
        pictures: by image, then by step.
        notes: what to know of them.
    """

    directory: str
    data: str
    grid: tuple[int, int]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def maps(
    artifact: str | Path,
    output: str | Path,
    data: str | Path | None = None,
    *,
    against: str | Path | None = None,
    preprocess: str | None = None,
    progress: Progress = silent,
) -> Maps:
    """Draw a map over each image after each step, as PNG, and list them in maps.json.

    Args:
        artifact: the directory that a build wrote.
        output: a new or an empty folder.
        data: an image, a folder of images, .npy or .npz; a few procedural scenes by default.
        against: the dense model; by default the source, where the manifest says it lies. Without
            it there is the last map alone, and only where an output says which tokens its rows are.
        preprocess: how images are prepared, in place of what the model records.

    Raises:
        UsageError: no artifact there, images that do not fit, the folder holds something, or there
            are no maps: no token leaves, patches are in no grid, the dense model is gone.
        MissingExtraError: pillow is not installed.
    """
    require("PIL", "cpu", "drawing token maps")
    opened = load_artifact(artifact)
    final = Path(output).absolute()
    _check_empty(final, str(output))
    model = signature(opened.model).whole.prepared(preprocess)
    samples = evidence_for(model, data, count=_SCENES)
    image = model.image_input
    if image is None:
        raise UsageError("the model takes no images", where=str(artifact))
    notes: list[str] = list(model.notes)
    dense = find_dense(opened, against)
    if dense is None:
        steps, grid, told = _last(opened, model, samples, preprocess, str(artifact))
        notes.append(
            f"this is what the artifact says is left at the end: the dense model {gone(artifact)} "
            "(--against names one)"
        )
        notes += told
    else:
        progress(f"reading {dense.path}")
        steps, grid = _every(opened, dense.path, samples, str(artifact), progress)
        if not dense.same:
            notes.append(f"'{dense.path}' is not the file that was compiled")
        if opened.manifest.precision != "fp32":
            notes.append(_of_precision(opened))
    progress("drawing")
    pictures: list[Picture] = []
    with _folder(final, str(output)) as folder:
        for row in range(len(samples)):
            pixels = picture_of(model, samples.arrays[image.name][row])
            if pixels is None:
                raise UsageError("its inputs are no single images", where=str(artifact))
            name = samples.ids[row] if samples.ids else samples.name_of(row)
            for number, step in enumerate(steps):
                region = step.region[row]
                file = f"{_stem(name, row)}-{number:02}-{_plain(step.title)}.png"
                (folder / file).write_bytes(composed(pixels, region, grid))
                kept = tuple(map(int, region))
                pictures.append(Picture(file, name, step.title, step.keep, counts_of(region), kept))
        found = Maps(str(output), samples.source, grid, tuple(pictures), tuple(notes))
        text = json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False)
        (folder / "maps.json").write_text(text + "\n", encoding="utf-8")
    return found


def _every(
    opened: Artifact, dense: Path, samples: Samples, where: str, say: Progress
) -> tuple[list[MapStep], tuple[int, int]]:
    """The maps after each step, by the dense model and the schedule."""
    schedule = Schedule.from_json(opened.manifest.schedule, where)
    with scratch() as folder:
        model = analyse_again(opened, dense)
        mode = opened.manifest.outputs_mode
        trace, why = write_trace(model, schedule, folder / "trace.onnx", mode)
        del model
        release()
        if trace is None:
            raise UsageError(f"there are no token maps: {why}", where=where)
        say("running it")
        return run_trace(trace, samples), trace.grid


def _last(
    opened: Artifact, model: Signature, samples: Samples, preprocess: str | None, where: str
) -> tuple[list[MapStep], tuple[int, int], list[str]]:
    """The last map alone, by what the artifact's own outputs say of their rows; and its notes."""
    m = opened.manifest
    shape = m.schedule.get("model") or {}
    grid = _grid(model, int(shape.get("patches", 0)))
    with load(opened.directory, "onnxruntime", preprocess=preprocess, allow_failed=True) as loaded:
        result = loaded.run(samples)
    told = (result.tokens(name) for name in m.token_index if name in result)
    tokens = next((t for t in told if t is not None), None)
    if tokens is None or grid is None:
        why = "no output says which tokens are left" if tokens is None else "its grid is not known"
        raise UsageError(
            f"{why}, and the dense model {gone(opened.directory)}",
            where=where,
            hint="give the dense model as --against",
        )
    keep = Schedule.from_json(m.schedule, where).final
    index, owner = _of_patches(tokens, keep, int(shape["prefix"]), int(shape["patches"]))
    region = last_map(index, owner, int(shape["patches"]))
    fused = [_FUSED] if owner is None and (region >= int(shape["patches"])).any() else []
    return [MapStep("what is left at the end", keep, False, region)], grid, fused


def _of_patches(
    tokens: Tokens, keep: int, prefix: int, patches: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Index and owner without the fixed tokens in front, where an output has those as well."""
    index, owner = tokens.index, tokens.owner
    first = prefix if index.shape[1] > keep else 0
    index = np.where(index < 0, -1, index - first)[:, first : first + keep]
    if owner is not None:
        owner = np.where(owner < 0, -1, owner - first)[:, first : first + patches]
    return index, owner


def _grid(model: Signature, patches: int) -> tuple[int, int] | None:
    """Rows and columns of so many square patches of the image input; None where there are none."""
    image = model.image_input
    sizes = [] if image is None else [d for d in image.shape[1:] if isinstance(d, int) and d > 4]
    if len(sizes) != 2 or not patches:
        return None
    rows = round(math.sqrt(patches * sizes[0] / sizes[1]))
    columns = patches // rows if rows else 0
    return (rows, columns) if rows * columns == patches else None


def _of_precision(opened: Artifact) -> str:
    m = opened.manifest
    said = f"the maps are those of the reduced fp32 graph; the artifact is in {m.precision}"
    same = None if m.quantization is None else m.quantization.same_tokens
    return said if same is None else f"{said}, where {same:.1%} of the tokens are the same"


def _stem(name: str, row: int) -> str:
    """The first part of a file's name: unique, whatever the images are called."""
    return f"{row:03}-{_plain(Path(name).stem)}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60] or "image"


def _check_empty(final: Path, where: str) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UsageError("exists and is not empty", where=where, hint="choose another -o")


@contextmanager
def _folder(final: Path, where: str) -> Iterator[Path]:
    """A folder that is put in its place when all is written."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = new_draft(final)
        try:
            yield draft.folder
            draft.put_in_place(final, lambda old: _check_empty(old, where))
        finally:
            draft.discard()
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", where=where) from error
