"""Landmark selection: which M of the N real tokens stand for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fnabench.errors import one_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from fnabench.attention.base import AttentionInputs, AttentionShape


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """M distinct tokens per image; the prefix tokens come first."""

    index: Int[Tensor, "B M"]
    valid: Bool[Tensor, "B M"] | None = None
    """False where an image had fewer allowed tokens than M; None when every entry counts."""

    def first(self, num_landmarks: int) -> Landmarks:
        """The landmarks that were chosen first; those of farthest_points are what a smaller selection gives."""
        valid = None if self.valid is None else self.valid[:, :num_landmarks]
        return Landmarks(index=self.index[:, :num_landmarks], valid=valid)

    def gather(self, tokens: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H M D"]:
        """The landmark rows of per-head tokens."""
        return tokens.transpose(1, 2)[self._image(), self.index].transpose(1, 2)

    def scatter(self, tokens: Float[Tensor, "B H N D"], rows: Float[Tensor, "B H M D"]) -> Float[Tensor, "B H N D"]:
        """The tokens with these rows at the landmarks, in place where no gradient is asked for."""
        tokens = tokens.clone() if tokens.requires_grad else tokens
        tokens.transpose(1, 2)[self._image(), self.index] = rows.transpose(1, 2)
        return tokens

    def _image(self) -> Int[Tensor, "B 1"]:
        """Which image each row of `index` is about; indexing with it is several times faster than gather on a CPU."""
        return torch.arange(self.index.shape[0], device=self.index.device)[:, None]


FEATURES = ("input", "q", "k", "qk_concat")
"""What a selection can measure distances in."""


def features_of(inputs: AttentionInputs, features: str) -> Float[Tensor, "B N F"]:
    """One vector a token, fp32: the block's input before its LayerNorm, the head mean of q or of k, or all heads' q
    and k side by side."""
    if features == "input":
        return inputs.x.float()
    if features in ("q", "k"):
        tokens = inputs.q if features == "q" else inputs.k
        return tokens.mean(1, dtype=torch.float32)
    if features == "qk_concat":
        return torch.cat([tokens.transpose(1, 2).flatten(2).float() for tokens in (inputs.q, inputs.k)], -1)
    raise one_of("features", features, FEATURES)


def num_features(shape: AttentionShape, features: str) -> int:
    """Width of `features_of`."""
    width = {"input": shape.num_channels, "qk_concat": 2 * shape.num_heads * shape.head_dim}
    return width.get(features, shape.head_dim)


def centred(features: Float[Tensor, "B N F"], allowed: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N F"]:
    """Less their mean over the allowed tokens, fp32 and without gradient: squared distances cancel less that way."""
    x = features.detach().float()
    if allowed is None:
        return x - x.mean(1, keepdim=True)
    weights = allowed.float() / allowed.sum(1, keepdim=True)
    return x - weights[:, None] @ x


def farthest_points(
    features: Float[Tensor, "B N F"],
    num_landmarks: int,
    num_prefix: int,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Landmarks:
    """Farthest point sampling in Euclidean distance, fp32: each new landmark is farthest from those chosen before.

    The prefix tokens are the start set, so they are always landmarks; without a prefix the mean of the tokens is the
    start, and is no landmark. Patches that are not `allowed` are never chosen. No token is chosen twice: where the
    allowed ones run out, the rest of the row is marked invalid, and so is a prefix token that is not allowed.
    O(N M F) an image, no device sync.
    """
    x = centred(features, allowed)
    norms = x.square().sum(-1)
    # Squared distance to the landmarks chosen so far; below zero: forbidden (-1) or chosen already (-inf).
    distance = torch.full_like(norms, torch.inf) if num_prefix else norms.clone()
    if allowed is not None:
        distance = distance.masked_fill(~allowed, -1.0)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        rows = [_choose(*image, num_landmarks, num_prefix) for image in zip(x, norms, distance, strict=True)]
        index = torch.tensor(rows)
    else:
        index = _choose_in_batch(x, norms, distance, num_landmarks, num_prefix)
    if allowed is None:
        return Landmarks(index=index)
    return Landmarks(index=index, valid=allowed.gather(1, index))


def _choose_in_batch(
    x: Float[Tensor, "B N F"],
    norms: Float[Tensor, "B N"],
    distance: Float[Tensor, "B N"],
    num_landmarks: int,
    num_prefix: int,
) -> Int[Tensor, "B M"]:
    """The specification: M steps over the whole batch without leaving the device."""
    index = torch.empty(x.shape[0], num_landmarks, dtype=torch.long, device=x.device)
    for m in range(num_landmarks):
        newest = torch.full_like(index[:, :1], m) if m < num_prefix else distance.argmax(1, keepdim=True)
        index[:, m : m + 1] = newest
        point = x.gather(1, newest[..., None].expand(-1, 1, x.shape[-1]))  # [B, 1, F]
        to_newest = norms + norms.gather(1, newest) - 2 * (x @ point.mT)[..., 0]
        distance = torch.minimum(distance, to_newest.clamp_min(0)).scatter(1, newest, -torch.inf)
    return index


def _choose(
    x: Float[Tensor, "N F"],
    norms: Float[Tensor, " N"],
    distance: Float[Tensor, " N"],
    num_landmarks: int,
    num_prefix: int,
) -> list[int]:
    """The same for one image with one matrix-vector product a step, which is the fastest form on a CPU."""
    chosen = []
    buffer = torch.empty_like(norms)
    for m in range(num_landmarks):
        newest = m if m < num_prefix else int(distance.argmax())
        chosen.append(newest)
        torch.addmv(norms, x, x[newest], alpha=-2, out=buffer)
        torch.minimum(distance, buffer.add_(norms[newest]).clamp_min_(0), out=distance)
        distance[newest] = -torch.inf
    return chosen
