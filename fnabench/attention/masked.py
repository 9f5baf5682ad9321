"""Any variant without its noise: massive and artifact tokens are masked as keys.

They are found in the same forward, or were found before by task=tokens.

Type I logit masking: no query sees the masked tokens, which go on as queries; CLS and registers are never masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from fnabench.identity import LOCATION

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

TOKENS = ("none", "massive", "artifact", "both")
STORED = "stored"
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
    attends to; or "stored": nothing is looked for, all tokens are those of a record of task=tokens."""
    masks: str | None = field(default=None, metadata=LOCATION)
    """Of detector=stored: the folder of that record."""
    known: Mapping[str, Bool[Tensor, " N"]] | None = field(default=None, metadata=LOCATION, compare=False, repr=False)
    """Of detector=stored, by the image's id: T, once the record has been read."""
    ratio: float = RATIO
    """Of detector=cls: massive is what CLS gives more than this times what it gives itself."""
    min_gap: float = MIN_GAP
    """Of detector=norm, in nats: with a smaller gap no token is massive."""
    detect_block: int | None = None
    """T is what is found here and holds for the rest of the forward; None finds it anew in each block."""
    start_block: int | None = None
    """The first block in which T is masked; None masks in every replaced block that knows T.

    Both count from 0, and in a configuration also from the end: -1 is the last block."""
    inner: Attention

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise one_of("attention.tokens", self.tokens, TOKENS)
        if self.detector not in (*DETECTORS, STORED):
            raise one_of("attention.detector", self.detector, (*DETECTORS, STORED))
        if (self.detector == STORED) != (self.masks is not None):
            raise BadInputError(
                f"attention.detector={self.detector} and attention.masks={self.masks} do not go together: "
                f"detector={STORED} needs masks=<folder of a record of task=tokens>, other detectors need none"
            )
        if self.ratio <= 0 or self.min_gap <= 0:
            raise BadInputError(f"attention.ratio={self.ratio} and attention.min_gap={self.min_gap} must be above 0")
        detect, start = self.detect_block, self.start_block
        looks = self.detector != STORED and detect is not None and start is not None
        if looks and (detect < 0) == (start < 0) and detect > start:  # type: ignore[operator]
            raise BadInputError(
                f"attention.start_block={self.start_block} masks what is found in attention.detect_block="
                f"{self.detect_block} only later; choose a start_block of at least {self.detect_block}"
            )

    @property
    def parts(self) -> Mapping[str, Callable[[AttentionInputs], object]]:
        return {"token detection": self.find}

    def check(self, shape: AttentionShape) -> None:
        if self.tokens != "none" and not self.inner.honours_key_mask:
            raise ImpossibleError(
                f"attention.inner={type(self.inner).__name__} honours no key mask, so it cannot be run with tokens "
                "masked; use another inner variant, or attention.tokens=none"
            )
        if not shape.has_cls and self._needs_cls:
            setting = "tokens" if self.tokens in ("artifact", "both") else "detector"
            raise ImpossibleError(
                f"attention.{setting}={getattr(self, setting)} looks at what CLS attends to, and this model has no CLS "
                "token; use attention.tokens=massive attention.detector=norm"
            )
        self.inner.check(shape)

    def check_layers(self, indices: Sequence[int]) -> None:
        for name in ("detect_block", "start_block"):
            block = getattr(self, name)
            if name == "detect_block" and self.detector == STORED:
                continue  # nothing is looked for
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
        if self.detector == STORED:
            if not self._masks_in(inputs.layer):
                return None
            if _FOUND not in inputs.memo:
                inputs.memo[_FOUND] = self._look_up(inputs)
            return inputs.memo[_FOUND]  # type: ignore[no-any-return]
        if inputs.layer == self.detect_block or (self.detect_block is None and self._masks_in(inputs.layer)):
            inputs.memo[_FOUND] = self._detect(inputs)
        return inputs.memo.get(_FOUND) if self._masks_in(inputs.layer) else None

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        """The inner variant's and those of the CLS rows, counted as if start_block spared none of them."""
        row = shape.num_heads * shape.num_tokens * shape.head_dim
        num_rows = 0 if not self._needs_cls else num_layers if self.detect_block is None else 1
        return self.inner.macs(shape, num_layers) + num_rows * row

    @property
    def masks_folder(self) -> str | None:
        return self.masks

    def in_model(self, num_blocks: int) -> Masked:
        blocks = {name: getattr(self, name) for name in ("detect_block", "start_block")}
        counted = {name: block + num_blocks for name, block in blocks.items() if block is not None and block < 0}
        return replace(self, **counted, inner=self.inner.in_model(num_blocks))

    def with_masks(self, ids: Sequence[str], masks: Mapping[str, Bool[Tensor, "images N"]]) -> Masked:
        kinds = ("massive", "artifact") if self.tokens == "both" else (self.tokens,)
        chosen = [masks[kind] for kind in kinds if kind != "none"]
        rows = torch.stack(chosen).any(0) if chosen else torch.zeros(len(ids), 0, dtype=torch.bool)
        return replace(self, known=dict(zip(ids, rows, strict=True)))

    def _look_up(self, inputs: AttentionInputs) -> Bool[Tensor, "B N"] | None:
        refuse_mask(inputs)
        B, _, N, _ = inputs.q.shape
        if self.known is None or len(inputs.ids) != B or not set(inputs.ids) <= set(self.known):
            raise ImpossibleError(
                f"attention.detector={STORED} needs to know which images it is given and to have their masks; use it "
                "with data whose masks were stored, or another detector"
            )
        found = torch.stack([self.known[image] for image in inputs.ids])
        if found.shape[1] != N:
            raise ImpossibleError(
                f"the masks in {self.masks} are of {found.shape[1]} tokens, and this block has {N}; run task=tokens "
                "with the same model"
            )
        return found.to(inputs.q.device) if found.any() else None

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
        if self.detector == STORED:
            return False
        return self.tokens in ("artifact", "both") or (self.tokens == "massive" and self.detector == "cls")

    def _masks_in(self, layer: int) -> bool:
        return self.start_block is None or layer >= self.start_block
