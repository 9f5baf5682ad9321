"""Refined Fast Nystrom Attention: the landmark form with a mass for each landmark, a stable solve and exact landmarks.

It departs from the published form (arXiv 2507.16018) in ways of which each can be switched off: cells instead of single
tokens as keys, a ridge regression towards the cell means instead of six Newton-Schulz iterations, the exact outputs of
the landmark tokens written where they belong, more query landmarks than key cells, and landmarks chosen on the block's
input, the two patches of largest incoming attention among them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fnabench.attention.base import FUSED, Attention, AttentionInputs, AttentionShape
from fnabench.attention.causal import attend_causally, macs_of_causal
from fnabench.attention.cells import gather_cells, nearest_landmark
from fnabench.attention.fused import attend_proven, sample_proven
from fnabench.attention.inverse import check_inverse, macs_of_inverse
from fnabench.attention.landmarks import Landmarks, check_landmarks
from fnabench.attention.refined import KeysOf, refined_attention
from fnabench.attention.selection import Selection, one_head_each
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.kernels.farthest_points import Sampled, sample_farthest_points
from fnabench.kernels.limits import is_supported, require_attention, require_sampling, require_tensors
from fnabench.kernels.refined_attention import refined_attention as fused_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FnaRefined(Attention):
    """Every token belongs to the cell of its nearest landmark; n_j is the size of cell j, Kbar and Vbar the cell
    means of k and v. With L the landmark tokens, per head

        F' = softmax(s Q Kbar^T + log n)      A' = F'_L      U = softmax(s Q_L K^T) V, the exact outputs of L
        V' = Vbar + (A'^T A' + r I)^-1 A'^T (U - A' Vbar)    O = F' V', and then O_L = U

    log n gives a cell the attention mass of all its tokens; the ridge bounds what an ill-conditioned A' can do. At the
    landmarks V' is never worse than the cell means, to which it goes as r grows. Elsewhere that holds where tokens come
    in groups, as patches do; on noise without any the error can be up to about 3 times that of the plain mean of the
    landmarks' values, up to 2 with `shrink`.

    Cost a head: 4 N M D MACs for the two fused products, M^3 for the solve; once a forward 2 N M F for selection and
    cells and N C F for their features, F of the C channels' sketch, and N C additions a layer for the means. Memory is
    that of fused attention. Limits: the attention inside a cell is taken as flat, so a token that takes much of the
    mass must be alone in its own, as prefix tokens and guaranteed sinks are; below about 4 M + 200 tokens exact
    attention is faster; the first two or three blocks of a vision transformer attend too locally for it. Under a
    causal mask, where the solve would show a token the future, it is `causal_attention` instead, without scatter,
    inverse or over.
    """

    num_landmarks: int = 64
    """M, the number of cells, prefix tokens and guaranteed sinks included."""
    features: str = "input"
    sketch: int = 64
    method: str = "fps"
    num_refinements: int = 2
    resample: str = "forward"
    num_sinks: int = 2
    sinks_by: str = "mass"
    per_head: bool = False
    seed: int = 0
    """From `features` to here: how the landmarks are chosen, see Selection."""
    scatter: bool = True
    """Write the exact outputs of the landmark tokens over their approximation."""
    inverse: str = "ridge"
    num_iterations: int = 6
    """Of inverse="newton_schulz"."""
    ridge: float = 1e-3
    """r, of inverse="ridge"; flat between 1e-4 and 1e-2 in the last half of the blocks, below 1e-2 before them."""
    shrink: bool = False
    """Of inverse="ridge" with cells: of the correction of Vbar no larger a share than leave-one-out over the landmarks
    finds harmless, see `shrunken_ridge`. For tokens without groups; a trained model is nearer to exact without."""
    cells: bool = True
    """Keys are cell means with their mass, and the cell means of v are the prior of V'; else single tokens, prior 0."""
    over: int = 1
    """Query landmarks a cell: the first M of over * M landmarks own the cells, all have exact outputs."""
    fused: bool | None = None
    """On a GPU: the whole formula in three Triton launches, and farthest points and cells in one for the whole batch.
    None takes these kernels wherever they apply and no gradient is asked for, once they have proven themselves there
    against the plain form; True demands them, unproven, and what they cannot do is refused; False forbids them.
    Another `method` chooses its landmarks as the plain form does."""

    def __post_init__(self) -> None:
        Selection.of(self, self.num_landmarks)  # which refuses what it does not know
        if self.over < 1:
            raise BadInputError(f"over={self.over} must be at least 1")
        check_inverse(self.inverse, self.num_iterations, self.ridge, self.over * self.num_landmarks)
        if self.inverse == "newton_schulz" and self.over > 1:
            raise BadInputError(f"inverse=newton_schulz needs a square system, not over={self.over}; use inverse=ridge")
        if self.shrink and not (self.cells and self.inverse == "ridge"):
            raise BadInputError("shrink=true needs cells=true and inverse=ridge; use shrink=false")
        if self.fused and not self._suits_kernels:
            raise BadInputError(
                "fused=true needs cells=true, scatter=true, inverse=ridge and shrink=false; use "
                "fused=null or fused=false"
            )

    def check(self, shape: AttentionShape) -> None:
        if not shape.is_causal:
            self._query_landmarks(shape.num_tokens, shape.num_prefix)
        if self.fused:
            if shape.is_causal:
                raise _no_causal_kernels()
            self._require_kernels(None, None, shape.num_tokens, shape.head_dim, shape.num_prefix)

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        if self.per_head:
            return replace(self, per_head=False)(one_head_each(inputs)).view(inputs.q.shape)
        if inputs.is_causal:
            if self.fused:
                raise _no_causal_kernels()
            return attend_causally(inputs, Selection.of(self, self.num_landmarks))
        allowed = inputs.key_mask()
        if self.is_fused(inputs):
            return self._attend_fused(inputs, allowed)
        landmarks, keys_of = self.choose(inputs, allowed)
        return refined_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            landmarks,
            keys_of,
            inputs.scale,
            scatter=self.scatter,
            inverse=self.inverse,
            num_iterations=self.num_iterations,
            ridge=self.ridge,
            shrink=self.shrink,
            allowed=allowed,
        )

    def is_fused(self, inputs: AttentionInputs) -> bool:
        """Whether the kernels are to compute this: as `fused` says, and where it leaves that open, if they can."""
        q, k, v = inputs.q, inputs.k, inputs.v
        if self.fused is not None or not (self._suits_kernels and is_supported(q.device)):
            return bool(self.fused)
        if torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v)):
            return False  # they have no backward
        try:
            require_tensors(q, k, v)
            self._require_kernels(q.dtype, q.device, q.shape[2], q.shape[3], inputs.num_prefix)
        except ImpossibleError:
            return False
        return True

    def choose(self, inputs: AttentionInputs, allowed: Bool[Tensor, "B N"] | None) -> tuple[Landmarks, KeysOf]:
        """The query landmarks, and what the keys stand for; chosen now, or by an earlier layer of this forward."""
        memo, is_new = inputs.memo, "landmarks" not in inputs.memo or self.resample == "layer"
        if is_new:
            selection = self._query_landmarks(inputs.q.shape[2], inputs.num_prefix)
            features = selection.points(inputs)
            memo["landmarks"] = selection.choose(inputs, features, allowed)
            if self.cells:
                own = memo["landmarks"].first(self.num_landmarks)
                memo["nearest"] = nearest_landmark(features, own, inputs.num_prefix + self.num_sinks)
                memo["cells"] = gather_cells(memo["nearest"], self.num_landmarks, allowed)
        landmarks: Landmarks = memo["landmarks"]
        if is_new or (allowed is None and landmarks.valid is None):
            return landmarks, memo["cells"] if self.cells else landmarks.first(self.num_landmarks)
        # This layer's mask need not be the one that the landmarks were chosen under.
        landmarks = landmarks.under(allowed)
        if self.cells:
            return landmarks, gather_cells(memo["nearest"], self.num_landmarks, allowed)
        return landmarks, landmarks.first(self.num_landmarks)

    def sample(self, inputs: AttentionInputs, allowed: Bool[Tensor, "B N"] | None) -> Sampled:
        """As `choose`, for the kernels: the query landmarks, and the cell of each token."""
        memo = inputs.memo
        if "sampled" not in memo or self.resample == "layer":
            if self.method == "fps":
                selection = self._query_landmarks(inputs.q.shape[2], inputs.num_prefix)
                memo["sampled"] = (sample_farthest_points if self.fused else sample_proven)(
                    selection.points(inputs),
                    selection.num_landmarks,
                    inputs.num_prefix,
                    allowed,
                    self.num_landmarks,
                    selection.sinks(inputs, allowed),
                )
            else:
                landmarks, _ = self.choose(inputs, allowed)
                memo["sampled"] = Sampled(index=landmarks.index, cell_of=memo["nearest"])
        sampled: Sampled = memo["sampled"]
        return sampled

    def _query_landmarks(self, num_tokens: int, num_prefix: int) -> Selection:
        """How they are chosen; ImpossibleError if there are too few tokens."""
        check_landmarks(self.num_landmarks, num_tokens, num_prefix, self.num_sinks)
        if self.over * self.num_landmarks > num_tokens:
            raise ImpossibleError(
                f"attention.over={self.over} with num_landmarks={self.num_landmarks} asks for more landmarks than the "
                f"{num_tokens} tokens; choose num_landmarks up to {num_tokens // self.over}"
            )
        return Selection.of(self, self.over * self.num_landmarks)

    def _attend_fused(self, inputs: AttentionInputs, allowed: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B H N D"]:
        sampled = self.sample(inputs, allowed)
        output = (fused_attention if self.fused else attend_proven)(
            inputs.q,
            inputs.k,
            inputs.v,
            sampled.index,
            sampled.cell_of,
            inputs.scale,
            self.ridge,
            allowed,
            self.num_landmarks,
        )
        inputs.memo[FUSED] = True
        return output

    @property
    def _suits_kernels(self) -> bool:
        return self.cells and self.scatter and self.inverse == "ridge" and not self.shrink

    def _require_kernels(
        self,
        dtype: torch.dtype | None,
        device: torch.device | None,
        num_tokens: int,
        head_dim: int,
        num_prefix: int,
    ) -> None:
        rows = self.over * self.num_landmarks
        require_attention(dtype, head_dim, rows, self.num_landmarks, device)
        if self.method == "fps":
            require_sampling(num_tokens, rows, self.num_landmarks, num_prefix, num_prefix + self.num_sinks)

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        if self.per_head:
            return shape.num_heads * replace(self, per_head=False).macs(replace(shape, num_heads=1), num_layers)
        n, m, d, rows = shape.num_tokens, self.num_landmarks, shape.head_dim, self.over * self.num_landmarks
        if shape.is_causal:
            return macs_of_causal(shape, Selection.of(self, m), num_layers)
        products = 2 * n * (rows + m) * d + rows * m * d * (2 if self.cells else 1)
        head = products + macs_of_inverse(self.inverse, m, d, self.num_iterations, rows, self.shrink)
        choice = Selection.of(self, rows)
        selection = choice.macs(shape) + (n * m * choice.num_features(shape) if self.cells else 0)
        num_selections = 1 if self.resample == "forward" else num_layers
        return num_layers * shape.num_heads * head + num_selections * selection


def _no_causal_kernels() -> ImpossibleError:
    return ImpossibleError(
        "attention.fused=true cannot be had in causal layers, such as a decoder's, which have no kernels; use "
        "attention.fused=null, which takes kernels where they apply, or attention.fused=false"
    )
