"""From a model of transformers to its answer with fewer vision tokens: export, build, load, hand
over; what comes out is what the reference says of the same features."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import PIL.Image
import pytest
import torch

import tcompile
from tcompile import vlm
from tests.oracles.masked_prompt import Image, generated
from tests.support.tiny_vlm import Prompt, llava_processor, prompt, tiny_vlm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "vlm_example", ROOT / "examples" / "python" / "vlm.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(result: Any, output: str, size: int) -> list[Image]:
    """The reference's view of what an artifact gave: features of all tokens, those that it did not
    give far off."""
    found = []
    for features, index in zip(result[output], result.tokens(output).index, strict=True):
        dense = torch.full((size, features.shape[-1]), 1e3)
        dense[index] = torch.from_numpy(features)
        found.append(Image(dense, (), torch.from_numpy(index)))
    return found


def test_llava(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, checkpoint = tiny_vlm("llava"), tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    tcompile.export(f"hf:{checkpoint}", tmp_path / "encoder.onnx", exporter="torchscript")
    how: dict[str, Any] = {"target": "cpu", "keep": 0.5, "force": True}
    for method in ("topk", "tome"):
        built = tcompile.build(
            tmp_path / "encoder.onnx", method=method, output=tmp_path / method, **how
        )
        with tcompile.load(built) as encoder:
            for rows in ((1,), (1, 2)):
                asked = prompt("llava", rows)
                result = encoder(asked.inputs["pixel_values"].numpy())
                given = vlm.hand_off(model, asked.inputs, result)
                _, want = generated(model, asked, images(result, "image_features", 16), 3)
                got = model.generate(**given, max_new_tokens=3, do_sample=False)
                assert got.tolist() == torch.stack(want, 1).argmax(-1).tolist()
                logits = model(**given).logits[:, -1]
                assert float((logits - want[0]).abs().max()) < 2e-5
    # The example, from a checkpoint with a processor of its own.
    llava_processor().save_pretrained(checkpoint)
    PIL.Image.new("RGB", (50, 40), (200, 30, 20)).save(tmp_path / "red.png")
    example.main(str(checkpoint), str(tmp_path / "tome"), str(tmp_path / "red.png"), "w7 w8")
    told, answer = capsys.readouterr().out.splitlines()[-2:]
    assert told == "the language model reads 10 tokens in place of 18"
    assert answer.startswith("w")


def test_the_example_and_qwen2_vl(
    example: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = example.tiny(tmp_path)
    model, inputs, artifact = made
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    twice["pixel_values"] = torch.randn(128, 96, generator=torch.Generator().manual_seed(1))
    answers = []
    with tcompile.load(artifact) as encoder:
        for given, rows in ((inputs, 1), (twice, 2)):
            pixels = given["pixel_values"].numpy().reshape(rows, 64, 96)
            seen = images(encoder(pixels), "image_embeds", 16)
            _, want = generated(model, Prompt(given, (16,) * rows), seen, 5)
            got = example.ask(model, given, encoder, max_new_tokens=5, do_sample=False)
            assert got.tolist() == torch.stack(want, 1).argmax(-1).tolist()
            answers.append(got[0].tolist())
    monkeypatch.setattr(example, "tiny", lambda _: made)
    capsys.readouterr()
    example.main()
    assert capsys.readouterr().out.splitlines() == [
        "the language model reads 15 tokens in place of 23",
        f"token ids of the answer: {' '.join(map(str, answers[0]))}",
    ]
