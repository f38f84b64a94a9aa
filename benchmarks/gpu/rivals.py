"""The same work in PyTorch, as one would write it there: tensors by name in, tensors by name out.

`ToMe step` and `EViT step` are the sequences of operations of the methods' papers (Bolya et al.,
ICLR 2023; Liang et al., ICLR 2022), written from their mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

Tensors = Mapping[str, Tensor]
Rival = Callable[[Tensors, Mapping[str, int]], dict[str, Tensor]]


def _columns(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _columns(index, x))


def top_k(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """topk and a sort."""
    return {"index": t["scores"].topk(s["k"], dim=1).indices.sort(dim=1).values}


def select(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """topk, sort, the prefix in front."""
    index = top_k(t, s)["index"]
    head = t["fixed"].expand(len(index), -1)
    return {"index": index, "rows": torch.cat([head, index + s["prefix"]], 1)}


def gather(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """gather with the index expanded."""
    return {"y": _rows(t["x"], t["index"])}


def take(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """Three gathers."""
    rows = t["rows"]
    return {
        "y": _rows(t["x"], rows),
        "new_size": t["size"].gather(1, rows),
        "new_table": t["table"][rows],
    }


def unmerge(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """gather, zeros where nobody owns."""
    y = _rows(t["x"], t["owner"].clamp(min=0))
    return {"y": y.masked_fill((t["owner"] < 0)[..., None], 0)}


def give_back(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """scatter into a copy."""
    return {"y": t["x"].scatter(1, _columns(t["index"], t["x"]), t["kept"])}


def fuse(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """Weights of those that stay are zero; a product."""
    weight = t["weight"].scatter(1, t["index"], 0.0)
    return {"y": torch.bmm(weight[:, None].to(t["x"].dtype), t["x"])}


def partner(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """normalize, bmm, max."""
    a, b = (normalize(t[n], dim=-1) for n in ("a", "b"))
    similarity, place = torch.bmm(a, b.transpose(1, 2)).max(-1)
    return {"partner": place, "similarity": similarity.float()}


def nearest(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """normalize, gather, bmm, argmax, scatter."""
    unit = normalize(t["x"], dim=-1)
    owner = torch.bmm(unit, _rows(unit, t["index"]).transpose(1, 2)).argmax(-1)
    return {"owner": owner.scatter(1, t["index"], t["slots"].expand_as(t["index"]))}


def match(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """ToMe's bipartite soft matching."""
    unit = normalize(t["metric"], dim=-1)
    scores = torch.bmm(unit[:, ::2], unit[:, 1::2].transpose(1, 2))
    best, place = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)
    source = order[:, : s["r"]]
    return {
        "keep": order[:, s["r"] :].sort(dim=1).values,
        "source": source,
        "target": place.gather(1, source),
    }


def match_all(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """The same without a choice."""
    unit = normalize(t["metric"], dim=-1)
    return {"target": torch.bmm(unit[:, ::2], unit[:, 1::2].transpose(1, 2)).argmax(-1)}


def merge(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """ToMe's merge: weighted by size, scatter_reduce, divided by the new sizes."""
    x, size = t["x"], t["size"][..., None].to(t["x"].dtype)

    def apply(values: Tensor) -> Tensor:
        even, odd = values[:, ::2], values[:, 1::2]
        odd = odd.scatter_reduce(1, _columns(t["target"], odd), _rows(even, t["source"]), "sum")
        return torch.cat([_rows(even, t["keep"]), odd], 1)

    new_size = apply(size)
    return {"y": apply(x * size) / new_size, "new_size": new_size[..., 0].float()}


def merge_all(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """The same where every even token merges."""
    x, size = t["x"], t["size"][..., None].to(t["x"].dtype)

    def apply(values: Tensor) -> Tensor:
        odd = values[:, 1::2]
        return odd.scatter_reduce(1, _columns(t["target"], odd), values[:, ::2], "sum")

    new_size = apply(size)
    return {"merged": apply(x * size) / new_size, "new_size": new_size[..., 0].float()}


def combine(how: str) -> Rival:
    """Merging by any matching: gathers, scatter_reduce, and the owner map."""

    def run(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
        x, slot = t["x"], t["slot"]
        kept, left = _rows(x, t["keep"]), _rows(x, t["source"])
        size = t["size"].gather(1, t["keep"])
        new_size = size.scatter_add(1, slot, t["size"].gather(1, t["source"]))
        step = torch.zeros_like(t["size"], dtype=torch.int64)
        step = step.scatter(1, t["keep"], t["slots"].expand_as(t["keep"]))
        step = step.scatter(1, t["source"], slot)
        found = step.gather(1, t["owner"].clamp(min=0))
        y = kept
        if how != "drop":
            weight = torch.ones_like(t["size"]) if how == "plain" else t["weight"]
            own = weight.gather(1, t["keep"])[..., None]
            other = weight.gather(1, t["source"])[..., None]
            total = own.scatter_add(1, slot[..., None], other)
            where = _columns(slot, x)
            mean = (kept * own).scatter_reduce(1, where, left * other, "sum") / total
            if how == "mlerp":
                length = left.float().norm(dim=-1)
                longest = kept.float().norm(dim=-1).scatter_reduce(1, slot, length, "amax")
                mean = normalize(mean.float(), dim=-1) * longest[..., None]
            y = mean.to(x.dtype)
        return {
            "y": y,
            "new_size": new_size,
            "new_owner": torch.where(t["owner"] < 0, t["owner"], found),
        }

    return run


def tome_step(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """Match, then merge."""
    return merge({**t, **match(t, s)}, s)


def evit_step(t: Tensors, s: Mapping[str, int]) -> dict[str, Tensor]:
    """topk, gather, the others by an index that is left, their weighted sum."""
    order = t["scores"].argsort(dim=1, descending=True)
    index = order[:, : s["k"]].sort(dim=1).values
    left = order[:, s["k"] :]
    weight = t["weight"].gather(1, left)[..., None].to(t["x"].dtype)
    fused = (_rows(t["x"], left) * weight).sum(1, keepdim=True)
    return {"y": _rows(t["x"], index), "fused": fused}


#: By the name of the work.
RIVALS: Mapping[str, Rival] = {
    "TcTopKTokens": top_k,
    "TcSelectTokens": select,
    "TcGatherTokens": gather,
    "TcTakeTokens": take,
    "TcUnmergeTokens": unmerge,
    "TcReturnTokens": give_back,
    "TcFuseTokens": fuse,
    "TcPartnerTokens": partner,
    "TcNearestTokens": nearest,
    "TcMatchTokens": match,
    "TcMatchAllTokens": match_all,
    "TcMergeTokens": merge,
    "TcMergeAllTokens": merge_all,
    "TcCombineMeanTokens": combine("mean"),
    "TcCombinePlainTokens": combine("plain"),
    "TcCombineMlerpTokens": combine("mlerp"),
    "TcCombineDropTokens": combine("drop"),
    "ToMe step": tome_step,
    "EViT step": evit_step,
}


def compiled(rival: Rival) -> Callable[[Tensors, Mapping[str, int]], Any]:
    """The same under torch.compile, for fixed shapes."""
    made: Callable[[Tensors, Mapping[str, int]], Any] = torch.compile(rival, dynamic=False)
    return made
