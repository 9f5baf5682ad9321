"""The seam of transformers' CLIP vision towers, which LLaVA and its relatives look through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fnabench.attention.base import AttentionShape
from fnabench.attention.layers import AttentionLayer, ForwardState, LayerStack
from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NUM_PREFIX = 1
"""CLIP's class token."""


class ClipAttentionLayer(AttentionLayer):
    """transformers' CLIPAttention: separate q, k and v, no mask in a vision tower."""

    native: Any

    def forward(  # type: ignore[override]
        self, hidden_states: Float[Tensor, "B N C"], attention_mask: Tensor | None = None, **options: Any
    ) -> tuple[Float[Tensor, "B N C"], None]:
        native = self.native
        if native.training and native.dropout:
            raise ImpossibleError("attention dropout cannot be honoured; put the model into eval mode")
        if options.get("output_attentions"):
            raise ImpossibleError("output_attentions cannot be honoured: replaced attention has no weights to show")
        B, N, C = hidden_states.shape
        q, k, v = (
            project(hidden_states).view(B, N, native.num_heads, native.head_dim).transpose(1, 2)
            for project in (native.q_proj, native.k_proj, native.v_proj)
        )
        output = self.attend(q, k, v, scale=native.scale, mask=attention_mask, is_causal=False)
        return native.out_proj(output.transpose(1, 2).reshape(B, N, C)), None

    def shape(self, num_tokens: int) -> AttentionShape:
        return AttentionShape(
            num_tokens=num_tokens,
            num_heads=self.native.num_heads,
            head_dim=self.native.head_dim,
            num_channels=self.native.embed_dim,
            num_prefix=self.num_prefix,
        )

    @property
    def output_projection(self) -> nn.Linear:
        return self.native.out_proj  # type: ignore[no-any-return]


def clip_vision_layers(vision_tower: Any) -> LayerStack:
    """The replaceable layers of a CLIPVisionModel; ImpossibleError names what is another kind of tower."""
    from transformers.models.clip.modeling_clip import CLIPAttention

    blocks = getattr(getattr(vision_tower, "encoder", None), "layers", None)
    if blocks is None:
        raise ImpossibleError(f"{type(vision_tower).__name__} is not a CLIP vision tower of transformers")
    state = ForwardState()
    layers = []
    for index, block in enumerate(blocks):
        native: Any = getattr(block, "self_attn", None)
        if type(native) is not CLIPAttention:
            raise ImpossibleError(
                f"{type(native).__name__} in block {index} of {type(vision_tower).__name__} is not understood; "
                "of transformers' attention layers only CLIPAttention is"
            )
        layers.append(ClipAttentionLayer(native, block, index, NUM_PREFIX, state))
    return LayerStack(layers)
