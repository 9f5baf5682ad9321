"""Fidelity: how near the outputs of a variant stay to those of exact attention, without any label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from fnabench.contract import Task
from fnabench.divergence import kl_divergence
from fnabench.errors import BadInputError
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone
from fnabench.neighbours import nearest
from fnabench.scores import SampleScores, Scores
from fnabench.tiles import per_image

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

    _Given = tuple[Tensor, Tensor | None]
    """Of a batch: embeddings, and logits where there is a classification head."""


@dataclass(frozen=True, kw_only=True)
class Fidelity(Task):
    """Every image goes through the model twice, with exact attention and with the variant.

    cosine: of the two image embeddings. neighbour_overlap: the share of an image's nearest others by exact embeddings
    that are nearest by the variant's too. attention_error: ||variant - exact|| / ||exact|| of the attention output on
    the inputs of the exact forward, for each replaced layer and their mean. With a classification head also
    top1_agreement, and kl: KL(exact || variant) of the class probabilities in nats.
    """

    num_neighbours: int = 10

    def __post_init__(self) -> None:
        if self.num_neighbours < 1:
            raise BadInputError(f"task.num_neighbours={self.num_neighbours} must be at least 1")

    @property
    def metric(self) -> str:
        return "cosine"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"embed"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset()

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        ids: list[str] = []
        embedded: dict[str, list[Tensor]] = {"exact": [], "variant": []}
        logits: dict[str, list[Tensor]] = {"exact": [], "variant": []}
        errors: list[Tensor] = []
        names: list[str] = []

        def both(batch: Batch) -> tuple[_Given, _Given, dict[int, Tensor]]:
            with backbone.exact_beside() as layer_errors:
                exact = _given(backbone, batch)
            by_layer = {layer: per_image(layer_errors[layer].cpu(), batch.images) for layer in sorted(layer_errors)}
            return exact, _given(backbone, batch), by_layer

        for samples, (exact, variant, by_layer) in loader.through(both):
            ids += [sample.id for sample in samples]
            names = [f"attention_error_{layer:02d}" for layer in by_layer]
            errors += [torch.stack(list(by_layer.values()), 1)] if by_layer else []
            for way, (embedding, classes) in (("exact", exact), ("variant", variant)):
                embedded[way].append(embedding)
                logits[way] += [] if classes is None else [classes]
        ours, theirs = (torch.cat(embedded[way]) for way in ("variant", "exact"))
        values = {"cosine": cosine_similarity(ours, theirs)}
        if len(ids) > 1:
            values["neighbour_overlap"] = self._neighbour_overlap(ours, theirs)
        predictions: NDArray[np.int64] | None = None
        if logits["exact"]:
            theirs, ours = (torch.cat(logits[way]) for way in ("exact", "variant"))
            predictions = ours.argmax(-1).numpy()
            values["top1_agreement"] = (theirs.argmax(-1) == ours.argmax(-1)).float()
            values["kl"] = kl_divergence(theirs, ours)
        if names:
            all_errors = torch.cat(errors)
            values["attention_error"] = all_errors.mean(1)
            values |= dict(zip(names, all_errors.T, strict=True))
        metrics = {
            name: SampleScores.mean_of(each.double().numpy(), tuple(ids), predictions=predictions)
            for name, each in values.items()
        }
        return Scores(metrics=metrics, headline=self.metric, units={"kl": "nats"})

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B E"]:
        return backbone.encode_image(batch.images)

    def _neighbour_overlap(self, ours: Float[Tensor, "n E"], theirs: Float[Tensor, "n E"]) -> Float[Tensor, " n"]:
        near, near_exact = (_others(normalize(each, dim=-1).numpy(), self.num_neighbours) for each in (ours, theirs))
        shares = [len(a & b) / len(b) for a, b in zip(near, near_exact, strict=True)]
        return torch.tensor(shares)


def _given(backbone: Backbone, batch: Batch) -> _Given:
    embedding, classes = backbone.embed_and_classify(batch.images)
    return embedding.float().cpu(), None if classes is None else classes.float().cpu()


def _others(embeddings: NDArray[np.float32], k: int) -> Sequence[set[int]]:
    """The k nearest rows to each row, itself left out."""
    found, _ = nearest(embeddings, embeddings, k + 1)
    return [set([other for other in row if other != own][:k]) for own, row in enumerate(found.tolist())]
