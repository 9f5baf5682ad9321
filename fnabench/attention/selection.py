"""From the inputs of a layer to its landmarks: in which space, by which method, how often."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Self

import torch

from fnabench.attention.landmarks import Landmarks, check_landmarks, farthest_points
from fnabench.attention.sampling import first_of_order, golden_order, move_to_means, random_order, random_pivots
from fnabench.errors import BadInputError, one_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from fnabench.attention.base import AttentionInputs, AttentionShape

FEATURES = ("input", "q", "k", "qk_concat")
METHODS = ("fps", "random", "grid", "kmeans", "rpcholesky")
RESAMPLE = ("forward", "layer")
SINKS_BY = ("mass", "sample", "norm")
NUM_SAMPLED = 32
"""Queries that sinks_by="sample" asks."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How many landmarks are chosen, and how.

    fps: farthest points in the space of the features. kmeans: farthest points, moved `num_refinements` times to the
    token nearest to the mean of their cell. rpcholesky: randomly pivoted Cholesky of a Gaussian kernel of the features
    (arXiv 2207.06503). grid: evenly spaced in the order of the tokens. random: uniform. Prefix tokens are always
    landmarks. What is drawn at random is the same for all images, so that none depends on its batch, and comes
    from the host, for which a GPU has to wait; it waits for nothing else after the first call.
    """

    num_landmarks: int
    features: str = "input"
    """The block's "input" before its LayerNorm, the head mean of "q" or "k", or "qk_concat", all heads side by side."""
    sketch: int = 0
    """Wider features are projected to so many random dimensions, which keeps distances (Johnson and Lindenstrauss,
    1984) to about a part in sqrt(sketch); 0: never."""
    method: str = "fps"
    num_refinements: int = 2
    """Of method="kmeans"."""
    resample: str = "forward"
    """New landmarks once a "forward" (the first replaced layer's serve all later ones) or at each "layer"."""
    num_sinks: int = 0
    """So many patches are landmarks for certain: those with the largest incoming attention mass or norm."""
    sinks_by: str = "mass"
    """"mass": attention of the mean query, averaged over heads; "sample": of 32 queries, which finds sinks that only
    some of the queries look at as well; "norm": of the block's input."""
    per_head: bool = False
    """Each head has its own landmarks; H selections."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_landmarks < 1:
            raise BadInputError(f"num_landmarks={self.num_landmarks} must be at least 1")
        for name in ("num_refinements", "num_sinks", "sketch"):
            if getattr(self, name) < 0:
                raise BadInputError(f"{name}={getattr(self, name)} must be at least 0")
        for name, allowed in (
            ("features", FEATURES), ("method", METHODS), ("resample", RESAMPLE), ("sinks_by", SINKS_BY),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise one_of(name, getattr(self, name), allowed)
        if self.per_head and (self.features == "input" or (self.num_sinks and self.sinks_by == "norm")):
            raise BadInputError(
                "per_head=true needs what differs between heads: features=q, k or qk_concat, and sinks_by=mass or "
                "sample; the block's input is the same for all"
            )

    def check(self, shape: AttentionShape) -> None:
        """Raise ImpossibleError if a layer of this shape has too few tokens; a causal one never has."""
        if not shape.is_causal:
            check_landmarks(self.num_landmarks, shape.num_tokens, shape.num_prefix, self.num_sinks)

    @classmethod
    def of(cls, variant: object, num_landmarks: int) -> Self:
        """The selection that a variant's own settings of the same names describe."""
        return cls(num_landmarks=num_landmarks, **{name: getattr(variant, name) for name in _SHARED})

    def points(self, inputs: AttentionInputs) -> Float[Tensor, "B N F"]:
        """One vector a token, whose distances decide."""
        features = features_of(inputs, self.features)
        if not 0 < self.sketch < features.shape[-1]:
            return features
        return features @ _projection(features.shape[-1], self.sketch, self.seed, features.device)

    def num_features(self, shape: AttentionShape) -> int:
        """Width of `points`."""
        return self._widths(shape)[1]

    def _widths(self, shape: AttentionShape) -> tuple[int, int]:
        """Of the features, and of what is left of them."""
        full = {"input": shape.num_channels, "qk_concat": 2 * shape.num_heads * shape.head_dim}
        width = full.get(self.features, shape.head_dim)
        return width, min(width, self.sketch or width)

    def choose(
        self, inputs: AttentionInputs, features: Float[Tensor, "B N F"], allowed: Bool[Tensor, "B N"] | None
    ) -> Landmarks:
        """The landmarks of these inputs, of which `points` gives the features; ImpossibleError if they do not fit."""
        m, num_prefix = self.num_landmarks, inputs.num_prefix
        check_landmarks(m, features.shape[1], num_prefix, self.num_sinks)
        sinks = self.sinks(inputs, allowed)
        if self.method in ("grid", "random"):
            num_tokens, device = features.shape[1], features.device
            order = golden_order(num_tokens, device)
            if self.method == "random":
                order = random_order(num_tokens, device, self.seed + inputs.layer)
            return first_of_order(order.expand(len(features), -1), m, num_prefix, allowed, sinks)
        if self.method == "rpcholesky":
            return random_pivots(features, m, num_prefix, self.seed + inputs.layer, allowed, sinks)
        landmarks = farthest_points(features, m, num_prefix, allowed, sinks)
        for _ in range(self.num_refinements if self.method == "kmeans" else 0):
            landmarks = move_to_means(features, landmarks, num_prefix, self.num_sinks, allowed)
        return landmarks

    def sinks(self, inputs: AttentionInputs, allowed: Bool[Tensor, "B N"] | None) -> Int[Tensor, "B S"] | None:
        """The patches that are landmarks for certain; None where none is asked for."""
        return likely_sinks(inputs, self.num_sinks, self.sinks_by, allowed) if self.num_sinks else None

    def macs(self, shape: AttentionShape) -> int:
        """Multiply-accumulates of one selection for one image."""
        n, m, (full, width) = shape.num_tokens, self.num_landmarks, self._widths(shape)
        products = {"grid": 0, "random": 0, "fps": 1, "rpcholesky": 1, "kmeans": 1 + 2 * self.num_refinements}
        pivots = n * m * (m - 1) // 2 if self.method == "rpcholesky" else 0
        num_queries = {"mass": 1, "sample": min(NUM_SAMPLED, n), "norm": 0}[self.sinks_by] if self.num_sinks else 0
        sinks = num_queries * n * shape.num_heads * shape.head_dim
        projection = n * full * width if width < full else 0
        return products[self.method] * n * m * width + pivots + sinks + projection


