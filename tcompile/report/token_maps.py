"""Maps of tokens: what became of each patch of an image, step by step of a schedule.

A map is one number a patch: the patch whose token now stands for it, itself where its token is
still there, -1 where its token was dropped. Patches with the same number are one region; one that
has no position of its own (EViT's fused token) is numbered from the count of patches on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import TcompileError
from tcompile.core.save import save
from tcompile.passes.reduce import Shared, reduce_graph
from tcompile.passes.reduce.check import dense_grid
from tcompile.passes.reduce.traced import TracedStep
from tcompile.runtime.samples import Samples, run_all

if TYPE_CHECKING:
    from tcompile.core.schedule import Schedule
    from tcompile.passes.stages import Analysed

Ints = npt.NDArray[np.int64]
#: What a patch whose token was dropped has in a map.
DROPPED = -1


@dataclass(frozen=True)
class Trace:
    """A file that tells the tokens of every step, and what its outputs are.

    Attributes:
        path: of a model that gives nothing else.
        steps: in execution order.
        patches: of the dense model.
        grid: rows and columns that they lie in.
    """

    path: Path
    steps: tuple[TracedStep, ...]
    patches: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class MapStep:
    """The tokens of some images after one step.

    Attributes:
        title: what happens, where: `merge at attn:3`.
        keep: patch tokens that are left.
        passing: whether the others are back behind the block.
        region: [B, T], a map for each image.
    """

    title: str
    keep: int
    passing: bool
    region: Ints


@dataclass(frozen=True)
class MapCounts:
    """The patches of a map, by what became of them.

    Attributes:
        alone: still a token of their own.
        merged: part of a region of several.
        dropped: their token is gone.
        regions: how many regions of several there are.
        largest: patches of the largest of them; 0 where there is none.
    """

    alone: int
    merged: int
    dropped: int
    regions: int
    largest: int


def write_trace(
    model: Analysed, schedule: Schedule, path: Path, outputs: str = "reduced"
) -> tuple[Trace | None, str]:
    """Write what tells the tokens of a schedule's steps; where that is not to be had, say why.

    Args:
        schedule: of the model's main tower; the others are not looked at.
        outputs: `reduced` or `restored`: where tokens may leave depends on it.
    """
    if schedule.resized is not None:
        h, w = schedule.resized.grid
        return None, f"the image itself is smaller, {h} x {w} patches: no token leaves"
    if not schedule.reductions:
        return None, "no token leaves"
    grid = dense_grid(model.analysis)
    if len(grid) != 2:
        return None, "its patches are not the rows and columns of one image"
    shared = Shared(model.graph)
    try:
        made = reduce_graph(
            model.graph, model.analysis, schedule, outputs=outputs, shared=shared, traced=True
        )
    except TcompileError as error:
        return None, error.what
    save(made.graph, path)
    return Trace(path, made.steps, model.analysis.space.patches, (grid[0], grid[1])), ""


def run_trace(trace: Trace, samples: Samples) -> list[MapStep]:
    """The maps of all samples after every step."""
    return maps_of(trace.steps, run_all(trace.path, samples), trace.patches, len(samples))


def maps_of(
    steps: Iterable[TracedStep], outputs: Mapping[str, npt.NDArray[Any]], patches: int, batch: int
) -> list[MapStep]:
    """The maps after every step, from what the steps tell.

    Args:
        outputs: of the steps, [B, …] each.
        patches: T, of the dense model.
        batch: B.
    """
    all_there = np.tile(np.arange(patches), (batch, 1))
    region, slot = all_there, all_there  # the map so far, and where each patch's token is now
    found = []
    for step in steps:
        told = {what: outputs[name] for what, name in step.outputs.items()}
        title = f"{step.reducer} at {step.site}"
        if not told:
            region = slot = all_there
            found.append(MapStep(title, step.keep, False, region))
            continue
        owner = told.get("owner")
        if step.passing and not step.merges:
            # Who does not run through the block stands for nothing there, and is back behind it.
            now = np.where(_among(all_there, told["index"]), all_there, DROPPED)
            found.append(MapStep(title, step.keep, True, now))
            continue
        index = told.get("index", np.tile(np.arange(step.keep), (batch, 1)))
        assert owner is not None
        alive = region != DROPPED
        if not step.merges:
            # A token stays that is one of those taken; the owner of one that leaves is a stand-in.
            gone = ~_among(slot, told["local"]) if "local" in told else ~_among(region, index)
            alive = alive & ~gone
        alive = alive & (owner >= 0)
        place = owner.clip(min=0)
        named = np.take_along_axis(index, place, axis=1)
        now = np.where(alive, np.where(named < 0, patches + place, named), DROPPED)
        found.append(MapStep(title, step.keep, step.passing, now))
        if not step.passing:
            region, slot = now, place
    return found


def _among(values: Ints, chosen: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """[B, T]: which of an image's values are among its chosen ones [B, K]."""
    return np.stack([np.isin(v, c) for v, c in zip(values, chosen, strict=True)])


def last_map(index: Ints | None, owner: Ints | None, patches: int) -> Ints:
    """The final maps [B, T] from what an artifact's outputs tell of their rows.

    Args:
        index: [B, K], the patch that each row is; -1: none. None: all are there.
        owner: [B, T], the row that stands for each patch; None: it is not told. Patches that are
            missing were then dropped; where an image has a fused row they are all that one's, since
            which of several they are in, and which were dropped before, is not told.
    """
    if index is None:
        return np.arange(patches)[None]
    everyone = np.tile(np.arange(patches), (len(index), 1))
    if owner is None:
        none = index < 0
        gone = np.where(none.any(axis=1), patches + none.argmax(axis=1), DROPPED)
        return np.where(_among(everyone, index), everyone, gone[:, None])
    place = owner.clip(min=0)
    named = np.take_along_axis(index, place, axis=1)
    return np.where(owner < 0, DROPPED, np.where(named < 0, patches + place, named))


def counts_of(region: Ints) -> MapCounts:
    """What became of the patches of one map [T]."""
    there = region[region != DROPPED]
    _, sizes = np.unique(there, return_counts=True)
    several = sizes[sizes > 1]
    return MapCounts(
        alone=int((sizes == 1).sum()),
        merged=int(several.sum()),
        dropped=int((region == DROPPED).sum()),
        regions=len(several),
        largest=int(several.max(initial=0)),
    )


def counts_words(step: MapStep, region: Ints) -> str:
    """A map in words: what is left, and what became of the others."""
    c = counts_of(region)
    said = [f"{step.keep} of {len(region)} patch tokens are left"]
    if step.passing:
        said[0] = f"{step.keep} of {len(region)} patch tokens run through the block"
    if c.merged:
        said.append(
            f"{c.merged} patches are in {c.regions} merged region{'s' if c.regions != 1 else ''}, "
            f"the largest of {c.largest}"
        )
    if c.dropped:
        one = c.dropped == 1
        verb = ("passes" if one else "pass") if step.passing else ("is" if one else "are")
        said.append(f"{c.dropped} {verb} {'it by' if step.passing else 'dropped'}")
    return "; ".join(said)
