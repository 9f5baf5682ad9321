"""Landmark selection: which M of the N real tokens stand for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


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

    def under(self, allowed: Bool[Tensor, "B N"] | None) -> Landmarks:
        """The same tokens under another mask."""
        return Landmarks(index=self.index, valid=None if allowed is None else allowed.gather(1, self.index))

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


def check_landmarks(num_landmarks: int, num_tokens: int, num_prefix: int, num_sinks: int = 0) -> None:
    """Raise ImpossibleError if so many do not fit; prefix tokens and sinks are always among them."""
    least = num_prefix + num_sinks + 1
    if not least <= num_landmarks <= num_tokens:
        sinks = f" and {num_sinks} sinks" if num_sinks else ""
        instead = f"choose {least}..{num_tokens}" if least <= num_tokens else "use attention=exact"
        raise ImpossibleError(
            f"attention.num_landmarks={num_landmarks} does not fit {num_tokens} tokens of which {num_prefix} are "
            f"prefix tokens{sinks}; {instead}"
        )


def centred(features: Float[Tensor, "B N F"], allowed: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N F"]:
    """Less their mean over the allowed tokens, fp32 and without gradient: squared distances cancel less that way."""
    x = features.detach().float()
    if allowed is None:
        return x - x.mean(1, keepdim=True)
    weights = allowed.float() / allowed.sum(1, keepdim=True).clamp_min(1)
    return x - weights[:, None] @ x


def farthest_points(
    features: Float[Tensor, "B N F"],
    num_landmarks: int,
    num_prefix: int,
    allowed: Bool[Tensor, "B N"] | None = None,
    guaranteed: Int[Tensor, "B S"] | None = None,
) -> Landmarks:
    """Farthest point sampling in Euclidean distance, fp32: each new landmark is farthest from those chosen before.

    The prefix tokens and then the `guaranteed` patches are the start set, so they are always landmarks; where there is
    neither, the mean of the tokens is the start, and is no landmark. Patches that are not `allowed` are never chosen.
    No token is chosen twice: where the allowed ones run out, the rest of the row is marked invalid, and so is a prefix
    token that is not allowed.
    O(N M F) an image, no device sync.
    """
    x = centred(features, allowed)
    start = start_set(num_prefix, guaranteed, x)
    norms = x.square().sum(-1)
    # Squared distance to the landmarks chosen so far; below zero: forbidden (-1) or chosen already (-inf).
    distance = torch.full_like(norms, torch.inf) if start.shape[1] else norms.clone()
    if allowed is not None:
        distance = distance.masked_fill(~allowed, -1.0)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        images = zip(x, norms, distance, start.tolist(), strict=True)
        index = torch.tensor([_choose(*image, num_landmarks) for image in images])
    else:
        index = _choose_in_batch(x, norms, distance, start, num_landmarks)
    return Landmarks(index=index).under(allowed)


def start_set(
    num_prefix: int, guaranteed: Int[Tensor, "B S"] | None, like: Float[Tensor, "B N F"]
) -> Int[Tensor, "B P+S"]:
    """The prefix tokens, then the guaranteed ones."""
    prefix = torch.arange(num_prefix, device=like.device).expand(like.shape[0], -1)
    return prefix if guaranteed is None else torch.cat([prefix, guaranteed], 1)


def _choose_in_batch(
    x: Float[Tensor, "B N F"],
    norms: Float[Tensor, "B N"],
    distance: Float[Tensor, "B N"],
    start: Int[Tensor, "B P+S"],
    num_landmarks: int,
) -> Int[Tensor, "B M"]:
    """The specification: M steps over the whole batch without leaving the device."""
    index = torch.empty(x.shape[0], num_landmarks, dtype=torch.long, device=x.device)
    for m in range(num_landmarks):
        newest = start[:, m : m + 1] if m < start.shape[1] else distance.argmax(1, keepdim=True)
        index[:, m : m + 1] = newest
        point = x.gather(1, newest[..., None].expand(-1, 1, x.shape[-1]))  # [B, 1, F]
        to_newest = norms + norms.gather(1, newest) - 2 * (x @ point.mT)[..., 0]
        distance = torch.minimum(distance, to_newest.clamp_min(0)).scatter(1, newest, -torch.inf)
    return index


def _choose(
    x: Float[Tensor, "N F"],
    norms: Float[Tensor, " N"],
    distance: Float[Tensor, " N"],
    start: list[int],
    num_landmarks: int,
) -> list[int]:
    """The same for one image with one matrix-vector product a step, which is the fastest form on a CPU."""
    chosen = []
    buffer = torch.empty_like(norms)
    for m in range(num_landmarks):
        newest = start[m] if m < len(start) else int(distance.argmax())
        chosen.append(newest)
        torch.addmv(norms, x, x[newest], alpha=-2, out=buffer)
        torch.minimum(distance, buffer.add_(norms[newest]).clamp_min_(0), out=distance)
        distance[newest] = -torch.inf
    return chosen
