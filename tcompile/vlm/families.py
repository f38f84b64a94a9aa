"""The vision-language models of transformers that a hand-off is known for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.vlm.vision import Array, Image, Places

#: `model_type` → whether its projector takes "tokens" one by one, or squares of "groups"; "":
#: features come projected, as `tcompile export` of the checkpoint writes them.
PROJECTORS = {
    "llava": "tokens",
    "paligemma": "tokens",
    "internvl": "groups",
    "idefics3": "",
    "smolvlm": "",
    "qwen2_vl": "",
    "qwen2_5_vl": "",
    "qwen3_vl": "",
    "qwen3_vl_moe": "",
}


def as_tensor(array: Array) -> Array:
    """A tensor as it is, anything else as float32: PyTorch cannot read all that numpy holds."""
    torch = require("torch", "export", "the VLM hand-off")
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(np.array(array, np.float32))


@dataclass(frozen=True)
class Family:
    """What a hand-off needs to know of a model.

    Attributes:
        base: the part that holds image tower, projector and language model.
        projector: see `PROJECTORS`.
        width: of the language model's embeddings.
        vision_width: of the features that the projector takes; 0: it is not applied here.
    """

    base: Any
    projector: str
    width: int
    vision_width: int

    @classmethod
    def of(cls, model: Any) -> Family:
        """Find out about a model.

        Raises:
            UsageError: it is not of a family that is known.
        """
        config: Any = getattr(model, "config", None)
        kind = str(getattr(config, "model_type", type(model).__name__))
        if kind not in PROJECTORS:
            raise UsageError(
                f"models of type '{kind}' are not known here",
                where="model",
                hint=f"known are {', '.join(PROJECTORS)}, with their language model",
            )
        base = getattr(model, "model", model)
        projector = PROJECTORS[kind]
        layers = getattr(config, "vision_feature_layer", 0)
        count = len(layers) if isinstance(layers, (list, tuple)) else 1
        width = config.vision_config.hidden_size * count if projector else 0
        return cls(base, projector, model.get_input_embeddings().weight.shape[1], width)

    def is_projected(self, image: Image) -> bool:
        """Whether features have the language model's space already.

        Raises:
            UsageError: they are of neither width.
        """
        width = image.features.shape[-1]
        if image.projected is None and width == self.width:
            return True
        if width != (self.width if image.projected else self.vision_width):
            takes = f", its projector {self.vision_width}" if self.vision_width else ""
            raise UsageError(
                f"features are {width} wide, the language model takes {self.width}{takes}",
                where="vision",
                hint="export the image half of this checkpoint: tcompile export hf:CHECKPOINT",
            )
        return False if image.projected is None else image.projected

    def size(self, image: Image) -> int | None:
        """How many tokens the language model reads of the dense image, where that is known.

        Raises:
            UsageError: see `is_projected`.
        """
        square = self._side**2 if self._in_squares(image) else 1
        return None if image.dense is None else image.dense // square

    def places(self, image: Image, size: int) -> Places:
        """Where the tokens stand that the language model reads: [K], ascending.

        Args:
            size: tokens of the dense image.

        Raises:
            UsageError: patches that do not form the squares which the projector takes.
        """
        return np.unique(self._groups(image, size)) if self._in_squares(image) else image.places

    def project(self, image: Image, size: int) -> Array:
        """The language model's features [K, D] of an image, float32 or as they come.

        Args:
            size: tokens of the dense image.
        """
        features = as_tensor(image.features)
        if self.is_projected(image):
            return features
        projector = self.base.multi_modal_projector
        weight = next(projector.parameters())
        features = features.to(weight.device, weight.dtype)
        if self.projector == "groups":
            # Squares of patches, one after the other, each as the model's own shuffle takes it.
            order = np.argsort(self._groups(image, size), kind="stable")
            side = self._side
            squares = features[order].reshape(-1, side, side, features.shape[-1])
            features = self.base.pixel_shuffle(squares, self.base.config.downsample_ratio)
            features = features.flatten(0, 2)
        return projector(features)

    @property
    def _side(self) -> int:
        return round(1 / float(self.base.config.downsample_ratio))

    def _in_squares(self, image: Image) -> bool:
        """Whether squares of the image's rows become one token of the language model each."""
        return not self.is_projected(image) and self.projector == "groups"

    def _groups(self, image: Image, size: int) -> Places:
        """The token of the language model that each patch goes into: [K]."""
        square = self._side**2
        columns = round((size * square) ** 0.5)
        if columns**2 != size * square:
            raise UsageError(
                f"{size} tokens of {square} patches each are not a square image", where="vision"
            )
        row, column = np.divmod(image.places, columns)
        groups: Places = row // self._side * (columns // self._side) + column // self._side
        if (np.unique(groups, return_counts=True)[1] != square).any():
            raise UsageError(
                f"its projector takes squares of {square} patches, of which single ones are "
                "missing",
                where="vision",
                hint="export it with its projector: tcompile export hf:CHECKPOINT",
            )
        return groups
