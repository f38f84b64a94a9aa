"""Load, normalise, analyse: the model as all that is planned and reduced starts from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.analysis.model import analyse
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.load import load, names_in
from tcompile.core.model_files import TensorInfo
from tcompile.models.preprocess import PREPROCESS_KEY, read_preprocessing
from tcompile.models.preprocess_option import overrides, resolved
from tcompile.passes.normalize import check_not_reduced, normalize
from tcompile.passes.normalize.bind_shapes import Shapes
from tcompile.passes.runner import Dump
from tcompile.passes.stages import Analysed
from tcompile.planning.method_schedule import given_schedule
from tcompile.planning.request import Request
from tcompile.planning.resolution import describe_grids
from tcompile.report.explain import NodeFacts
from tcompile.report.explain import explain as explain_node
from tcompile.report.inspection import describe
from tcompile.report.inspection_page import Inspection

if TYPE_CHECKING:
    pass


def read(
    model: str | Path,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
    dump: Dump | None = None,
) -> Analysed:
    """Load, normalise, analyse.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.
        prefix: tokens at the front that are not patches, where the analysis does not see it.
        tower: the one that loses tokens, of a model that has several; None: all of them.
        dump: takes the graph after each pass.

    Raises:
        UsageError: no such file, no such tower.
        ModelError: a file that cannot be read, or holds no transformer that tcompile can follow.
    """
    with _Located(model):
        source = load(model)
        check_not_reduced(source)
        normalized = normalize(source, shapes=shapes, dump=dump)
        analysis = analyse(normalized.graph, prefix=prefix, tower=tower, sized=normalized.sized)
        return Analysed(str(model), normalized, analysis, prefix)


def read_asked(model: str | Path, request: Request, dump: Dump | None = None) -> Analysed:
    """The model as a request has it: a schedule may be for one tower by name."""
    tower = request.tower
    if request.schedule is not None:
        own = given_schedule(request.schedule).tower
        if tower is not None and own is not None and tower != own:
            raise UsageError(
                f"the schedule is for tower '{own}'",
                where=f"--tower {tower}",
                hint="omit one of them",
            )
        tower = tower or own
    found = read(model, shapes=request.shapes, prefix=request.prefix, tower=tower, dump=dump)
    return found if request.preprocess is None else _prepared(found, request.preprocess)


def inspect(
    model: str | Path,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> Inspection:
    """The transformer in a model, and where tokens may leave. Arguments and errors as `read`."""
    read_model = read(model, shapes=shapes, prefix=prefix, tower=tower)
    notes = read_model.normalized.notes
    found = describe(str(model), read_model.graph, read_model.analysis, notes)
    return replace(found, resolutions=describe_grids(read_model))


def explain(
    model: str | Path,
    node: str,
    *,
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
) -> NodeFacts:
    """Explain what the analysis knows of one node, named by itself or by a tensor that it gives.

    Raises as `read`; also `UsageError` where nothing has that name.
    """
    read_model = read(model, shapes=shapes, prefix=prefix, tower=tower)
    with _Located(model):
        return explain_node(read_model.graph, read_model.analysis, node, names_in(model))


def _prepared(model: Analysed, preprocess: str) -> Analysed:
    """The model with a record of how images are prepared for it."""
    normal = model.normalized
    inputs = [
        TensorInfo(t.name, np.dtype(t.dtype).name, tuple(t.shape)) for t in model.graph.inputs
    ]
    known = read_preprocessing(normal.metadata) or {}
    found = resolved(preprocess, inputs, known)
    metadata = {**normal.metadata, PREPROCESS_KEY: json.dumps(found)}
    note = overrides(found, known)
    notes = (*normal.notes, note) if note else normal.notes
    return replace(model, normalized=replace(normal, metadata=metadata, notes=notes))


class _Located:
    """Adds the model's path to an error that names no place."""

    def __init__(self, model: str | Path) -> None:
        self.model = str(model)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TcompileError) and not error.where:
            error.where = self.model
            error.args = (error.one_line(),)
