"""The bundled LLaVA's scores during training, beside what the questions alone give away."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fnabench.data.base import Question
from fnabench.data.scenes import Scenes
from fnabench.data.scenes.questions import Asked
from fnabench.models.bundled_decoder import ANSWER, IMAGE
from fnabench.models.bundled_towers import START, Tokenizer
from fnabench.train.batches import normalize
from fnabench.train.pool import PATCH
from fnabench.train.questions import ask_about

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


@torch.no_grad()
def measure_llava(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, source: Scenes) -> dict[str, float]:
    """VQA accuracy in percent of greedy answers: of all questions and of each kind."""
    scores: dict[str, list[float]] = defaultdict(list)
    for index in range(len(source)):
        sample = source[index]
        images = normalize(torch.from_numpy(np.asarray(sample.image).copy())[None])
        answers = answer(model, tokenizer, images, [question.text for question in sample.questions])
        for question, given in zip(sample.questions, answers, strict=True):
            scores[question.kind].append(vqa_accuracy(given, question))
    kinds = {f"vqa_{kind}": _percent(values) for kind, values in scores.items()}
    return {"vqa": _percent([value for values in scores.values() for value in values]), **kinds}


def answer(
    model: LlavaForConditionalGeneration, tokenizer: Tokenizer, image: Tensor, questions: list[str]
) -> list[str]:
    """Greedy answers [questions] about one normalised image [1, 3, H, W], two tokens at most."""
    texts = [[*tokenizer.encode(question)[1:], ANSWER] for question in questions]
    longest = max(len(text) for text in texts)
    num_patches = (image.shape[-1] // PATCH) ** 2
    rows = [[0] * (longest - len(text)) + [START] + [IMAGE] * num_patches + text for text in texts]
    ids = torch.tensor(rows)
    made = model.generate(  # type: ignore[misc]
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        pixel_values=image.expand(len(rows), -1, -1, -1),
        max_new_tokens=2,
        do_sample=False,
    )
    words = [[tokenizer.vocabulary[number] for number in row] for row in made[:, ids.shape[1] :].tolist()]
    return [" ".join(word for word in row if not word.startswith("[")) for row in words]


def vqa_accuracy(given: str, question: Question) -> float:
    """Mean over the leave-one-out sets of ten answers of min(matches / 3, 1)."""
    return float(
        np.mean(
            [
                min(1.0, sum(other == given for other in question.answers[:n] + question.answers[n + 1 :]) / 3)
                for n in range(len(question.answers))
            ]
        )
    )


def measure_question_only(source: Scenes, *, num_training: int = 8000) -> dict[str, float]:
    """VQA accuracy in percent of each question's commonest answer in training, whatever the image.

    A text that training lacks gets the commonest answer to questions that begin with the same two words.
    """
    training = Scenes(split="train", limit=num_training)
    asked = [one for index in range(num_training) for one in ask_about(training.scene(index), index=index, series=0)]
    by_text, by_start = _commonest(asked, words=100), _commonest(asked, words=2)
    scores: dict[str, list[float]] = defaultdict(list)
    for index in range(len(source)):
        for question in source[index].questions:
            given = by_text.get(question.text) or by_start[_start(question.text, 2)]
            scores[question.kind].append(vqa_accuracy(given, question))
    kinds = {f"question_only_{kind}": _percent(values) for kind, values in scores.items()}
    return {"question_only": _percent([value for values in scores.values() for value in values]), **kinds}


def _commonest(asked: list[Asked], *, words: int) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked:
        counts[_start(one.text, words)][one.truth] += 1
    return {text: count.most_common(1)[0][0] for text, count in counts.items()}


def _start(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _percent(values: list[float]) -> float:
    return round(100 * float(np.mean(values)), 2)
