"""The seam of open_clip's image towers: their own Vision Transformer, and timm's inside their adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.functional import linear

from fnabench.attention.base import AttentionShape
from fnabench.attention.layers import AttentionLayer, ForwardState, LayerStack
from fnabench.errors import ImpossibleError
from fnabench.models.timm_layers import timm_layers

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NUM_PREFIX = 1
"""The class token."""


class MultiheadAttentionLayer(AttentionLayer):
    """torch.nn.MultiheadAttention used as self-attention without a mask, as in open_clip's image towers.

    In eval mode torch runs a fused kernel of its own, so exact attention through the seam is equal to about 3e-6.
    """

    native: Any

    def forward(  # type: ignore[override]
        self, query: Float[Tensor, "B N C"], key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Float[Tensor, "B N C"], None]:
        native = self.native
        if native.training and native.dropout:
            raise ImpossibleError("attention dropout cannot be honoured by a replaced layer; call model.eval() first")
        if query is not key or query is not value:
            raise ImpossibleError("cross-attention cannot be replaced: queries, keys and values are not one sequence")
        given = [name for name, option in options.items() if option is not None and option is not False]
        if given or options.get("need_weights", True):
            raise ImpossibleError(f"{' and '.join(given) or 'need_weights'} cannot be honoured by a replaced layer")
        B, N, _ = query.shape
        qkv = linear(query, native.in_proj_weight, native.in_proj_bias)
        q, k, v = qkv.reshape(B, N, 3, native.num_heads, native.head_dim).permute(2, 0, 3, 1, 4)
        output = self.attend(q, k, v, scale=native.head_dim**-0.5, mask=None, is_causal=False)
        return native.out_proj(output.transpose(1, 2).flatten(2)), None

    def shape(self, num_tokens: int) -> AttentionShape:
        return AttentionShape(
            num_tokens=num_tokens,
            num_heads=self.native.num_heads,
            head_dim=self.native.head_dim,
            num_channels=self.native.embed_dim,
            num_prefix=self.num_prefix,
        )


def open_clip_layers(image_tower: Any) -> LayerStack:
    """The replaceable layers of an image tower; ImpossibleError names what is not understood."""
    if hasattr(image_tower, "trunk"):
        return timm_layers(image_tower.trunk)
    name = type(image_tower).__name__
    blocks = getattr(getattr(image_tower, "transformer", None), "resblocks", None)
    if blocks is None:
        raise ImpossibleError(f"{name} is not a Vision Transformer of open_clip")
    state = ForwardState()
    layers = []
    for index, block in enumerate(blocks):
        native: Any = getattr(block, "attn", None)
        if not _is_plain(native):
            raise ImpossibleError(
                f"{type(native).__name__} in block {index} of {name} is not understood; of open_clip's attention only "
                "a plain torch.nn.MultiheadAttention is"
            )
        layers.append(MultiheadAttentionLayer(native, block, index, NUM_PREFIX, state))
    return LayerStack(layers)


def _is_plain(native: Any) -> bool:
    """Whether one matrix gives q, k and v of a batch-first sequence and nothing is added to keys and values."""
    return (
        type(native) is nn.MultiheadAttention
        and native.in_proj_weight is not None
        and native.batch_first
        and native.bias_k is None
        and not native.add_zero_attn
    )
