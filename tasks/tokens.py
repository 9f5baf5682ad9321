"""Massive and artifact tokens: which they are, how they grow, and what happens once attention is kept from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fnabench.contract import Task
from fnabench.data.base import Source
from fnabench.errors import BadInputError, ImpossibleError, one_of
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.scores import SampleScores, Scores
from fnabench.watch import DETECTORS, OPERATORS, PATTERNS, BlockView, Intervention, mean_over, residual_norms, watch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy.typing import NDArray
    from torch import Tensor

GROUPS = ("cls", "massive", "artifact", "normal")
"""Of a model without CLS the first is empty; registers are in none."""
FOUND = GROUPS[1:3]
_COUNTED = ("massive_norm", "massive_cls", "artifact", "one_pass")


@dataclass(frozen=True, kw_only=True)
class Tokens(Task):
    """Each image goes through the model as it is, and again for each round of the intervention.

    Massive tokens are looked for in the input of detect_block: by the largest gap of the sorted log norms, and where
    there is a CLS token also by what it attends to. Artifacts are what an intervention brings up: in each round the
    patch that CLS attends to most in detect_block is taken from the attention of the blocks from start_block on, until
    CLS attends to itself more; all that was found so and is not massive is an artifact. one_pass artifacts are those
    that a single forward tells. To find none is a result.
    """

    detector: str = "norm"
    """Which detector's massive tokens the groups are made of."""
    ratio: float = 0.3
    min_gap: float = 0.7
    detect_block: int | None = None
    """None: two thirds of the way up; the paper's is 13 of CLIP L/14's 24."""
    operator: str = "mask"
    """mask: logits -inf. sink: probabilities 0. zero: no attention at all, which needs iterative=false."""
    pattern: str = "type1"
    """type1: no query sees T. type2: each token of T keeps its own entry."""
    start_block: int | None = None
    """None: three eighths of the way up; the paper's is 9 of 24."""
    rounds: int = 32
    """Most rounds of the iterative intervention."""
    iterative: bool = True
    """False: a single round, on all massive tokens at once; the artifacts are then those of one pass."""
    keep_bias: bool = True
    """Of operator=zero: whether the bias of the output projection is still added."""

    def __post_init__(self) -> None:
        for name, allowed in (("detector", DETECTORS), ("operator", OPERATORS), ("pattern", PATTERNS)):
            if getattr(self, name) not in allowed:
                raise one_of(f"task.{name}", getattr(self, name), allowed)
        if self.rounds < 1 or self.ratio <= 0 or self.min_gap <= 0:
            raise BadInputError(
                f"task.rounds={self.rounds} must be at least 1, "
                f"task.ratio={self.ratio} and task.min_gap={self.min_gap} above 0"
            )
        if self.operator == "zero" and self.iterative:
            raise BadInputError("task.operator=zero takes no tokens one by one; give task.iterative=false")

    @property
    def metric(self) -> str:
        return f"massive_{self.detector}"

    @property
    def needs_of_model(self) -> frozenset[str]:
        return frozenset({"patches"})

    @property
    def needs_of_data(self) -> frozenset[str]:
        return frozenset()

    def check(self, model: Model, blueprint: Blueprint, source: Source) -> None:
        super().check(model, blueprint, source)
        num_blocks = len(blueprint.shapes)
        for name in ("detect_block", "start_block"):
            block = getattr(self, name)
            if block is not None and not 0 <= block < num_blocks:
                raise ImpossibleError(f"task.{name}={block} is no block of this model; allowed: 0..{num_blocks - 1}")
        if self.detector == "cls" and not blueprint.shapes[0].has_cls:
            raise ImpossibleError(
                "task.detector=cls looks at what CLS attends to, and this model has no CLS token; "
                "use task.detector=norm"
            )

    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        ids: list[str] = []
        batches = []
        for batch in loader:
            ids += [sample.id for sample in batch.samples]
            batches.append(self._examine(backbone, batch))
            grid = backbone.patch_grid(batch.images)
        num_rounds = max(len(each["round_norm_cls"][0]) for each in batches)
        arrays = {
            name: np.concatenate([_padded(each[name], name, num_rounds) for each in batches]) for name in batches[0]
        }
        blocks = self._blocks(len(backbone.layers))
        arrays |= {"ids": np.array(ids), "grid": np.array(grid), "groups": np.array(GROUPS), "blocks": np.array(blocks)}
        arrays["suppression"] = np.ma.masked_invalid(arrays["suppression"]).mean(0).filled(np.nan)  # of who has both
        return Scores(
            metrics=_metrics(arrays, tuple(ids), compares=self.iterative),
            headline=self.metric,
            units=dict.fromkeys(_COUNTED, "tokens"),
            arrays=arrays,
            rows=_rows(arrays, ids),
        )

    def forward(self, backbone: Backbone, batch: Batch) -> Float[Tensor, "B N C"]:
        backbone.layers.tell([sample.id for sample in batch.samples])
        return backbone.encode_patches(batch.images)

    def _examine(self, backbone: Backbone, batch: Batch) -> dict[str, NDArray[Any]]:
        """Everything about the images of one batch, by name: [B, ...]."""
        detect, start = self._blocks(len(backbone.layers))
        with watch(backbone.layers) as plain:
            self.forward(backbone, batch)
        found = {
            f"massive_{detector}": plain[detect].massive(detector, self.ratio, self.min_gap)
            for detector in (DETECTORS if plain[detect].has_cls else DETECTORS[:1])
        }
        massive = found[f"massive_{self.detector}"]
        if plain[detect].has_cls:
            found["one_pass"] = plain[detect].artifacts(massive)
        masked, curves = self._intervene(backbone, batch, dict(plain), massive, detect, start)
        artifact = masked & ~massive if self.iterative else found.get("one_pass", torch.zeros_like(massive))
        groups = _groups(massive, artifact, plain[detect])
        with watch(backbone.layers, groups=groups) as grouped:
            self.forward(backbone, batch)
        by_block = [view.groups for _, view in sorted(grouped.items()) if view.groups]
        found |= {"massive": massive, "artifact": artifact} | curves
        found |= {
            "norms": mean_over(groups, residual_norms(grouped)),  # [B, L + 1, G]
            "received": torch.stack([view.received for view in by_block], 1),  # [B, L, G]
            "suppression": torch.stack([view.suppression for view in by_block], 1),  # [B, L, H, G, G]
        }
        return {name: each.cpu().numpy() for name, each in found.items()}

    def _blocks(self, num_blocks: int) -> tuple[int, int]:
        """detect_block and start_block."""
        detect = 2 * num_blocks // 3 if self.detect_block is None else self.detect_block
        return detect, 3 * num_blocks // 8 if self.start_block is None else self.start_block

    def _intervene(
        self,
        backbone: Backbone,
        batch: Batch,
        views: dict[int, BlockView],
        massive: Bool[Tensor, "B N"],
        detect: int,
        start: int,
    ) -> tuple[Bool[Tensor, "B N"], dict[str, Tensor]]:
        """T after the last round, and the curves over the rounds, of which the first is the model as it is.

        Only images of which a token more was taken run again; the others stay as their last round left them.
        """
        masked = torch.zeros_like(massive)
        active = torch.arange(len(massive), device=massive.device)
        curves = [_point(views, detect, masked)]
        for _ in range(self.rounds if self.iterative else 1):
            if self.operator != "zero":
                more = views[detect].strongest(masked[active], self.min_gap) if self.iterative else massive
                changed = more.any(1)
                active = active[changed]
                masked[active] |= more[changed]
            if not len(active):
                break
            intervention = Intervention(
                tokens=masked[active], start_block=start, operator=self.operator, pattern=self.pattern,
                keep_bias=self.keep_bias,
            )  # fmt: skip
            with watch(backbone.layers, intervention) as views:
                self.forward(backbone, batch.part(active))
            point = _point(views, detect, masked[active])
            curves.append({name: curves[-1][name].index_copy(0, active, point[name]) for name in point})
        return masked, {f"round_{name}": torch.stack([point[name] for point in curves], 1) for name in curves[0]}


