"""A profile of a device that is not at hand: each part priced by the roofline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from tcompile._version import __version__
from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import Conditions, ModelledProfile, Subject
from tcompile.profiling.sizing import Sized, structures
from tcompile.targets import Target

if TYPE_CHECKING:
    from tcompile.profiling.roofline import Device

#: What runs where, as the roofline takes it.
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt-rtx": "TensorRT-RTX", "jetson": "TensorRT"}
#: All tile shapes of the roofline have rows in multiples of this.
_TILE = 16
_ALIGNED = 8


def modelled_profile(
    dense: gs.Graph,
    analysis: Analysis,
    methods: Sequence[Method],
    target: Target,
    *,
    precision: str,
    batch: int,
    source: str,
    threads: int | None = None,
) -> ModelledProfile:
    """Return the profile of a model as the roofline of a target has it (docs/roofline.md).

    Args:
        dense: in normal form.
        methods: whose reducers, and whose halves behind them, are priced.
        threads: of a CPU, whose few figures are measured first, in about two seconds.

    Raises:
        UsageError: no method; no figures of the target at this precision; a batch below 1.
    """
    from tcompile.profiling.roofline import cpu_device, device_of, modelled

    if not methods:
        raise UsageError("no method can be planned on this model", where="--method")
    cpu = target.on_cpu
    device = cpu_device(threads) if cpu else device_of(target, precision)
    shape = analysis.shape
    found = structures(dense, analysis, methods)
    grain = max(rule.granularity for method in methods for rule in method.sites)
    counts = {*counts_to_model(shape.tokens, shape.prefix, batch, grain), shape.tokens}

    def price(graph: gs.Graph) -> Figure:
        return Figure.modelled(modelled(graph, device, precision=precision, batch=batch).ms)

    return ModelledProfile(
        _conditions(target, device, precision, batch),
        Subject(source, shape.tokens, shape.prefix, shape.blocks),
        {sign: price(graph) for sign, graph in found.stem.items()},
        _curves(found.halves, counts, price),
        _curves(found.heads, counts, price),
        {
            key: StepCost(tuple((n, k, price(graph)) for n, k, graph in steps))
            for key, steps in found.steps.items()
        },
        price(dense),
    )


def counts_to_model(tokens: int, prefix: int, batch: int, grain: int = 1) -> list[int]:
    """Multiples of eight, the last count of each tile of rows and the first of the next; where
    patches leave in groups, all whole groups."""
    if grain > 1:
        return list(range(prefix + grain, tokens + 1, grain))
    edges = range(_TILE, batch * tokens + _TILE, _TILE)
    found = {n for rows in edges for n in (rows // batch, rows // batch + 1)}
    found |= set(range(_ALIGNED, tokens + 1, _ALIGNED))
    return sorted(n for n in found if prefix < n <= tokens)


def _curves(
    parts: Mapping[str, Sized], counts: Collection[int], price: Callable[[gs.Graph], Figure]
) -> dict[str, Curve]:
    """Each part at all counts; at those where it was seen, if its dims are on no line."""
    found = {}
    for sign, part in parts.items():
        at = list(part.graphs) if part.lines is None else counts
        points = [(n, price(graph)) for n in at if (graph := part.at(n)) is not None]
        found[sign] = Curve.of(points)
    return found


def _conditions(target: Target, device: Device, precision: str, batch: int) -> Conditions:
    from tcompile.runtime.timing import machine_name

    if device.cpu:
        name = machine_name()
        figures = (
            f"{device.matrix * device.clock / 1e9:.0f} GFLOP/s a thread in products, caches "
            f"{device.cache / 1e9:.0f} GB/s, memory {device.memory / 1e9:.0f} GB/s, "
            f"{device.launch * 1e6:.1f} us a node"
        )
    else:
        name = target.title
        known = [(k, target.figures[k]) for k in target.figures]
        figures = ", ".join(f"{k.replace('_', ' ')} {f.value:g} {f.unit}" for k, f in known)
    return Conditions(
        target=target.name,
        device=name,
        runtime=f"{_RUNTIMES.get(target.runtime, target.runtime)} by the roofline",
        software={"tcompile": __version__},
        precision="fp32" if device.cpu else precision,
        batch=batch,
        threads=device.cores if device.cpu else 0,
        clocks="" if device.cpu else f"{device.clock / 1e9:g} GHz",
        note=f"roofline, docs/roofline.md; {figures}",
    )
