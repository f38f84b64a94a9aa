"""What is decided on images while a graph is lowered for a GPU: which values leave fp16's range,
and what 8 bits are enough for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import onnx_graphsurgeon as gs

from tcompile.analysis.flops import graph_flops
from tcompile.artifact.manifest import Quantization
from tcompile.builder.checks import calibration_of
from tcompile.core.drafts import scratch
from tcompile.core.progress import Progress
from tcompile.core.save import save
from tcompile.passes.lower.eight_bits import FORMATS, EightBits, Kind
from tcompile.passes.lower.eight_bits import LIMIT as MOST_LOST
from tcompile.passes.lower.ranges import LIMIT, Range, Wide, names_of, with_ranges
from tcompile.passes.stages import Analysed
from tcompile.planning.losses.data import signature_of
from tcompile.planning.request import Request
from tcompile.runtime.host_image import read_host_image
from tcompile.runtime.samples import Array, Samples, batches, feed, rows_of
from tcompile.targets.backends.ort import OrtRunner
from tcompile.targets.versions import TENSORRT

if TYPE_CHECKING:
    from tcompile.targets import Target

#: Nodes that a note names.
_NAMED = 3
_NOT_SEEN = (
    "that Q/DQ becomes kernels of 8 bits was seen in engines of TensorRT-RTX, not on a Jetson: "
    "measure it there against fp16"
)


@dataclass(frozen=True)
class Looking:
    """What looks at images while a model is lowered.

    Attributes:
        wide: finds what stays in fp32.
        eight_bits: of int8 and fp8, finds what is in 8 bits.
        images: that both look at.
        jetson: whether the device is one.
    """

    wide: Wide
    eight_bits: EightBits | None
    images: Samples
    jetson: bool = False

    def notes(self) -> list[str]:
        """What they found, once the model is lowered."""
        eight = self.eight_bits
        wide = note_of(self.wide, self.images, "mixed" if eight is None else eight.kind)
        if eight is None:
            return [wide]
        found = [note_of_eight_bits(eight, self.images)]
        if self.jetson:
            found.append(f"{eight.kind}: {_NOT_SEEN}")
        return [*found, wide] if self.wide.nodes or self.wide.scaled else found

    def quantization(self) -> Quantization | None:
        """The entry of the manifest; None where nothing is quantised."""
        found = self.eight_bits
        if found is None:
            return None
        reason = f"the kernels of TensorRT take scales that are known when it builds ({found.kind})"
        source = self.images.source
        smoothed = f"{_many(found.smoothed, 'norm')}, weighed on {source}" if found.smoothed else ""
        return Quantization("static", reason, found.products, source, smoothed)


def looking_at(
    model: Analysed,
    request: Request,
    target: Target,
    precision: str,
    metadata: Mapping[str, str],
    say: Progress,
) -> Looking:
    """What looks at images while a model is lowered.

    Args:
        model: the dense one.
        precision: mixed, int8 or fp8.
        metadata: of the reduced one.

    Raises:
        UsageError: images that cannot be read.
    """
    flops = graph_flops(model.graph)
    images = calibration_of(signature_of(model, request.preprocess), request, flops)
    eight = None
    if precision in FORMATS:
        kernel = TENSORRT.attention[precision]
        known = kernel if kernel.built_for(target) else None

        def run(graph: gs.Graph) -> Iterator[Mapping[str, Array]]:
            say(f"looking at rounding to {precision} on {images.source}")
            return run_on(images, metadata, graph, as_written=True)

        eight = EightBits(cast("Kind", precision), run, known)
    wide = Wide(partial(ranges_on, images, metadata, say))
    return Looking(wide, eight, images, target.runtime == "jetson")


def ranges_on(
    images: Samples, metadata: Mapping[str, str], say: Progress, graph: gs.Graph
) -> dict[str, Range]:
    """The range of each float tensor of a graph on images, by name."""
    say(f"looking at ranges on {images.source}")
    names = names_of(graph)
    found: dict[str, Range] = {}
    for outputs in run_on(images, metadata, with_ranges(graph)):
        ends = [float(end) for end in outputs.values()]
        for name, low, high in zip(names, ends[::2], ends[1::2], strict=True):
            one = Range(low, high)
            found[name] = found[name].joined(one) if name in found else one
    return found


def run_on(
    images: Samples, metadata: Mapping[str, str], graph: gs.Graph, *, as_written: bool = False
) -> Iterator[Mapping[str, Array]]:
    """Run a graph on images; yields its outputs, in their order, run after run.

    Args:
        as_written: without optimisations, by which Q/DQ would become integer kernels of this CPU.
    """
    host = read_host_image(metadata)
    with scratch() as folder:
        path = Path(folder) / "probed.onnx"
        save(graph, path)
        runner = OrtRunner(path, lean=True, optimize=not as_written)
        for arrays, _ in batches(images, rows_of(runner) or 1):
            yield runner.run(feed(runner.inputs, arrays if host is None else host.fed(arrays)))


def note_of_eight_bits(found: EightBits, images: Samples) -> str:
    """What is in 8 bits and what is not, and on what that was seen."""
    kind = found.kind
    words = f"{kind}: {_many(found.products, 'product')} with weights"
    words += f" and {_many(found.attentions, 'attention')}" if found.attentions else ""
    words += f" in 8 bits, scales from {images.source}"
    if found.smoothed:
        words += f"; outliers of channels behind {_many(found.smoothed, 'norm')} are in the weights"
    if found.left:
        worst = sorted(found.left.items(), key=lambda each: -each[1])
        named = ", ".join(f"'{name}' ({share:.0%})" for name, share in worst[:_NAMED])
        more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
        words += (
            f"; in 16 bits stay {named}{more}, where rounding takes more than {MOST_LOST:.0%} of "
            "what tells one row from another"
        )
    return words + _own(images)


def _own(images: Samples) -> str:
    return "; your own images say more (--calibration)" if images.scenes else ""


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def note_of(wide: Wide, images: Samples, precision: str = "mixed") -> str:
    """What stays in fp32 for its range, and on what that was seen."""
    own, where = _own(images), f"on {images.source}"
    scaled = ""
    if wide.scaled:
        many = f"{wide.scaled} products are scaled before they are taken"
        scaled = "; " + ("1 product is scaled before it is taken" if wide.scaled == 1 else many)
    if not wide.nodes:
        return (
            f"{precision}: no node has to stay in fp32 for values beyond {LIMIT:.0f}, a quarter of "
            f"fp16's range, {where}{scaled}{own}"
        )
    first = list(wide.nodes.items())
    named = ", ".join(f"'{name}' ({reach:.3g})" for name, reach in first[:_NAMED])
    more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
    return (
        f"{precision}: {len(first)} of {wide.of} nodes stay in fp32, whose values are beyond "
        f"{LIMIT:.0f}, a quarter of fp16's range, {where}: {named}{more}{scaled}{own}"
    )
