"""The seams of transformers' vision towers and decoders, of which LLaVA and its relatives are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fnabench.attention.base import AttentionShape
from fnabench.attention.layers import AttentionLayer, ForwardState, LayerStack
from fnabench.errors import ImpossibleError, one_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SCOPES = ("vision", "decoder", "both")


class VisionAttentionLayer(AttentionLayer):
    """transformers' CLIPAttention and SiglipAttention: separate q, k and v, no mask in a vision tower."""

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


class DecoderAttentionLayer(AttentionLayer):
    """transformers' LlamaAttention and Qwen2Attention while they read a prompt: causal, padding left out, every key
    and value cached.

    A step that has a past, such as each further token of an answer, runs the untouched module on the full cache.
    """

    native: Any

    def forward(  # type: ignore[override]
        self,
        hidden_states: Float[Tensor, "B N C"],
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "B N C"], Any]:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        native = self.native
        B, N, _ = hidden_states.shape
        if N == 1 or (past_key_values is not None and past_key_values.get_seq_length(native.layer_idx)):
            self.state.block_input = None
            untouched = type(native).forward
            return untouched(  # type: ignore[no-any-return]
                native, hidden_states, position_embeddings, attention_mask, past_key_values, **options
            )
        if native.training and native.attention_dropout:
            raise ImpossibleError("attention dropout cannot be honoured; put the model into eval mode")
        q, k, v = (
            project(hidden_states).view(B, N, -1, native.head_dim).transpose(1, 2)
            for project in (native.q_proj, native.k_proj, native.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, native.layer_idx)
        if k.shape[2] != N:
            raise ImpossibleError(f"a cache of fixed length ({k.shape[2]}) cannot be honoured; use the default cache")
        k, v = (each.repeat_interleave(native.num_key_value_groups, 1) for each in (k, v))
        mask = None if attention_mask is None else _padding_of(attention_mask, self.state)
        output = self.attend(q, k, v, scale=native.scaling, mask=mask, is_causal=True)
        return native.o_proj(output.transpose(1, 2).reshape(B, N, -1)), None

    def shape(self, num_tokens: int) -> AttentionShape:
        config = self.native.config
        return AttentionShape(
            num_tokens=num_tokens,
            num_heads=config.num_attention_heads,
            head_dim=self.native.head_dim,
            num_channels=config.hidden_size,
            num_prefix=self.num_prefix,
            is_causal=True,
        )

    @property
    def output_projection(self) -> nn.Linear:
        return self.native.o_proj  # type: ignore[no-any-return]


def check_scope(scope: str) -> None:
    """Raise BadInputError for what is no scope: the vision tower, the decoder while it reads the image, or both."""
    if scope not in SCOPES:
        raise one_of("model.scope", scope, SCOPES)


def llava_layers(module: Any, scope: str) -> LayerStack:
    """The replaceable layers of a LLaVA's towers in the scope."""
    vision = vision_layers(module.model.vision_tower) if scope != "decoder" else ()
    decoder = decoder_layers(module.model.language_model, first=len(vision)) if scope != "vision" else ()
    return LayerStack([*vision, *decoder])


def without_unread_blocks(module: Any) -> Any:
    """The LLaVA without the vision blocks behind the last one that its projector reads.

    Most read the last but one. What comes behind is thrown away: no answer changes without it, and to replace its
    attention would seem to save time at no cost.
    """
    config, tower = module.config, module.model.vision_tower
    blocks = getattr(getattr(tower, "encoder", None), "layers", None)
    if blocks is None:  # llava_layers says so
        return module
    chosen = config.vision_feature_layer
    read = [number % (len(blocks) + 1) for number in ([chosen] if isinstance(chosen, int) else chosen)]
    del blocks[max(read) :]
    config.vision_feature_layer = read[0] if isinstance(chosen, int) else read
    tower.config.num_hidden_layers = config.vision_config.num_hidden_layers = len(blocks)
    return module


def vision_layers(tower: Any) -> LayerStack:
    """The replaceable layers of a CLIPVisionModel or SiglipVisionModel; ImpossibleError names what is another kind."""
    from transformers.models.clip.modeling_clip import CLIPAttention
    from transformers.models.siglip.modeling_siglip import SiglipAttention

    blocks = getattr(getattr(tower, "encoder", None), "layers", None)
    num_prefix = {CLIPAttention: 1, SiglipAttention: 0}  # CLIP's class token
    return LayerStack(_wrap(tower, blocks, num_prefix, VisionAttentionLayer, first=0))


def decoder_layers(decoder: Any, *, first: int = 0) -> LayerStack:
    """The replaceable layers of a LlamaModel or Qwen2Model, counted from `first`; ImpossibleError names what is another
    decoder."""
    from transformers.models.llama.modeling_llama import LlamaAttention
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

    blocks = getattr(decoder, "layers", None)
    layers = _wrap(decoder, blocks, {LlamaAttention: 0, Qwen2Attention: 0}, DecoderAttentionLayer, first=first)
    if window := getattr(decoder.config, "sliding_window", None):
        raise ImpossibleError(
            f"{type(decoder).__name__} attends to the last {window} tokens only, which cannot be honoured"
        )
    return LayerStack(layers)


def _padding_of(mask: Tensor, state: ForwardState) -> Tensor:
    """The keys that are no padding [B, 1, 1, N]; ImpossibleError where the mask is not those and causality alone."""
    if "padding" not in state.memo:
        keys = mask[:, :, -1:]
        N = mask.shape[-1]
        causal = torch.ones(N, N, dtype=torch.bool, device=mask.device).tril()
        if mask.dtype != torch.bool or not torch.equal(mask, causal & keys):
            raise ImpossibleError("a decoder mask that is more than causal with padding cannot be honoured")
        state.memo["padding"] = keys
    padding: Tensor = state.memo["padding"]
    return padding


def _wrap(
    tower: Any, blocks: Any, num_prefix: Mapping[type, int], layer: type[AttentionLayer], *, first: int
) -> list[AttentionLayer]:
    """The layers of a tower whose blocks have attention of one of these kinds, each with so many prefix tokens."""
    name, understood = type(tower).__name__, " or ".join(kind.__name__ for kind in num_prefix)
    if blocks is None:
        raise ImpossibleError(f"{name} has no plain sequence of blocks with {understood}")
    state = ForwardState()
    layers = []
    for index, block in enumerate(blocks):
        native: Any = getattr(block, "self_attn", None)
        if type(native) not in num_prefix:
            raise ImpossibleError(
                f"{type(native).__name__} in block {index} of {name} is not understood; only {understood} is"
            )
        layers.append(layer(native, block, first + index, num_prefix[type(native)], state))
    return layers
