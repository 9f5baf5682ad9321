"""Any variant without its noise: massive and artifact tokens are found in the same forward and masked as keys.

Type I logit masking: no query sees the masked tokens, which go on as queries; CLS and registers are never masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.detectors import (
    DETECTORS,
    MIN_GAP,
    RATIO,
    above_cls,
    above_gap,
    cls_attention,
    cls_logits,
    taking_over,
)
from fnabench.attention.masks import refuse_mask, without_keys
from fnabench.errors import BadInputError, ImpossibleError, one_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

TOKENS = ("none", "massive", "artifact", "both")
_FOUND = "masked tokens"


@dataclass(frozen=True, kw_only=True)
class Masked(Attention):
    """The inner variant, told by its key mask that the tokens T are no keys; without T it is the inner variant itself.

    A variant with landmarks takes none from T: those chosen before T was known are dropped.
    """

    tokens: str = "massive"
    """T: "none", "massive", "artifact" (those that take over from the massive ones) or "both"."""
    detector: str = "norm"
    """Of massive tokens: "norm", the largest gap of the sorted log norms of the block input, or "cls", what CLS
    attends to."""
    ratio: float = RATIO
    """Of detector=cls: massive is what CLS gives more than this times what it gives itself."""
    min_gap: float = MIN_GAP
    """Of detector=norm, in nats: with a smaller gap no token is massive."""
    detect_block: int | None = None
    """T is what is found here and holds for the rest of the forward; None finds it anew in each block."""
    start_block: int | None = None
    """The first block in which T is masked; None masks in every replaced block that knows T."""
    inner: Attention

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise one_of("attention.tokens", self.tokens, TOKENS)
        if self.detector not in DETECTORS:
            raise one_of("attention.detector", self.detector, DETECTORS)
        if self.ratio <= 0 or self.min_gap <= 0:
            raise BadInputError(f"attention.ratio={self.ratio} and attention.min_gap={self.min_gap} must be above 0")
        if None not in (self.detect_block, self.start_block) and self.detect_block > self.start_block:  # type: ignore[operator]
            raise BadInputError(
                f"attention.start_block={self.start_block} masks what is found in attention.detect_block="
                f"{self.detect_block} only later; choose a start_block of at least {self.detect_block}"
            )

    @property
    def parts(self) -> Mapping[str, Callable[[AttentionInputs], object]]:
        return {"token detection": self.find}

    def check(self, shape: AttentionShape) -> None:
        if not shape.num_prefix and self._needs_cls:
            setting = "tokens" if self.tokens in ("artifact", "both") else "detector"
            raise ImpossibleError(
                f"attention.{setting}={getattr(self, setting)} looks at what CLS attends to, and this model has no CLS "
                "token; use attention.tokens=massive attention.detector=norm"
            )
        self.inner.check(shape)

    def check_layers(self, indices: Sequence[int]) -> None:
        for name in ("detect_block", "start_block"):
            block = getattr(self, name)
            if block is not None and block not in indices:
                raise ImpossibleError(
                    f"attention.{name}={block} is not among the blocks whose attention is replaced; "
                    f"choose one of {', '.join(map(str, indices))}, or other layers="
                )
        self.inner.check_layers(indices)

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        found = self.find(inputs)
        return self.inner(inputs if found is None else without_keys(inputs, found))

    def find(self, inputs: AttentionInputs) -> Bool[Tensor, "B N"] | None:
        """T of each image as it is masked in this block; None where no image has any."""
        if self.tokens == "none":
            return None
        if inputs.layer == self.detect_block or (self.detect_block is None and self._masks_in(inputs.layer)):
            inputs.memo[_FOUND] = self._detect(inputs)
        return inputs.memo.get(_FOUND) if self._masks_in(inputs.layer) else None

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        """The inner variant's and those of the CLS rows, counted as if start_block spared none of them."""
        row = shape.num_heads * shape.num_tokens * shape.head_dim
        num_rows = 0 if not self._needs_cls else num_layers if self.detect_block is None else 1
        return self.inner.macs(shape, num_layers) + num_rows * row

    def _detect(self, inputs: AttentionInputs) -> Bool[Tensor, "B N"] | None:
        refuse_mask(inputs)
        logits = cls_logits(inputs.q, inputs.k, inputs.scale) if self._needs_cls else None
        if logits is not None and self.detector == "cls":
            massive = above_cls(cls_attention(logits), inputs.num_prefix, self.ratio)
        else:
            norms = torch.linalg.vector_norm(inputs.x, dim=-1, dtype=torch.float32)
            massive = above_gap(norms, inputs.num_prefix, self.min_gap)
        found = massive
        if logits is not None and self.tokens != "massive":
            artifacts = taking_over(logits, massive, inputs.num_prefix)
            found = artifacts if self.tokens == "artifact" else massive | artifacts
        return found if found.any() else None

    @property
    def _needs_cls(self) -> bool:
        return self.tokens in ("artifact", "both") or (self.tokens == "massive" and self.detector == "cls")

    def _masks_in(self, layer: int) -> bool:
        return self.start_block is None or layer >= self.start_block
