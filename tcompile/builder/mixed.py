"""Mixed precision in a build: the lowered graph is run on images before it goes to fp16, to see
which of its values leave fp16's range."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import onnx_graphsurgeon as gs

from tcompile.analysis.flops import batch_size, graph_flops
from tcompile.builder.checks import calibration_of
from tcompile.core.drafts import scratch
from tcompile.core.progress import Progress
from tcompile.core.save import save
from tcompile.passes.lower.ranges import LIMIT, Range, Wide, names_of, with_ranges
from tcompile.passes.stages import Analysed
from tcompile.planning.losses.data import signature_of
from tcompile.planning.request import Request
from tcompile.runtime.host_image import read_host_image
from tcompile.runtime.samples import Samples, batches, feed, rows_of
from tcompile.targets.backends.ort import OrtRunner

#: Nodes that a note names.
_NAMED = 3


def looking_at(
    model: Analysed, request: Request, metadata: Mapping[str, str], say: Progress
) -> tuple[Wide, Samples]:
    """What measures ranges while a model is lowered, and the images that it does so on.

    Args:
        model: the dense one.
        metadata: of the reduced one.

    Raises:
        UsageError: images that cannot be read.
    """
    flops = graph_flops(model.graph) // batch_size(model.graph)
    images = calibration_of(signature_of(model, request.preprocess), request, flops)
    return Wide(partial(ranges_on, images, metadata, say)), images


def ranges_on(
    images: Samples, metadata: Mapping[str, str], say: Progress, graph: gs.Graph
) -> dict[str, Range]:
    """The range of each float tensor of a graph on images, by name."""
    say(f"looking at ranges on {images.source}")
    names, host = names_of(graph), read_host_image(metadata)
    found: dict[str, Range] = {}
    with scratch() as folder:
        path = Path(folder) / "ranges.onnx"
        save(with_ranges(graph), path)
        runner = OrtRunner(path, lean=True)
        for arrays, _ in batches(images, rows_of(runner) or 1):
            given = feed(runner.inputs, arrays if host is None else host.fed(arrays))
            ends = [float(end) for end in runner.run(given).values()]
            for name, low, high in zip(names, ends[::2], ends[1::2], strict=True):
                one = Range(low, high)
                found[name] = found[name].joined(one) if name in found else one
    return found


def note_of(wide: Wide, images: Samples) -> str:
    """What stays in fp32 for its range, and on what that was seen."""
    own = "" if not images.scenes else "; your own images say more (--calibration)"
    where = f"on {images.source}"
    scaled = ""
    if wide.scaled:
        many = f"{wide.scaled} products are scaled before they are taken"
        scaled = "; " + ("1 product is scaled before it is taken" if wide.scaled == 1 else many)
    if not wide.nodes:
        return (
            f"mixed: no node has to stay in fp32 for values beyond {LIMIT:.0f}, a quarter of "
            f"fp16's range, {where}{scaled}{own}"
        )
    first = list(wide.nodes.items())
    named = ", ".join(f"'{name}' ({reach:.3g})" for name, reach in first[:_NAMED])
    more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
    return (
        f"mixed: {len(first)} of {wide.of} nodes stay in fp32, whose values are beyond "
        f"{LIMIT:.0f}, a quarter of fp16's range, {where}: {named}{more}{scaled}{own}"
    )
