"""The bundled CLIP's linear segmentation head, fitted on its frozen patch tokens, and its mIoU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fnabench.data.base import IGNORE_INDEX
from fnabench.models.bundled_towers import Clip
from fnabench.train.batches import Batches


def fit_segmentation_head(model: Clip, batches: Batches, *, num_samples: int = 1500) -> None:
    """Replace the head by softmax regression on the patch tokens of num_samples scenes (L-BFGS, 60 steps).

    The target of a patch is the share of each class among its pixels.
    """
    tokens, shares = _collect_patches(model, batches, num_samples)
    head = nn.Linear(tokens.shape[1], shares.shape[1])
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), lr=1.0, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(head(tokens), shares) + 1e-5 * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    model.segmentation.load_state_dict(head.state_dict())


def count_pixels(logits: Tensor, masks: Tensor) -> Tensor:
    """Pixels by true and predicted class [classes, classes] for patch logits [B, N, classes] and masks [B, H, W].

    The logits are enlarged to the size of the masks; ignored pixels do not count.
    """
    side, num_classes = round(logits.shape[1] ** 0.5), logits.shape[2]
    grid = logits.mT.unflatten(2, (side, side))  # type: ignore[no-untyped-call]
    large = functional.interpolate(grid, masks.shape[1:], mode="bilinear", align_corners=False)
    predicted, truth = large.argmax(dim=1), masks.long()
    counted = truth != IGNORE_INDEX
    pairs = truth[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def mean_iou(confusion: Tensor) -> float:
    """Mean over the classes that occur of intersection over union, from pixels by true and predicted class."""
    hits = confusion.diag().double()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
    return float((hits[union > 0] / union[union > 0]).mean())


@torch.no_grad()
def _collect_patches(model: Clip, batches: Batches, num_samples: int) -> tuple[Tensor, Tensor]:
    """Patch tokens [n, C] and class shares [n, classes]: every patch of things, one in four of the ground."""
    generator = torch.Generator().manual_seed(0)
    tokens, shares = [], []
    for first in range(0, num_samples, 50):
        batch = batches.take(first, min(50, num_samples - first))
        wanted = batch.shapes.flatten(2).mT.flatten(0, 1)
        keep = (wanted[:, 0] < 1) | (torch.rand(len(wanted), generator=generator) < 0.25)
        tokens.append(model.encode_tokens(batch.images)[:, 1:].flatten(0, 1)[keep])
        shares.append(wanted[keep])
    return torch.cat(tokens), torch.cat(shares)
