"""Top-1 accuracy by the library's own classification head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fnabench.contract import Task
from fnabench.data.base import Source
from fnabench.errors import ImpossibleError
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.scores import SampleScores, Scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """argmax of the head's logits against the label, with the library's own crop and interpolation."""

    @property
    def metric(self) -> str:
        return "top1"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"classify"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"label"})

    def check(self, model: Model, blueprint: Blueprint, source: Source) -> None:
        super().check(model, blueprint, source)
        largest = source.largest_label()
        if largest is not None and largest >= blueprint.num_classes:
            raise ImpossibleError(
                f"the labels go up to {largest}, but the model's head has {blueprint.num_classes} classes (0.."
                f"{blueprint.num_classes - 1}); choose the label file that belongs to the head"
            )

    def evaluate(self, backbone: Backbone, loader: Loader) -> Scores:
        ids: list[str] = []
        predictions, labels = [], []
        for batch in loader:
            ids += [sample.id for sample in batch.samples]
            labels += [sample.label for sample in batch.samples]
            predictions.append(self.forward(backbone, batch).argmax(-1).cpu().numpy())
        predicted = np.concatenate(predictions)
        top1 = SampleScores.mean_of(predicted == np.array(labels), tuple(ids), predictions=predicted)
        return Scores(metrics={self.metric: top1}, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B classes"]:
        return backbone.classify(batch.images)
