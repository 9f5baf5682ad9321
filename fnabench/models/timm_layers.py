"""The seam of timm's Vision Transformers: which of their layers can be replaced, and how each is taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.layers.attention import Attention as TimmAttention
from torch import nn

from fnabench.attention.base import AttentionShape
from fnabench.attention.layers import AttentionLayer, ForwardState, LayerStack
from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class TimmAttentionLayer(AttentionLayer):
    """timm.layers.Attention: fused qkv, optional qk-norm, output norm and gate."""

    native: Any

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B N C"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B N C"]:
        native = self.native
        if native.training and native.attn_drop.p:
            raise ImpossibleError("attention dropout cannot be honoured by a replaced layer; call model.eval() first")
        B, N, _ = x.shape
        q, k, v = native.qkv(x).reshape(B, N, 3, native.num_heads, native.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = native.q_norm(q), native.k_norm(k)
        output = self.attend(q, k, v, scale=native.scale, mask=attn_mask, is_causal=is_causal)
        output = native.norm(output.transpose(1, 2).reshape(B, N, -1))
        if getattr(native, "gate", None) is not None:  # older timm releases have no gated attention
            output = output * native.gate(x).sigmoid()
        return native.proj_drop(native.proj(output))  # type: ignore[no-any-return]

    def shape(self, num_tokens: int) -> AttentionShape:
        return AttentionShape(
            num_tokens=num_tokens,
            num_heads=self.native.num_heads,
            head_dim=self.native.head_dim,
            num_channels=self.native.qkv.in_features,
            num_prefix=self.num_prefix,
        )

    @property
    def output_projection(self) -> nn.Linear:
        gated = getattr(self.native, "gate", None) is not None
        return super().output_projection if gated or type(self.native.norm) is not nn.Identity else self.native.proj


def timm_layers(module: Any) -> LayerStack:
    """The replaceable layers of a timm model; ImpossibleError names the layer that the seam does not understand.

    Attention outside the blocks, such as SigLIP's pooling head, is not part of the stack and stays exact.
    """
    name = type(module).__name__
    blocks = getattr(module, "blocks", None)
    if blocks is None or not hasattr(module, "num_prefix_tokens"):
        raise ImpossibleError(f"{name} is not a timm Vision Transformer: it has no plain sequence of blocks")
    state = ForwardState()
    layers = []
    for index, block in enumerate(blocks):
        native: Any = getattr(block, "attn", None)
        if type(native) is not TimmAttention:
            kind = _full_name(type(native)) if native is not None else f"the attention inside {type(block).__name__}"
            raise ImpossibleError(
                f"{kind} in block {index} of {name} is not understood; only {_full_name(TimmAttention)} is"
            )
        layers.append(TimmAttentionLayer(native, block, index, int(module.num_prefix_tokens), state))
    return LayerStack(layers)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
