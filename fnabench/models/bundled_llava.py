"""The bundled LLaVA: a ViT, a projector and a small decoder that answers questions about scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.models.bundled_decoder import ANSWER, END, IMAGE
from fnabench.models.bundled_towers import PAD, START
from fnabench.models.bundled_weights import LoadedLlava, load_llava
from fnabench.models.hf_layers import NUM_PREFIX, clip_vision_layers
from fnabench.models.preprocessing import square_transforms

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MAX_NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class BundledLlava(Model):
    """A LLaVA in miniature of stock transformers classes; attention is replaced in its vision tower."""

    @property
    def description(self) -> str:  # type: ignore[override]
        millions = sum(parameter.numel() for parameter in self._loaded.model.parameters()) / 1e6
        return f"bundled, {millions:.1f} M parameters, trained on scenes"

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"generate"})

    def check(self) -> None:
        _ = self._loaded  # the weights are small: reading them is the check

    def weights_hash(self) -> str:
        return str(self._loaded.card["sha256"])

    def blueprint(self) -> Blueprint:
        vision = self._loaded.model.config.vision_config
        num_tokens = (vision.image_size // vision.patch_size) ** 2 + NUM_PREFIX
        stack = clip_vision_layers(self._loaded.model.model.vision_tower)
        return Blueprint(
            shapes=tuple(layer.shape(num_tokens) for layer in stack),
            image_size=(vision.image_size, vision.image_size),
            num_classes=0,
        )

    def load(self, device: torch.device, dtype: torch.dtype) -> BundledLlavaBackbone:
        return BundledLlavaBackbone(load_llava(), device, dtype)

    @cached_property
    def _loaded(self) -> LoadedLlava:
        return load_llava()


class BundledLlavaBackbone(Backbone):
    """The bundled LLaVA on a device."""

    def __init__(self, loaded: LoadedLlava, device: torch.device, dtype: torch.dtype) -> None:
        self.module: Any = loaded.model.to(device, dtype).requires_grad_(False)  # type: ignore[arg-type]
        self.layers = clip_vision_layers(self.module.model.vision_tower)
        self.tokenizer = loaded.tokenizer
        self.transform, self.transform_whole = square_transforms(
            self.module.config.vision_config.image_size, loaded.card["image_mean"], loaded.card["image_std"]
        )

    def generate(self, images: Float[Tensor, "B 3 height width"], prompts: Sequence[str]) -> list[str]:
        texts = [[*self.tokenizer.encode(prompt).ids, ANSWER] for prompt in prompts]
        longest = max(len(text) for text in texts)
        image = [START] + [IMAGE] * self.module.config.image_seq_length
        ids = torch.tensor([[PAD] * (longest - len(text)) + image + text for text in texts], device=images.device)
        made = self.module.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            pixel_values=images,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        rows = made[:, ids.shape[1] :].tolist()
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
