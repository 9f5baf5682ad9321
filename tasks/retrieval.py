"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fnabench.contract import Task
from fnabench.errors import BadInputError
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone
from fnabench.neighbours import nearest
from fnabench.scores import SampleScores, Scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TEXT_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Exact inner products of normalised embeddings in fp32 over the whole data set (faiss flat index).

    t2i: a caption's query counts as found when its image is among the first k. i2t: an image's query counts as found
    when ANY of its captions is. Samples of t2i are captions, clustered by image.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    """The headline is the first."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise BadInputError(f"task.ks={list(self.ks)} must be one number or more, each at least 1")

    @property
    def metric(self) -> str:
        return f"t2i_r{self.ks[0]}"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"embed", "text"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"captions"})

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        embedded = []
        ids: list[str] = []
        captions: list[str] = []
        owners: list[int] = []
        for samples, embeddings in loader.through(lambda batch: _normalised(self.forward(backbone, batch))):
            embedded.append(embeddings)
            for sample in samples:
                owners += [len(ids)] * len(sample.captions)
                captions += sample.captions
                ids.append(sample.id)
        chunks = _chunks(captions, TEXT_BATCH)
        texts = backbone.recall_texts(
            captions, lambda: torch.cat([_normalised(backbone.encode_text(c)) for c in chunks])
        )
        images, sentences, owner_of = torch.cat(embedded).numpy(), texts.numpy(), np.array(owners)
        image_of, _ = nearest(images, sentences, max(self.ks))  # [captions, k]
        caption_of, _ = nearest(sentences, images, max(self.ks))  # [images, k]
        found = {
            "t2i": image_of == owner_of[:, None],
            "i2t": owner_of[caption_of] == np.arange(len(ids))[:, None],
        }
        first = {"t2i": image_of[:, 0], "i2t": caption_of[:, 0]}
        numbered = tuple(f"{ids[owner]}#{number}" for number, owner in enumerate(owners))
        names = {"t2i": numbered, "i2t": tuple(ids)}
        clusters = {"t2i": tuple(ids[owner] for owner in owners), "i2t": tuple(ids)}
        metrics = {
            f"{way}_r{k}": SampleScores.mean_of(
                found[way][:, :k].any(1), names[way], clusters[way], first[way] if k == self.ks[0] else None
            )
            for way in ("t2i", "i2t")
            for k in self.ks
        }
        return Scores(metrics=metrics, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B E"]:
        return backbone.encode_image(batch.images)


def _normalised(embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()


def _chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
