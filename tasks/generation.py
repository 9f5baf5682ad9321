"""Generation: free answers compared with a text for each question, by common words and, with an encoder, by meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fnabench.asking import ask, begin, with_suffix
from fnabench.bertscore import TextEncoder, score_texts
from fnabench.contract import Task
from fnabench.data.base import Question, Source
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.rouge import rouge_l
from fnabench.scores import SampleScores, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """Every question is asked about its image; samples are questions, clustered by image.

    The headline is the F1 of BERTScore where an encoder is given, beside its precision and recall; else ROUGE-L, which
    is reported always. Where there are several texts to compare with, the best counts.
    """

    suffix: str = ""
    max_new_tokens: int = 256
    bertscore: str | None = field(default=None, metadata=LOCATION)
    """The encoder: a folder or hf-hub:owner/name@revision."""
    bertscore_layer: int | None = None
    bertscore_idf: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise BadInputError(f"task.max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.bertscore is None and (self.bertscore_layer is not None or self.bertscore_idf):
            raise BadInputError("task.bertscore_layer and task.bertscore_idf need an encoder; give task.bertscore=...")

    @property
    def metric(self) -> str:
        return "bertscore_f1" if self.bertscore else "rouge_l"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"generate"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"open_questions"})

    def check(self, model: Model, blueprint: Blueprint, source: Source) -> None:
        super().check(model, blueprint, source)
        if encoder := self._encoder:
            encoder.check()

    def weights_hash(self) -> str | None:
        encoder = self._encoder
        return encoder.weights_hash() if encoder else None

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        replies = ask(backbone, loader, self.prompt, max_new_tokens=self.max_new_tokens)
        texts = [question.answers for question in replies.questions]
        by_metric = {
            "rouge_l": [
                max(rouge_l(answer, text) for text in each) for answer, each in zip(replies.answers, texts, strict=True)
            ]
        }
        if encoder := self._encoder:
            found = score_texts(replies.answers, texts, encoder.to(loader.device), with_idf=self.bertscore_idf)
            for part in ("precision", "recall", "f1"):
                by_metric[f"bertscore_{part}"] = [getattr(score, part) for score in found]

        def scored(metric: str, kind: str | None = None) -> SampleScores:
            chosen = replies.of_kind(kind)
            return SampleScores.mean_of(
                np.array(by_metric[metric])[chosen],
                tuple(replies.questions[i].id for i in chosen),
                tuple(replies.images[i] for i in chosen),
                np.array(replies.answers)[chosen],
            )

        metrics = {name: scored(name) for name in by_metric}
        metrics |= {f"{self.metric}_{kind}": scored(self.metric, kind) for kind in replies.kinds}
        return Scores(metrics=metrics, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> list[list[str]]:
        return begin(backbone, batch, self.prompt)

    def prompt(self, question: Question) -> str:
        """What the model is asked."""
        return with_suffix(question, self.suffix)

    @property
    def _encoder(self) -> TextEncoder | None:
        return TextEncoder(self.bertscore, self.bertscore_layer) if self.bertscore else None
