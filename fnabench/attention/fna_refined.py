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
from torch.nn.functional import pad, scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.causal import attend_causally, macs_of_causal
from fnabench.attention.cells import Cells, gather_cells, nearest_landmark
from fnabench.attention.inverse import INVERSES, effective_values, macs_of_inverse, shrunken_ridge
from fnabench.attention.landmarks import Landmarks
from fnabench.attention.selection import Selection, one_head_each
from fnabench.errors import BadInputError, ImpossibleError, one_of
from fnabench.kernels.farthest_points import Sampled, sample_farthest_points
from fnabench.kernels.limits import require_attention, require_sampling
from fnabench.kernels.refined_attention import refined_attention as fused_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

KeysOf = Cells | Landmarks
"""What the M keys stand for."""


@dataclass(frozen=True, kw_only=True)
class FnaRefined(Attention):
    """Every token belongs to the cell of its nearest landmark; n_j is the size of cell j, Kbar and Vbar the cell
    means of k and v. With L the landmark tokens, per head

        F' = softmax(s Q Kbar^T + log n)      A' = F'_L      U = softmax(s Q_L K^T) V, the exact outputs of L
        V' = Vbar + (A'^T A' + r I)^-1 A'^T (U - A' Vbar)    O = F' V', and then O_L = U

    log n gives a cell the attention mass of all its tokens; the ridge bounds what an ill-conditioned A' can do. At the
    landmarks V' is never worse than the cell means, to which it goes as r grows. Elsewhere that holds where tokens come
    in groups, as patches do; on noise without any the error can be up to about 2.5 times that of the plain mean of the
    landmarks' values, which `shrink` brings near 1.

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
    """r, of inverse="ridge"; flat between 1e-4 and 1e-2."""
    shrink: bool = False
    """Of inverse="ridge" with cells: of the correction of Vbar no larger a share than leave-one-out over the landmarks
    finds harmless, see `shrunken_ridge`. For tokens without groups; a trained model is nearer to exact without."""
    cells: bool = True
    """Keys are cell means with their mass, and the cell means of v are the prior of V'; else single tokens, prior 0."""
    over: int = 1
    """Query landmarks a cell: the first M of over * M landmarks own the cells, all have exact outputs."""
    fused: bool = False
    """On a GPU: the whole formula in three Triton launches, and farthest points and cells in one for the whole batch.
    What they cannot do is refused; another `method` chooses its landmarks as the plain form does."""

    def __post_init__(self) -> None:
        Selection.of(self, self.num_landmarks)  # which refuses what it does not know
        if self.over < 1:
            raise BadInputError(f"over={self.over} must be at least 1")
        if self.inverse not in INVERSES:
            raise one_of("inverse", self.inverse, INVERSES)
        if self.inverse == "newton_schulz" and self.over > 1:
            raise BadInputError(f"inverse=newton_schulz needs a square system, not over={self.over}; use inverse=ridge")
        if self.shrink and not (self.cells and self.inverse == "ridge"):
            raise BadInputError("shrink=true needs cells=true and inverse=ridge; use shrink=false")
        if self.fused and (self.shrink or not (self.cells and self.scatter and self.inverse == "ridge")):
            raise BadInputError(
                "fused=true needs cells=true, scatter=true and inverse=ridge, and shrink=false; use fused=false"
            )

    def check(self, shape: AttentionShape) -> None:
        Selection.of(self, self.num_landmarks).check(shape)
        if self.over * self.num_landmarks > shape.num_tokens:
            raise ImpossibleError(
                f"attention.over={self.over} with num_landmarks={self.num_landmarks} asks for more landmarks than the "
                f"{shape.num_tokens} tokens; choose num_landmarks up to {shape.num_tokens // self.over}"
            )
        if self.fused and not shape.is_causal:
            rows, num_alone = self.over * self.num_landmarks, shape.num_prefix + self.num_sinks
            require_attention(None, shape.head_dim, rows, self.num_landmarks)
            if self.method == "fps":
                require_sampling(shape.num_tokens, rows, self.num_landmarks, shape.num_prefix, num_alone)

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        if self.per_head:
            return replace(self, per_head=False)(one_head_each(inputs)).view(inputs.q.shape)
        if inputs.is_causal:
            return attend_causally(inputs, Selection.of(self, self.num_landmarks))
        allowed = inputs.key_mask()
        if self.fused:
            sampled = self.sample(inputs, allowed)
            return fused_attention(
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

    def choose(self, inputs: AttentionInputs, allowed: Bool[Tensor, "B N"] | None) -> tuple[Landmarks, KeysOf]:
        """The query landmarks, and what the keys stand for; chosen now, or by an earlier layer of this forward."""
        memo, is_new = inputs.memo, "landmarks" not in inputs.memo or self.resample == "layer"
        if is_new:
            selection = Selection.of(self, self.over * self.num_landmarks)
            features = selection.points(inputs)
            memo["landmarks"] = selection.choose(inputs, features, allowed)
            if self.cells:
                own = memo["landmarks"].first(self.num_landmarks)
                memo["nearest"] = nearest_landmark(features, own, inputs.num_prefix + self.num_sinks)
                memo["cells"] = gather_cells(memo["nearest"], self.num_landmarks, allowed)
        landmarks: Landmarks = memo["landmarks"]
        if allowed is None or is_new:
            return landmarks, memo["cells"] if self.cells else landmarks.first(self.num_landmarks)
        # This layer's mask need not be the one that the landmarks were chosen under.
        landmarks = replace(landmarks, valid=allowed.gather(1, landmarks.index))
        if self.cells:
            return landmarks, gather_cells(memo["nearest"], self.num_landmarks, allowed)
        return landmarks, landmarks.first(self.num_landmarks)

    def sample(self, inputs: AttentionInputs, allowed: Bool[Tensor, "B N"] | None) -> Sampled:
        """As `choose`, for the kernels: the query landmarks, and the cell of each token."""
        if "sampled" in inputs.memo and self.resample == "forward":
            kept: Sampled = inputs.memo["sampled"]
            return kept
        selection = Selection.of(self, self.over * self.num_landmarks)
        features = selection.points(inputs)
        if self.method == "fps":
            sampled = sample_farthest_points(
                features,
                selection.num_landmarks,
                inputs.num_prefix,
                allowed,
                self.num_landmarks,
                selection.sinks(inputs, allowed),
            )
        else:
            landmarks = selection.choose(inputs, features, allowed)
            own, num_alone = landmarks.first(self.num_landmarks), inputs.num_prefix + self.num_sinks
            sampled = Sampled(index=landmarks.index, cell_of=nearest_landmark(features, own, num_alone))
        inputs.memo["sampled"] = sampled
        return sampled

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


def refined_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    landmarks: Landmarks,
    keys_of: KeysOf,
    scale: float,
    *,
    scatter: bool = True,
    inverse: str = "ridge",
    num_iterations: int = 6,
    ridge: float = 1e-3,
    shrink: bool = False,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """The formula of FnaRefined for query landmarks, and for keys that stand for cells or for single landmarks.

    Tokens that are not `allowed` are keys of nothing. Softmax and solve of the landmark system are fp32.
    """
    q_l = landmarks.gather(q)  # [B, H, L, D]
    u = scaled_dot_product_attention(q_l, k, v, attn_mask=_per_key(allowed), scale=scale)
    bias: Tensor | None
    if isinstance(keys_of, Cells):
        keys, prior = keys_of.mean(k).to(k.dtype), keys_of.mean(v)  # [B, H, M, D]
        bias = _per_key(keys_of.size.log().to(q.dtype))  # an empty cell has no mass
    else:
        keys, prior = keys_of.gather(k), None
        bias = _per_key(keys_of.valid)
    a = _softmax(scale * q_l.float() @ keys.float().mT, bias)  # [B, H, L, M]
    if landmarks.valid is not None:
        a = a * landmarks.valid[:, None, :, None]  # the output of a masked token is no equation
    unexplained = u.float() if prior is None else u.float() - a @ prior
    if shrink and isinstance(keys_of, Cells):
        # A landmark stands for the tokens of its cell; one without a cell for itself.
        weight = pad(keys_of.size, (0, a.shape[-2] - a.shape[-1]), value=1)[:, None].float()
        values = shrunken_ridge(a, unexplained, ridge, weight)
    else:
        values = effective_values(a, unexplained, inverse, num_iterations, ridge)
    values = _round(values if prior is None else prior + values, v.dtype)
    output = scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=scale)
    return landmarks.scatter(output, u) if scatter else output


def _per_key(each: Tensor | None) -> Tensor | None:
    return None if each is None else each[:, None, None, :]


def _softmax(logits: Float[Tensor, "B H L M"], bias: Tensor | None) -> Float[Tensor, "B H L M"]:
    """With a bias as scaled_dot_product_attention takes it: booleans, or numbers that are added."""
    if bias is None:
        return logits.softmax(-1)
    if bias.dtype == torch.bool:
        return logits.masked_fill(~bias, -torch.inf).softmax(-1)
    return (logits + bias.float()).softmax(-1)


def _round(values: Float[Tensor, "B H M D"], dtype: torch.dtype) -> Float[Tensor, "B H M D"]:
    """To the dtype of v; what fp16 cannot hold becomes its largest number, not infinity."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype) if dtype == torch.float16 else values.to(dtype)
