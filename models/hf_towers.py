"""The image half of transformers' models, cut out of them (`hf_families` says for which names).

Every function takes the model and the image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tcompile.models.hf_config import tower_config

Size = tuple[int, int]


class Features(nn.Module):
    """An image tower and what carries its tokens into a language model.

    Args:
        tower: transformers' image tower; `config` is its configuration.
        join: from `tower`, the image [B, 3, H, W] and further keywords for the tower, the features.
        parts: the modules that `join` uses behind the tower, by name.
    """

    def __init__(
        self, tower: Any, join: Callable[..., torch.Tensor], parts: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.tower = tower
        self.config = tower.config
        self.parts = nn.ModuleDict(parts)
        self._join = join

    def forward(self, pixel_values: torch.Tensor, **call: Any) -> dict[str, torch.Tensor]:
        """Features [B, T, D] of images [B, 3, H, W]."""
        return {"image_features": self._join(self, pixel_values, call)}

    def set_attn_implementation(self, kind: str) -> None:
        """transformers' own method, for every model in here."""
        for module in list(self.modules())[1:]:
            setter = getattr(module, "set_attn_implementation", None)
            if callable(setter):
                setter(kind)


class ImageFeatures(nn.Module):
    """Any model of images and text: what its own `get_image_features` gives for images."""

    def __init__(self, model: Any, _: Size) -> None:
        super().__init__()
        for name in ("language_model", "text_model", "lm_head"):
            if name in dict(model.named_children()):
                delattr(model, name)
        self.model = model
        self.config = tower_config(model.config)

    def forward(self, pixel_values: torch.Tensor, **call: Any) -> dict[str, torch.Tensor]:
        """`image_features`, of images [B, 3, H, W]; their dims are the model's affair."""
        found = self.model.get_image_features(pixel_values, **call)
        found = getattr(found, "pooler_output", found)
        return {"image_features": torch.stack(list(found)) if _is_list(found) else found}

    def set_attn_implementation(self, kind: str) -> None:
        """transformers' own method."""
        self.model.set_attn_implementation(kind)


def _is_list(found: Any) -> bool:
    return isinstance(found, (list, tuple))


