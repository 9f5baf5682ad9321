"""Visual question answering: VQA accuracy of short greedy answers, over all questions and by type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fnabench.asking import ask, begin, with_suffix
from fnabench.contract import Task
from fnabench.data.base import Question
from fnabench.errors import one_of
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone
from fnabench.scores import SampleScores, Scores
from fnabench.vqa_answers import NORMALISATIONS, normalised, vqa_accuracy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Vqa(Task):
    """Every question is asked about its image with the suffix; samples are questions, clustered by image.

    The headline is scored with `normalisation`; the other two are reported beside it, and each type of question. Blind
    is the baseline that shows what the questions alone give away: every image is replaced by the mean colour.
    """

    normalisation: str = "official"
    suffix: str = "Answer the question using a single word or phrase."
    blind: bool = False

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise one_of("task.normalisation", self.normalisation, NORMALISATIONS)

    @property
    def metric(self) -> str:
        return f"vqa_{self.normalisation}"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"generate"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"questions"})

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        replies = ask(backbone, loader, self.prompt, blind=self.blind)
        questions, answers = replies.questions, replies.answers
        compared = np.array(
            [normalised(a, q.answers, self.normalisation)[0] for a, q in zip(answers, questions, strict=True)]
        )

        def scored(normalisation: str, kind: str | None = None) -> SampleScores:
            chosen = replies.of_kind(kind)
            return SampleScores.mean_of(
                np.array([vqa_accuracy(answers[i], questions[i].answers, normalisation) for i in chosen]),
                tuple(questions[i].id for i in chosen),
                tuple(replies.images[i] for i in chosen),
                compared[chosen],
            )

        metrics = {f"vqa_{name}": scored(name) for name in NORMALISATIONS}
        metrics |= {f"{self.metric}_{kind}": scored(self.normalisation, kind) for kind in replies.kinds}
        return Scores(metrics=metrics, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> list[list[str]]:
        return begin(backbone, batch, self.prompt)

    def prompt(self, question: Question) -> str:
        """What the model is asked."""
        return with_suffix(question, self.suffix)
