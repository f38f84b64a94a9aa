"""Every command that takes an artifact, once the model that it was built from is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.command import TOPK, Command


def test_an_artifact_whose_source_is_gone(tcompile: Command, vit: Path) -> None:
    """Each says what it can, or what is missing and how to give it; and takes --against."""
    for keep in ("0.5", "0.8"):
        asked = (*TOPK, "--keep", keep, "--preprocess", "imagenet", "--force", "-o", f"a{keep}")
        built = tcompile("build", vit, *asked)
        assert built.code == 0, built.err
    Path("moved").mkdir()
    vit.rename("moved/vit.onnx")
    there = ("--against", "moved/vit.onnx")
    np.savez("x.npz", image=np.zeros((2, 3, 32, 32), np.float32), labels=np.arange(2))
    note = "the dense model is not where it was, or was changed since: 'vit.onnx'"

    checked = tcompile("verify", "a0.5")
    assert checked.code == 0
    assert "skipped" in next(li for li in checked.out.splitlines() if li.startswith("numerics"))
    assert "the source was not found; give vit.onnx as --against" in " ".join(checked.out.split())
    assert f"note: fidelity is not known: {note} (--against names one)" in checked.out
    assert "fidelity is not known" not in tcompile("verify", "a0.5", *there).out
    layers = tcompile("verify", "a0.5", "--layers")
    assert (layers.code, layers.out) == (2, "")
    assert "--layers: layers are compared with the source, which is not where" in layers.err
    assert "(give it as --against)" in layers.err
    assert tcompile("verify", "a0.5", "--layers", *there).code == 0

    measured = tcompile("bench", "a0.5", "--rounds", "5")
    assert (measured.code, measured.out) == (2, "")
    assert note in measured.err
    assert "(give it as --against)" in measured.err
    assert tcompile("bench", "a0.5", "--rounds", "5", *there).code == 0

    found = tcompile("evaluate", "a0.5", "--data", "x.npz", "--json").json()
    assert found["dense"] is None
    assert note in found["notes"][0]

    drawn = tcompile("maps", "a0.5", "-o", "maps")  # only logits: no output tells its tokens
    assert (drawn.code, Path("maps").exists()) == (2, False)
    assert f"no output says which tokens are left, and {note}" in drawn.err
    assert "(give the dense model as --against)" in drawn.err
    assert tcompile("maps", "a0.5", "-o", "maps", *there).code == 0

    # Made at the build: nothing is missing.
    for command in (("view", "a0.5", "--no-open"), ("compare", "a0.5", "a0.8")):
        shown = tcompile(*command)
        assert (shown.code, shown.err, note in shown.out) == (0, "", False)
    run = ("run", "a0.5", "--input", "x.npz")
    for command in (run, ("init-app", "a0.5", "--python", "-o", "p")):
        assert tcompile(*command).code == 0
