"""Inputs for polygraphy, and outputs as it can compare them; `polygraphy.sh` names this file.

It needs numpy, and for DATA tcompile. Written for polygraphy 0.53.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ARTIFACT = Path(os.environ.get("ARTIFACT", HERE.parent))
#: Runs at most; 0: any. In fp16 ONNX Runtime's second run on a CPU may be wrong (its issue 27768).
RUNS = int(os.environ.get("RUNS", "0"))
#: Runs of scenes.npz that out.json has outputs of; 0: all.
STORED = 0
#: Output with fewer tokens → the output that says which tokens its rows are, the axis of its rows,
#: and the tokens of the dense model.
ROWS: dict[str, tuple[str, int, int]] = {}
#: Such an output → the least cosine and the largest L2 norm of the difference to the dense model's,
#: over the tokens that both have: what they were at build, and what rounding may add.
KEPT: dict[str, tuple[float, float]] = {}
#: Outputs that tell about tokens, and hold none of the model's results.
ABOUT_TOKENS = ("token_index", "token_owner", "token_size")


def load_scenes() -> Iterator[dict[str, np.ndarray]]:
    """The artifact's own inputs, a run at a time; of one that has none, two procedural scenes."""
    if not (HERE / "scenes.npz").exists():
        yield from _with_tcompile(None)
        return
    with np.load(HERE / "scenes.npz") as stored:
        names: list[tuple[int, str, str]] = []
        for key in stored.files:
            run, dtype, name = key.split("|", 2)
            names.append((int(run), dtype, name))
        for run in range(STORED or 1 + max(each[0] for each in names)):
            yield {
                name: stored[f"{number}|{dtype}|{name}"].astype(dtype)
                for number, dtype, name in names
                if number == run
            }


def load_data() -> Iterator[dict[str, np.ndarray]]:
    """DATA, a folder of images, an image, .npy or .npz, prepared as the artifact records; without
    it the artifact's own inputs."""
    data = os.environ.get("DATA")
    found = _with_tcompile(data) if data else load_scenes()
    yield from islice(found, RUNS or None)


def _with_tcompile(data: str | None) -> Iterator[dict[str, np.ndarray]]:
    from tcompile.artifact.directory import load_artifact
    from tcompile.runtime.samples import feeds, samples_for
    from tcompile.runtime.scenes import scenes_for
    from tcompile.runtime.signature import signature

    found = load_artifact(ARTIFACT)
    model, sizes = signature(found.model), found.manifest.batch_sizes
    least = sizes.smallest if sizes else 1
    samples = samples_for(model.whole, data) if data else scenes_for(model.whole, count=2)
    yield from feeds(model, samples, least)


def postprocess_outputs(outputs: Any) -> Any:
    """Put the rows of outputs with fewer tokens where these lie in the dense model's output.

    So that a token which one runtime keeps and the other does not counts for itself, and does not
    move all rows behind it. Rows that stand for several tokens are summed in one place more.
    """
    from polygraphy.comparator import IterationResult

    found = {n: np.asarray(a) for n, a in outputs.items() if not n.startswith(ABOUT_TOKENS)}
    for name, (index_name, axis, tokens) in ROWS.items():
        rows = np.moveaxis(found[name], axis, 1)
        index = np.asarray(outputs[index_name]).astype(np.int64)
        spread = np.zeros((rows.shape[0], tokens + 1, *rows.shape[2:]), rows.dtype)
        for out, row, at in zip(spread, rows, np.where(index < 0, tokens, index), strict=True):
            np.add.at(out, at, row)
        found[name] = np.moveaxis(spread, 1, axis)
    return IterationResult(outputs=found, runtime=outputs.runtime, runner_name=outputs.runner_name)


def compare_kept_tokens(reduced: Any, dense: Any) -> OrderedDict[str, bool]:
    """Compare outputs with fewer tokens with the dense model's rows of the tokens that are kept."""
    from polygraphy.logger import G_LOGGER

    found: OrderedDict[str, bool] = OrderedDict()
    for name, (least, most) in KEPT.items():
        index_name, axis, _ = ROWS[name]
        index = np.asarray(reduced[index_name]).astype(np.int64)
        have, want = (
            np.moveaxis(np.asarray(a[name], np.float64), axis, 1) for a in (reduced, dense)
        )
        batch, row = np.nonzero(index >= 0)  # others stand for several tokens
        have, want = have[batch, row].ravel(), want[batch, index[batch, row]].ravel()
        norms = float(np.linalg.norm(have) * np.linalg.norm(want))
        alike = float(have @ want) / norms if norms else float(not have.any() and not want.any())
        apart = float(np.linalg.norm(have - want))
        found[name] = alike >= least and apart <= most
        G_LOGGER.info(
            f"{name}, {len(row)} kept tokens: cosine {alike:.6f} (least {least:.6f}), "
            f"L2 {apart:.4g} (most {most:.4g}) | {'PASSED' if found[name] else 'FAILED'}"
        )
    return found
