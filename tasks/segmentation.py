"""Semantic segmentation: mIoU over the data set with a linear head on frozen patch tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.nn.functional import interpolate

from fnabench.contract import Task
from fnabench.data.base import IGNORE_INDEX, Sample
from fnabench.errors import BadInputError
from fnabench.linear_head import fit_linear_head
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone, Model
from fnabench.scores import SampleScores, Scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Logits of a linear head on the patch tokens, upsampled (bilinear) to the size of the labels.

    Intersection and union are added up over the data set; the mean goes over the classes that occur. Pixels of
    IGNORE_INDEX do not count. The head is a logistic regression on the patches of the training split, each with the
    share of every class among its pixels, fitted with exact attention.
    """

    whole_image: ClassVar[bool] = True

    @property
    def metric(self) -> str:
        return "miou"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"patches"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"mask"})

    def fits(self, model: Model) -> bool:
        return True

    def fit(self, backbone: Backbone, loader: Loader) -> dict[str, Tensor]:
        num_classes = len(loader.source.mask_names)
        features, targets, groups = [], [], []
        for batch in loader:
            grid = backbone.patch_grid(batch.images)
            features.append(self.forward(backbone, batch).flatten(0, 1).float().cpu())
            for sample in batch.samples:
                targets.append(shares(_mask(sample, num_classes), grid, num_classes))
                groups += [len(targets)] * (grid[0] * grid[1])
        return fit_linear_head(torch.cat(features), torch.cat(targets), groups)

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        num_classes = len(loader.source.mask_names)
        ids: list[str] = []
        intersections, unions, predictions = [], [], []
        for batch in loader:
            height, width = backbone.patch_grid(batch.images)
            logits = self.forward(backbone, batch).float().cpu() @ fitted["weight"].T + fitted["bias"]  # [B, N, K]
            maps = logits.mT.reshape(len(logits), num_classes, height, width)
            predictions.append(logits.argmax(-1).numpy())
            for sample, logit in zip(batch.samples, maps, strict=True):
                mask = _mask(sample, num_classes)
                upsampled = interpolate(logit[None], size=mask.shape, mode="bilinear", align_corners=False)[0]
                intersection, union = overlap(upsampled.argmax(0).numpy(), mask, num_classes)
                intersections.append(intersection)
                unions.append(union)
                ids.append(sample.id)
        miou = SampleScores(
            ids=tuple(ids),
            clusters=tuple(ids),
            numerator=np.array(intersections, dtype=np.float64),
            denominator=np.array(unions, dtype=np.float64),
            predictions=np.concatenate(predictions),
        )
        return Scores(metrics={self.metric: miou}, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B N C"]:
        return backbone.encode_patches(batch.images)


def overlap(
    predicted: NDArray[np.int64], mask: NDArray[np.uint8], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of intersection and of union [K] of one image; ignored pixels count for neither."""
    counts = mask != IGNORE_INDEX
    pairs = num_classes * mask[counts].astype(np.int64) + predicted[counts]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    intersection = np.diag(confusion)
    return intersection, confusion.sum(0) + confusion.sum(1) - intersection


def shares(mask: NDArray[np.uint8], grid: tuple[int, int], num_classes: int) -> Float[Tensor, "N K"]:
    """The share of every class among the pixels of each patch; ignored pixels belong to none."""
    planes = torch.from_numpy(mask[None] == np.arange(num_classes, dtype=np.uint8)[:, None, None])
    return torch.nn.functional.adaptive_avg_pool2d(planes.float(), grid).flatten(1).T


def _mask(sample: Sample, num_classes: int) -> NDArray[np.uint8]:
    if sample.mask is None:
        raise BadInputError(f"sample {sample.id} has no mask")
    values = np.unique(sample.mask)
    if unknown := [int(value) for value in values if value >= num_classes and value != IGNORE_INDEX]:
        raise BadInputError(
            f"the mask of {sample.id} has the value {unknown[0]}; allowed are the classes 0..{num_classes - 1} and "
            f"{IGNORE_INDEX}, which is ignored"
        )
    return sample.mask
