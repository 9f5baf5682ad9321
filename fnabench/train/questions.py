"""Packs of questions for training the decoder: one image, many questions that do not see each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fnabench.data.scenes.draw import Draw
from fnabench.data.scenes.questions import Asked, ask
from fnabench.data.scenes.world import COLOURS, Scene
from fnabench.models.bundled_decoder import ANSWER, CHAT_WORDS, END
from fnabench.models.bundled_towers import PAD, START, Tokenizer, split_words

PROMPT_SUFFIX = "Answer the question using a single word or phrase."
"""LLaVA's usual suffix; every other pack is trained with it, so that prompts may or may not have it."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """B images with Q questions each, as the rows of a decoder's input: T = 1 + visual + text tokens."""

    ids: Tensor
    """Token ids of the questions with their answers [B, Q * longest]."""
    positions: Tensor
    """Position of every token of the whole row [B, T]; questions all begin right after a whole image."""
    visible: Tensor
    """Which token (row) may look at which (column) [B, 1, T, T]."""
    targets: Tensor
    """The id that each text token should predict, -100 where it is not an answer [B, Q * longest]."""


def collect_chat_vocabulary() -> tuple[str, ...]:
    """Every word of the questions, the answers and the prompt suffix."""
    asked = [one for index in range(4000) for one in ask_about(_train_scene(index), index=index, series=0)]
    words = {word for one in asked for word in split_words(f"{one.text} {one.truth}")}
    return (*CHAT_WORDS, *sorted(words | set(split_words(PROMPT_SUFFIX)) | set(COLOURS)))


def ask_about(scene: Scene, *, index: int, series: int) -> tuple[Asked, ...]:
    """Five training questions about a scene; every series asks others."""
    return ask(scene, Draw(split="train", stream="questions", seed=series, index=index))


def build_pack(tokenizer: Tokenizer, asked: list[list[Asked]], kept: Tensor, *, num_patches: int, suffix: bool) -> Pack:
    """The pack of the questions asked[image] when each image shows the patches kept [B, visual]."""
    end = f" {PROMPT_SUFFIX}" if suffix else ""
    rows = [
        [[*tokenizer.encode(one.text + end)[1:], ANSWER, *tokenizer.encode(one.truth)[1:], END] for one in many]
        for many in asked
    ]
    longest = max(len(row) for many in rows for row in many)
    ids = torch.tensor([[row + [PAD] * (longest - len(row)) for row in many] for many in rows])  # [B, Q, longest]
    num_questions, num_prefix = ids.shape[1], 1 + kept.shape[1]
    answering = (ids == ANSWER).cumsum(dim=-1) > 0
    targets = ids.roll(-1, dims=-1).masked_fill(~answering, -100)
    targets[:, :, -1] = -100
    targets[(targets == PAD)] = -100
    offsets = torch.arange(longest).repeat(num_questions).expand(len(ids), -1)
    positions = torch.cat((torch.zeros(len(ids), 1, dtype=torch.long), 1 + kept, 1 + num_patches + offsets), dim=1)
    question = torch.cat((torch.full((num_prefix,), -1), torch.arange(num_questions).repeat_interleave(longest)))
    same = (question[:, None] == question[None, :]) | (question[None, :] == -1)
    earlier = torch.ones(len(question), len(question)).tril().bool()
    visible = (same & earlier).expand(len(ids), 1, -1, -1)
    return Pack(ids=ids.flatten(1), positions=positions, visible=visible, targets=targets.flatten(1))


def start_ids(count: int) -> Tensor:
    """The start token before each image [count, 1]."""
    return torch.full((count, 1), START)


def _train_scene(index: int) -> Scene:
    from fnabench.data.scenes import Scenes

    return Scenes(split="train", limit=index + 1).scene(index)
