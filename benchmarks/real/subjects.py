"""The models that methods are compared on, what they are used for, and images for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.real.fetch import stamps
from benchmarks.real.figures import CLASSES_TASK, CLS_TASK, PATCHES_TASK, SALIENCY_TASK, Task
from benchmarks.real.models import features_model, photos, saliency_model
from benchmarks.subjects import copied
from tcompile.models.glyphs import data
from tcompile.planning.losses.data import Calibration
from tcompile.runtime.samples import Samples, samples_for
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import Signature, signature

#: Kinds of images: the model's own, procedural scenes, white noise, stamps of known kinds.
OWN, SCENES, NOISE, LABELLED = "own", "scenes", "noise", "labelled"
#: Seeds and streams of their own: not those that a default build is calibrated or judged with.
_SEED, _STREAM = 71, 2
#: Scenes that methods with counts to learn, and stand-ins for trained heads, learn from.
_LEARN, _LEARN_SEED = 24, 72
#: Of a folder of stamps as many are looked at, where it has as many.
_STAMPS = 5
#: Folders of drawings, not photos.
_DRAWN = {"symbols", "cartoon", "flags", "roadsigns"}


@dataclass(frozen=True)
class Subject:
    """A model and its images.

    Attributes:
        name: for tables.
        tasks: what it is used for.
        path: of the dense model.
        cache: where packages lie, and what is made of them.
        photos: whether its own images are the photos, else scenes of `zoo:glyphs`.
        count: how many of them are answered at most.
        scenes: procedural scenes, and images of noise, that are.
        labelled: whether stamps are, if there are any.
    """

    name: str
    tasks: tuple[Task, ...]
    path: Path
    cache: Path
    photos: bool = True
    count: int = 20
    scenes: int = 24
    labelled: bool = False

    @cached_property
    def signature(self) -> Signature:
        """The model's inputs."""
        return signature(self.path)

    @cached_property
    def images(self) -> dict[str, Samples]:
        """Images by kind."""
        stamped = {} if self._stamps is None else {LABELLED: self._stamps[0]}
        return {
            OWN: self._own(),
            SCENES: scenes_for(self.signature, count=self.scenes, seed=_SEED),
            NOISE: samples_for(self.signature, count=self.scenes, seed=_SEED),
            **stamped,
        }

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the images, by kind: figures are of these alone."""
        return {kind: Calibration.of(found, None).digest for kind, found in self.images.items()}

    def _own(self) -> Samples:
        if not self.photos:
            drawn = data.preprocess(data.batch(_STREAM, 0, self.count)[0])
            return Samples(
                {self.signature.inputs[0].name: drawn}, "scenes of zoo:glyphs", real=True
            )
        found = samples_for(self.signature, photos(self.cache))
        arrays = {name: array[: self.count] for name, array in found.arrays.items()}
        return Samples(arrays, f"{self.count} photos", real=True)

    @property
    def halves(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The own images, each of which is judged by a plan that was made on the other half."""
        return tuple(range(0, self.count, 2)), tuple(range(1, self.count, 2))

    def half(self, which: int) -> Path:
        """A folder of the photos of a half, as a person would give them."""
        files = sorted(photos(self.cache).iterdir())
        chosen = [files[row] for row in self.halves[which]]
        return copied(chosen, self.cache / f"photos-{self.count}-{which}")

    @cached_property
    def learned_from(self) -> Path:
        """An .npz of procedural scenes, for methods that learn their counts from images."""
        found = scenes_for(self.signature, count=_LEARN, seed=_LEARN_SEED)
        path = self.cache / f"{self.name}-scenes-{Calibration.of(found, None).digest[:12]}.npz"
        if not path.exists():
            np.savez(path, **found.arrays)  # type: ignore[arg-type]
        return path

    @cached_property
    def _stamps(self) -> tuple[Samples, list[str]] | None:
        """Cut-outs of photos and the kind of each; None where they are not wanted, or not had."""
        folder = stamps(self.cache) if self.labelled else None
        if folder is None:
            return None
        files = stamp_files(folder)
        rows = [samples_for(self.signature, path).arrays for path, _ in files]
        (name,) = rows[0]
        arrays = {name: np.concatenate([row[name] for row in rows])}
        return Samples(arrays, f"{len(files)} stamps", real=True), [kind for _, kind in files]

    @property
    def labels(self) -> list[str]:
        """The kind of each stamp."""
        return [] if self._stamps is None else self._stamps[1]


def stamp_files(folder: Path, each: int = _STAMPS) -> list[tuple[Path, str]]:
    """The first images of every folder of photos that has enough, and the folder's name."""
    found: list[tuple[Path, str]] = []
    for kind in sorted(p for p in folder.rglob("*") if p.is_dir()):
        files = sorted(p for p in kind.iterdir() if p.suffix == ".png")
        name = kind.relative_to(folder).as_posix()
        if len(files) >= each and not _DRAWN & set(name.split("/")):
            found += [(path, name) for path in files[:each]]
    return found


def subjects(cache: Path, count: int, scenes: int, labelled: bool) -> tuple[Subject, ...]:
    """All of them; packages are brought in, models exported."""
    from tcompile.api.demo import write_glyphs

    cache.mkdir(parents=True, exist_ok=True)
    glyphs = cache / "glyphs.onnx"
    if not glyphs.exists():
        write_glyphs(glyphs)
    return (
        Subject(
            "saliency", (SALIENCY_TASK,), saliency_model(cache), cache, count=count, scenes=scenes
        ),
        Subject(
            "features",
            (CLS_TASK, PATCHES_TASK),
            features_model(cache),
            cache,
            count=count,
            scenes=scenes,
            labelled=labelled,
        ),
        Subject(
            "glyphs",
            (CLASSES_TASK,),
            glyphs,
            cache,
            photos=False,
            count=10 * count,
            scenes=10 * scenes,
        ),
    )
