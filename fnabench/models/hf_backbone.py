"""What every LLaVA does once it is loaded, whatever it was loaded from: transformers' classes read an image, then
answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from fnabench.attention.layers import LayerStack
from fnabench.errors import one_of
from fnabench.models.base import Backbone, Blueprint
from fnabench.models.hf_layers import VisionAttentionLayer, decoder_layers, vision_layers
from fnabench.tiles import Images, Tiles

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from PIL import Image
    from torch import Tensor

    Transform = Callable[[Image.Image], Images]

MAX_NEW_TOKENS = 16
SCOPES = ("vision", "decoder", "both")
_PADDING = 0
"""Any id does: what it stands for is masked."""


class Dialogue(ABC):
    """How a question is put to a LLaVA and its answer read, in token ids."""

    before: tuple[int, ...]
    """What stands before the image."""
    ends: frozenset[int]
    """What an answer ends in."""

    @abstractmethod
    def encode(self, question: str) -> list[int]:
        """What follows the image: the question, and whatever asks for an answer."""

    @abstractmethod
    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The texts of answers without their ends."""


class LlavaBackbone(Backbone):
    """A vision tower, a projector and a decoder on a device."""

    def __init__(
        self,
        module: Any,
        scope: str,
        dialogue: Dialogue,
        transform: Transform,
        transform_whole: Transform | None = None,
        *,
        questions_at_once: int = 1024,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.scope = scope
        self.layers = llava_layers(module, scope)
        self.dialogue = dialogue
        self.transform = transform
        self.transform_whole = transform_whole or transform
        self.questions_at_once = questions_at_once
        """Each answers from a copy of what its image left in the cache: this bounds their memory."""

    def __getstate__(self) -> dict[str, Any]:
        """Weights and attached variants: a transformers model that has run carries functions that no pickle takes."""
        return {
            "rest": {name: value for name, value in self.__dict__.items() if name not in ("module", "layers")},
            "class": type(self.module),
            "config": self.module.config,
            "weights": self.module.state_dict(),
            "buffers": dict(self.module.named_buffers()),
            "cores": [layer.core for layer in self.layers],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["rest"])
        with torch.device("meta"):
            self.module = state["class"](state["config"]).eval().requires_grad_(False)
        self.module.load_state_dict(state["weights"], assign=True)
        for name, buffer in state["buffers"].items():  # no part of the weights: a decoder's rotary frequencies
            owner, _, own_name = name.rpartition(".")
            setattr(self.module.get_submodule(owner), own_name, buffer)
        self.layers = llava_layers(self.module, self.scope)
        for layer, core in zip(self.layers, state["cores"], strict=True):
            if core is not None:
                layer.attach(core)

    def encode_image(self, images: Images) -> Float[Tensor, "B E"]:
        """The decoder's last hidden state after the image and an empty question."""
        cache, is_read = self._read(images)
        ids = torch.tensor(self.dialogue.encode(""), device=images.device).expand(len(images), -1)
        mask = torch.cat([is_read, torch.ones_like(ids, dtype=torch.bool)], 1)
        output = self.module.model(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask, ids), past_key_values=cache
        )
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def encode_patches(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        """Those of the vision tower's last block."""
        height, width = self.patch_grid(images)
        return self.module.model.vision_tower(images).last_hidden_state[:, -height * width :]  # type: ignore[no-any-return]

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        patch = self.module.config.vision_config.patch_size
        return images.shape[-2] // patch, images.shape[-1] // patch

    def generate(
        self, images: Images, prompts: Sequence[Sequence[str]], max_new_tokens: int | None = None
    ) -> list[list[str]]:
        from transformers import DynamicCache

        cache, is_read = self._read(images)
        texts = [(row, self.dialogue.encode(prompt)) for row, asked in enumerate(prompts) for prompt in asked]
        answers: list[list[int]] = []
        for start in range(0, len(texts), self.questions_at_once):
            some = texts[start : start + self.questions_at_once]
            rows = torch.tensor([row for row, _ in some], device=images.device)
            copied = DynamicCache([(layer.keys[rows], layer.values[rows]) for layer in cache.layers])
            answers += self._answer(copied, is_read[rows], [text for _, text in some], max_new_tokens or MAX_NEW_TOKENS)
        said = iter(self.dialogue.decode(answers))
        return [[next(said) for _ in asked] for asked in prompts]

    def _read(self, images: Images) -> tuple[Any, Bool[Tensor, "B N"]]:
        """The cache of every key and value of what stands before a question, and which of them are no padding."""
        model = self.module.model
        ids = torch.tensor(self.dialogue.before, dtype=torch.long, device=images.device)
        before = model.get_input_embeddings()(ids)
        rows = [torch.cat([before, features.to(before.dtype)]) for features in image_features(self.module, images)]
        longest = max(map(len, rows))
        mask = torch.stack([pad(row.new_ones(len(row), dtype=torch.bool), (longest - len(row), 0)) for row in rows])
        output = model.language_model(
            inputs_embeds=torch.stack([pad(row, (0, 0, longest - len(row), 0)) for row in rows]),
            attention_mask=mask,
            position_ids=_positions(mask, mask),
            use_cache=True,
        )
        return output.past_key_values, mask

    def _answer(
        self, cache: Any, is_read: Bool[Tensor, "B N"], texts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[list[int]]:
        """A greedy answer to each text, without its end."""
        device = is_read.device
        longest = max(map(len, texts))
        ids = torch.tensor([[_PADDING] * (longest - len(text)) + list(text) for text in texts], device=device)
        counts = torch.tensor([len(text) for text in texts], device=device)
        mask = torch.cat([is_read, torch.arange(longest, 0, -1, device=device) <= counts[:, None]], 1)
        ends = torch.tensor(sorted(self.dialogue.ends), dtype=torch.long, device=device)
        made = []
        is_open = torch.ones(len(texts), dtype=torch.bool, device=device)
        for _ in range(max_new_tokens):
            output = self.module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=_positions(mask, ids),
                past_key_values=cache,
                logits_to_keep=1,
            )
            ids = output.logits[:, -1:].argmax(-1)
            made.append(ids)
            is_open &= ~torch.isin(ids[:, 0], ends)
            if not is_open.any():
                break
            mask = torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], 1)
        answers = []
        for row in torch.cat(made, 1).tolist():
            end = next((place for place, token in enumerate(row) if token in self.dialogue.ends), len(row))
            answers.append(row[:end])
        return answers


