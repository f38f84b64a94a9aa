"""Models whose structure says where tokens may leave: groups of patches, windows, maps.

What tcompile makes of them is held against PyTorch that drops, bypasses and restores tokens inside
the model's own modules (tests/oracles). TCOMPILE_MATRIX=all tries every export and method.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import ModelError, UsageError
from tcompile.models import export, load_source
from tests.acceptance.test_mutants import Bench
from tests.oracles import mutants, mutants_groups
from tests.oracles.compare import Subject, check, check_structure, dense_errors
from tests.oracles.exports import exported, mapped, stirred, subject
from tests.oracles.methods import Reduction, run
from tests.oracles.plans import document, expected, reductions
from tests.support.onnx_models import to_onnx
from tests.support.structure_matrix import STRUCTURES
from tests.support.zoo_matrix import BY_ID, Variant

ALL = os.environ.get("TCOMPILE_MATRIX", "") in ("all", "full")
KEEP = "0.6"
STATIC = {case.id for case in STRUCTURES}
#: Four patches become one, or sixteen.
GROUPED = (
    "hf-qwen2-vl",
    "hf-qwen3-vl",
    "hf-internvl-projector",
    "hf-idefics3-connector",
    "hf-smolvlm-connector",
    "hf-gemma3-vision",
)
#: Windows of one size in a row (and frames of a video) lose as many tokens each; others none.
SEGMENTED = ("hf-qwen2.5-vl", "hf-qwen2-vl-video")
WINDOWED = ("hf-qwen2.5-vl-ragged", "hf-sam", "timm-sam")


def quick(case_id: str) -> Variant:
    """The export that takes least time."""
    spelled = "eager" if BY_ID[case_id].attentions != (None,) else None
    return Variant("torchscript", spelled, 17, 1 if case_id in STATIC else "dynamic")


def spellings(*case_ids: str) -> list[tuple[str, Variant]]:
    """The quick export of each case, or all kinds."""
    found = []
    for case_id in case_ids:
        batch = quick(case_id).batch
        more = [Variant("dynamo", a, o, batch) for a, o in (("sdpa", 20), ("sdpa", 23))]
        more += [Variant("dynamo", "eager", 18, batch), Variant("torchscript", "sdpa", 20, batch)]
        found += [(case_id, v) for v in (quick(case_id), *(more if ALL else ()))]
    return found


def ids(value: object) -> str | None:
    return value.id if isinstance(value, Variant) else None


def holds(path: Path, found: Subject, outputs: str = "reduced", **request: Any) -> list[Reduction]:
    """Reduce the file as requested and compare it with the oracle; the reductions it chose."""
    reduced = pipeline.reduce(path, target="cpu", outputs=outputs, **request)
    cuts = reductions(reduced.schedule.to_json())
    model, dense = to_onnx(reduced.graph), onnx.load(path)
    check_structure(model)
    rule = reduced.schedule.restore or "owner"
    images = found.images(cuts, 2, owners=outputs == "restored", rule=rule)
    check(model, found, images, cuts, dense_errors(dense, found, images), outputs, rule)
    return cuts


def ready(case_id: str, cache: Path) -> tuple[Path, Subject]:
    """The quick export of a case, and its oracle."""
    return exported(BY_ID[case_id], quick(case_id), cache), subject(case_id)


def by_hand(path: Path, found: Subject, cuts: list[Reduction], outputs: str = "reduced") -> None:
    """The same for a schedule in a file."""
    file = path.with_name(f"{path.stem}.{os.getpid()}.json")
    file.write_text(json.dumps(document(cuts, found)))
    assert holds(path, found, outputs, schedule=file) == cuts


@pytest.mark.parametrize("case", STRUCTURES, ids=lambda case: case.id)
def test_the_oracle_is_the_model(case: Any) -> None:
    found = subject(case.id)
    assert (found.encoder.prefix, found.patches) == (case.prefix, case.patches)
    assert len(found.chosen) == len(stirred(case.id).output_names)


# ---- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case_id", "variant"), spellings("hf-qwen2-vl", "hf-qwen3-vl"), ids=ids)
def test_whole_groups_leave(case_id: str, variant: Variant, cache: Path) -> None:
    path, found = exported(BY_ID[case_id], variant, cache), subject(case_id)
    cuts = holds(path, found, keep=float(KEEP), method="topk")
    assert cuts == expected("topk", found, KEEP)
    for method in ("evit", "tome"):
        with pytest.raises(UsageError, match="group"):
            pipeline.reduce(path, target="cpu", keep=float(KEEP), method=method)


@pytest.mark.parametrize("case_id", ["hf-qwen2-vl", "hf-internvl-projector", "hf-gemma3-vision"])
def test_groups_leave_twice(case_id: str, cache: Path) -> None:
    path, found = ready(case_id, cache)
    where = (("attn:0", 48), ("block:2", 32))
    by_hand(path, found, [Reduction(site, "topk", keep, found.score) for site, keep in where])


def test_deepstack_after_two_reductions_is_refused(cache: Path) -> None:
    """Outputs of three depths, tokens leaving between them."""
    path, found = ready("hf-qwen3-vl", cache)
    where = (("attn:1", 48), ("attn:3", 32))
    with pytest.raises(ModelError, match="reduce once"):
        by_hand(path, found, [Reduction(site, "topk", keep, "attn") for site, keep in where])


@pytest.mark.parametrize(("case_id", "unit"), [("hf-qwen2-vl", 4), ("hf-qwen2-vl-video", 8)])
def test_only_a_multiple_of_the_group_can_be_kept(case_id: str, unit: int, cache: Path) -> None:
    path, found = ready(case_id, cache)
    by_hand(path, found, [Reduction("attn:1", "topk", 2 * unit, "attn")])
    with pytest.raises(UsageError, match=f"{unit} at a time there, and 9 is not a multiple"):
        by_hand(path, found, [Reduction("attn:1", "topk", 9, "attn")])


def test_each_frame_keeps_as_many_groups(cache: Path) -> None:
    path, found = ready("hf-qwen2-vl-video", cache)
    cuts = holds(path, found, keep=float(KEEP), method="topk")
    assert cuts == expected("topk", found, KEEP)
    index = found.run(found.pool[:4], cuts).index
    assert ((index < 16).sum(dim=1) == cuts[0].keep // 2).all()


@pytest.mark.parametrize("case_id", SEGMENTED)
@pytest.mark.parametrize("method", ["topk", "tome"])
def test_segments_with_every_token_back(case_id: str, method: str, cache: Path) -> None:
    path, found = ready(case_id, cache)
    cuts = holds(path, found, "restored", keep=float(KEEP), method=method)
    assert cuts == expected(method, found, KEEP, "restored")
    with pytest.raises(UsageError, match="segments"):
        pipeline.reduce(path, target="cpu", keep=0.6, method="evit", outputs="restored")


#: keep 0.5 is a multiple of the group, keep 0.6 is not.
RETURNS = [("topk", 0.5), ("topk", 0.6), ("evit", 0.6), ("tome", 0.6)]


@pytest.mark.parametrize(
    ("case_id", "method", "keep"),
    [
        (case_id, *RETURNS[i])
        for number, case_id in enumerate(GROUPED)
        for i in (range(4) if ALL else (0, 1 + number % 3))
    ],
)
def test_groups_with_every_token_back(case_id: str, method: str, keep: float, cache: Path) -> None:
    path, found = ready(case_id, cache)
    cuts = holds(path, found, "restored", keep=keep, method=method)
    assert cuts == expected(method, found, str(keep), "restored")


# ---- bypass --------------------------------------------------------------------------------------

BYPASSED = (
    "timm-vit",
    "timm-dinov2-reg4",
    "timm-eva02",
    "timm-dinov3",
    "timm-beit",
    "hf-vit",
    "hf-dinov3",
    "hf-llava",
    "hf-internvl-projector",
    "hf-qwen3-vl",
)


@pytest.mark.parametrize(
    ("case_id", "variant"), spellings(*BYPASSED, *SEGMENTED, *WINDOWED), ids=ids
)
def test_tokens_bypass_blocks(case_id: str, variant: Variant, cache: Path) -> None:
    """Block by block; where there are windows, around the others only."""
    path, found = exported(BY_ID[case_id], variant, cache), subject(case_id)
    cuts = holds(path, found, keep=float(KEEP), method="bypass")
    assert cuts == expected("bypass", found, KEEP)
    if case_id in WINDOWED:
        assert [cut.site for cut in cuts] == ["around:1", "around:3"]


@pytest.mark.parametrize(("case_id", "opset"), [("hf-sam", 20), ("timm-eva02", 23)])
def test_bypass_of_other_spellings(case_id: str, opset: int, cache: Path) -> None:
    """By the other exporter, and with attention as one op."""
    variant = Variant("dynamo", "sdpa", opset, quick(case_id).batch)
    found = subject(case_id)
    holds(exported(BY_ID[case_id], variant, cache), found, keep=float(KEEP), method="bypass")


def test_the_oracle_leaves_bypassed_tokens_as_they_were() -> None:
    """Around the last block: their rows are those of the model without it, and no others are."""
    found = subject("hf-vit")
    result = found.run(found.pool[:2], [Reduction("around:2", "bypass", 30, "cls")])
    shorter = replace(found.encoder, blocks=found.encoder.blocks[:-1])
    before = run(shorter, found.pool[:2].double(), ()).outputs[0].value
    same = (result.outputs[0].value - before).abs().amax(dim=2) < 1e-12
    assert (same.sum(dim=1) == found.patches - 30).all()
    assert not same[:, 0].any()


def test_bypass_by_any_score_and_count(cache: Path) -> None:
    path, found = ready("timm-vit", cache)
    kinds = (("around:0", 40, "norm"), ("around:1", 3, "attn"), ("around:2", 48, "cls"))
    by_hand(path, found, [Reduction(site, "bypass", k, score) for site, k, score in kinds])


def test_bypass_does_not_mix_with_tokens_that_leave(cache: Path) -> None:
    path, found = ready("timm-vit", cache)
    cuts = [Reduction("attn:0", "topk", 20, "cls"), Reduction("around:2", "bypass", 10, "cls")]
    with pytest.raises(UsageError, match="bypass does not mix"):
        by_hand(path, found, cuts)


# ---- maps ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["maps", "tokens"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded, found = mapped(request.param)
    path = tmp_path_factory.mktemp("backbone") / "backbone.onnx"
    export(loaded, path, exporter="torchscript", batch="dynamic")
    return path, found, request.param


@pytest.mark.parametrize("method", ["topk", "topk:block=2", "evit", "tome"])
def test_outputs_of_several_depths_get_every_token_back(backbone: Any, method: str) -> None:
    path, found, _ = backbone
    holds(path, found, "restored", keep=float(KEEP), method=method)


@pytest.mark.parametrize("outputs", ["reduced", "restored"])
def test_outputs_of_several_depths_with_bypass(backbone: Any, outputs: str) -> None:
    path, found, _ = backbone
    cuts = holds(path, found, outputs, keep=float(KEEP), method="bypass")
    assert cuts == expected("bypass", found, KEEP)


def test_tokens_of_several_depths_are_those_left_at_the_end(backbone: Any) -> None:
    """As maps they are refused."""
    path, found, as_maps = backbone
    for method in ("topk", "topk:block=2"):  # the first output is read between the two
        if as_maps:
            with pytest.raises(UsageError, match=r"grid.*restored"):
                pipeline.reduce(path, target="cpu", keep=float(KEEP), method=method)
        else:
            holds(path, found, keep=float(KEEP), method=method)
    if not as_maps:
        where = (("attn:0", 30), ("block:1", 24), ("attn:3", 12))
        by_hand(path, found, [Reduction(site, "topk", keep, "attn") for site, keep in where])


NECK = ["topk", "topk:block=3", "topk:block=3,site=block", "topk:site=output"]


@pytest.mark.parametrize("method", NECK)
def test_tokens_leave_sams_last_block_and_return_before_the_neck(method: str, cache: Path) -> None:
    for case_id in ("hf-sam", "timm-sam") if ALL or method == "topk" else ("hf-sam",):
        path, found = ready(case_id, cache)
        (cut,) = holds(path, found, "restored", keep=float(KEEP), method=method)
        assert cut.site in ("attn:3", "block:3", "output")


@pytest.mark.parametrize("method", ["topk", "topk:block=3,site=block"])
def test_groups_leave_each_window(method: str, cache: Path) -> None:
    """Behind the blocks those that are left are put into the order of the image."""
    path, found = ready("hf-qwen2.5-vl", cache)
    holds(path, found, keep=float(KEEP), method=method)


def test_scores_in_segments_count_merged_tokens_by_size(cache: Path) -> None:
    path, found = ready("hf-qwen2-vl-video", cache)
    cuts = [Reduction("block:0", "tome", 30), Reduction("attn:1", "topk", 22, "attn")]
    by_hand(path, found, cuts, "restored")


@pytest.mark.parametrize("case_id", ["hf-qwen2.5-vl", "hf-qwen2.5-vl-ragged"])
def test_groups_return_from_the_order_of_the_windows(case_id: str, cache: Path) -> None:
    path, found = ready(case_id, cache)
    for method, keep in (("topk:block=3", 0.6), ("topk:block=3,site=block", 0.5)):
        holds(path, found, "restored", keep=keep, method=method)


@pytest.mark.parametrize(
    ("case_id", "method", "keep", "rule"),
    [
        ("hf-qwen2-vl", "topk", 0.5, "similar"),
        ("hf-qwen2-vl", "evit", 0.6, "stale"),
        ("hf-internvl-projector", "topk", 0.6, "interpolate"),
        ("hf-qwen2-vl-video", "topk", 0.6, "stale"),
        ("hf-qwen2-vl-video", "topk", 0.6, "nearest"),
        ("hf-qwen2.5-vl", "topk:block=3,site=block", 0.5, "stale"),
        ("hf-qwen3-vl", "topk", 0.5, "similar"),
        ("hf-sam", "topk:block=3", 0.6, "stale"),
    ],
)
def test_tokens_given_back_by_a_rule(
    case_id: str, method: str, keep: float, rule: str, cache: Path
) -> None:
    path, found = ready(case_id, cache)
    holds(path, found, "restored", keep=keep, method=method, restore=rule)


@pytest.mark.parametrize(("method", "rule"), [("evit", "stale"), ("topk", "similar")])
def test_several_depths_given_back_by_a_rule(backbone: Any, method: str, rule: str) -> None:
    path, found, _ = backbone
    holds(path, found, "restored", keep=float(KEEP), method=method, restore=rule)


# ---- refusals ------------------------------------------------------------------------------------


def test_swin_is_refused_because_of_its_windows(tmp_path: Path) -> None:
    over = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    loaded = load_source(
        "timm:swin_tiny_patch4_window7_224", random_weights=True, image_size=64, overrides=over
    )
    path = tmp_path / "swin.onnx"
    export(loaded, path, exporter="torchscript")
    sites = pipeline.inspect(path).to_json()["sites"]
    assert sites
    for site in sites:
        assert not site["legal"], site["site"]
        assert "window" in site["reason"], site["site"]
    for method, outputs in (("topk", "reduced"), ("topk", "restored"), ("tome", "restored")):
        with pytest.raises(UsageError, match="window"):
            pipeline.reduce(path, target="cpu", keep=0.5, method=method, outputs=outputs)
    with pytest.raises(UsageError, match="no block"):
        pipeline.reduce(path, target="cpu", keep=0.5, method="bypass")


@pytest.mark.parametrize("case_id", ["hf-sam", "timm-sam"])
def test_sams_sites(case_id: str, cache: Path) -> None:
    path = exported(BY_ID[case_id], quick(case_id), cache)
    sites = {s["site"]: s for s in pipeline.inspect(path).to_json()["sites"]}
    assert {name for name, site in sites.items() if site["legal"]} == {"around:1", "around:3"}
    for name in ("attn:1", "block:1", "around:0", "around:2"):
        assert "windows of 4 × 4 tokens" in sites[name]["reason"]
    for name in ("attn:0", "block:0", "attn:2", "block:2"):
        assert any(word in sites[name]["reason"] for word in ("window", "position", "grid"))
    for name in ("attn:3", "block:3", "output"):
        assert "needs the neighbourhood of each token" in sites[name]["reason"]
    for method in ("topk", "tome"):
        with pytest.raises(UsageError, match=r"--(method|outputs) .* works"):
            pipeline.reduce(path, target="cpu", keep=float(KEEP), method=method)


# ---- mutants -------------------------------------------------------------------------------------

MISTAKES = [
    ("hf-qwen2-vl", "topk", "reduced", mutants_groups.groups_one_further),
    ("hf-qwen2-vl", "topk", "reduced", mutants_groups.groups_by_falling_score),
    ("hf-qwen3-vl", "topk", "reduced", mutants_groups.members_backwards),
    ("hf-internvl-projector", "topk", "reduced", mutants_groups.members_backwards),
    ("hf-smolvlm-connector", "topk", "reduced", mutants_groups.members_of_neighbours),
    ("hf-gemma3-vision", "topk", "reduced", mutants_groups.members_of_neighbours),
    ("hf-internvl-projector", "topk", "restored", mutants.farthest_owner),
    ("timm-vit", "bypass", "reduced", mutants_groups.returned_one_before),
    ("hf-sam", "bypass", "reduced", mutants_groups.returned_one_before),
    ("hf-qwen2.5-vl", "bypass", "reduced", mutants_groups.returned_in_front),
    ("hf-qwen2-vl-video", "topk", "reduced", mutants_groups.members_backwards),
    ("timm-eva02", "bypass", "reduced", mutants_groups.bypassed_zeroed),
    ("timm-beit", "bypass", "reduced", mutants_groups.worst_run),
    ("hf-vit", "bypass", "reduced", mutants_groups.last_return_forgotten),
    ("hf-sam", "topk", "restored", mutants.farthest_owner),
]


@pytest.mark.parametrize(
    ("case_id", "method", "outputs", "mutant"),
    MISTAKES,
    ids=[f"{c}-{m}-{f.__name__}" for c, m, _, f in MISTAKES],
)
def test_a_mutant_is_caught(
    case_id: str, method: str, outputs: str, mutant: mutants.Mutant, cache: Path
) -> None:
    path, found = ready(case_id, cache)
    bench = Bench(path, found, method, outputs)
    bench.compare(bench.model)
    assert not bench.accepts(bench.mutated(mutant))