def _point(views: Mapping[int, BlockView], detect: int, masked: Bool[Tensor, "B N"]) -> dict[str, Tensor]:
    """One round: norms of the residual stream before each block and after the last [B, L + 1], what CLS attends to in
    detect_block [B]; NaN where no token is."""
    norms = residual_norms(views)
    patch = torch.ones_like(masked)
    patch[:, : views[detect].num_prefix] = False

    def largest(values: Tensor, tokens: Tensor) -> Tensor:
        return torch.where(tokens.any(1), values.masked_fill(~tokens, -torch.inf).amax(1), torch.nan)

    nothing = torch.full_like(norms[:, 0], torch.nan)
    given = views[detect].attention
    attention = nothing if given is None else given
    return {
        "num_tokens": masked.sum(1),
        "norm_masked": torch.stack([largest(each, masked) for each in norms.unbind(1)], 1),
        "norm_rest": torch.stack([largest(each, patch & ~masked) for each in norms.unbind(1)], 1),
        "attention_masked": torch.where(masked, attention, 0).sum(1),
        "attention_strongest": largest(attention, patch & ~masked),
        "attention_cls": attention[:, 0],
        "norm_cls": norms[:, :, 0] if given is not None else torch.full_like(norms[:, :, 0], torch.nan),
    }


