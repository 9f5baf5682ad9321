"""Multinomial logistic regression on frozen features, the penalty chosen on held-out samples.

Each fit is run to its end, so that there is no learning rate to choose: the penalty takes its place in the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import log_softmax

from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Head = tuple[Float[Tensor, "K C"], Float[Tensor, " K"]]

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The grid, from the strongest on, so that each fit can start where the one before it ended; it is left once the
held-out cross-entropy rises."""
HELD_OUT = 5
"""Every fifth group of samples is held out while the penalty is chosen."""
NUM_ITERATIONS = 100
TOLERANCE = 1e-5
"""A fit ends when a step gains less cross-entropy than this."""


def fit_linear_head(
    features: Float[Tensor, "n C"], targets: Float[Tensor, "n K"], groups: Sequence[int]
) -> dict[str, Tensor]:
    """Weight [K, C] and bias [K] for raw features, the chosen penalty, and each tried one's held-out cross-entropy.

    Targets are distributions over K classes; a row of zeros does not count. Samples of one group, such as the patches
    of an image, are held out together. Features are standardised for the fit and the scale folded into the weight.
    """
    if len(set(groups)) < 2:
        raise BadInputError("a linear head cannot be fitted on one training sample; give a training split with more")
    features, targets = features.float(), targets.float()
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    standard = (features - mean) / scale
    held_out = torch.unique(torch.tensor(groups), return_inverse=True)[1] % HELD_OUT == 0
    start = torch.zeros(targets.shape[1], features.shape[1]), torch.zeros(targets.shape[1])
    path: dict[float, Head] = {}
    losses: dict[float, float] = {}
    for penalty in PENALTIES:
        path[penalty] = start = _minimise(standard[~held_out], targets[~held_out], penalty, start)
        losses[penalty] = float(_loss(standard[held_out], targets[held_out], *start))
        if losses[penalty] > min(losses.values()):
            break
    penalty = min(losses, key=losses.__getitem__)
    weight, bias = _minimise(standard, targets, penalty, path[penalty])
    weight = weight / scale
    return {
        "weight": weight, "bias": bias - weight @ mean, "penalty": torch.tensor(penalty),
        "held_out_losses": torch.tensor(list(losses.values())),
    }  # fmt: skip


def _minimise(features: Float[Tensor, "n C"], targets: Float[Tensor, "n K"], penalty: float, start: Head) -> Head:
    """Weight and bias of the least penalised cross-entropy, by L-BFGS."""
    with torch.inference_mode(False), torch.enable_grad():
        features, targets = features.clone(), targets.clone()
        weight, bias = (part.clone().requires_grad_() for part in start)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=NUM_ITERATIONS, tolerance_change=TOLERANCE, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimiser.zero_grad()
            loss = _loss(features, targets, weight, bias) + penalty * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _loss(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits = features @ weight.T + bias
    return -(targets * log_softmax(logits, -1)).sum() / targets.sum().clamp_min(1)
