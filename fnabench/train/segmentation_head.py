"""The bundled CLIP's linear segmentation head, fitted on its frozen patch tokens, and its mIoU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fnabench.data.base import IGNORE_INDEX
from fnabench.data.scenes import Scenes
from fnabench.models.bundled_towers import Clip
from fnabench.train.batches import Batches, normalize


def fit_segmentation_head(model: Clip, batches: Batches, *, num_samples: int = 3000) -> None:
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


@torch.no_grad()
def measure_segmentation(model: Clip, source: Scenes) -> dict[str, float]:
    """mIoU in percent: intersections and unions over the data set, logits enlarged to the mask's size."""
    num_classes = len(source.mask_names)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for index in range(len(source)):
        picture = source.picture(index)
        tokens = model.encode_tokens(normalize(torch.from_numpy(picture.pixels[None])))[:, 1:]
        side = round(tokens.shape[1] ** 0.5)
        logits = model.segmentation(tokens).mT.unflatten(2, (side, side))
        logits = functional.interpolate(logits, picture.mask.shape, mode="bilinear", align_corners=False)
        predicted, truth = logits.argmax(dim=1).flatten(), torch.from_numpy(picture.mask).long().flatten()
        counts = truth != IGNORE_INDEX
        pairs = truth[counts] * num_classes + predicted[counts]
        confusion += torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    hits = confusion.diag().double()
    return {"miou": round(100 * float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean()), 2)}


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
