"""What the report of a build shows beside its manifest: images, and maps of their tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcompile.builder.command import command_of
from tcompile.core.errors import TcompileError
from tcompile.report.map_pictures import picture_of
from tcompile.report.shown import Seen, Shown
from tcompile.report.token_maps import MapStep, run_trace
from tcompile.runtime.samples import Samples
from tcompile.runtime.signature import signature

if TYPE_CHECKING:
    from tcompile.builder.emit import Models
    from tcompile.builder.job import Job


def shown_of(models: Models, job: Job, samples: Samples, seen: Seen | None) -> Shown:
    """Take the pictures of some samples, and the maps of their tokens in the reduced fp32 graph.

    The file of that is removed.

    Args:
        samples: fidelity was shown on.
        seen: which of them to show.
    """
    model = signature(models.shipped).whole
    labels = tuple(model.preprocessing.get("labels", ()))
    shown = Shown(seen, command=command_of(job), why=models.untraced, labels=labels)
    if seen is None:
        return replace(shown, why=shown.why or "no output can be compared with the dense model's")
    rows = list(seen.rows)
    image = model.image_input
    if image is None:
        return replace(shown, why=shown.why or "the model takes no images")
    array = samples.arrays[image.name][rows]
    shown = replace(shown, pictures=tuple(picture_of(model, one) for one in array))
    if all(picture is None for picture in shown.pictures):
        return replace(shown, why=shown.why or "its inputs are no images that can be shown")
    if models.trace is None:
        return shown
    steps, why = _maps(models, _rows(samples, rows))
    return replace(shown, steps=steps, grid=models.trace.grid, why=why)


def _rows(samples: Samples, rows: list[int]) -> Samples:
    """Some of the samples, in that order."""
    arrays = {name: array[rows] for name, array in samples.arrays.items()}
    ids = tuple(samples.ids[row] for row in rows) if samples.ids else ()
    labels = None if samples.labels is None else tuple(samples.labels[row] for row in rows)
    return replace(samples, arrays=arrays, ids=ids, labels=labels)


def _maps(models: Models, samples: Samples) -> tuple[tuple[MapStep, ...], str]:
    """The maps after every step, and why there are none. A build that is done does not fail for
    its report: what goes wrong here is said on its page."""
    assert models.trace is not None
    try:
        return tuple(run_trace(models.trace, samples)), ""
    except TcompileError as error:
        return (), error.what
    except Exception as error:
        return (), f"they could not be made: {type(error).__name__}: {error}"
    finally:
        models.trace.path.unlink(missing_ok=True)
        models.trace.path.with_name(f"{models.trace.path.name}.data").unlink(missing_ok=True)
