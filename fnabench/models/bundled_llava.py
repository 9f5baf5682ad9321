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
from fnabench.models.hf_layers import clip_vision_layers, llama_layers
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
    """Where attention is replaced: in the "vision" tower, in the "decoder" while it reads the image, or in "both"."""

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise one_of("model.scope", self.scope, SCOPES)

    @property
    def description(self) -> str:  # type: ignore[override]
        millions = sum(parameter.numel() for parameter in self._loaded.model.parameters()) / 1e6
        return f"bundled, {millions:.1f} M parameters, trained on scenes"

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"generate", "embed", "patches"})

    def check(self) -> None:
        _ = self._loaded  # the weights are small: reading them is the check

    def weights_hash(self) -> str:
        return str(self._loaded.card["sha256"])

    def blueprint(self) -> Blueprint:
        model = self._loaded.model
        edge = model.config.vision_config.image_size
        num_tokens = model.config.image_seq_length + 1  # a class token in the tower, [start] in the decoder
        stack = _layers(model, self.scope)
        return Blueprint(
            shapes=tuple(layer.shape(num_tokens) for layer in stack),
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
        self.scope = scope
        self.layers = _layers(self.module, scope)
        self.tokenizer = loaded.tokenizer
        self.transform, self.transform_whole = square_transforms(
            self.module.config.vision_config.image_size, loaded.card["image_mean"], loaded.card["image_std"]
        )

    def __getstate__(self) -> dict[str, Any]:
        """Weights and attached variants: a transformers model that has run carries functions that no pickle takes."""
        rest = {name: value for name, value in self.__dict__.items() if name not in ("module", "layers")}
        cores = [layer.core for layer in self.layers]
        return {"rest": rest, "config": self.module.config, "weights": self.module.state_dict(), "cores": cores}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from transformers import LlavaForConditionalGeneration

        self.__dict__.update(state["rest"])
        self.module = LlavaForConditionalGeneration(state["config"]).eval().requires_grad_(False)
        self.module.load_state_dict(state["weights"], assign=True)
        self.layers = _layers(self.module, self.scope)
        for layer, core in zip(self.layers, state["cores"], strict=True):
            if core is not None:
                layer.attach(core)

    def encode_image(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B E"]:
        """The decoder's last hidden state after the image and an empty question."""
        cache = self._read(images)
        ids = torch.full((len(images), 1), ANSWER, device=images.device)
        output = self.module.model(input_ids=ids, past_key_values=cache)
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def encode_patches(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        """Those of the vision tower's last block."""
        return self.module.model.vision_tower(images).last_hidden_state[:, 1:]  # type: ignore[no-any-return]

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        patch = self.module.config.vision_config.patch_size
        return images.shape[-2] // patch, images.shape[-1] // patch

    def generate(
        self,
        images: Float[Tensor, "B 3 height width"],
        prompts: Sequence[Sequence[str]],
        max_new_tokens: int | None = None,
    ) -> list[list[str]]:
        cache = self._read(images)
        num_read = cache.get_seq_length()
        rows = [row for row, asked in enumerate(prompts) for _ in asked]
        cache.batch_select_indices(torch.tensor(rows, device=images.device))
        texts = [[*self.tokenizer.encode(prompt).ids, ANSWER] for asked in prompts for prompt in asked]
        longest = max(len(text) for text in texts)
        ids = torch.tensor([[PAD] * (longest - len(text)) + text for text in texts], device=images.device)
        mask = torch.cat([ids.new_ones(len(rows), num_read), (ids != PAD).long()], 1)
        made = []
        is_open = torch.ones(len(rows), dtype=torch.bool, device=images.device)
        for _ in range(max_new_tokens or MAX_NEW_TOKENS):
            output = self.module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=mask.cumsum(1)[:, -ids.shape[1] :] - 1,
                past_key_values=cache,
                logits_to_keep=1,
            )
            ids = torch.where(is_open[:, None], output.logits[:, -1:].argmax(-1), PAD)
            made.append(ids)
            is_open &= ids[:, 0] != END
            if not is_open.any():
                break
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        said = iter(self.tokenizer.decode_batch(torch.cat(made, 1).tolist(), skip_special_tokens=True))
        return [[next(said) for _ in asked] for asked in prompts]

    def _read(self, images: Float[Tensor, "B 3 height width"]) -> Any:
        """The cache of every key and value of what stands before a question."""
        before = [START] + [IMAGE] * self.module.config.image_seq_length
        ids = torch.tensor(before, device=images.device).expand(len(images), -1)
        return self.module.model(input_ids=ids, pixel_values=images, use_cache=True).past_key_values


def _layers(model: Any, scope: str) -> LayerStack:
    vision = clip_vision_layers(model.model.vision_tower) if scope != "decoder" else ()
    decoder = llama_layers(model.model.language_model, first=len(vision)) if scope != "vision" else ()
    return LayerStack([*vision, *decoder])
