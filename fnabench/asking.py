"""Putting every question of a data set to a model that answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fnabench.data.base import Question
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone
from fnabench.tiles import blank


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Questions with what was answered, in the order of the data; they are clustered by image."""

    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    images: tuple[str, ...]

    def of_kind(self, kind: str | None) -> list[int]:
        """The places of the questions of a kind; None for all."""
        return [place for place, question in enumerate(self.questions) if kind in (None, question.kind)]

    @property
    def kinds(self) -> list[str]:
        """The kinds of question that occur."""
        return sorted({question.kind for question in self.questions})


def ask(
    backbone: Backbone,
    loader: Loader,
    prompt: Callable[[Question], str],
    *,
    blind: bool = False,
    max_new_tokens: int | None = None,
) -> Replies:
    """The model's greedy answers; blind, every image is replaced by the mean colour."""
    questions: list[Question] = []
    answers: list[str] = []
    images: list[str] = []

    def answer(batch: Batch) -> list[list[str]]:
        asked = [[prompt(question) for question in sample.questions] for sample in batch.samples]
        return backbone.generate(blank(batch.images) if blind else batch.images, asked, max_new_tokens)

    for samples, replies in loader.through(answer):
        for sample, said in zip(samples, replies, strict=True):
            questions += sample.questions
            answers += said
            images += [sample.id] * len(said)
    return Replies(questions=tuple(questions), answers=tuple(answers), images=tuple(images))


def with_suffix(question: Question, suffix: str) -> str:
    """The question, and the suffix on a line of its own, as LLaVA was evaluated."""
    return f"{question.text}\n{suffix}".strip()


def begin(backbone: Backbone, batch: Batch, prompt: Callable[[Question], str]) -> list[list[str]]:
    """The answers to each image's first question up to their first token: what comes after attends exactly, and its
    length varies."""
    prompts = [[prompt(sample.questions[0])] for sample in batch.samples]
    return backbone.generate(batch.images, prompts, max_new_tokens=1)
