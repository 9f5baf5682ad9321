"""How many landmarks, and in which layers: chosen by a fidelity that the user sets and by times taken on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from fnabench.attention.base import Attention, AttentionShape
from fnabench.attention.exact import Exact
from fnabench.cost import Forward, attach_alone, capture_inputs, core_arm
from fnabench.divergence import kl_divergence
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.loader import Batch
from fnabench.models.base import Backbone
from fnabench.sdpa import fastest_backend
from fnabench.timing import interleave

if TYPE_CHECKING:
    from torch import Tensor

    Outputs = list[tuple[Tensor, Tensor | None]]


MEASURES = ("kl", "cosine")
"""Of a model with a classification head, and of one without."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The fidelity to keep, and what is tried."""

    max_kl: float = 1e-3
    """Largest mean KL(exact || variant) of the class probabilities, in nats."""
    min_cosine: float = 0.999
    """Smallest mean cosine of the image embeddings, for models without a classification head."""
    num_images: int = 32
    num_landmarks: tuple[int, ...] = (16, 32, 48, 64, 96, 128, 192)
    num_rounds: int = 3

    def __post_init__(self) -> None:
        if not (self.max_kl > 0 and 0 < self.min_cosine < 1):
            raise BadInputError(
                f"budget.max_kl={self.max_kl} must be above 0 and budget.min_cosine={self.min_cosine} between 0 and 1"
            )
        if min(self.num_images, self.num_rounds, *self.num_landmarks, len(self.num_landmarks)) < 1:
            raise BadInputError("budget.num_images, budget.num_rounds and all budget.num_landmarks must be at least 1")

    def check(self, attention: Attention) -> None:
        """Raise ImpossibleError for a variant that has nothing to choose."""
        if not is_dataclass(attention) or "num_landmarks" not in {each.name for each in fields(attention)}:
            raise ImpossibleError(
                f"budget=auto chooses attention.num_landmarks, which {type(attention).__name__} has not; "
                "use one that has, such as attention=fna_refined, or budget=fixed"
            )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a budget came to on one model and device."""

    num_landmarks: int
    layers: tuple[int, ...]
    measure: str
    """One of MEASURES."""
    fidelity: float
    """The mean of that measure over the calibration images."""
    time_ratio: float
    """Exact over variant: the attention of these layers alone."""

    def state(self) -> dict[str, Tensor]:
        """The choice as tensors, to be kept."""
        numbers = {name: getattr(self, name) for name in ("num_landmarks", "layers", "fidelity", "time_ratio")}
        numbers["measure"] = MEASURES.index(self.measure)
        return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Choice:
        """The choice that `state` gave."""
        return cls(
            num_landmarks=int(state["num_landmarks"]),
            layers=tuple(int(index) for index in state["layers"]),
            measure=MEASURES[int(state["measure"])],
            fidelity=float(state["fidelity"]),
            time_ratio=float(state["time_ratio"]),
        )


@dataclass(frozen=True, kw_only=True)
class TowerCost:
    """Milliseconds of attention in one tower with one number of landmarks; its layers are alike."""

    layers: range
    exact: float
    """One layer."""
    first: float
    """The first replaced layer, landmark selection included."""
    further: float
    """Each replaced layer after it."""

    def variant(self, chosen: Iterable[int]) -> float:
        """What those of the chosen layers take that are of this tower."""
        number = sum(index in self.layers for index in chosen)
        return self.first + (number - 1) * self.further if number else 0.0

    def saved(self, chosen: Iterable[int]) -> float:
        """Of the time that exact attention takes in them."""
        return self.exact * sum(index in self.layers for index in chosen) - self.variant(chosen)


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """A backbone, a variant for it, and what the two are compared on."""

    backbone: Backbone
    attention: Any
    """An Attention that Budget.check lets pass."""
    chunks: Sequence[Any]
    """The calibration images, in one tensor or in tiles each."""
    forward: Forward
    batch: Batch
    """What attention is timed on."""
    seed: int = 0
    on_step: Callable[[], None] = lambda: None
    """Told of every fidelity that was measured: at most one for each number of landmarks and one for each layer."""

    def choose(self, budget: Budget) -> Choice:
        """Of the choices that keep the fidelity the one that saves most time; ImpossibleError if none saves any.

        From few landmarks to many, layers are added from the last one forwards for as long as the fidelity is kept.
        Towers in which exact attention is faster are left alone.
        """
        with torch.inference_mode():
            costs = self._costs(budget)
            exact = self._outputs(Exact(), [])
            measure = "cosine" if exact[0][1] is None else "kl"
            kept: list[tuple[int, list[int], float]] = []
            depth, nearest = 0, ""
            for number, towers in costs.items():
                layers = [index for tower in towers if tower.saved(tower.layers) > 0 for index in tower.layers]
                while depth < len(layers):
                    chosen = layers[-depth - 1 :]
                    fidelity = self._fidelity(number, chosen, exact, measure)
                    if not (fidelity <= budget.max_kl if measure == "kl" else fidelity >= budget.min_cosine):
                        nearest = f"; {number} landmarks in block {chosen[0]} on give {measure}={fidelity:.2g}"
                        break
                    kept.append((number, chosen, fidelity))
                    depth += 1
        saved = [sum(tower.saved(layers) for tower in costs[number]) for number, layers, _ in kept]
        most = max(saved, default=0.0)
        if most <= 0:
            raise ImpossibleError(self._why_none(budget, nearest))
        number, layers, fidelity = kept[saved.index(most)]
        return Choice(
            num_landmarks=number,
            layers=tuple(layers),
            measure=measure,
            fidelity=fidelity,
            time_ratio=1 + most / sum(tower.variant(layers) for tower in costs[number]),
        )

    def _variant(self, num_landmarks: int) -> Attention:
        return replace(self.attention, num_landmarks=num_landmarks)  # type: ignore[no-any-return]

    def _costs(self, budget: Budget) -> dict[int, list[TowerCost]]:
        """By number of landmarks, of those that this model admits, the cost in each tower."""
        captured = capture_inputs(self.backbone, list(self.backbone.layers), self.forward, self.batch)
        shapes = [layer.shape(inputs.q.shape[2]) for layer, inputs in zip(self.backbone.layers, captured, strict=True)]
        costs: dict[int, list[TowerCost]] = {}
        ends = list(accumulate(self.backbone.layers.depths))
        for first, end in zip([0, *ends], ends, strict=False):
            pair = captured[max(first, end - 2) : end]
            numbers = [number for number in sorted(budget.num_landmarks) if _fits(self._variant(number), shapes[first])]
            backend = fastest_backend(pair[0], self.batch.images.device)
            arms = {"exact": core_arm(Exact(), pair[:1], backend)}
            for number in numbers:
                arms |= {
                    f"{number} in {n}": core_arm(self._variant(number), pair[:n], backend)
                    for n in range(1, len(pair) + 1)
                }
            timings = interleave(arms, budget.num_rounds, self.batch.images.device, self.seed)
            times = {name: float(np.median(timings.per_round(name))) for name in arms}
            for number in numbers:
                one, both = times[f"{number} in 1"], times[f"{number} in {len(pair)}"]
                cost = TowerCost(
                    layers=range(first, end),
                    exact=times["exact"],
                    first=one,
                    further=both - one if len(pair) > 1 else 0.0,
                )
                costs.setdefault(number, []).append(cost)
        return costs

    def _fidelity(self, num_landmarks: int, layers: Sequence[int], exact: Outputs, measure: str) -> float:
        """The mean of the measure over the calibration images with these layers replaced."""
        self.on_step()
        per_image = []
        for ours, theirs in zip(self._outputs(self._variant(num_landmarks), layers), exact, strict=True):
            if measure == "kl":
                assert ours[1] is not None
                assert theirs[1] is not None
                per_image.append(kl_divergence(theirs[1], ours[1]))
            else:
                per_image.append(cosine_similarity(ours[0], theirs[0]))
        return float(torch.cat(per_image).mean())

    def _outputs(self, core: Attention, layers: Sequence[int]) -> Outputs:
        """Embeddings and, where there is a head, logits of every chunk."""
        attach_alone(self.backbone, core, [self.backbone.layers[index] for index in layers])
        outputs = [self.backbone.embed_and_classify(images) for images in self.chunks]
        self.backbone.layers.detach()
        return [(embedding.float(), None if logits is None else logits.float()) for embedding, logits in outputs]

    def _why_none(self, budget: Budget, nearest: str) -> str:
        asked = f"budget.num_landmarks={list(budget.num_landmarks)}"
        if nearest:
            wanted = f"max_kl={budget.max_kl} (or min_cosine={budget.min_cosine} without a classification head)"
            return f"budget=auto: none of {asked} keeps budget.{wanted}{nearest}; allow more, or use budget=fixed"
        return f"budget=auto: exact attention is faster here with every number of {asked}; use attention=exact"


def _fits(core: Attention, shape: AttentionShape) -> bool:
    try:
        core.check(shape)
    except ImpossibleError:
        return False
    return True
