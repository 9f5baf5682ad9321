"""Test-time registers (arXiv 2506.08010): the outliers of an image move into added tokens, without any training.

A few hidden neurons of the MLPs, the register neurons, write the patches of extreme norm. They are those with the
largest mean magnitude on such outliers, averaged over calibration images, in the blocks up to top_block. In use r
tokens of zeros join the residual stream before the first block and leave it after the last; of each register neuron
they get the largest activation over the patches, the patches get 0, and CLS keeps its own.

Deviation: outliers lie above the largest gap of the log norms, as massive tokens do, since the paper's threshold is
another number for each model; `threshold` sets one. Where no image has an outlier, the tokens are added and no neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape, Calibrated
from fnabench.attention.detectors import MIN_GAP, above_gap
from fnabench.attention.layers import AttentionLayer
from fnabench.attention.register_hooks import Recording, surround
from fnabench.errors import BadInputError, ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Registers(Attention):
    """The inner variant in a model with test-time registers, which are prefix tokens to it."""

    num_registers: int = 1
    """r, all with the same activations of the register neurons."""
    num_neurons: int = 10
    """How many register neurons; 0 adds the tokens alone."""
    neurons: tuple[tuple[int, int], ...] | None = None
    """The register neurons as pairs of block and neuron; None finds them on calibration images."""
    detect_block: int | None = None
    """Outliers are looked for in the input of this block; None: two thirds of the way up."""
    top_block: int | None = None
    """Register neurons are looked for up to this block; None: up to the one before detect_block."""
    threshold: float | None = None
    """The L2 norm above which a patch is an outlier; None: by the largest gap."""
    min_gap: float = MIN_GAP
    """Without threshold, in nats: with a smaller gap an image has no outlier."""
    num_images: int = 100
    """How many calibration images; the paper takes 500."""
    inner: Attention

    def __post_init__(self) -> None:
        if self.neurons is not None:  # which a yaml gives as lists
            object.__setattr__(self, "neurons", tuple((int(block), int(neuron)) for block, neuron in self.neurons))
        for name, least in (("num_registers", 1), ("num_neurons", 0), ("num_images", 1)):
            if getattr(self, name) < least:
                raise BadInputError(f"attention.{name}={getattr(self, name)} must be at least {least}")
        if self.inner.masks_folder is not None:
            raise BadInputError("stored masks are of a model without test-time registers; use another detector")
        if self.min_gap <= 0 or (self.threshold is not None and self.threshold <= 0):
            raise BadInputError(
                f"attention.min_gap={self.min_gap} and attention.threshold={self.threshold} must be above 0"
            )

    @property
    def parts(self) -> Mapping[str, Callable[[AttentionInputs], object]]:
        return self.inner.parts

    @property
    def honours_key_mask(self) -> bool:
        return self.inner.honours_key_mask

    def check(self, shape: AttentionShape) -> None:
        self.inner.check(self._extended(shape))

    def check_layers(self, indices: Sequence[int]) -> None:
        self.inner.check_layers(indices)

    def check_model(self, shapes: Sequence[AttentionShape]) -> None:
        self.inner.check_model([self._extended(shape) for shape in shapes])
        width = min(shape.num_neurons for shape in shapes)
        if not width:
            raise ImpossibleError(
                "test-time registers need the hidden layer of each block's MLP, and this model has a block without one "
                "that is understood; choose a timm Vision Transformer with plain MLPs, or another attention="
            )
        detect, top = self._blocks(len(shapes))
        for name, block, least in (("detect_block", detect, 1), ("top_block", top, 0)):
            if not least <= block < len(shapes):
                raise ImpossibleError(
                    f"attention.{name}={block} is no block to choose in this model; allowed: {least}..{len(shapes) - 1}"
                )
        if self.num_neurons > (top + 1) * width:
            raise ImpossibleError(
                f"attention.num_neurons={self.num_neurons} is more than the blocks up to attention.top_block={top} "
                f"have; allowed: 0..{(top + 1) * width}"
            )
        for block, neuron in self.neurons or ():
            if not (0 <= block < len(shapes) and 0 <= neuron < width):
                raise ImpossibleError(
                    f"attention.neurons names neuron {neuron} of block {block}; this model has neurons 0..{width - 1} "
                    f"in blocks 0..{len(shapes) - 1}"
                )

    def attach(self, layers: Iterable[AttentionLayer]) -> None:
        chosen = tuple(layers)
        if self.neurons is None:
            raise BadInputError("the register neurons are not known yet: give attention.neurons, or calibrate first")
        state = chosen[0].state
        self.check_model([layer.shape(0) for layer in state.tower])
        self.inner.attach(chosen)
        surround(state, self.num_registers, self.neurons)

    def in_model(self, num_blocks: int) -> Attention:
        return replace(self, inner=self.inner.in_model(num_blocks))

    def around(self, core: Attention) -> Attention:
        return replace(self, inner=core)

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        return self.inner(inputs)

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        """The inner variant's with the added tokens, for a shape without them."""
        return self.inner.macs(self._extended(shape), num_layers)

    @property
    def num_calibration_images(self) -> int:
        return self.num_images if self.neurons is None else 0

    def calibrate(self, layers: Sequence[AttentionLayer], forwards: Iterable[Callable[[], object]]) -> Calibrated:
        detect, top = self._blocks(len(layers))
        scores = torch.zeros(top + 1, layers[0].shape(0).num_neurons, dtype=torch.float64)
        num_images = num_outliers = num_with = 0
        with Recording(layers[: top + 1], layers[detect]) as seen:
            for forward in forwards:
                forward()
                outliers = self._outliers(seen.norms, layers[0].num_prefix)
                weights = outliers / outliers.sum(1, keepdim=True).clamp_min(1)  # [B, N]
                for block, hidden in seen.hidden.items():
                    scores[block] += torch.einsum("bn,bnf->f", weights, hidden.float().abs()).cpu()
                num_images += len(outliers)
                num_outliers += int(outliers.sum())
                num_with += int(outliers.any(1).sum())
        scores /= max(num_with, 1)
        best = scores.flatten().topk(self.num_neurons if num_with else 0)
        neurons = tuple(divmod(position, scores.shape[1]) for position in best.indices.tolist())
        found = {
            "num_neurons": len(neurons),
            "neurons": [list(neuron) for neuron in neurons],
            "mean_magnitudes": [round(value, 4) for value in best.values.tolist()],
            "num_images": num_images,
            "num_images_with_outliers": num_with,
            "outliers_per_image": num_outliers / max(num_images, 1),
        }
        return Calibrated(attention=replace(self, neurons=neurons), found=found)

    def _blocks(self, num_blocks: int) -> tuple[int, int]:
        """detect_block and top_block."""
        detect = 2 * num_blocks // 3 if self.detect_block is None else self.detect_block
        return detect, detect - 1 if self.top_block is None else self.top_block

    def _extended(self, shape: AttentionShape) -> AttentionShape:
        r = self.num_registers
        return replace(shape, num_tokens=shape.num_tokens + r, num_prefix=shape.num_prefix + r)

    def _outliers(self, norms: Float[Tensor, "B N"], num_prefix: int) -> Bool[Tensor, "B N"]:
        if self.threshold is None:
            return above_gap(norms, num_prefix, self.min_gap)
        found = norms > self.threshold
        found[:, :num_prefix] = False
        return found
