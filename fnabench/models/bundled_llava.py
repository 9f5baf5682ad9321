"""The bundled LLaVA: a ViT, a projector and a small decoder that answers questions about scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fnabench.attention.layers import LayerStack
from fnabench.errors import one_of
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.models.bundled_decoder import ANSWER, END, IMAGE
from fnabench.models.bundled_towers import PAD, START
from fnabench.models.bundled_weights import LoadedLlava, load_llava
from fnabench.models.hf_layers import NUM_PREFIX, clip_vision_layers, llama_layers
from fnabench.models.preprocessing import square_transforms

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MAX_NEW_TOKENS = 16
SCOPES = ("vision", "decoder", "both")


@dataclass(frozen=True, kw_only=True)
class BundledLlava(Model):
    """A LLaVA in miniature of stock transformers classes."""

    scope: str = "vision"
    """Where attention is replaced: in the "vision" tower, in the "decoder" while it reads the prompt, or in "both"."""

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise one_of("model.scope", self.scope, SCOPES)

    @property
    def description(self) -> str:  # type: ignore[override]
        millions = sum(parameter.numel() for parameter in self._loaded.model.parameters()) / 1e6
        return f"bundled, {millions:.1f} M parameters, trained on scenes"

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"generate", "embed"})

    def check(self) -> None:
        _ = self._loaded  # the weights are small: reading them is the check

    def weights_hash(self) -> str:
        return str(self._loaded.card["sha256"])

    def blueprint(self) -> Blueprint:
        model = self._loaded.model
        edge = model.config.vision_config.image_size
        num_tokens = {NUM_PREFIX: model.config.image_seq_length + NUM_PREFIX, 0: len(_prompt(model, []))}
        stack = _layers(model, self.scope)
        return Blueprint(
            shapes=tuple(layer.shape(num_tokens[layer.num_prefix]) for layer in stack),
            image_size=(edge, edge),
            num_classes=0,
            depths=stack.depths,
        )

    def load(self, device: torch.device, dtype: torch.dtype) -> BundledLlavaBackbone:
        return BundledLlavaBackbone(load_llava(), self.scope, device, dtype)

    @cached_property
    def _loaded(self) -> LoadedLlava:
        return load_llava()


class BundledLlavaBackbone(Backbone):
    """The bundled LLaVA on a device."""

    def __init__(self, loaded: LoadedLlava, scope: str, device: torch.device, dtype: torch.dtype) -> None:
        self.module: Any = loaded.model.to(device, dtype).requires_grad_(False)  # type: ignore[arg-type]
        self.layers = _layers(self.module, scope)
        self.tokenizer = loaded.tokenizer
        self.transform, self.transform_whole = square_transforms(
            self.module.config.vision_config.image_size, loaded.card["image_mean"], loaded.card["image_std"]
        )

    def encode_image(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B E"]:
        """The decoder's last hidden state after the image and an empty question."""
        output = self.module.model(**self._inputs(images, [""] * len(images)))
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def generate(
        self,
        images: Float[Tensor, "B 3 height width"],
        prompts: Sequence[str],
        max_new_tokens: int | None = None,
    ) -> list[str]:
        inputs = self._inputs(images, prompts)
        made = self.module.generate(
            **inputs,
            max_new_tokens=max_new_tokens or MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        rows = made[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def _inputs(self, images: Float[Tensor, "B 3 height width"], prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the model is given, padded on the left."""
        rows = [_prompt(self.module, self.tokenizer.encode(prompt).ids) for prompt in prompts]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], device=images.device)
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": images}


def _prompt(model: Any, question: Sequence[int]) -> list[int]:
    return [START] + [IMAGE] * model.config.image_seq_length + [*question, ANSWER]


def _layers(model: Any, scope: str) -> LayerStack:
    vision = clip_vision_layers(model.model.vision_tower) if scope != "decoder" else ()
    decoder = llama_layers(model.model.language_model, first=len(vision)) if scope != "vision" else ()
    return LayerStack([*vision, *decoder])