def llava(model: Any, _: Size) -> nn.Module:
    """The layers that the language model reads (the last but one), CLS off, projected.

    As `LlavaModel.get_image_features`, which gives a list of images: that would fix the batch.
    """
    layers, strategy = (
        model.config.vision_feature_layer,
        model.config.vision_feature_select_strategy,
    )
    wanted = [layers] if isinstance(layers, int) else list(layers)
    first = 1 if strategy == "default" else 0

    def join(own: Features, image: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        states = own.tower(image, output_hidden_states=True, **call).hidden_states
        read = torch.cat([states[layer][:, first:] for layer in wanted], dim=-1)
        features: torch.Tensor = own.parts["projector"](read)
        return features

    return Features(model.vision_tower, join, {"projector": model.multi_modal_projector})


def last_layer(model: Any, _: Size) -> nn.Module:
    """PaliGemma and Gemma 3: every token of the tower, projected (Gemma 3: pooled before)."""
    weight = getattr(model.multi_modal_projector, "mm_input_projection_weight", None)
    if weight is not None and not bool(weight.any()):  # fresh: a model that always answers 0
        nn.init.normal_(weight, std=0.02)

    def join(own: Features, image: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        features: torch.Tensor = own.parts["projector"](own.tower(image, **call).last_hidden_state)
        return features

    return Features(model.vision_tower, join, {"projector": model.multi_modal_projector})


def internvl(model: Any, _: Size) -> nn.Module:
    """CLS off, four neighbours into one token (pixel shuffle), projected."""
    config, shuffle = model.config, model.pixel_shuffle
    layer, first = (
        config.vision_feature_layer,
        int(config.vision_feature_select_strategy == "default"),
    )

    def join(own: Features, image: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        if layer == -1:
            tokens = own.tower(image, **call).last_hidden_state
        else:
            tokens = own.tower(image, output_hidden_states=True, **call).hidden_states[layer]
        tokens = tokens[:, first:]
        batch, count, width = tokens.shape
        side = round(float(int(count)) ** 0.5)
        grid = shuffle(
            tokens.reshape(batch, side, side, width), scale_factor=config.downsample_ratio
        )
        features: torch.Tensor = own.parts["projector"](grid.flatten(1, 2))
        return features

    return Features(model.vision_tower, join, {"projector": model.multi_modal_projector})


class Idefics3Tower(nn.Module):
    """Idefics3's and SmolVLM's tower (`tower`) at one image size.

    Its position ids are a constant: it finds them by comparing float fractions with a float range,
    and a Range of ONNX may have one element less than `torch.arange`; the ids then point past the
    table. No mask either: of an image that fills its size all is seen.
    """

    def __init__(self, tower: Any, size: Size) -> None:
        super().__init__()
        self.tower = tower
        self.config = tower.config
        self.position_ids: torch.Tensor
        self.register_buffer("position_ids", _position_ids(tower, size), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`last_hidden_state` [B, N, D] of images [B, 3, H, W]."""
        tower = self.tower
        tokens = tower.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = tokens + tower.embeddings.position_embedding(self.position_ids)
        tokens = tower.encoder(inputs_embeds=tokens, attention_mask=None).last_hidden_state
        return {"last_hidden_state": tower.post_layernorm(tokens)}

    def set_attn_implementation(self, kind: str) -> None:
        """transformers' own method."""
        self.tower.set_attn_implementation(kind)


def _position_ids(tower: Any, size: Size) -> torch.Tensor:
    """The ids [1, N] that the tower takes for an unmasked image of this size."""
    seen: list[torch.Tensor] = []
    embeddings = tower.embeddings
    watch = embeddings.position_embedding.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    rows, columns = (side // embeddings.patch_size for side in size)
    image = torch.zeros(1, tower.config.num_channels, *size)
    with torch.no_grad():
        embeddings(image, torch.ones(1, rows, columns, dtype=torch.bool))
    watch.remove()
    return seen[0]


def connector(model: Any, size: Size) -> nn.Module:
    """Idefics3 and SmolVLM: the tower, neighbours into one token (pixel shuffle), projected."""

    def join(own: Features, image: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        tokens = own.tower(image, **call)["last_hidden_state"]
        features: torch.Tensor = own.parts["connector"](tokens)
        return features

    return Features(Idefics3Tower(model.vision_model, size), join, {"connector": model.connector})


class Siglip2Image(nn.Module):
    """SigLIP 2's tower (NaFlex) at one image size.

    Its input is the image itself, `pixel_values` [B, 3, H, W], resized to the size and normalised,
    as every other model here takes it. transformers' own takes rows of patches, their mask and
    the grid, so that images of several shapes fit into one batch; at one size the mask is all
    true, the grid is known, and the position table is resized to it once, here.
    """

    def __init__(self, model: Any, size: Size) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.patch = int(model.config.patch_size)
        self.grid = (size[0] // self.patch, size[1] // self.patch)
        embeddings = model.embeddings
        native = embeddings.position_embedding_size
        if self.grid != (native, native):
            table = embeddings.position_embedding.weight.detach()
            table = embeddings.resize_positional_embeddings(
                table.reshape(native, native, -1),
                torch.tensor([self.grid]),
                self.grid[0] * self.grid[1],
            )[0]
            embeddings.position_embedding.weight = nn.Parameter(table)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`last_hidden_state` [B, N, D], and `pooler_output` [B, D] where the model has a head."""
        model, (rows, columns), patch = self.model, self.grid, self.patch
        channels = pixel_values.shape[1]
        split = pixel_values.reshape(-1, channels, rows, patch, columns, patch)
        patches = split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        embeddings = model.embeddings
        tokens = embeddings.patch_embedding(patches) + embeddings.position_embedding.weight
        tokens = model.encoder(inputs_embeds=tokens, attention_mask=None).last_hidden_state
        tokens = model.post_layernorm(tokens)
        found = {"last_hidden_state": tokens}
        if model.use_head:
            found["pooler_output"] = model.head(tokens)
        return found

    def set_attn_implementation(self, kind: str) -> None:
        """transformers' own method."""
        self.model.set_attn_implementation(kind)


class SamEncoder(nn.Module):
    """SAM's image encoder; its map [B, C, H/16, W/16] is what the mask decoder reads.

    transformers chooses SAM's attention class when the model is made and never after.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`image_embeddings` of images [B, 3, H, W]."""
        return {"image_embeddings": self.encoder(pixel_values).last_hidden_state}

    def set_attn_implementation(self, kind: str) -> None:
        """As transformers' own method, and with an effect."""
        from transformers.models.sam.modeling_sam import SAM_VISION_ATTENTION_CLASSES

        self.encoder.set_attn_implementation(kind)
        for layer in self.encoder.layers:
            layer.attn.__class__ = SAM_VISION_ATTENTION_CLASSES[kind]


def sam(model: Any, _: Size) -> nn.Module:
    """SAM's image encoder alone."""
    return SamEncoder(model.vision_encoder)


class QueryReader(nn.Module):
    """BLIP-2's tower and its Q-Former, whose learned queries read the tower's tokens.

    As `Blip2Model.get_qformer_features`, without its mask of ones.
    """

    def __init__(self, model: Any, _: Size) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.config = model.vision_model.config
        self.qformer = model.qformer
        self.query_tokens = model.query_tokens

    def forward(self, pixel_values: torch.Tensor, **call: Any) -> dict[str, torch.Tensor]:
        """`query_output` [B, Q, D] of images [B, 3, H, W]."""
        read = self.tower(pixel_values, **call).last_hidden_state
        queries = self.query_tokens.expand(read.shape[0], -1, -1)
        answer = self.qformer(query_embeds=queries, encoder_hidden_states=read)
        return {"query_output": answer.last_hidden_state}

    def set_attn_implementation(self, kind: str) -> None:
        """transformers' own method, for both."""
        self.tower.set_attn_implementation(kind)
        self.qformer.set_attn_implementation(kind)
