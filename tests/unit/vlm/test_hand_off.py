"""A hand-off computes what the whole prompt does with the removed tokens hidden from attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tcompile.core.errors import UsageError
from tcompile.deploy.result import Result, Tokens
from tcompile.vlm import Vision, check, hand_off, merge
from tests.oracles.masked_prompt import Image, generated, own_positions, staying
from tests.support.tiny_vlm import CONFIGS, WIDTH, Prompt, prompt, tiny_vlm

KINDS = tuple(CONFIGS)
#: Of logits that reach from −3 to 3, in float32.
CLOSE = 2e-5


def encoded(kind: str, asked: Prompt, seed: int = 0) -> list[Image]:
    """A dense encoder's features of each image, and a third to two thirds of them to keep."""
    generator = torch.Generator().manual_seed(seed)
    layers = 2 if kind.startswith("qwen3") else 0
    images = []
    for number, size in enumerate(asked.sizes):
        kept = torch.randperm(size, generator=generator)[: size * (1 + number % 2) // 3]
        draw = [torch.randn(size, WIDTH, generator=generator) for _ in range(1 + layers)]
        images.append(Image(draw[0], tuple(draw[1:]), kept))
    return images


def seen(images: Sequence[Image]) -> list[Vision]:
    """What a reducing encoder gives of them, a result for each."""

    def rows(features: Tensor, kept: Tensor) -> tuple[Any, Tokens]:
        return features[kept][None].numpy(), Tokens(kept[None].numpy())

    return [
        Vision(*rows(i.features, i.kept), deepstack=[rows(d, i.kept) for d in i.deepstack])
        for i in images
    ]


def apart(kind: str, asked: Prompt, images: Sequence[Image], given: dict[str, Any]) -> float:
    """The largest difference of logits from the reference's, where both have tokens."""
    model = tiny_vlm(kind)
    want, _ = generated(model, asked, images, 1)
    got = model(**given).logits
    differences = []
    for row, places in enumerate(staying(asked, images)):
        differences.append((got[row, -len(places) :] - want[row, places]).abs().max())
    return float(torch.stack(differences).max())


@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=["one", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_generated_tokens_are_the_reference(kind: str, rows: tuple[int, ...]) -> None:
    model, asked = tiny_vlm(kind), prompt(kind, rows)
    images = encoded(kind, asked)
    given = hand_off(model, asked.inputs, seen(images))
    left = [len(places) for places in staying(asked, images)]
    assert given["attention_mask"].tolist() == [[0] * (max(left) - n) + [1] * n for n in left]
    assert apart(kind, asked, images, given) < CLOSE
    _, want = generated(model, asked, images, 4)
    found = model.generate(
        **given, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    got = torch.stack(found.logits)
    assert float((got - torch.stack(want)).abs().max()) < CLOSE
    assert torch.equal(got.argmax(-1), torch.stack(want).argmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_give_the_plain_model(kind: str) -> None:
    """The encoder of the model itself, nothing removed: the same numbers, to the last bit."""
    model, asked = tiny_vlm(kind), prompt(kind, (1,))
    names = ("pixel_values", "image_grid_thw")
    pixels = {n: asked.inputs[n] for n in names if n in asked.inputs}
    found = model.model.get_image_features(**pixels)
    features = torch.stack(list(found.pooler_output))
    deep = [(torch.stack(list(one)), None) for one in getattr(found, "deepstack_features", ())]
    vision = Vision(features, deepstack=deep)
    given = hand_off(model, asked.inputs, vision)
    if kind == "paligemma":  # whose forward counts from 1, and generate adds 1 to what it is given
        given["position_ids"] += 1
    positions, want = own_positions(model, asked)
    assert torch.equal(given["position_ids"], positions)
    assert torch.equal(model(**given).logits, want)
    short = {"max_new_tokens": 3, "do_sample": False}
    given = hand_off(model, asked.inputs, vision)
    own = model.generate(**asked.inputs, **short)
    assert torch.equal(model.generate(**given, **short)[:, -3:], own[:, -3:])


def anew(given: dict[str, Any]) -> None:
    """Positions counted over what is left."""
    left = given["attention_mask"].cumsum(-1) - 1
    given["position_ids"] = left.clamp(min=0).expand(given["position_ids"].shape)


def turned(given: dict[str, Any]) -> None:
    """Height for width."""
    given["position_ids"] = given["position_ids"][[0, 2, 1]]


def late(given: dict[str, Any]) -> None:
    """Text behind the image one place further on."""
    given["position_ids"][..., -2:] += 1


def seen_padding(given: dict[str, Any]) -> None:
    given["attention_mask"] = torch.ones_like(given["attention_mask"])


def shuffled(given: dict[str, Any]) -> None:
    """Vision tokens in the order of the encoder's choice, in place of their places'."""
    given["inputs_embeds"] = given["inputs_embeds"].clone()
    given["inputs_embeds"][:, 5:8] = given["inputs_embeds"][:, [7, 5, 6]]


def no_deepstack(given: dict[str, Any]) -> None:
    given["mm_encoder_outputs"]["image"].deepstack_features = []


@pytest.mark.parametrize(
    ("kind", "rows", "wrong"),
    [
        ("llava", (1,), anew),
        ("llava", (1,), shuffled),
        ("llava", (1, 2), seen_padding),
        ("internvl", (1,), late),
        ("qwen2_vl", (1,), anew),
        ("qwen2_vl", (1,), turned),
        ("qwen2_vl", (1,), late),
        ("qwen2_5_vl", (1,), turned),
        ("qwen3_vl", (1,), turned),
        ("qwen3_vl", (1,), anew),
        ("qwen3_vl", (1,), no_deepstack),
    ],
)
def test_the_reference_catches(
    kind: str, rows: tuple[int, ...], wrong: Callable[[dict[str, Any]], None]
) -> None:
    asked = prompt(kind, rows)
    images = encoded(kind, asked)
    given = hand_off(tiny_vlm(kind), asked.inputs, seen(images))
    wrong(given)
    assert apart(kind, asked, images, given) > 30 * CLOSE


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_a_token_at_a_time_goes_on_at_the_right_place(kind: str) -> None:
    """Without positions the model takes them from `rope_deltas`, which the hand-off has set."""
    model, asked = tiny_vlm(kind), prompt(kind, (2,))
    images = encoded(kind, asked)
    _, (_, want) = generated(model, asked, images, 2)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    for error, close in ((0, True), (1, False)):
        given = hand_off(model, asked.inputs, seen(images))
        model.model.rope_deltas += error
        first = model(**given, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        got = model(input_ids=token, **{name: first[name]}).logits[:, -1]
        assert (float((got - want).abs().max()) < CLOSE) == close


def test_rows_filled_up_on_the_right() -> None:
    model, asked = tiny_vlm("llava"), prompt("llava", (1, 2))
    images = encoded("llava", asked)
    left, right = (
        model(**(given := hand_off(model, asked.inputs, seen(images), padding=side))).logits[
            given["attention_mask"].bool()
        ]
        for side in ("left", "right")
    )
    assert float((left - right).abs().max()) < CLOSE


def test_beams_see_the_images_of_their_row() -> None:
    for kind in ("llava", "qwen3_vl"):
        model, asked = tiny_vlm(kind), prompt(kind, (1, 1))
        images = encoded(kind, asked)
        beams = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
        both = model.generate(**hand_off(model, asked.inputs, seen(images)), **beams)
        for row in range(2):
            inputs = {n: v[row : row + 1] for n, v in asked.inputs.items() if n != "pixel_values"}
            alone = hand_off(model, inputs, seen(images[row : row + 1]))
            assert model.generate(**alone, **beams)[0, -3:].tolist() == both[row, -3:].tolist()


@pytest.mark.parametrize("kind", ["llava", "llava-siglip", "paligemma", "internvl"])
def test_features_in_front_of_the_projector(kind: str) -> None:
    """CLS off where there is one; InternVL: squares of patches together."""
    model, asked = tiny_vlm(kind), prompt(kind, (1,))
    projected = model.model.get_image_features(asked.inputs["pixel_values"]).pooler_output
    tower = model.model.vision_tower(asked.inputs["pixel_values"], output_hidden_states=True)
    layer = {"llava": -2, "llava-siglip": -1}.get(kind)
    tokens = tower.last_hidden_state if layer is None else tower.hidden_states[layer]
    prefix = int(kind in ("llava", "internvl"))
    every = merge(model, asked.inputs, Vision(tokens, prefix=prefix))
    want = torch.stack(list(projected))[0]
    assert float((every.features[0] - want).abs().max()) < 1e-5
    kept = torch.tensor([9, 2, 4])
    rows = kept
    if kind == "internvl":  # token (i, j) of 4 × 4 is made of patches (2i, 2j) to (2i+1, 2j+1)
        corner = kept // 4 * 16 + kept % 4 * 2
        rows = torch.cat([corner + 9, corner, corner + 1, corner + 8])
    rows = torch.cat([torch.arange(prefix), rows + prefix])
    some = Vision(tokens[:, rows], Tokens(rows[None].numpy()), prefix=prefix)
    merged = merge(model, asked.inputs, some)
    assert float((merged.features[0] - want[[2, 4, 9]]).abs().max()) < 1e-5
    if kind == "internvl":
        torn = Vision(tokens[:, rows[:-1]], Tokens(rows[None, :-1].numpy()), prefix=prefix)
        with pytest.raises(UsageError, match="squares of 4 patches"):
            check(model, asked.inputs, torn)


def test_merged_tokens_stand_where_their_owner_does() -> None:
    model, asked = tiny_vlm("llava"), prompt("llava", (1,))
    features = torch.randn(1, 3, WIDTH)
    owner = torch.full((1, 16), -1)
    owner[0, [2, 11]], owner[0, [4, 6]], owner[0, 1] = 0, 1, 2
    start = 4  # three words and the start of the image

    def places(tokens: Tokens) -> tuple[list[int], list[int]]:
        merged = merge(model, asked.inputs, Vision(features, tokens))
        order = [int((features[0] == one).all(-1).nonzero()) for one in merged.features[0].unbind()]
        return (merged.position_ids[merged.visual_pos_masks] - start).tolist(), order

    # Row 0 is token 11, for 2 as well; row 1 is of 4 and 6, the first of which says where.
    named = Tokens(torch.tensor([[11, -1, 1]]).numpy(), owner.numpy())
    assert places(named) == ([1, 4, 11], [2, 1, 0])
    # A rest that no owner map tells of: of all that no row is.
    assert places(Tokens(torch.tensor([[0, 3, -1]]).numpy())) == ([0, 1, 3], [0, 2, 1])


def test_deepstack_features_of_more_tokens() -> None:
    """Tokens that leave behind the first layers: those layers' features have them still."""
    model, asked = tiny_vlm("qwen3_vl"), prompt("qwen3_vl", (1,))
    (image,) = encoded("qwen3_vl", asked)
    first, second = image.deepstack
    extra = torch.tensor([i for i in range(16) if i % 3 or i in image.kept.tolist()])
    vision = Vision(
        image.features[image.kept][None],
        Tokens(image.kept[None].numpy()),
        deepstack=[(first[None], None), (second[extra][None], Tokens(extra[None].numpy()))],
    )
    given = hand_off(model, asked.inputs, vision)
    assert apart("qwen3_vl", asked, [image], given) < CLOSE
    missing = Vision(vision.features, vision.tokens, [(first[None, :3], None)] * 2)
    with pytest.raises(UsageError, match="lack tokens"):
        hand_off(model, asked.inputs, missing)


def test_a_video_is_one_image_in_time() -> None:
    from tests.support.tiny_vlm import IMAGE, VIDEO

    model, asked = tiny_vlm("qwen2_vl"), prompt("qwen2_vl", (1,))
    ids = asked.inputs["input_ids"].clone()
    ids[ids == IMAGE] = VIDEO
    inputs = {"input_ids": ids, "video_grid_thw": torch.tensor([[2, 4, 8]])}
    kept = torch.tensor([1, 3, 14])
    vision = Vision(torch.randn(1, 3, WIDTH), Tokens(kept[None].numpy()))
    merged = merge(model, inputs, vision)
    # (time, row, column) of 2 × 2 × 4, behind three words and the start
    want = torch.tensor([[0, 0, 1], [0, 0, 3], [1, 1, 2]]).T + 4
    assert torch.equal(merged.position_ids[:, 0, 4:7], want)
    both = {**inputs, "input_ids": torch.cat([asked.inputs["input_ids"], ids], 1)}
    with pytest.raises(UsageError, match="both images and videos"):
        check(model, both, vision)


def test_what_does_not_fit_is_said() -> None:
    model, asked = tiny_vlm("llava"), prompt("llava", (2,))
    two = torch.randn(2, 4, WIDTH)
    index = torch.tensor([[0, 1, 2, 3]] * 2).numpy()
    inputs = asked.inputs

    def line(vision: Any, given: Any = inputs, to: Any = model) -> str:
        with pytest.raises(UsageError) as caught:
            check(to, given, vision)
        return caught.value.one_line()

    check(model, inputs, Vision(two, Tokens(index)))
    assert "32 image tokens of the prompt cannot be divided among 3" in line(
        [Vision(two, Tokens(index)), Vision(two[:1], Tokens(index[:1]))]
    )
    assert "has 16 tokens for image 0, the dense encoder gives 4" not in line(Vision(two))
    assert "has 32 image tokens, the dense encoder gives 8 for 2" in line(Vision(two))
    assert "prefix=1" in line(Vision(torch.randn(2, 17, WIDTH)))
    assert "a token at place 16, the prompt has 16" in line(Vision(two, Tokens(index + 13)))
    assert "has a token twice" in line(Vision(two, Tokens(index // 2)))
    assert "do not belong together" in line(Vision(two, Tokens(index[:, :3])))
    assert "are not [images, K, D]" in line(Vision(two[0]))
    assert "features are 48 wide, the language model takes 64, its projector 32" in line(
        Vision(torch.randn(2, 4, 48), Tokens(index))
    )
    assert "Tensor does not say which tokens it holds" in line(two)
    assert "no output has features" in line(Result({"logits": two[:, 0].numpy()}))
    assert "there are no input_ids" in line(Vision(two), {})
    assert "no image token (90)" in line(Vision(two), {"input_ids": torch.ones(1, 4, dtype=int)})
    assert "text would go on at the wrong place" in line(
        Vision(two, Tokens(index)), {"input_ids": inputs["input_ids"][:, :-3]}
    )
    assert "do not lie in one row" in line(
        Vision(two, Tokens(index)), {"input_ids": inputs["input_ids"][:, :42].reshape(3, 14)}
    )
    hidden = {"input_ids": inputs["input_ids"], "attention_mask": inputs["input_ids"] != 90}
    assert "the attention mask hides image tokens" in line(Vision(two, Tokens(index)), hidden)
    assert "models of type 'Linear' are not known" in line(Vision(two), to=torch.nn.Linear(1, 1))
    qwen = tiny_vlm("qwen3_vl")
    packed = prompt("qwen3_vl", (2,)).inputs
    one = Vision(two[:1], Tokens(index[:1]))
    assert "the prompt has 2 images, the encoder gave 1" in line(one, packed, qwen)
    assert "deepstack features of 2 layers, image 0 has 0" in line([one, one], packed, qwen)
    assert "there is no image_grid_thw" in line(one, inputs, qwen)


def test_what_would_be_computed_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_vlm("llava"), prompt("llava", (1,))
    some = Vision(torch.randn(1, 2, WIDTH), Tokens(torch.tensor([[3, 5]]).numpy()))
    with monkeypatch.context() as patch:
        kind = "flash_attention_2"
        patch.setattr(model.config.get_text_config(), "_attn_implementation_internal", kind)
        with pytest.raises(UsageError, match="takes gaps between positions"):
            check(model, asked.inputs, some)
        check(model, asked.inputs, Vision(torch.randn(1, 16, WIDTH)))  # no gaps
    # Older versions of transformers.
    with monkeypatch.context() as patch:
        patch.delattr("transformers.GenerationMixin._prepare_position_ids_for_generation")
        with pytest.raises(UsageError, match="does not count on from positions"):
            hand_off(model, asked.inputs, some)
        merge(model, asked.inputs, some)
    gemma, asked = tiny_vlm("paligemma"), prompt("paligemma", (1,))
    monkeypatch.setattr(gemma, "forward", lambda inputs_embeds: None)
    with pytest.raises(UsageError, match="does not take features of images"):
        hand_off(gemma, asked.inputs, some)