def check_scope(scope: str) -> None:
    """Raise BadInputError for what is no scope: the vision tower, the decoder while it reads the image, or both."""
    if scope not in SCOPES:
        raise one_of("model.scope", scope, SCOPES)


def llava_layers(module: Any, scope: str) -> LayerStack:
    """The replaceable layers of a LLaVA's towers in the scope."""
    vision = vision_layers(module.model.vision_tower) if scope != "decoder" else ()
    decoder = decoder_layers(module.model.language_model, first=len(vision)) if scope != "vision" else ()
    return LayerStack([*vision, *decoder])


def llava_blueprint(module: Any, scope: str, images: Images, dialogue: Dialogue) -> Blueprint:
    """The sizes of a LLaVA on the meta device, when it reads this one image of its native size."""
    vision = module.config.vision_config
    num_patches = (vision.image_size // vision.patch_size) ** 2
    (features,) = image_features(module, images.to("meta"))
    num_read = len(dialogue.before) + len(features)
    stack = llava_layers(module, scope)
    return Blueprint(
        shapes=tuple(
            layer.shape(num_patches + layer.num_prefix if isinstance(layer, VisionAttentionLayer) else num_read)
            for layer in stack
        ),
        image_size=(vision.image_size, vision.image_size),
        num_classes=0,
        depths=stack.depths,
    )


def image_features(module: Any, images: Images) -> Sequence[Float[Tensor, "N C"]]:
    """What the decoder is given in place of each image."""
    tiled = {"pixel_values": images.pixels, "image_sizes": images.sizes} if isinstance(images, Tiles) else None
    found = module.model.get_image_features(**(tiled or {"pixel_values": images}), return_dict=True)
    return found.pooler_output  # type: ignore[no-any-return]


def _positions(mask: Bool[Tensor, "B N"], latest: Tensor) -> Tensor:
    """The positions of the latest tokens, counted without padding."""
    return (mask.cumsum(1)[:, -latest.shape[1] :] - 1).clamp(min=0)
