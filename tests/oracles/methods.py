"""The token-reduction methods, in plain PyTorch, from their papers.

* top-k by attention of the class token (the score of EViT, Liang et al., ICLR 2022,
  arXiv:2202.07800), or without a class token by the attention that evenly strided patches give;
* EViT: the same selection, and what leaves becomes one token, its attention-weighted sum, not
  renormalised.  On purpose unlike the paper: ascending order, registers never scored;
* bypass (IdleViT, Xu et al., AJCAI 2023; SViT, Liu et al., WACV 2024): the tokens that are chosen
  run through a block, the others are after it what they were before it;
* ToMe (Bolya et al., ICLR 2023, arXiv:2210.09461): bipartite soft matching on the mean key,
  size-weighted means, proportional attention.  The prefix is stripped before matching.

Every function works in the dtype it is given, float64 included.  The decisions carry their
margins, so that a test can tell an error from a tie.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.oracles.reductions import Margin, Reduction, Result
from tests.oracles.stream import Encoder
from tests.oracles.walk import Walk

__all__ = ["Margin", "Reduction", "Result", "run"]


def run(
    encoder: Encoder,
    image: Tensor,
    reductions: Sequence[Reduction],
    outputs: str = "reduced",
    rule: str = "owner",
) -> Result:
    """The encoder on image [B, 3, H, W] with tokens leaving at each site of `reductions`.

    outputs: where they are `restored`, the head is given every token back (`Stream.whole`, and taps
    of all tokens), by a rule of `restoring`; whole groups then leave only if every reduction lets
    them.

    Raises ValueError for a site that does not exist or a keep that the kind cannot reach.
    """
    last = len(encoder.blocks) - 1
    at = {r.site: r for r in reductions}
    halves = ("around", "inside", "attn", "block")
    sites = {f"{half}:{i}" for i in range(last + 1) for half in halves} | {"output"}
    if not at.keys() <= sites or len(at) != len(reductions):
        raise ValueError(f"sites {sorted(at)} are not among those of {last + 1} blocks, or repeat")
    walk = Walk(encoder, image, at, outputs == "restored", rule)
    for i, block in enumerate(encoder.blocks):
        walk.block(i, block)
    return walk.end()
