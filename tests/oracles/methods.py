"""The token-reduction methods, in plain PyTorch, from their papers.

* top-k by attention of the class token (the score of EViT, Liang et al., ICLR 2022,
  arXiv:2202.07800), or without a class token by the attention that evenly strided patches give;
* EViT: the same selection, and what leaves becomes one token, its attention-weighted sum, not
  renormalised.  On purpose unlike the paper: ascending order, registers never scored;
* ToMe (Bolya et al., ICLR 2023, arXiv:2210.09461): bipartite soft matching on the mean key,
  size-weighted means, proportional attention.  The prefix is stripped before matching.

Every function works in the dtype it is given, float64 included.  The decisions carry their
margins, so that a test can tell an error from a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.stream import Encoder, Output, Stream, attention, gather


@dataclass(frozen=True)
class Reduction:
    """site: `attn:3` (after that block's attention), `block:3` (after its MLP) or `output` (after
    the last block and the norm that follows it; scores are the last block's).
    kind: topk, fuse or tome.  score: cls or attn (not for tome).  keep: tokens other than the
    prefix that leave the site, the fused one included.  proportional: ToMe's proportional attention
    from here on."""

    site: str
    kind: str
    keep: int
    score: str = "cls"
    proportional: bool = True


@dataclass(frozen=True)
class Margin:
    """How clear the closest decision of one reduction was, for each image: gap [B].

    what: `kept` or `merged`, the last that was against the first that was not, in that score's unit
    (attention probability, cosine); `target` or `owner`, the nearest token against the second
    nearest, as cosines.
    """

    site: str
    what: str
    gap: Tensor


@dataclass(frozen=True)
class Step:
    """What one reduction decided about the T non-prefix tokens that entered it.

    x: [B, K, C].  sizes: [B, K] or None.  source: [B, K], the position each came from, -1 if it is
    new.  owner: [B, T], which of the K now stands for each.  margins: closest decisions.
    """

    x: Tensor
    sizes: Tensor | None
    source: Tensor
    owner: Tensor
    margins: tuple[tuple[str, Tensor], ...]


@dataclass(frozen=True)
class Result:
    """outputs: as the head gives them, tokens reduced.  index [B, K], owner [B, N], size [B, K]:
    over all tokens, prefix included.  entering: tokens entering (attention, MLP) of each block."""

    outputs: tuple[Output, ...]
    index: Tensor
    owner: Tensor
    size: Tensor
    entering: tuple[tuple[int, int], ...]
    margins: tuple[Margin, ...]

    def restored(self, output: Output) -> Tensor:
        """An output with a token axis, brought back to one row for every original token.

        The output's first row is stream position `first`; rows before it have no owner in it, and
        the prefix owns itself, so owners are shifted by `first` as well.
        """
        if output.first is None:
            return output.value
        return gather(output.value, self.owner[:, output.first :] - output.first)


# ---- scores: [B, T], larger = keep ---------------------------------------------------------------


def cls_score(
    q: Tensor, k: Tensor, scale: float, prefix: int, bias: Tensor | None = None
) -> Tensor:
    """Mean over heads of what the class token (position 0) attends to, among all keys."""
    logits = q[:, :, :1] @ k.transpose(-1, -2) * scale
    if bias is not None:
        logits = logits + (bias if bias.shape[-2] == 1 else bias[..., :1, :])
    return logits.softmax(dim=-1)[:, :, 0, prefix:].mean(dim=1)


def attn_score(
    q: Tensor, k: Tensor, scale: float, prefix: int, bias: Tensor | None = None
) -> Tensor:
    """Mean attention received from ceil(sqrt(T)) patches, evenly strided at half-step offsets."""
    patches = q.shape[2] - prefix
    m = math.isqrt(patches - 1) + 1
    rows = [prefix + ((2 * i + 1) * patches) // (2 * m) for i in range(m)]
    logits = q[:, :, rows] @ k.transpose(-1, -2) * scale
    if bias is not None:
        logits = logits + (bias if bias.shape[-2] == 1 else bias[..., rows, :])
    return logits.softmax(dim=-1)[..., prefix:].mean(dim=(1, 2))


# ---- reducers ------------------------------------------------------------------------------------


def _best(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` largest of each row in ascending position, and the smallest gap at the boundary.

    Equal scores: the lower position wins, as in ONNX.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    ranked = gather(score, order)
    return order[:, :keep].sort(dim=1).values, ranked[:, keep - 1] - ranked[:, keep]


def _two_best(edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the last axis: best value, its lowest index, and how far the second best lies below."""
    value, index = edges.sort(dim=-1, descending=True, stable=True)
    behind = (
        value[..., 0] - value[..., 1]
        if edges.shape[-1] > 1
        else torch.full_like(value[..., 0], math.inf)
    )
    return value[..., 0], index[..., 0], behind


def topk(x: Tensor, sizes: Tensor | None, score: Tensor, keep: int) -> Step:
    """Keep the best, ascending; a dropped token is owned by the kept one of nearest direction."""
    kept, gap = _best(score, keep)
    unit = F.normalize(x, dim=-1)
    cosine = unit @ gather(unit, kept).transpose(1, 2)
    _, owner, behind = _two_best(cosine)
    owner = owner.scatter(1, kept, torch.arange(keep).expand_as(kept))
    nearest = behind.scatter(1, kept, math.inf).amin(dim=1)
    return Step(
        x=gather(x, kept),
        sizes=None if sizes is None else gather(sizes, kept),
        source=kept,
        owner=owner,
        margins=(("kept", gap), ("owner", nearest)),
    )


def fuse(x: Tensor, sizes: Tensor | None, score: Tensor, keep: int) -> Step:
    """Keep the best keep-1, ascending, then one token: the sum of score * x over the rest."""
    kept, gap = _best(score, keep - 1)
    dropped = torch.ones_like(score, dtype=torch.bool).scatter(1, kept, False)
    left = (score * dropped).unsqueeze(1) @ x
    owner = torch.full_like(score, keep - 1, dtype=torch.long)
    owner = owner.scatter(1, kept, torch.arange(keep - 1).expand_as(kept))
    new_sizes = None
    if sizes is not None:
        rest = (sizes * dropped).sum(dim=1, keepdim=True)
        new_sizes = torch.cat([gather(sizes, kept), rest], dim=1)
    return Step(
        x=torch.cat([gather(x, kept), left], dim=1),
        sizes=new_sizes,
        source=torch.cat([kept, torch.full_like(kept[:, :1], -1)], dim=1),
        owner=owner,
        margins=(("kept", gap),),
    )


def tome(x: Tensor, sizes: Tensor | None, keys: Tensor, keep: int) -> Step:
    """Merge the T-keep even tokens with the closest odd neighbour into it.

    keys: [B, H, T, d]; edges are cosines of the keys' mean over heads.  Order of what leaves: even
    tokens that were not merged, then all odd ones, both ascending.
    """
    batch, total, _ = x.shape
    remove = total - keep
    sizes = torch.ones(batch, total, dtype=x.dtype) if sizes is None else sizes
    unit = F.normalize(keys.mean(dim=1), dim=-1)
    edges = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    best, target, behind = _two_best(edges)
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, alone = order[:, :remove], order[:, remove:].sort(dim=1).values
    ranked = gather(best, order)
    boundary = torch.full_like(ranked[:, 0], math.inf)
    if remove < order.shape[1]:
        boundary = ranked[:, remove - 1] - ranked[:, remove]

    weighted = x * sizes.unsqueeze(-1)
    sums, counts = weighted[:, 1::2].clone(), sizes[:, 1::2].clone()
    into = gather(target, merged)
    sums.scatter_add_(
        1, into.unsqueeze(-1).expand(-1, -1, x.shape[2]), gather(weighted[:, 0::2], merged)
    )
    counts.scatter_add_(1, into, gather(sizes[:, 0::2], merged))

    stay = alone.shape[1]
    owner = torch.empty(batch, total, dtype=torch.long)
    owner[:, 1::2] = stay + torch.arange(total // 2)
    even = (stay + target).scatter(1, alone, torch.arange(stay).expand_as(alone))
    owner[:, 0::2] = even
    odd = torch.arange(1, total, 2).expand(batch, -1)
    return Step(
        x=torch.cat([gather(x[:, 0::2], alone), sums / counts.unsqueeze(-1)], dim=1),
        sizes=torch.cat([gather(sizes[:, 0::2], alone), counts], dim=1),
        source=torch.cat([2 * alone, odd], dim=1),
        owner=owner,
        margins=(
            ("merged", boundary),
            ("target", gather(behind, merged).amin(dim=1)),
        ),
    )


# ---- the walk ------------------------------------------------------------------------------------


def run(encoder: Encoder, image: Tensor, reductions: Sequence[Reduction]) -> Result:
    """The encoder on image [B, 3, H, W] with tokens leaving at each site of `reductions`.

    Raises ValueError for a site that does not exist or a keep that the kind cannot reach.
    """
    last = len(encoder.blocks) - 1
    at = {r.site: r for r in reductions}
    sites = {f"{half}:{i}" for i in range(last + 1) for half in ("attn", "block")} | {"output"}
    if not at.keys() <= sites or len(at) != len(reductions):
        raise ValueError(f"sites {sorted(at)} are not among those of {last + 1} blocks, or repeat")

    x = encoder.embed(image)
    batch, total, _ = x.shape
    stream = Stream(x)
    everyone = torch.arange(total).expand(batch, -1)
    index, owner, size = everyone, everyone, torch.ones(batch, total, dtype=x.dtype)
    mask = None if encoder.mask is None else encoder.mask(image)
    margins: list[Margin] = []
    entering: list[tuple[int, int]] = []
    for i, block in enumerate(encoder.blocks):
        arriving = stream.x.shape[1]
        tables = [t for t in (mask, block.bias) if t is not None]
        bias = _bias(tables, stream, index)
        q, k, v = block.heads(stream.x, index)
        after = block.attend(stream.x, attention(q, k, v, block.scale, bias))
        stream = replace(stream, x=after)
        for half in ("attn", "block", "output"):
            site = half if half == "output" else f"{half}:{i}"
            if half == "block":
                entering.append((arriving, stream.x.shape[1]))
                stream = replace(stream, x=block.mlp(stream.x))
            elif half == "output":
                if i < last:
                    break
                stream = replace(stream, x=encoder.norm(stream.x))
            if site not in at:
                continue
            if stream.x.shape[1] != arriving:
                raise ValueError(f"{site}: the attention of block {i} had other tokens")
            step = _reduce(encoder, stream, at[site], q, k, block.scale, bias)
            margins += [Margin(site, what, gap) for what, gap in step.margins]
            if at[site].kind == "tome":
                stream = replace(stream, proportional=at[site].proportional)
            stream, index, owner, size = _apply(encoder.prefix, stream, step, index, owner, size)
    return Result(encoder.head(stream), index, owner, size, tuple(entering), tuple(margins))


def _bias(tables: Sequence[Tensor], stream: Stream, index: Tensor) -> Tensor | None:
    """Everything that is added to the logits: the tables at the tokens that are left, and the sizes
    of the keys."""
    found = stream.key_bias()
    for table in tables:
        own = _at(table, index)
        found = own if found is None else found + own
    return found


def _at(table: Tensor, index: Tensor) -> Tensor:
    """[1 or B, 1 or H, 1 or N, N] (or without the batch) -> the same with the tokens index [B, K].

    Raises ValueError when one of them was made of others.
    """
    if bool((index < 0).any()):
        raise ValueError("a token that was made of others has no row in the bias")
    table = table if table.ndim == 4 else table.unsqueeze(0)
    table = table.expand(len(index), -1, -1, -1)
    places = index[:, None, None, :].expand(-1, table.shape[1], table.shape[2], -1)
    table = table.gather(3, places)
    if table.shape[2] == 1:
        return table
    return table.gather(2, index[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))


def _reduce(
    encoder: Encoder,
    stream: Stream,
    cut: Reduction,
    q: Tensor,
    k: Tensor,
    scale: float,
    bias: Tensor | None,
) -> Step:
    p = encoder.prefix
    patches = stream.x[:, p:]
    sizes = None if stream.sizes is None else stream.sizes[:, p:]
    total = patches.shape[1]
    if cut.kind == "tome":
        if not total - total // 2 <= cut.keep < total:
            raise ValueError(f"{cut.site}: {total} tokens cannot be merged into {cut.keep}")
        return tome(patches, sizes, k[:, :, p:], cut.keep)
    if not 1 <= cut.keep < total:
        raise ValueError(f"{cut.site}: cannot keep {cut.keep} of {total} tokens")
    score = {"cls": cls_score, "attn": attn_score}[cut.score](q, k, scale, p, bias)
    return {"topk": topk, "fuse": fuse}[cut.kind](patches, sizes, score, cut.keep)


def _apply(
    prefix: int, stream: Stream, step: Step, index: Tensor, owner: Tensor, size: Tensor
) -> tuple[Stream, Tensor, Tensor, Tensor]:
    """Join the prefix back on; compose where each original token went."""
    x = torch.cat([stream.x[:, :prefix], step.x], dim=1)
    ones = torch.ones(x.shape[0], prefix, dtype=x.dtype)
    sizes = None if step.sizes is None else torch.cat([ones, step.sizes], dim=1)
    new = step.source < 0
    came = gather(index[:, prefix:], step.source.clamp(min=0)).masked_fill(new, -1)
    index = torch.cat([index[:, :prefix], came], dim=1)
    moved = torch.cat([torch.arange(prefix).expand(x.shape[0], -1), prefix + step.owner], dim=1)
    owner = gather(moved, owner)
    if step.sizes is not None:
        patch_size = step.sizes
    else:
        before = size[:, prefix:]
        owned = torch.zeros_like(step.source, dtype=x.dtype).scatter_add_(1, step.owner, before)
        patch_size = torch.where(new, owned, gather(before, step.source.clamp(min=0)))
    size = torch.cat([ones, patch_size], dim=1)
    return replace(stream, x=x, sizes=sizes), index, owner, size
