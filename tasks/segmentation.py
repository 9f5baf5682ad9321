"""Semantic segmentation: mIoU over the data set with a linear head on frozen patch tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image

from fnabench.contract import Task
from fnabench.data.base import IGNORE_INDEX, Sample, Source
from fnabench.decoded import Decoded
from fnabench.errors import BadInputError, ImpossibleError, one_of
from fnabench.identity import LOCATION
from fnabench.linear_head import fit_linear_head
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.released_head import read_released_head
from fnabench.scores import SampleScores, Scores
from fnabench.windows import Box, cover, stitch

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

    from fnabench.loader import Transform

Look = TypeVar("Look")
INFERENCES = ("whole", "slide")
WINDOW, STRIDE = 1.0, 2 / 3
"""Of DINOv2's protocol."""
_LARGEST = {"window": inf, "stride": 1}


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Logits of a linear head on the patch tokens, upsampled (bilinear) to the size of the labels.

    whole: the image is resized to the model's input as a whole. slide: windows of it are, and where they overlap the
    mean of the logits counts. A window of 1 is the largest part of the image with the proportions of the model's input,
    the stride is in windows. Cost is that of one input of the model either way.

    Intersection and union are added up over the data set; the mean goes over the classes that occur. Pixels of
    IGNORE_INDEX do not count. The head is one that DINOv2 released, or a logistic regression on the patches of the
    training split, each with the share of every class among its pixels, fitted with exact attention.
    """

    whole_image: ClassVar[bool] = True

    inference: str = "whole"
    window: float | None = None
    """None: 1. Of slide alone, as is the stride."""
    stride: float | None = None
    """None: 2/3."""
    head: str | None = field(default=None, metadata=LOCATION)

    def __post_init__(self) -> None:
        if self.inference not in INFERENCES:
            raise one_of("task.inference", self.inference, INFERENCES)
        given = {name: value for name in ("window", "stride") if (value := getattr(self, name)) is not None}
        if given and self.inference != "slide":
            named = " and ".join(f"task.{name}={value}" for name, value in given.items())
            raise BadInputError(f"{named} is of sliding windows; give task.inference=slide or leave it out")
        if not all(isinstance(value, int | float) and 0 < value <= _LARGEST[name] for name, value in given.items()):
            raise BadInputError(
                f"task.window={self.window} must be above 0, task.stride={self.stride} above 0 and at most 1"
            )

    @property
    def metric(self) -> str:
        return "miou"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"patches"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset({"mask"})

    @property
    def fitted_file(self) -> Path | None:
        return Path(self.head).expanduser() if self.head else None

    def check(self, model: Model, blueprint: Blueprint, source: Source) -> None:
        super().check(model, blueprint, source)
        if self.fitted_file is None:
            return
        num_classes, num_channels = self.read_fitted(self.fitted_file)["weight"].shape
        if num_classes != len(source.mask_names):
            raise ImpossibleError(
                f"task.head={self.head} knows {num_classes} classes, this data has {len(source.mask_names)}; "
                "choose the head of this data set"
            )
        if num_channels != blueprint.shapes[-1].num_channels:
            raise ImpossibleError(
                f"task.head={self.head} takes {num_channels} channels a patch, this model gives "
                f"{blueprint.shapes[-1].num_channels}; choose the linear head of this model (one named ms takes four "
                "layers at once and cannot be used)"
            )

    def fits(self, model: Model) -> bool:
        return self.head is None

    def read_fitted(self, path: Path) -> dict[str, Tensor]:
        return read_released_head(path)

    def fit(self, backbone: Backbone, loader: Loader) -> dict[str, Tensor]:
        num_classes = len(loader.source.mask_names)

        def shown(view: _View) -> tuple[Tensor, Tensor]:
            targets = [shares(view.mask[box.pixels], view.grid, num_classes) for box in view.boxes]
            return view.tokens.flatten(0, 1), torch.cat(targets)

        features, targets = zip(*self._looks(backbone, loader, shown), strict=True)
        groups = [number for number, rows in enumerate(targets) for _ in rows]
        return fit_linear_head(torch.cat(features), torch.cat(targets), groups, loader.device)

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        num_classes = len(loader.source.mask_names)

        def score(view: _View) -> tuple[str, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
            logits = view.tokens.float() @ fitted["weight"].T + fitted["bias"]  # [n, N, K]
            maps = logits.mT.reshape(len(logits), num_classes, *view.grid)
            predicted = stitch(maps, view.boxes, view.mask.shape).max(0).indices.numpy()  # five times as fast as argmax
            return view.id, *overlap(predicted, view.mask, num_classes), _at_centres(predicted, view.grid)

        ids, intersections, unions, predictions = zip(*self._looks(backbone, loader, score), strict=True)
        miou = SampleScores(
            ids=ids,
            clusters=ids,
            numerator=np.array(intersections, dtype=np.float64),
            denominator=np.array(unions, dtype=np.float64),
            predictions=np.stack(predictions),
        )
        return Scores(metrics={self.metric: miou}, headline=self.metric)

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B N C"]:
        return backbone.encode_patches(batch.images)

    def _looks(self, backbone: Backbone, loader: Loader, look: Callable[[_View], Look]) -> Iterator[Look]:
        """What `look` makes of every sample as the model sees it."""
        num_classes = len(loader.source.mask_names)
        if self.inference == "whole":

            def looks(batch: Batch) -> list[Look]:
                grid, found = backbone.patch_grid(batch.images), self.forward(backbone, batch).cpu()
                masks = [_mask(sample, num_classes) for sample in batch.samples]
                return [
                    look(_View(sample.id, mask, [Box(0, 0, *mask.shape)], tokens[None], grid))
                    for sample, mask, tokens in zip(batch.samples, masks, found, strict=True)
                ]

            for _, made in loader.through(looks):
                yield from made
            return
        height, width = loader.transform(Image.new("RGB", (32, 32))).shape[-2:]
        window, stride = self.window or WINDOW, self.stride or STRIDE
        boxes_of = partial(cover, proportions=(height, width), window=window, stride=stride)
        cut: Transform = partial(_cut, boxes_of=boxes_of, transform=loader.transform)
        if isinstance(loader.transform, Decoded):
            cut = loader.transform.then(cut, window, stride)
        for batch in replace(loader, transform=cut, batch_size=1):  # images differ in their number of windows
            (windows,), (sample,) = batch.images, batch.samples
            tokens = torch.cat([backbone.encode_patches(some) for some in windows.split(loader.batch_size)])
            mask = _mask(sample, num_classes)
            yield look(_View(sample.id, mask, boxes_of(mask.shape), tokens.cpu(), backbone.patch_grid(windows)))


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


@dataclass(frozen=True)
class _View:
    """A sample through one or more boxes."""

    id: str
    mask: NDArray[np.uint8]
    boxes: list[Box]
    tokens: Float[Tensor, "n N C"]
    """On the CPU, one row a box."""
    grid: tuple[int, int]


def _cut(
    image: Image.Image, boxes_of: Callable[[tuple[int, int]], list[Box]], transform: Transform
) -> Float[Tensor, "n 3 height width"]:
    """The windows of an image, each resized to the model's input."""
    boxes = boxes_of((image.height, image.width))
    return torch.stack([transform(image.crop((left, top, right, bottom))) for top, left, bottom, right in boxes])


def _at_centres(predicted: NDArray[np.int64], grid: tuple[int, int]) -> NDArray[np.int64]:
    """The class at the centre of each cell of a grid over the image."""
    rows, columns = (
        ((np.arange(count) + 0.5) * edge / count).astype(int) for count, edge in zip(grid, predicted.shape, strict=True)
    )
    return predicted[np.ix_(rows, columns)].ravel()
