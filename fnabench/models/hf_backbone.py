"""What every LLaVA does once it is loaded, whatever it was loaded from: transformers' classes read an image, then
answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from fnabench.models.base import Backbone, Blueprint
from fnabench.models.hf_layers import VisionAttentionLayer, llava_layers, without_unread_blocks
from fnabench.tiles import Images, Tiles

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from PIL import Image
    from torch import Tensor, nn

    Transform = Callable[[Image.Image], Images]

MAX_NEW_TOKENS = 16
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
        questions_at_once: int = 32,
    ) -> None:
        self.module = without_unread_blocks(module).eval().requires_grad_(False)
        self.scope = scope
        self.layers = llava_layers(module, scope)
        self.dialogue = dialogue
        self.transform = transform
        self.transform_whole = transform_whole or transform
        self.questions_at_once = questions_at_once
        """So many about an image are answered together: this bounds their memory."""

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
        """Those of the last block that the projector reads."""
        height, width = self.patch_grid(images)
        return self.module.model.vision_tower(images).last_hidden_state[:, -height * width :]  # type: ignore[no-any-return]

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        patch = self.module.config.vision_config.patch_size
        return images.shape[-2] // patch, images.shape[-1] // patch

    @property
    def decoder_head(self) -> nn.Module:
        return self.module.get_output_embeddings()  # type: ignore[no-any-return]

    def generate(
        self, images: Images, prompts: Sequence[Sequence[str]], max_new_tokens: int | None = None
    ) -> list[list[str]]:
        from transformers import DynamicCache

        cache, is_read = self._read(images)
        asked = [[self.dialogue.encode(prompt) for prompt in row] for row in prompts]
        answers: list[list[list[int]]] = [[] for _ in prompts]
        for start in range(0, max(map(len, asked), default=0), self.questions_at_once):
            some = [row[start : start + self.questions_at_once] for row in asked]
            copied = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
            for row, found in zip(answers, self._answer(copied, is_read, some, max_new_tokens), strict=True):
                row += found
        said = iter(self.dialogue.decode([answer for row in answers for answer in row]))
        return [[next(said) for _ in row] for row in answers]

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
        self,
        cache: Any,
        is_read: Bool[Tensor, "B N"],
        asked: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int | None,
    ) -> list[list[list[int]]]:
        """A greedy answer to each text about each image, without its end.

        The texts about an image stand in one sequence and see nothing of one another: what was read of the image need
        not be copied for each.
        """
        device, most = is_read.device, max(map(len, asked))
        ids, owner, place = (each.to(device) for each in _in_one_sequence(asked))
        lengths = (owner[:, :, None] == torch.arange(most, device=device)).sum(1)  # [B, questions]
        num_read = is_read.sum(1, keepdim=True)
        position, latest = num_read + place, (lengths.cumsum(1) - 1).clamp(min=0)
        known = owner[:, :0]
        ends = torch.tensor(sorted(self.dialogue.ends), dtype=torch.long, device=device)
        is_open = lengths > 0
        made = []
        for _ in range(max_new_tokens or MAX_NEW_TOKENS):
            known = torch.cat([known, owner], 1)
            order = torch.arange(known.shape[1], device=device)
            own = (owner[:, :, None] == known[:, None]) & (order <= order[-owner.shape[1] :, None])
            seen = torch.cat([is_read[:, None].expand(-1, owner.shape[1], -1), own], 2)
            output = self.module.model.language_model(
                inputs_embeds=self.module.get_input_embeddings()(ids),
                attention_mask=seen[:, None],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            last = output.last_hidden_state.take_along_dim(latest[:, :, None], 1)
            ids = self.decoder_head(last).argmax(-1)  # [B, questions]
            made.append(ids)
            is_open &= ~torch.isin(ids, ends)
            if not is_open.any():
                break
            position = num_read + lengths + len(made) - 1
            owner = latest = torch.arange(most, device=device).expand_as(ids)
        answers = torch.stack(made, 2).tolist()
        return [
            [self._until_end(answer) for answer in row[: len(texts)]] for row, texts in zip(answers, asked, strict=True)
        ]

    def _until_end(self, answer: list[int]) -> list[int]:
        return answer[: next((place for place, token in enumerate(answer) if token in self.dialogue.ends), len(answer))]


def _in_one_sequence(asked: Sequence[Sequence[Sequence[int]]]) -> list[Int[Tensor, "B T"]]:
    """The texts of each image one after the other, padded behind: the ids, which text each belongs to (-1: none), and
    its place in it."""
    longest = max(sum(map(len, texts)) for texts in asked)
    rows = []
    for texts in asked:
        tokens = [(token, number, place) for number, text in enumerate(texts) for place, token in enumerate(text)]
        rows.append(tokens + [(_PADDING, -1, 0)] * (longest - len(tokens)))
    return list(torch.tensor(rows).unbind(-1))


def llava_blueprint(module: Any, scope: str, images: Images, dialogue: Dialogue) -> Blueprint:
    """The sizes of a LLaVA on the meta device, when it reads this one image of its native size."""
    vision = without_unread_blocks(module).config.vision_config
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
