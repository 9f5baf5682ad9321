"""The seam between a model and an attention variant: what goes in, what comes out, what it costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from fnabench.attention.layers import AttentionLayer

FUSED = "fused"
"""Under this name in the memo a core says that fused kernels have computed its output."""


def _no_causal() -> ImpossibleError:
    return ImpossibleError("a causal mask cannot be honoured by this attention variant; use attention=exact")


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """Everything that the core of one attention layer may look at."""

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H N D"]
    v: Float[Tensor, "B H N D"]
    x: Float[Tensor, "B N C"]
    """The block's input: the residual stream before its LayerNorm."""
    layer: int
    """Index of the block, from 0."""
    scale: float
    """Factor on the logits, usually 1/sqrt(D)."""
    num_prefix: int
    """Leading tokens that are no patches: CLS and registers."""
    has_cls: bool | None = None
    """Whether the first of them is CLS; None: if there is any."""
    mask: Tensor | None = None
    """As in scaled_dot_product_attention: bool (True = may attend) or additive, broadcastable to [B, H, N, N]."""
    is_causal: bool = False
    """No token attends to a later one; a mask then says which keys are no padding, [B, 1, 1, N], and both hold."""
    ids: Sequence[str] = ()
    """Which images these are, where the loader has told."""
    memo: dict[str, Any] = field(default_factory=dict)
    """Shared by the attached layers of one forward and empty at its start; landmarks live here."""

    def __post_init__(self) -> None:
        if self.has_cls is None:
            object.__setattr__(self, "has_cls", self.num_prefix > 0)

    def key_mask(self) -> Bool[Tensor, "B N"] | None:
        """The mask as one flag per key, True = may be attended; ImpossibleError where it is more than that.

        Whether attention is causal besides is for the variant to honour, or to refuse by `refuse_causal`.
        """
        if self.mask is None:
            return None
        if self.mask.dtype.is_floating_point or self.mask.dim() != 4 or self.mask.shape[1:3] != (1, 1):
            raise ImpossibleError(
                f"an attention mask of shape {list(self.mask.shape)} and {self.mask.dtype} cannot be honoured by this "
                "attention variant: only a boolean key mask [B, 1, 1, N] can; use attention=exact"
            )
        return self.mask[:, 0, 0].expand(self.q.shape[0], self.k.shape[2])

    def refuse_causal(self) -> None:
        """Raise ImpossibleError under a causal mask: for variants whose tokens see one another."""
        if self.is_causal:
            raise _no_causal()

    def refuse_any_mask(self) -> None:
        """Raise ImpossibleError under a mask of any kind: for variants in which every token counts."""
        self.refuse_causal()
        if self.mask is not None:
            raise ImpossibleError("an attention mask cannot be honoured by this attention variant; use attention=exact")


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The sizes of one attention layer, known before any weight is loaded."""

    num_tokens: int
    num_heads: int
    head_dim: int
    num_channels: int
    num_prefix: int
    has_cls: bool | None = None
    """Whether the first prefix token is CLS; None: if there is any."""
    is_causal: bool = False
    num_neurons: int = 0
    """Hidden neurons of the block's MLP; 0 where the MLP is not understood."""

    def __post_init__(self) -> None:
        if self.has_cls is None:
            object.__setattr__(self, "has_cls", self.num_prefix > 0)

    def refuse_causal(self) -> None:
        """As AttentionInputs does, before anything has run."""
        if self.is_causal:
            raise _no_causal()

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key that it may attend to."""
        N = self.num_tokens
        return N * (N + 1) // 2 if self.is_causal else N**2


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A variant that has seen its calibration images."""

    attention: Attention
    found: dict[str, Any]
    """What it found in them, in plain values for the record."""


class Attention(ABC):
    """An attention variant: its subclass is one final, frozen, keyword-only dataclass whose fields are its settings.

    Calling it maps AttentionInputs to the attention output [B, H, N, D], before the output projection.
    """

    is_exact: ClassVar[bool] = False
    """True where the output is softmax attention itself, so that the choice of layers changes nothing."""

    @property
    def parts(self) -> Mapping[str, Callable[[AttentionInputs], object]]:
        """What the core does on the way that deserves a latency of its own, by name."""
        return {}

    def attach(self, layers: Iterable[AttentionLayer]) -> None:
        """Make this variant the core of the layers."""
        chosen = tuple(layers)
        self.check_layers([layer.index for layer in chosen])
        for layer in chosen:
            layer.state.release()
            layer.attach(self)

    def in_model(self, num_blocks: int) -> Attention:
        """The variant for a model of so many blocks: those counted from the end, as -1 is the last, by their number."""
        return self

    def around(self, core: Attention) -> Attention:
        """Another core in the surroundings that this variant makes for its own; itself where it makes none."""
        return core

    @property
    def num_calibration_images(self) -> int:
        """How many images the variant has to see before it can be attached."""
        return 0

    def calibrate(self, layers: Sequence[AttentionLayer], forwards: Iterable[Callable[[], object]]) -> Calibrated:
        """The variant after it has seen these forwards of the untouched model, all of whose layers are given."""
        raise RuntimeError(f"{type(self).__name__} needs no calibration")

    @property
    def honours_key_mask(self) -> bool:
        """Whether tokens can be masked as keys; where not, such a mask is refused."""
        return True

    @property
    def masks_folder(self) -> str | None:
        """The folder of the record of task=tokens whose masks the variant takes; None where it takes none."""
        return None

    def with_masks(self, ids: Sequence[str], masks: Mapping[str, Bool[Tensor, "images N"]]) -> Attention:
        """The variant with the masks of these images, by kind."""
        raise RuntimeError(f"{type(self).__name__} takes no masks")

    def check(self, shape: AttentionShape) -> None:  # noqa: B027  (most variants fit every shape)
        """Raise ImpossibleError if the variant cannot run on layers of this shape."""

    def check_layers(self, indices: Sequence[int]) -> None:  # noqa: B027
        """Raise ImpossibleError if the variant cannot run in just these blocks."""

    def check_model(self, shapes: Sequence[AttentionShape]) -> None:  # noqa: B027
        """Raise ImpossibleError if the variant cannot run in a model of these layers, replaced or not."""

    @abstractmethod
    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]: ...

    @abstractmethod
    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        """Multiply-accumulates of `num_layers` layers for one image: matrix products, landmark selection included.

        Softmax, normalisation and comparisons are not counted, and neither are the projections around the core.
        """