_SHARED = tuple(field.name for field in fields(Selection) if field.name != "num_landmarks")


def features_of(inputs: AttentionInputs, features: str) -> Float[Tensor, "B N F"]:
    """One vector a token in fp32, by one of FEATURES."""
    if features == "input":
        return inputs.x.float()
    if features in ("q", "k"):
        tokens = inputs.q if features == "q" else inputs.k
        return tokens.mean(1, dtype=torch.float32)
    return torch.cat([tokens.transpose(1, 2).flatten(2).float() for tokens in (inputs.q, inputs.k)], -1)


@cache
def _projection(width: int, sketch: int, seed: int, device: torch.device) -> Float[Tensor, "F sketch"]:
    """Orthonormal directions, the same ones for a seed."""
    drawn = torch.randn(width, sketch, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode(False):  # kept for callers in and out of it
        directions: Tensor = torch.linalg.qr(drawn)[0]
        return directions.to(device)


def likely_sinks(
    inputs: AttentionInputs, num_sinks: int, by: str, allowed: Bool[Tensor, "B N"] | None = None
) -> Int[Tensor, "B S"]:
    """The allowed patches with the largest incoming attention mass or norm, by one of SINKS_BY; N C MACs a query."""
    if by == "norm":
        score = inputs.x.float().norm(dim=-1)
    else:
        queries, weight = _mean_query(inputs.q, allowed) if by == "mass" else _sampled_queries(inputs.q, allowed)
        logits = inputs.scale * inputs.k.float() @ queries.mT  # [B, H, N, Q]
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, None, :, None], -torch.inf)
        score = (logits.softmax(-2).mean(1) * weight[:, None]).sum(-1)
    if allowed is not None:
        score = score.masked_fill(~allowed, -1.0)
    score[:, : inputs.num_prefix] = -torch.inf  # landmarks already
    sinks: Tensor = score.topk(num_sinks, dim=1).indices
    return sinks


def _mean_query(
    q: Float[Tensor, "B H N D"], allowed: Bool[Tensor, "B N"] | None
) -> tuple[Float[Tensor, "B H 1 D"], Float[Tensor, "B 1"]]:
    """Of the allowed tokens, and that it is all there is."""
    if allowed is None:
        mean = q.mean(2, keepdim=True, dtype=torch.float32)
    else:
        mean = (q.float() * allowed[:, None, :, None]).sum(2, keepdim=True)
        mean = mean / allowed.sum(1).clamp_min(1)[:, None, None, None]
    return mean, mean.new_ones(len(mean), 1)


def _sampled_queries(
    q: Float[Tensor, "B H N D"], allowed: Bool[Tensor, "B N"] | None
) -> tuple[Float[Tensor, "B H Q D"], Float[Tensor, "B Q"]]:
    """Of tokens that are spread evenly, and 1 where one is allowed: all of them are, as long as there are enough."""
    B, _, N, _ = q.shape
    order = golden_order(N, q.device).expand(B, -1)
    chosen = first_of_order(order, min(NUM_SAMPLED, N), 0, allowed)
    valid = torch.ones_like(chosen.index) if chosen.valid is None else chosen.valid
    return chosen.gather(q).float(), valid.float()


def one_head_each(inputs: AttentionInputs) -> AttentionInputs:
    """Every head of every image as an image of its own, so that each has its own landmarks."""
    q, k, v = (tokens.flatten(0, 1)[:, None] for tokens in (inputs.q, inputs.k, inputs.v))
    mask = None if inputs.mask is None else inputs.mask.expand(len(inputs.q), *inputs.mask.shape[1:])
    mask = None if mask is None else mask.repeat_interleave(inputs.q.shape[1], 0)
    return replace(inputs, q=q, k=k, v=v, mask=mask)