def _groups(massive: Bool[Tensor, "B N"], artifact: Bool[Tensor, "B N"], view: BlockView) -> Bool[Tensor, "B G N"]:
    cls = torch.zeros_like(massive)
    cls[:, :1] = view.has_cls
    normal = ~(massive | artifact)
    normal[:, : view.num_prefix] = False
    return torch.stack([cls, massive, artifact, normal], 1)


def _padded(values: NDArray[Any], name: str, num_rounds: int) -> NDArray[Any]:
    """Batches that ended earlier stay as their last round left them."""
    if not name.startswith("round_"):
        return values
    return np.concatenate([values, np.repeat(values[:, -1:], num_rounds - values.shape[1], axis=1)], axis=1)


def _metrics(arrays: Mapping[str, NDArray[Any]], ids: tuple[str, ...], *, compares: bool) -> dict[str, SampleScores]:
    """Tokens of each kind for an image, and how far one pass finds what the rounds do: intersection over union."""
    metrics = {name: SampleScores.mean_of(arrays[name].sum(1), ids) for name in _COUNTED if name in arrays}
    if compares and "one_pass" in arrays:
        one, all_rounds = arrays["one_pass"], arrays["artifact"]
        metrics["one_pass_iou"] = SampleScores(
            ids=ids,
            clusters=ids,
            numerator=(one & all_rounds).sum(1, keepdims=True).astype(np.float64),
            denominator=(one | all_rounds).sum(1, keepdims=True).astype(np.float64),
        )
    return metrics


def _rows(arrays: Mapping[str, NDArray[Any]], ids: list[str]) -> dict[str, list[Any]]:
    """One row a token that was found: the image, the token, its row and column among the patches, and its kind."""
    height, width = (int(edge) for edge in arrays["grid"])
    num_prefix = arrays["massive"].shape[1] - height * width
    found = np.concatenate([np.argwhere(arrays[kind]) for kind in FOUND])  # image and token
    return {
        "id": [ids[image] for image in found[:, 0]],
        "token": found[:, 1].tolist(),
        "row": ((found[:, 1] - num_prefix) // width).tolist(),
        "column": ((found[:, 1] - num_prefix) % width).tolist(),
        "kind": [kind for kind in FOUND for _ in range(int(arrays[kind].sum()))],
    }
