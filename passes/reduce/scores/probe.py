"""`probe`: attention of the model's own learned probe, for towers without CLS."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.passes.reduce.scores.base import Score, ScoreInput


def probe(inputs: ScoreInput) -> gs.Tensor:
    """score_j = mean over heads and probe queries of the attention that the pooling head behind the
    last block (SigLIP's MAP, a Q-Former's first) would pay to x_j, were it pooled now: [B, T].

    What leads from the last block to the probe's keys is applied to the stream at the site; the
    softmax runs over all tokens, prefix included. Costs one K projection, 2·N·C² operations.
    """
    if inputs.probe is None:
        raise UsageError(
            "score 'probe' needs a learned query that pools the tokens behind the "
            "last block, which this model does not have",
            where="schedule",
        )
    return inputs.of_patches(inputs.probe(inputs.x))


SCORE = Score("probe", probe, attention=False, needs=lambda _: ("probe",))
