"""Inputs that some presets need and a benchmark must give: a head's weights, images to learn from.

Both come from scenes of a stream of their own: neither the held-out ones (2), nor those that the
model was trained on (1, 3).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.core.save import save
from tcompile.methods.composition import find_method
from tcompile.methods.presets import ALL
from tcompile.models.glyphs import data
from tcompile.pipeline import read
from tcompile.planning.method_schedule import schedule_for
from tcompile.runtime.samples import Samples, run_all

STREAM, SCENES = 4, 200
#: Of the ridge regression, per token.
RIDGE = 1e-3


def prepare(method: str, keep: str, source: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    """The method as `--method` takes it, and what else `reduce` is to be given.

    Raises:
        UsageError: the method does not fit the model.
    """
    preset = find_method(method.partition(":")[0])
    if "head" in preset.required and "head=" not in method:
        return with_head(method, keep, source, folder, partial(head_for, source=source)), {}
    if "calibration" in preset.needs:
        return method, {"calibration": images_for(folder)}
    # Its outputs have other positions than the dense model's: they are interpolated.
    return method, {"outputs": "restored"} if preset.family == "image" else {}


def with_head(
    method: str, keep: Any, source: Path, folder: Path, fit: Callable[[Sequence[str], Path], Path]
) -> str:
    """The method as `--method` takes it, with a head for the sites that it scores at.

    Args:
        fit: writes a head for some sites into a folder.
    """
    joined, nothing = f"{method}{',' if ':' in method else ':'}head=", folder / "nothing.npz"
    np.savez(nothing, **{"0.weight": np.zeros((1, 1))})
    made = schedule_for(read(source), keep, f"{joined}{nothing}")
    sites = [step.site for step in made.reductions if step.score is not None]
    return f"{joined}{fit(sites, folder) if sites else nothing}"


def images_for(folder: Path) -> Path:
    """An .npz of scenes to learn counts from."""
    path = folder / "calibration.npz"
    if not path.exists():
        np.savez(path, image=data.preprocess(data.batch(STREAM, 0, SCENES)[0]))
    return path


def head_for(sites: Sequence[str], folder: Path, source: Path) -> Path:
    """A linear head that tells patches with ink from others, on the tokens of some sites.

    score_j = w·LN(x_j) + b, by ridge regression on ±1 in the dense model: what a trained head can
    know of a token, in closed form.
    """
    path = folder / f"head-{'-'.join(sites).replace(':', '')}.npz"
    if path.exists():
        return path
    images, _, labels = data.batch(STREAM, 0, SCENES)
    tokens = tokens_at(sites, source, {"image": data.preprocess(images)})
    return fit_head(tokens, labels.reshape(len(labels), -1) != data.BACKGROUND, path)


def fit_head(tokens: Sequence[Any], wanted: Any, path: Path) -> Path:
    """Write the head that tells patches that are wanted [images, T] from others, by their tokens
    [images, T, C] at some sites."""
    x = np.concatenate(tokens)
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    y = np.tile(np.where(wanted, 1.0, -1.0).reshape(-1), len(tokens))
    w = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    width = len(w) - 1
    arrays = {
        "norm.weight": np.ones(width),
        "norm.bias": np.zeros(width),
        "0.weight": w[None, :-1],
        "0.bias": w[-1:],
    }
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return path


def tokens_at(sites: Sequence[str], source: Path, images: Mapping[str, Any]) -> list[Any]:
    """The patches [images, T, C] at each site of the dense model."""
    model = read(source)
    found, tensors, space = [], model.graph.tensors(), model.analysis.space
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        part = Path(folder) / "tokens.onnx"
        for name in sites:
            site = model.analysis.site(name)
            assert site is not None
            model.graph.outputs = [tensors[site.tensor]]
            save(model.graph.copy().cleanup(), part)
            (x,) = run_all(part, Samples(images, "", real=True)).values()
            found.append(x[:, space.prefix : space.prefix + space.patches])
    return found


def families() -> dict[str, str]:
    """Return what each preset does with tokens, for the plot."""
    return {preset.name: preset.family for preset in ALL}
