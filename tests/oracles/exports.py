"""Exports of the matrix with weights that make mistakes show, each written once for all workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from tcompile.models import LoadedModel, export, load_source
from tests.oracles.adapter_packed import Alone
from tests.oracles.biased_vit import BiasedViT, MaskedViT
from tests.oracles.compare import Subject
from tests.oracles.map_vit import MapViT
from tests.oracles.odd_vit import OddViT
from tests.oracles.small_models import ODD
from tests.oracles.weights import stir
from tests.support.zoo_matrix import BY_ID, CASES, Case, Variant, variants


@lru_cache(maxsize=2)
def stirred(case_id: str) -> LoadedModel:
    """The model of a case with its weights redrawn (`stir`), the same every time."""
    case = BY_ID[case_id]
    loaded = load_source(
        case.source, random_weights=True, image_size=case.image_size, overrides=case.overrides
    )
    stir(loaded.module, seed=len(case_id))
    return loaded


@lru_cache(maxsize=2)
def subject(case_id: str) -> Subject:
    """The oracle's view of a case."""
    loaded = stirred(case_id)
    (example,) = loaded.example_inputs.values()
    if loaded.fixed_batch:
        return Subject(Alone(loaded.module), tuple(example.shape))
    return Subject(loaded.module, tuple(example.shape[1:]))


def selection(case: Case) -> list[Variant]:
    """A few variants of a case.

    Of the first case of a library: torchscript's, dynamo's below and from opset 23 on, where
    attention is a single op, and transformers' if it takes the model. Of the first of a family:
    torchscript's; of half of them one of dynamo's two, and of half transformers', by turns. Of a
    further case of a family, one. Which variant of each it is moves on from case to case, so that
    over all cases every attention, batch and opset of the matrix meets every kind of model.

    Of a case marked `few`, only so many of these; where that is one, it is torchscript's for two
    cases of three, which costs a tenth of the others.

    With TCOMPILE_MATRIX=all in the environment, all of `variants`; with =full, every combination.
    """
    wanted = os.environ.get("TCOMPILE_MATRIX", "")
    if wanted in ("all", "full"):
        return variants(case, full=wanted == "full")
    turn = list(BY_ID).index(case.id)
    leads = _library(case) not in map(_library, CASES[:turn])
    further = case.family in {c.family for c in CASES[:turn]}
    left_out = set[str]()
    if further:
        left_out.add("dynamo-opset-23" if turn % 2 else "dynamo")
    elif not case.few and not leads:
        kept = ("dynamo", "dynamo-opset-23", "", "")[turn % 4]
        left_out |= {"dynamo", "dynamo-opset-23"} - {kept}
    if not case.few and not leads and turn % 2:
        left_out.add("transformers")
    groups: dict[str, list[Variant]] = {}
    for variant in variants(case):
        single = variant.exporter == "dynamo" and variant.opset >= 23
        groups.setdefault("dynamo-opset-23" if single else variant.exporter, []).append(variant)
    few = case.few or int(further)
    step = turn // 3 if case.few else turn
    chosen = [g[step % len(g)] for kind, g in groups.items() if kind not in left_out]
    if few == 1 and turn % 3:
        return [v for v in chosen if v.exporter == "torchscript"] or chosen[:1]
    few = min(few or len(chosen), len(chosen))
    return [chosen[(step + i) % len(chosen)] for i in range(few)]


def _library(case: Case) -> str:
    return case.source.partition(":")[0]


def _own(module: nn.Module, size: int, outputs: tuple[str, ...]) -> tuple[LoadedModel, Subject]:
    module.eval().requires_grad_(False)
    loaded = LoadedModel(
        module=module,
        base=module,
        example_inputs={"image": torch.randn(1, 3, size, size)},
        output_names=outputs,
        source=type(module).__name__,
        library="callable",
        preprocessing={},
    )
    return loaded, Subject(module, (3, size, size))


@lru_cache(maxsize=1)
def biased() -> tuple[LoadedModel, Subject]:
    """A model whose attention adds a table [H, N, N] in every block, with its oracle."""
    module = BiasedViT(48)
    stir(module, seed=3)
    return _own(module, 48, ("logits", "tokens"))


@lru_cache(maxsize=2)
def masked(dark: bool) -> tuple[LoadedModel, Subject]:
    """A model whose attention is masked, by a constant or (dark) by what the image shows."""
    module = MaskedViT(48, dark=dark)
    stir(module, seed=3)
    return _own(module, 48, ("logits", "tokens"))


@lru_cache(maxsize=2)
def odd(name: str) -> tuple[LoadedModel, Subject]:
    """One of the encoders that no library has (`small_models.ODD`)."""
    module = OddViT(ODD[name], 48)
    stir(module, seed=3)
    return _own(module, 48, ("logits", "tokens"))


@lru_cache(maxsize=2)
def mapped(as_maps: bool) -> tuple[LoadedModel, Subject]:
    """A backbone that is read after two of its four blocks, as maps or as tokens."""
    module = MapViT(48, (1, 3), as_maps=as_maps)
    stir(module, seed=3)
    return _own(module, 48, ("early", "late"))


@lru_cache(maxsize=1)
def glyphs() -> tuple[LoadedModel, Subject]:
    """`zoo:glyphs` with its oracle: the one model of these with trained weights."""
    from tcompile.models.glyphs import load

    return _own(load(), 56, ("logits", "patch_logits"))


def exported(case: Case, variant: Variant, cache: Path, patience: float = 300.0) -> Path:
    """The .onnx file. Of several workers that ask, the first writes and the others wait.

    Raises TimeoutError when the one that writes takes longer than `patience` seconds.
    """

    def write(mine: Path) -> None:
        export(
            stirred(case.id),
            mine,
            batch=variant.batch,
            exporter=variant.exporter,
            opset=variant.opset,
            attention=variant.attention,
        )

    return once(cache / f"{case.id}-{variant.id}.onnx", write, patience)


def once(path: Path, write: Callable[[Path], None], patience: float = 300.0) -> Path:
    """The file, written if it is not there. Of several workers that ask, the first writes and the
    others wait.

    Raises TimeoutError when the one that writes takes longer than `patience` seconds.
    """
    lock = path.with_suffix(".lock")
    until = time.monotonic() + patience
    while not path.exists():
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if time.monotonic() > until:
                raise TimeoutError(f"{lock} is still there") from None
            time.sleep(0.05)
            continue
        try:
            mine = path.with_name(f"{path.stem}.{os.getpid()}.onnx")
            write(mine)
            mine.replace(path)
        finally:
            lock.unlink()
    return path
