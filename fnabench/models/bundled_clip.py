"""The bundled CLIP: a small ViT and text tower, trained by fnabench on its own scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from fnabench.errors import ImpossibleError
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.models.bundled_weights import LoadedClip, load_clip
from fnabench.models.preprocessing import square_transforms
from fnabench.models.timm_layers import timm_layers

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BundledClip(Model):
    """A small CLIP: a ViT image tower and a text tower, in one embedding space."""

    image_size: int = 128
    """Pixels; other than the native 128, the position embedding is interpolated."""

    @property
    def description(self) -> str:  # type: ignore[override]
        millions = sum(parameter.numel() for parameter in self._loaded.model.parameters()) / 1e6
        return f"bundled, {millions:.1f} M parameters, trained on scenes"

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"embed", "patches", "text"})

    def check(self) -> None:
        _ = self._loaded  # the weights are small: reading them is the check

    def weights_hash(self) -> str:
        return str(self._loaded.card["sha256"])

    def blueprint(self) -> Blueprint:
        patch = self._loaded.model.config.patch_size
        if self.image_size < patch or self.image_size % patch:
            raise ImpossibleError(
                f"model.image_size={self.image_size} is no multiple of the {patch}x{patch} patch; "
                f"the nearest is {max(patch, round(self.image_size / patch) * patch)}"
            )
        num_tokens = (self.image_size // patch) ** 2 + 1
        return Blueprint(
            shapes=tuple(layer.shape(num_tokens) for layer in timm_layers(self._loaded.model.image_tower)),
            image_size=(self.image_size, self.image_size),
            num_classes=0,
        )

    def load(self, device: torch.device, dtype: torch.dtype) -> BundledClipBackbone:
        return BundledClipBackbone(load_clip(), self.image_size, device, dtype)

    @cached_property
    def _loaded(self) -> LoadedClip:
        return load_clip()


class BundledClipBackbone(Backbone):
    """The bundled CLIP on a device; only the image tower's attention can be replaced."""

    def __init__(self, loaded: LoadedClip, image_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.module = loaded.model.to(device, dtype).requires_grad_(False)
        if image_size != loaded.model.config.image_size:
            self.module.image_tower.set_input_size(img_size=image_size)
        self.layers = timm_layers(self.module.image_tower)
        self.tokenizer = loaded.tokenizer
        self.templates = tuple(loaded.card["prompts"])
        card = loaded.card
        self.transform, self.transform_whole = square_transforms(image_size, card["image_mean"], card["image_std"])

    def encode_image(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B E"]:
        return self.module.embed_image(self.module.encode_tokens(images))  # type: ignore[no-any-return]

    def encode_patches(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        return self.module.encode_tokens(images)[:, 1:]  # type: ignore[no-any-return]

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        height, width = self.module.image_tower.patch_embed.patch_size
        return images.shape[-2] // height, images.shape[-1] // width

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "T E"]:
        device = self.module.logit_scale.device
        return normalize(self.module.text_tower(self.tokenizer(texts).to(device)), dim=-1)
