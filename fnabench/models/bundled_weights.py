"""The trained weights that come with fnabench: read only after their checksum was found right."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fnabench.errors import BadInputError, MissingError
from fnabench.models.bundled_decoder import LlavaConfig, build_llava, build_word_tokenizer
from fnabench.models.bundled_towers import Clip, ClipConfig, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as WordTokenizer
    from transformers import LlavaForConditionalGeneration

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class LoadedClip:
    """The bundled CLIP in eval mode, float32."""

    model: Clip
    tokenizer: Tokenizer
    card: dict[str, Any]
    """What the json beside the weights says: config, vocabulary, prompts, image mean and std, training, metrics."""


@dataclass(frozen=True, kw_only=True)
class LoadedLlava:
    """The bundled LLaVA in eval mode, float32."""

    model: LlavaForConditionalGeneration
    tokenizer: WordTokenizer
    card: dict[str, Any]
    """What the json beside the weights says."""


def load_clip(folder: Path = WEIGHTS) -> LoadedClip:
    """The bundled CLIP; MissingError without its files, BadInputError if they were changed."""
    card = read_card("clip", folder)
    config = ClipConfig(**card["config"])
    model = Clip(config, num_words=len(card["vocabulary"]), num_mask_classes=len(card["mask_names"]))
    model.load_state_dict(read_weights("clip", folder))
    tokenizer = Tokenizer(card["vocabulary"], context=config.context)
    return LoadedClip(model=model.eval(), tokenizer=tokenizer, card=card)


def load_llava(folder: Path = WEIGHTS, *, weights: bool = True) -> LoadedLlava:
    """The bundled LLaVA; errors as for load_clip.

    With weights=False only the card is read and the parameters mean nothing: enough to know the sizes.
    """
    card = read_card("llava", folder)
    clip, config = ClipConfig(**card["clip_config"]), LlavaConfig(**card["config"])
    model = build_llava(clip, config, num_words=len(card["vocabulary"]))
    if weights:
        model.load_state_dict(read_weights("llava", folder))
    model.train(False)
    return LoadedLlava(model=model, tokenizer=build_word_tokenizer(card["vocabulary"]), card=card)


def read_card(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """What the json beside the weights of "clip" or "llava" says; MissingError without it or the weights."""
    for needed in (folder / f"{name}.json", folder / f"{name}.safetensors"):
        if not needed.exists():
            raise MissingError(f"{needed} is missing: reinstall fnabench, or train it with `make train-bundled`")
    card: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return card


def read_weights(name: str, folder: Path = WEIGHTS) -> dict[str, torch.Tensor]:
    """The weights of "clip" or "llava" in float32; BadInputError if the sha256 is not the one on the card."""
    from safetensors.torch import load

    card, path = read_card(name, folder), folder / f"{name}.safetensors"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["sha256"]:
        raise BadInputError(f"{path} was changed: its sha256 is {digest}, {name}.json says {card['sha256']}")
    return {key: value.float() for key, value in load(content).items()}
