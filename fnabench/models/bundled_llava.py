"""The bundled LLaVA: a ViT, a projector and a small decoder that answers questions about scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fnabench.models.base import Blueprint, Model
from fnabench.models.bundled_decoder import ANSWER, END
from fnabench.models.bundled_towers import START
from fnabench.models.bundled_weights import LoadedLlava, load_llava
from fnabench.models.hf_backbone import Dialogue, LlavaBackbone, llava_blueprint
from fnabench.models.hf_layers import check_scope
from fnabench.models.preprocessing import square_transforms


@dataclass(frozen=True, kw_only=True)
class BundledLlava(Model):
    """A LLaVA in miniature of stock transformers classes."""

    scope: str = "vision"
    """Where attention is replaced: in the "vision" tower, in the "decoder" while it reads the image, or in "both"."""

    def __post_init__(self) -> None:
        check_scope(self.scope)

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
        loaded = load_llava(weights=False)
        edge = loaded.model.config.vision_config.image_size
        blank = torch.zeros(1, 3, edge, edge)
        return llava_blueprint(loaded.model.to("meta"), self.scope, blank, WordDialogue(loaded.tokenizer))

    def load(self, device: torch.device, dtype: torch.dtype) -> LlavaBackbone:
        return bundled_backbone(load_llava(), self.scope, device, dtype)

    @cached_property
    def _loaded(self) -> LoadedLlava:
        return load_llava()


class WordDialogue(Dialogue):
    """[start], the image, the words of the question, [answer]; the answer ends in [end]."""

    before = (START,)
    ends = frozenset({END})

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, question: str) -> list[int]:
        return [*self.tokenizer.encode(question).ids, ANSWER]

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self.tokenizer.decode_batch(answers, skip_special_tokens=True)
        return texts


def bundled_backbone(loaded: LoadedLlava, scope: str, device: torch.device, dtype: torch.dtype) -> LlavaBackbone:
    """The bundled LLaVA on a device."""
    edge = loaded.model.config.vision_config.image_size
    crop, whole = square_transforms(edge, loaded.card["image_mean"], loaded.card["image_std"])
    module: Any = loaded.model
    return LlavaBackbone(module.to(device, dtype), scope, WordDialogue(loaded.tokenizer), crop, whole)
