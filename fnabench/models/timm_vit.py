"""timm's Vision Transformers: any architecture name with a local checkpoint or a pinned hub revision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import create_transform
from timm.models import is_model_pretrained

from fnabench.errors import BadInputError, ImpossibleError
from fnabench.identity import LOCATION
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.models.timm_layers import timm_layers
from fnabench.models.weights_file import HUB_PREFIX, find_weights, hash_file, is_hub_id, pinned

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class TimmVit(Model):
    """A timm Vision Transformer. What is None is taken from timm's own settings for the architecture, or from the
    config.json that lies beside weights on the hub."""

    checkpoint: str = field(metadata=LOCATION)
    """A weights file that timm can read, hf-hub:owner/name@revision, or a name that timm.list_pretrained() prints."""
    revision: str | None = field(default=None, metadata=LOCATION)
    """Commit of a hub id that names none."""
    architecture: str | None = None
    image_size: int | tuple[int, int] | None = None
    """Pixels, one number or height and width; other than native, the position embedding is interpolated."""
    num_classes: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    description: str = ""

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"embed", "patches"} | ({"classify"} if self.settings["num_classes"] else set()))

    def check(self) -> None:
        _ = self._weights

    def weights_hash(self) -> str:
        return self._hash

    @property
    def _architecture(self) -> str | None:
        """The one given, or the name that the checkpoint is."""
        return self.architecture or (self.checkpoint if is_model_pretrained(self.checkpoint) else None)

    @property
    def _pinned(self) -> str:
        if is_model_pretrained(self.checkpoint):
            return pinned(HUB_PREFIX + timm.get_pretrained_cfg(self.checkpoint).hf_hub_id, self.revision)
        return pinned(self.checkpoint, self.revision)

    @cached_property
    def _hash(self) -> str:
        return hash_file(self._weights)

    @property
    def _weights(self) -> Path:
        original = self.settings.get("url") if self._architecture else None
        return find_weights(self._pinned, original=original or "")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The preprocessing and sizes in force."""
        found: dict[str, Any] = {}
        if self._architecture is None and is_hub_id(self._pinned):
            beside = json.loads(find_weights(self._pinned, "config.json").read_text())
            found = beside.get("pretrained_cfg", {}) | {
                k: beside[k] for k in ("architecture", "num_classes") if k in beside
            }
        name = self._architecture or found.get("architecture") or ""
        architecture, _, tag = name.partition(".")
        if tag and timm.is_model(architecture) and not is_model_pretrained(name):
            tags = ", ".join(timm.list_pretrained(f"{architecture}.*"))
            raise BadInputError(f"model.architecture={name} is not one of timm's weights; allowed: {tags}")
        if not timm.is_model(architecture):
            close = ", ".join(get_close_matches(architecture, timm.list_models(), n=5))
            raise BadInputError(
                f"model.architecture={architecture or None} is not one of timm's models"
                + (f"; close names: {close}" if close else "; give a name that timm.list_models() prints")
            )
        if not found:
            found = timm.get_pretrained_cfg(name).to_dict()
        own = {
            "num_classes": self.num_classes, "mean": self.mean, "std": self.std,
            "interpolation": self.interpolation, "crop_pct": self.crop_pct, "crop_mode": self.crop_mode,
        }  # fmt: skip
        return (
            found | {"architecture": architecture} | {name: value for name, value in own.items() if value is not None}
        )

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        size = self.image_size or tuple(self.settings["input_size"][-2:])
        height, width = (size, size) if isinstance(size, int) else (int(edge) for edge in size)
        return height, width

    def blueprint(self) -> Blueprint:
        with torch.device("meta"):
            module = self._create()
        stack = timm_layers(module)
        patch_height, patch_width = module.patch_embed.patch_size
        height, width = self.size
        if height < patch_height or width < patch_width or height % patch_height or width % patch_width:
            raise ImpossibleError(
                f"model.image_size={height}x{width} is no multiple of the {patch_height}x{patch_width} patch; "
                f"the nearest is {_nearest(height, patch_height)}x{_nearest(width, patch_width)}"
            )
        num_tokens = (height // patch_height) * (width // patch_width) + module.num_prefix_tokens
        return Blueprint(
            shapes=tuple(layer.shape(num_tokens) for layer in stack),
            image_size=(height, width),
            num_classes=module.num_classes,
        )

    def load(self, device: torch.device, dtype: torch.dtype) -> TimmBackbone:
        path = self._weights
        overlay = {"file": str(path), "num_classes": self.settings["num_classes"], "custom_load": path.suffix == ".npz"}
        try:
            module = self._create(pretrained=True, pretrained_cfg_overlay=overlay)
        except (RuntimeError, ValueError, KeyError, OSError, EOFError, UnpicklingError, SafetensorError) as error:
            reason = str(error).replace("\n", " ")[:300]
            raise BadInputError(
                f"the weights in {path} do not fit {self.settings['architecture']}: {reason}"
            ) from error
        module = module.to(device, dtype).eval().requires_grad_(False)
        whole = self.settings | {"crop_pct": 1.0, "crop_mode": "squash"}
        return TimmBackbone(module, _transform(self.settings, self.size), _transform(whole, self.size))

    def _create(self, **options: Any) -> Any:
        options |= {"img_size": self.size, "num_classes": self.settings["num_classes"]}
        try:
            return timm.create_model(self.settings["architecture"], **options)
        except (TypeError, AssertionError) as error:
            raise ImpossibleError(
                f"model.architecture={self.settings['architecture']} at image_size={self.size} cannot be built as a "
                f"Vision Transformer: {error}"
            ) from error


class TimmBackbone(Backbone):
    """A loaded timm Vision Transformer."""

    def __init__(self, module: Any, transform: Transform, transform_whole: Transform | None = None) -> None:
        self.module: Any = module
        self.layers = timm_layers(module)
        self.transform = transform
        self.transform_whole = transform_whole or transform

    def classify(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B classes"]:
        return self.module(images)  # type: ignore[no-any-return]

    def embed_and_classify(
        self, images: Float[Tensor, "B 3 height width"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B classes"] | None]:
        tokens = self.module.forward_features(images)
        embedding = self.module.forward_head(tokens, pre_logits=True)
        return embedding, self.module.forward_head(tokens) if self.module.num_classes else None

    def encode_image(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B E"]:
        return self.module.forward_head(self.module.forward_features(images), pre_logits=True)  # type: ignore[no-any-return]

    def encode_patches(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        return self.module.forward_features(images)[:, self.module.num_prefix_tokens :]  # type: ignore[no-any-return]

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        height, width = self.module.patch_embed.patch_size
        return images.shape[-2] // height, images.shape[-1] // width


def _transform(settings: dict[str, Any], size: tuple[int, int]) -> Transform:
    names = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    chosen = {name: settings[name] for name in names if settings.get(name) is not None}
    return create_transform(input_size=(3, *size), **chosen)  # type: ignore[no-any-return]


def _nearest(edge: int, patch: int) -> int:
    return max(patch, round(edge / patch) * patch)
