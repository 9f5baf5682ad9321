"""Top-1 accuracy: by the library's head, by prompts, by nearest neighbours or by a linear probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import normalize

from fnabench.contract import Task
from fnabench.data.base import Source
from fnabench.errors import BadInputError, ImpossibleError, one_of
from fnabench.linear_head import fit_linear_head
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.neighbours import nearest
from fnabench.scores import SampleScores, Scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

METHODS = ("auto", "head", "zeroshot", "knn", "linear")


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """argmax of class logits against the label.

    head: the library's own head. zeroshot: 100 times the cosine to class embeddings, each the renormalised mean of its
    normalised prompt embeddings. knn: votes of the k nearest training images by cosine, weighted by
    softmax(cosine / temperature), exact search. linear: logistic regression on the image embedding, its penalty chosen
    on a held-out part of the training split. knn and linear are fitted on that split with exact attention. auto: head
    where the model has one, else zeroshot.
    """

    method: str = "auto"
    num_neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise one_of("task.method", self.method, METHODS)
        if self.num_neighbours < 1 or self.temperature <= 0:
            raise BadInputError(
                f"task.num_neighbours={self.num_neighbours} must be at least 1 and "
                f"task.temperature={self.temperature} above 0"
            )

    @property
    def metric(self) -> str:
        return "top1"

    @property
    def needs_of_model(self) -> frozenset[str]:
        needs = {
            "head": {"classify"},
            "zeroshot": {"embed", "text"},
            "knn": {"embed"},
            "linear": {"embed"},
            "auto": set(),
        }
        return frozenset(needs[self.method])

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"label"})

    def fits(self, model: Model) -> bool:
        return self.method in ("knn", "linear")

    def check(self, model: Model, blueprint: Blueprint, source: Source) -> None:
        super().check(model, blueprint, source)
        if self.method == "auto" and not {"classify", "text"} & model.offers:
            raise ImpossibleError(
                "the model has neither a classification head nor a text tower; choose task.method=knn or linear"
            )
        if "classify" not in model.offers or self.method not in ("auto", "head"):
            if not source.class_names and self.method in ("auto", "zeroshot"):
                raise ImpossibleError(
                    "zero-shot prompts need class names, which this data has not; choose another data="
                )
            return
        largest = source.largest_label()
        if largest is not None and largest >= blueprint.num_classes:
            raise ImpossibleError(
                f"the labels go up to {largest}, but the model's head has {blueprint.num_classes} classes (0.."
                f"{blueprint.num_classes - 1}); choose the label file that belongs to the head"
            )

    def fit(self, backbone: Backbone, loader: Loader) -> dict[str, Tensor]:
        features, labels = [], []
        for samples, embeddings in loader.through(lambda batch: backbone.encode_image(batch.images).cpu()):
            features.append(embeddings)
            labels += [sample.label for sample in samples]
        bank, targets = torch.cat(features), torch.tensor(labels)
        if self.method == "knn":
            return {"features": normalize(bank.float(), dim=-1), "labels": targets}
        one_hot = torch.zeros(len(targets), int(targets.max()) + 1, dtype=torch.uint8).scatter_(1, targets[:, None], 1)
        return fit_linear_head(bank, one_hot, range(len(targets)), loader.device)

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        classes = self._class_embeddings(backbone, loader.source) if self._is_zeroshot(backbone) else None
        ids: list[str] = []
        predictions, labels = [], []
        for samples, output in loader.through(partial(self.forward, backbone)):
            ids += [sample.id for sample in samples]
            labels += [sample.label for sample in samples]
            predictions.append(self._logits(output, classes, fitted).argmax(-1).cpu().numpy())
        predicted = np.concatenate(predictions)
        top1 = SampleScores.mean_of(predicted == np.array(labels), tuple(ids), predictions=predicted)
        return Scores(metrics={self.metric: top1}, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B E"]:
        if self.method == "head" or (self.method == "auto" and not self._is_zeroshot(backbone)):
            return backbone.classify(batch.images)
        return backbone.encode_image(batch.images)

    def _is_zeroshot(self, backbone: Backbone) -> bool:
        return self.method == "zeroshot" or (self.method == "auto" and bool(backbone.templates))

    def _logits(
        self, output: Float[Tensor, "B E"], classes: Float[Tensor, "K E"] | None, fitted: Mapping[str, Tensor]
    ) -> Float[Tensor, "B K"]:
        if classes is not None:
            return 100 * normalize(output.float(), dim=-1) @ classes.to(output.device).T
        if self.method == "linear":
            return output.float().cpu() @ fitted["weight"].T + fitted["bias"]
        if self.method == "knn":
            return self._votes(normalize(output.float(), dim=-1).cpu(), fitted)
        return output

    def _votes(self, queries: Float[Tensor, "B E"], fitted: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        found, cosines = nearest(fitted["features"].numpy(), queries.numpy(), self.num_neighbours)
        weights = torch.softmax(torch.from_numpy(cosines) / self.temperature, -1)  # [B, k]
        votes = torch.zeros(len(queries), int(fitted["labels"].max()) + 1)
        return votes.scatter_add_(1, fitted["labels"][torch.from_numpy(found)], weights)

    def _class_embeddings(self, backbone: Backbone, source: Source) -> Float[Tensor, "K E"]:
        prompts = [[template.format(name) for template in backbone.templates] for name in source.class_names]
        return backbone.recall_texts(
            prompts, lambda: torch.stack([_class_embedding(backbone, each) for each in prompts])
        )


def _class_embedding(backbone: Backbone, prompts: Sequence[str]) -> Float[Tensor, " E"]:
    return normalize(normalize(backbone.encode_text(prompts).float(), dim=-1).mean(0), dim=-1)
