"""The seam of timm's Vision Transformers: which of their layers can be replaced, and how each is taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.layers.mlp import Mlp
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import nn
from torch.nn.functional import linear

from fnabench.attention.base import AttentionShape
from fnabench.attention.layers import AttentionLayer, ForwardState, LayerStack
from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class TimmAttentionLayer(AttentionLayer):
    """timm.layers.Attention: fused qkv, optional qk-norm, output norm and gate."""

    native: Any
    block: Any

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B N C"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B N C"]:
        native = self.native
        _refuse_dropout(native)
        B, N, _ = x.shape
        q, k, v = native.qkv(x).reshape(B, N, 3, native.num_heads, native.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = native.q_norm(q), native.k_norm(k)
        output = self.attend(q, k, v, scale=native.scale, mask=attn_mask, is_causal=is_causal)
        return _project(native, x, output)

    def shape(self, num_tokens: int) -> AttentionShape:
        return AttentionShape(
            num_tokens=num_tokens,
            num_heads=self.native.num_heads,
            head_dim=self.native.head_dim,
            num_channels=self.native.qkv.in_features,
            num_prefix=self.num_prefix,
            has_cls=self.has_cls,
            num_neurons=self.block.mlp.fc1.out_features if _has_plain_mlp(self.block) else 0,
        )

    @property
    def hidden_activation(self) -> nn.Module:
        return self.block.mlp.act if _has_plain_mlp(self.block) else super().hidden_activation

    @property
    def output_projection(self) -> nn.Linear:
        return super().output_projection if _is_reshaped(self.native) else self.native.proj


class EvaAttentionLayer(AttentionLayer):
    """timm.models.eva.EvaAttention (EVA-02, DINOv3): q and k of the patches are rotated by their place in the image.

    The variant gets them rotated, so that its landmarks know where they lie; prefix tokens have no place.
    """

    native: Any

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "B N C"],
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B N C"]:
        native = self.native
        _refuse_dropout(native)
        B, N, _ = x.shape
        q, k, v = (part.reshape(B, N, native.num_heads, -1).transpose(1, 2) for part in self._qkv(x))
        q, k = native.q_norm(q), native.k_norm(k)
        if rope is not None:
            q, k = self._rotated(q, rope).type_as(v), self._rotated(k, rope).type_as(v)
        output = self.attend(q, k, v, scale=native.scale, mask=attn_mask, is_causal=is_causal)
        return _project(native, x, output)

    def _qkv(self, x: Float[Tensor, "B N C"]) -> tuple[Tensor, ...]:
        native = self.native
        if native.qkv is None:
            return native.q_proj(x), native.k_proj(x), native.v_proj(x)
        if native.q_bias is None:
            return native.qkv(x).chunk(3, -1)  # type: ignore[no-any-return]
        bias = torch.cat((native.q_bias, native.k_bias, native.v_bias))
        if native.qkv_bias_separate:
            return (native.qkv(x) + bias).chunk(3, -1)  # type: ignore[no-any-return]
        return linear(x, native.qkv.weight, bias).chunk(3, -1)

    def _rotated(self, tokens: Float[Tensor, "B H N D"], rope: Tensor) -> Float[Tensor, "B H N D"]:
        prefix, patches = tokens[:, :, : self.num_prefix], tokens[:, :, self.num_prefix :]
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=self.native.rotate_half)], dim=2)

    def shape(self, num_tokens: int) -> AttentionShape:
        return AttentionShape(
            num_tokens=num_tokens,
            num_heads=self.native.num_heads,
            head_dim=self.native.head_dim,
            num_channels=self.native.proj.out_features,
            num_prefix=self.num_prefix,
            has_cls=self.has_cls,
        )

    @property
    def output_projection(self) -> nn.Linear:
        return super().output_projection if _is_reshaped(self.native) else self.native.proj


KINDS: dict[type, type[AttentionLayer]] = {TimmAttention: TimmAttentionLayer, EvaAttention: EvaAttentionLayer}
"""timm's attention modules and how each is taken apart; a subclass of one may do something else and is none."""


def timm_layers(module: Any) -> LayerStack:
    """The replaceable layers of a timm model; ImpossibleError names the layer that the seam does not understand.

    Attention outside the blocks, such as SigLIP's pooling head, is not part of the stack and stays exact.
    """
    name = type(module).__name__
    blocks = getattr(module, "blocks", None)
    if blocks is None or not hasattr(module, "num_prefix_tokens"):
        raise ImpossibleError(f"{name} is not a timm Vision Transformer: it has no plain sequence of blocks")
    state = ForwardState(has_cls=getattr(module, "cls_token", None) is not None)
    layers = []
    for index, block in enumerate(blocks):
        native: Any = getattr(block, "attn", None)
        if (layer := KINDS.get(type(native))) is None:
            kind = _full_name(type(native)) if native is not None else f"the attention inside {type(block).__name__}"
            raise ImpossibleError(
                f"{kind} in block {index} of {name} is not understood; only {' and '.join(map(_full_name, KINDS))} are"
            )
        layers.append(layer(native, block, index, int(module.num_prefix_tokens), state))
    return LayerStack(layers)


def _is_reshaped(native: Any) -> bool:
    """Whether a norm or a gate stands between the heads' outputs and their projection."""
    return getattr(native, "gate", None) is not None or type(native.norm) is not nn.Identity


def _has_plain_mlp(block: Any) -> bool:
    """Whether one activation function stands between two linear layers; a gated MLP is none."""
    return type(block.mlp) is Mlp


def _refuse_dropout(native: Any) -> None:
    if native.training and native.attn_drop.p:
        raise ImpossibleError("attention dropout cannot be honoured by a replaced layer; call model.eval() first")


def _project(native: Any, x: Float[Tensor, "B N C"], output: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N C"]:
    """What both kinds do after attention: heads side by side, norm, gate, projection."""
    output = native.norm(output.transpose(1, 2).flatten(2))
    if getattr(native, "gate", None) is not None:  # older timm releases have no gated attention
        output = output * native.gate(x).sigmoid()
    return native.proj_drop(native.proj(output))  # type: ignore[no-any-return]


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
