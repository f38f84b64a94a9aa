"""The oracles against the models they stand for, loops that follow the papers word by word, and the
counts that the papers print. What checks the compiler must first be checked itself."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles import choices, methods, schedules
from tests.oracles.adapters import adapt, select_outputs
from tests.oracles.methods import Reduction
from tests.oracles.small_models import IMAGE, MODELS
from tests.oracles.stream import Rotary, Stream, attention
from tests.oracles.weights import stir


def _model(name: str, seed: int = 0) -> torch.nn.Module:
    module = MODELS[name]().eval().requires_grad_(False)
    stir(module, seed)
    return module


def _image(batch: int, seed: int = 0, **kind: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=generator, **kind)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_without_reductions_is_the_model(name: str) -> None:
    module = _model(name)
    encoder = adapt(module)
    images = 1 if name == "hf-pixtral" else 2  # it packs all images into one sequence
    chosen = select_outputs(encoder, module, _image(images), atol=2e-6)
    assert len(set(chosen)) == len(chosen)


def test_adapters_know_class_tokens_and_prefixes() -> None:
    found = {name: (adapt(make()).prefix, adapt(make()).cls) for name, make in MODELS.items()}
    expected = {
        "timm-gap": (0, False),
        "timm-reg4-gap": (4, False),
        "timm-siglip": (0, False),
        "hf-siglip": (0, False),
        "timm-deit-distilled": (2, True),
        "hf-deit": (2, True),
        "timm-dinov2-reg4": (5, True),
        "hf-dinov2-registers": (5, True),
        "timm-dinov3": (5, False),
        "timm-rope": (1, True),
        "timm-relpos": (0, False),
        "timm-vit": (1, True),
        "open-clip": (1, True),
    }
    assert {name: found[name] for name in expected} == expected


# ---- scores and reducers against loops -----------------------------------------------------------


def _random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponents = [math.exp(value - top) for value in row]
    return [value / sum(exponents) for value in exponents]


@pytest.mark.parametrize("queries", ["cls", "attn"])
def test_scores_are_mean_attention_over_all_keys(queries: str) -> None:
    prefix, patches, heads, dim, scale = 2, 11, 3, 4, 0.3
    q, k = (
        _random(1, heads, prefix + patches, dim),
        _random(1, heads, prefix + patches, dim).flip(2),
    )
    score = {"cls": choices.cls_score, "attn": choices.attn_score}[queries](q, k, scale, prefix)
    rows = [0]
    if queries == "attn":
        m = math.ceil(math.sqrt(patches))
        rows = [prefix + math.floor((i + 0.5) * patches / m) for i in range(m)]
    for j in range(patches):
        total = 0.0
        for h in range(heads):
            for row in rows:
                logits = [
                    scale * sum(float(q[0, h, row, c] * k[0, h, key, c]) for c in range(dim))
                    for key in range(prefix + patches)
                ]
                total += _softmax(logits)[prefix + j]
        assert float(score[0, j]) == pytest.approx(total / heads / len(rows), rel=1e-12)


def test_a_key_counts_as_often_as_its_size() -> None:
    """Proportional attention equals repeating the key."""
    q, k, v = (_random(1, 2, 4, 3).roll(i, dims=2) for i in range(3))
    sizes = torch.tensor([[1.0, 3.0, 1.0, 2.0]], dtype=torch.float64)
    repeats = [0, 1, 1, 1, 2, 3, 3]
    weighted = attention(q, k, v, 0.5, sizes.log()[:, None, None])
    repeated = attention(q, k[:, :, repeats], v[:, :, repeats], 0.5)
    torch.testing.assert_close(weighted, repeated)


def test_topk_keeps_order_and_gives_the_dropped_to_the_nearest() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.2], [0.1, 2.0], [-1.0, -1.0]]])
    step = choices.topk(x, None, torch.tensor([[0.5, 0.1, 0.2, 0.9, 0.3]]), 2)
    assert step.source.tolist() == [[0, 3]]
    assert step.owner.tolist() == [[0, 1, 0, 1, 0]]
    assert float(dict(step.margins)["kept"]) == pytest.approx(0.2)


def test_equal_scores_keep_the_lower_position() -> None:
    step = choices.topk(_random(1, 4, 3), None, torch.tensor([[0.5, 0.7, 0.7, 0.7]]), 2)
    assert step.source.tolist() == [[1, 2]]
    assert float(dict(step.margins)["kept"]) == 0.0


def test_the_fused_token_is_a_plain_weighted_sum() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]])
    step = choices.fuse(x, None, torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 3)
    assert step.source.tolist() == [[1, 3, -1]]
    torch.testing.assert_close(step.x[0, 2], torch.tensor([0.1 + 1.0, 0.2 + 1.2]))
    assert step.owner.tolist() == [[2, 0, 2, 1]]


def test_tome_against_a_loop() -> None:
    tokens, keep, width = 9, 6, 4
    x, keys = _random(1, tokens, width), _random(1, 3, tokens, 5)
    sizes = torch.tensor([[1.0, 2, 1, 1, 3, 1, 1, 2, 1]], dtype=torch.float64)
    step = choices.tome(x, sizes, keys, keep)

    mean = keys[0].mean(0)
    cos = [[float(torch.cosine_similarity(a, b, dim=0)) for b in mean] for a in mean]
    evens, odds = list(range(0, tokens, 2)), list(range(1, tokens, 2))
    target = {a: max(odds, key=lambda b: cos[a][b]) for a in evens}
    ranked = sorted(evens, key=lambda a: -cos[a][target[a]])
    merged, alone = ranked[: tokens - keep], sorted(ranked[tokens - keep :])
    expected = [(x[0, a], float(sizes[0, a]), a) for a in alone]
    for b in odds:
        group = [b] + [a for a in merged if target[a] == b]
        count = sum(float(sizes[0, i]) for i in group)
        expected.append((sum(x[0, i] * sizes[0, i] for i in group) / count, count, b))
    for row, (value, count, source) in enumerate(expected):
        torch.testing.assert_close(step.x[0, row], value)
        assert float(step.sizes[0, row]) == count
        assert int(step.source[0, row]) == source
    places = [source for _, _, source in expected]
    owners = [places.index(target[i] if i in merged else i) for i in range(tokens)]
    assert step.owner[0].tolist() == owners


# ---- the walk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["topk", "fuse", "tome"])
@pytest.mark.parametrize(
    "name", ["timm-vit", "timm-deit-distilled", "timm-reg4-gap", "hf-siglip", "odd-both-sides"]
)
def test_owners_sizes_and_indices_agree(name: str, kind: str) -> None:
    encoder = adapt(_model(name).double())
    image = _image(3, dtype=torch.float64)
    score = "cls" if encoder.cls else "attn"
    cuts = [Reduction(f"attn:{i}", kind, keep, score) for i, keep in ((0, 27), (1, 20), (3, 12))]
    result = methods.run(encoder, image, cuts)
    special = encoder.prefix + encoder.suffix
    kept = special + 12
    assert result.index.shape == result.size.shape == (3, kept)
    entering = [(a - special, b - special) for a, b in result.entering]
    assert entering == [(36, 27), (27, 20), (20, 20), (20, 12)]
    for b in range(3):
        owner, index = result.owner[b].tolist(), result.index[b].tolist()
        assert all(index[owner[n]] == n for n in index if n >= 0)
        assert owner[: encoder.prefix] == index[: encoder.prefix] == list(range(encoder.prefix))
        for i in range(1, encoder.suffix + 1):
            assert (index[-i], owner[-i]) == (special + 36 - i, kept - i)
        if kind != "topk":
            counts = [float(owner.count(i)) for i in range(kept)]
            assert result.size[b].tolist() == counts


def test_the_site_output_is_the_end_of_the_last_block() -> None:
    encoder = adapt(_model("timm-vit-features").double())
    image = _image(1, dtype=torch.float64)
    dense = methods.run(encoder, image, []).outputs[0].value
    result = methods.run(encoder, image, [Reduction("output", "topk", 9)])
    rows = result.index[0]
    torch.testing.assert_close(result.outputs[0].value, dense[:, rows])
    restored = result.restored(result.outputs[0])
    assert restored.shape == dense.shape
    torch.testing.assert_close(restored[:, rows], dense[:, rows])


@pytest.mark.parametrize(
    "name",
    ["timm-vit", "biased", "masked-dark", "timm-eva02-clip", "timm-rope-mixed", "odd-rotary"],
)
def test_dropping_in_the_model_equals_masking_them_out(name: str) -> None:
    """The dense model with -inf on the dropped keys of every later block."""
    module = _model(name).double()
    encoder, image = adapt(module), _image(2, dtype=torch.float64)
    result = methods.run(encoder, image, [Reduction("attn:1", "topk", 15)])
    dropped = torch.ones(2, 37, dtype=torch.bool).scatter(1, result.index, False)
    mask = torch.zeros(2, 37, dtype=torch.float64).masked_fill(dropped, -torch.inf)[:, None, None]
    x = encoder.embed(image)
    everyone = torch.arange(37).expand(2, -1)
    for i, block in enumerate(encoder.blocks):
        bias = 0 * mask.clamp(min=0) if block.bias is None else block.bias
        bias = bias if encoder.mask is None else bias + encoder.mask(image)
        bias = bias + mask if i > 1 else bias
        x = block.attend(x, attention(*block.heads(x, everyone), block.scale, bias))
        x = block.mlp(x)
    logits = encoder.head(Stream(encoder.norm(x)))[0].value
    torch.testing.assert_close(result.outputs[0].value, logits)


@pytest.mark.parametrize("halves", [False, True])
def test_a_token_is_turned_by_its_own_position(halves: bool) -> None:
    """Against complex numbers; a token made of others (index -1) is not turned."""
    angles = _random(2, 5, 3)  # of each head, token and pair of channels
    wide = torch.cat([angles, angles], -1) if halves else angles.repeat_interleave(2, dim=-1)
    rotary = Rotary(wide.cos(), wide.sin(), halves)
    x, index = _random(1, 2, 4, 6), torch.tensor([[3, 0, -1, 4]])
    turned = rotary.turn(x, index)
    first, second = (slice(0, 3), slice(3, 6)) if halves else (slice(0, 6, 2), slice(1, 6, 2))
    number = torch.complex(x[..., first], x[..., second])
    for place, token in enumerate(index[0].tolist()):
        angle = torch.zeros(2, 3).double() if token < 0 else angles[:, token]
        expected = number[0, :, place] * torch.exp(1j * angle)
        torch.testing.assert_close(turned[0, :, place, first], expected.real)
        torch.testing.assert_close(turned[0, :, place, second], expected.imag)


def test_whole_groups_are_kept_by_their_mean_score() -> None:
    groups = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7]])
    x = _random(1, 8, 3)
    score = torch.tensor([[0.9, 0.0, 0.3, 0.3, 0.0, 0.0, 0.3, 0.2]])  # sums 0.9 and 1.1
    step = choices.topk_groups(x, None, score, 4, groups)
    assert step.source.tolist() == [[2, 3, 6, 7]]
    assert float(dict(step.margins)["kept"]) == pytest.approx(0.05)


def test_groups_that_leave_at_the_end_are_missing_from_the_output() -> None:
    encoder = adapt(_model("hf-llama4").double())
    image = _image(2, dtype=torch.float64)
    dense = methods.run(encoder, image, []).outputs[0].value
    result = methods.run(encoder, image, [Reduction("output", "topk", 20, "attn")])
    assert result.index.shape == (2, 21)
    assert encoder.groups is not None
    for b in range(2):
        kept = result.index[b, :-1].view(5, 4)
        numbers = [encoder.groups.tolist().index(group) for group in kept.tolist()]
        assert numbers == sorted(numbers)
        torch.testing.assert_close(result.outputs[0].value[b], dense[b, numbers])


def test_impossible_requests_are_refused() -> None:
    encoder, image = adapt(_model("timm-vit")), _image(1)
    for cut in (
        Reduction("attn:9", "topk", 5),
        Reduction("attn:1", "topk", 36),
        Reduction("attn:1", "tome", 17),
    ):
        with pytest.raises(ValueError):
            methods.run(encoder, image, [cut])


# ---- counts (METHODS, "Test oracles (counts)") ---------------------------------------------------


def _with_prefix(reductions: list[Reduction]) -> list[int]:
    return [r.keep + 1 for r in reductions]


def test_counts_of_evit() -> None:
    cuts = schedules.evit_rate("0.7", 196, 12)
    assert [r.site for r in cuts] == ["attn:3", "attn:6", "attn:9"]
    assert _with_prefix(cuts) == [140, 100, 72]


def test_counts_of_tome() -> None:
    assert _with_prefix(schedules.tome_r(13, 196, 12))[-1] == 41
    assert _with_prefix(schedules.tome_r(16, 196, 12))[-2:] == [21, 11]


@pytest.mark.parametrize("keep", ["0.9", "0.7", "0.6", "0.5", "0.3", "0.299"])
def test_budgets_end_where_keep_says(keep: str) -> None:
    final = schedules.final_count(keep, 196)
    assert schedules.topk_keep(keep, 196, 12)[-1].keep == final
    assert schedules.evit_keep(keep, 196, 12)[-1].keep == final
    assert schedules.tome_keep(keep, 196, 12)[-1].keep == final
    assert len(schedules.evit_keep(keep, 196, 12)) == 3


def test_budgets_are_exact_where_floats_are_not() -> None:
    assert 0.07 * 100 > 7  # so a ceiling of floats says 8
    assert schedules.final_count("0.07", 100) == 7
    assert schedules.topk_keep("1.0", 196, 12) == []
    assert schedules.evit_keep("1", 196, 12) == schedules.tome_keep("1", 196, 12) == []
