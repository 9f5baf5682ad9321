"""Token merging inside attention (Bolya et al., ICLR 2023, arXiv 2210.09461; inside a block: arXiv 2303.17604).

Similar tokens are merged before attention and get the same output after it, so that every token still goes through the
MLP and patch outputs stay in place. Where tokens stay merged from block to block the MLPs get cheaper as well, which is
not what replacing attention is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.cells import gather_cells
from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tome(Attention):
    """Bipartite soft matching: every second patch may join the one among the others whose key is most similar to its
    own (cosine of the head means), and the `ratio` of all patches whose match is best do. With n_j tokens in group j
    and Qbar, Kbar, Vbar the means over the K groups, per head

        O_i = softmax(s Qbar Kbar^T + log n) Vbar  in the row of i's group

    Cost: 2 K^2 D MACs a head and (N/2)^2 D for the matching, new in each layer: still quadratic, and at best about a
    quarter of exact attention. Prefix tokens are never merged. Masks are refused.
    """

    ratio: float = 0.5
    """Of the patches, the share that is merged into another one; at most every second patch can be."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 0.5:
            raise BadInputError(f"ratio={self.ratio} must lie in 0..0.5: at most every second patch can be merged")

    def check(self, shape: AttentionShape) -> None:
        shape.refuse_causal()

    @property
    def honours_key_mask(self) -> bool:
        return False

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        inputs.refuse_any_mask()
        group = self.match(inputs)
        groups = gather_cells(group, group.shape[1] - self._num_merged(group.shape[1] - inputs.num_prefix))
        q, k, v = (groups.mean(each).to(each.dtype) for each in (inputs.q, inputs.k, inputs.v))
        mass = groups.size.log().to(q.dtype)[:, None, None]
        output = scaled_dot_product_attention(q, k, v, attn_mask=mass, scale=inputs.scale)
        image = torch.arange(len(group), device=group.device)[:, None]
        return output.transpose(1, 2)[image, group].transpose(1, 2)

    def match(self, inputs: AttentionInputs) -> Int[Tensor, "B N"]:
        """The group of every token, 0..K-1, in the order of the tokens that the groups are named after."""
        B, _, N, _ = inputs.k.shape
        prefix, num_merged = inputs.num_prefix, self._num_merged(N - inputs.num_prefix)
        host = torch.arange(N, device=inputs.k.device).repeat(B, 1)  # itself
        if num_merged == 0:
            return host
        keys = normalize(inputs.k[:, :, prefix:].mean(1, dtype=torch.float32), dim=-1)
        closeness, nearest = (keys[:, ::2] @ keys[:, 1::2].mT).max(-1)
        leaving = closeness.argsort(dim=1, descending=True, stable=True)[:, :num_merged]
        host.scatter_(1, prefix + 2 * leaving, prefix + 2 * nearest.gather(1, leaving) + 1)
        stays = torch.ones_like(host).scatter(1, prefix + 2 * leaving, 0)
        return (stays.cumsum(1) - 1).gather(1, host)

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        num_patches = shape.num_tokens - shape.num_prefix
        num_merged = self._num_merged(num_patches)
        num_groups = shape.num_tokens - num_merged
        matching = -(-num_patches // 2) * (num_patches // 2) * shape.head_dim if num_merged else 0
        return num_layers * (2 * shape.num_heads * num_groups**2 * shape.head_dim + matching)

    def _num_merged(self, num_patches: int) -> int:
        return int(self.ratio * num_patches)
