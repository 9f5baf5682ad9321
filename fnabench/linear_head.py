"""Multinomial logistic regression on frozen features, the penalty chosen on held-out samples.

Each fit is run to its end, so that there is no learning rate to choose: the penalty takes its place in the grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import log_softmax

from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

    Head = tuple[Float[Tensor, "K C"], Float[Tensor, " K"]]

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The grid, from the strongest on, so that each fit can start where the one before it ended; it is left once the
held-out cross-entropy rises."""
HELD_OUT = 5
"""Every fifth group of samples is held out while the penalty is chosen."""
ROWS_ON_GPU = 65536
"""So many samples are in float32 at once there: with their 1,000 classes about a GiB."""
NUM_ITERATIONS = 100
TOLERANCE = 1e-5
"""A fit ends when a step gains less cross-entropy than this."""


def fit_linear_head(
    features: Shaped[Tensor, "n C"],
    targets: Shaped[Tensor, "n K"],
    groups: Sequence[int],
    device: torch.device | None = None,
    rows_at_once: int | None = None,
) -> dict[str, Tensor]:
    """Weight [K, C] and bias [K] for raw features, the chosen penalty, and each tried one's held-out cross-entropy.

    Targets are distributions over K classes; a row of zeros does not count. Samples of one group, such as the patches
    of an image, are held out together. Features are standardised for the fit and the scale folded into the weight.

    The fit runs on the device in float32, whatever dtype is given, on so many rows at once: by default on all of them
    on a CPU and on ROWS_ON_GPU on a GPU.
    """
    if len(set(groups)) < 2:
        raise BadInputError("a linear head cannot be fitted on one training sample; give a training split with more")
    device = device or features.device
    rows_at_once = rows_at_once or (len(features) if device.type == "cpu" else ROWS_ON_GPU)
    with torch.inference_mode(False), torch.no_grad():
        features, targets = _near(features, device), _near(targets, device)
        mean, scale = _moments(features, device, rows_at_once)
        if not (mean.isfinite().all() and scale.isfinite().all()):
            raise BadInputError("a linear head cannot be fitted on features whose mean or deviation is not finite")
        held_out = torch.unique(torch.tensor(groups), return_inverse=True)[1] % HELD_OUT == 0

        def choose(chosen: Bool[Tensor, " n"]) -> _Samples:
            rows = torch.split(chosen.nonzero()[:, 0], rows_at_once)
            return _Samples(features, targets, rows, mean, scale)

        fitted, unseen = choose(~held_out), choose(held_out)
        start = (
            torch.zeros(targets.shape[1], features.shape[1], device=device),
            torch.zeros(targets.shape[1], device=device),
        )
        path: dict[float, Head] = {}
        losses: dict[float, float] = {}
        for penalty in PENALTIES:
            path[penalty] = start = _minimise(fitted, penalty, start)
            losses[penalty] = float(torch.stack(list(unseen.losses(*start))).sum())
            if losses[penalty] > min(losses.values()):
                break
        penalty = min(losses, key=losses.__getitem__)
        weight, bias = _minimise(choose(torch.ones_like(held_out)), penalty, path[penalty])
        weight = weight / scale
        bias = bias - weight @ mean
    return {
        "weight": weight.cpu(), "bias": bias.cpu(), "penalty": torch.tensor(penalty),
        "held_out_losses": torch.tensor(list(losses.values())),
    }  # fmt: skip


class _Samples:
    """Some samples, a chunk of rows at a time on the device of the mean; a single chunk stays there."""

    def __init__(
        self, features: Tensor, targets: Tensor, rows: Sequence[Int[Tensor, " m"]], mean: Tensor, scale: Tensor
    ) -> None:
        self.features, self.targets, self.rows, self.mean, self.scale = features, targets, rows, mean, scale
        self.only = self._chunk(rows[0]) if len(rows) == 1 else None
        counts = [targets[chosen].to(mean.device).float().sum() for chosen in rows]
        self.count = torch.stack(counts).sum().clamp_min(1)

    def losses(self, weight: Tensor, bias: Tensor) -> Iterator[Float[Tensor, ""]]:
        """What each chunk adds to the mean cross-entropy."""
        for features, targets in [self.only] if self.only else map(self._chunk, self.rows):
            yield -(targets * log_softmax(features @ weight.T + bias, -1)).sum() / self.count

    def _chunk(self, rows: Int[Tensor, " m"]) -> tuple[Float[Tensor, "m C"], Float[Tensor, "m K"]]:
        """Standardised features, and targets."""
        features, targets = (each[rows].to(self.mean.device).float() for each in (self.features, self.targets))
        return (features - self.mean) / self.scale, targets


def _moments(
    features: Tensor, device: torch.device, rows_at_once: int
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Mean and standard deviation of every channel; in double precision where there are several chunks."""
    if len(features) <= rows_at_once:
        features = features.to(device).float()
        return features.mean(0), features.std(0).clamp_min(1e-6)
    chunks = torch.split(features, rows_at_once)
    mean = torch.stack([chunk.to(device).double().sum(0) for chunk in chunks]).sum(0) / len(features)
    squares = torch.stack([(chunk.to(device).double() - mean).square().sum(0) for chunk in chunks]).sum(0)
    return mean.float(), (squares / (len(features) - 1)).sqrt().float().clamp_min(1e-6)


def _minimise(samples: _Samples, penalty: float, start: Head) -> Head:
    """Weight and bias of the least penalised cross-entropy, by L-BFGS."""
    with torch.enable_grad():
        weight, bias = (part.clone().requires_grad_() for part in start)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=NUM_ITERATIONS, tolerance_change=TOLERANCE, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimiser.zero_grad()
            loss = penalty * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            for part in samples.losses(weight, bias):
                part.backward()  # type: ignore[no-untyped-call]
                loss = loss.detach() + part.detach()
            return float(loss.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _near(samples: Tensor, device: torch.device) -> Tensor:
    """On a GPU, unless that would fill half of what is free there: then chunks travel to it each time."""
    if device.type == "cpu" or 2 * samples.nbytes > torch.cuda.mem_get_info(device)[0]:
        return samples
    return samples.to(device)
