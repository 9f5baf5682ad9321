"""CLIP and SigLIP by open_clip: an image and a text tower in one embedding space, from a local file or a pinned hub
revision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch.nn.functional import normalize

from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.identity import LOCATION, digest
from fnabench.models.base import Backbone, Blueprint, Model
from fnabench.models.open_clip_layers import open_clip_layers
from fnabench.models.preprocessing import square_transforms
from fnabench.models.weights_file import find_weights, hash_file, is_hub_id, pinned

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files beside the weights of an architecture whose tokenizer is not open_clip's own."""
PROMPTS = Path(__file__).with_name("imagenet_prompts.txt")
"""The 80 prompts of OpenAI's CLIP for ImageNet, one a line, {} for the class."""


@dataclass(frozen=True, kw_only=True)
class OpenClipVit(Model):
    """A model of open_clip whose image tower is a Vision Transformer."""

    checkpoint: str = field(metadata=LOCATION)
    """A weights file that open_clip can read, or hf-hub:owner/name@revision."""
    revision: str | None = field(default=None, metadata=LOCATION)
    """Commit of a hub id that names none."""
    architecture: str
    """A name that open_clip.list_models() prints."""
    quick_gelu: bool
    """The activation x * sigmoid(1.702 x) of OpenAI's weights. No default: the wrong one costs points silently."""
    image_size: int | None = None
    """Pixels; other than native, the position embedding is interpolated. None = native."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False
    """Whether images are resized to a square as a whole (SigLIP), or by their short side and cropped (CLIP)."""
    description: str = ""

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"embed", "patches", "text"})

    def check(self) -> None:
        path = find_weights(self._pinned, WEIGHTS)
        if self._has_own_tokenizer:
            _tokenizer_folder(self._pinned, path)
        config = find_weights(self._pinned, CONFIG) if is_hub_id(self._pinned) else path.with_name(CONFIG)
        if config.is_file():
            trained = json.loads(config.read_text())["model_cfg"].get("quick_gelu", False)
            if trained != self.quick_gelu:
                raise BadInputError(
                    f"model.quick_gelu={self.quick_gelu}, but {config} says that these weights were trained with "
                    f"quick_gelu={trained}"
                )

    def weights_hash(self) -> str:
        return self._hash

    def blueprint(self) -> Blueprint:
        with torch.device("meta"):
            module = self._build()
        stack, patch = open_clip_layers(module.visual), _patch_size(module.visual)
        if self.size != self._native_size and (self.size < patch or self.size % patch):  # So400m/14 at 384 drops a rim
            raise ImpossibleError(
                f"model.image_size={self.size} is no multiple of the {patch}x{patch} patch; "
                f"the nearest is {max(patch, round(self.size / patch) * patch)}"
            )
        num_tokens = (self.size // patch) ** 2 + stack[0].num_prefix
        return Blueprint(
            shapes=tuple(layer.shape(num_tokens) for layer in stack),
            image_size=(self.size, self.size),
            num_classes=0,
        )

    def load(self, device: torch.device, dtype: torch.dtype) -> OpenClipBackbone:
        open_clip = _open_clip()
        path = find_weights(self._pinned, WEIGHTS)
        module = self._build()
        try:
            open_clip.load_checkpoint(module, str(path))
        except (RuntimeError, ValueError, KeyError, OSError, EOFError, UnpicklingError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BadInputError(f"the weights in {path} do not fit {self.architecture}: {reason}") from error
        if hasattr(module.visual, "trunk") and self.size != self._native_size:
            module.visual.set_input_size(self.size)
        module = module.to(device, dtype).eval().requires_grad_(False)
        crop, whole = square_transforms(self.size, self.mean, self.std)
        backbone = OpenClipBackbone(module, self._tokenizer(path))
        backbone.transform, backbone.transform_whole = whole if self.squash else crop, whole
        return backbone

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.image_size or self._native_size

    @property
    def _pinned(self) -> str:
        return pinned(self.checkpoint, self.revision)

    @cached_property
    def _hash(self) -> str:
        path = find_weights(self._pinned, WEIGHTS)
        if not self._has_own_tokenizer:
            return hash_file(path)
        folder = _tokenizer_folder(self._pinned, path)
        return digest([hash_file(each) for each in (path, *(folder / name for name in TOKENIZER))])

    @property
    def _native_size(self) -> int:
        return int(self._config["vision_cfg"]["image_size"])

    @property
    def _has_own_tokenizer(self) -> bool:
        return "hf_tokenizer_name" in self._config["text_cfg"]

    @cached_property
    def _config(self) -> dict[str, Any]:
        """open_clip's settings for the architecture."""
        open_clip = _open_clip()
        config: dict[str, Any] | None = open_clip.get_model_config(self.architecture)
        if config is None:
            close = ", ".join(get_close_matches(self.architecture, open_clip.list_models(), n=5))
            raise BadInputError(
                f"model.architecture={self.architecture} is not one of open_clip's models"
                + (f"; close names: {close}" if close else "; give a name that open_clip.list_models() prints")
            )
        if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
            raise ImpossibleError(
                f"model.architecture={self.architecture} has a text tower of another kind; only CLIP's and SigLIP's "
                "are understood"
            )
        return config

    def _build(self) -> Any:
        """The model with random weights; a tower by timm has its native size until the weights are there."""
        _open_clip()
        from open_clip.model import CLIP, CustomTextCLIP
        from open_clip.transformer import QuickGELU

        settings = self._config | {"quick_gelu": self.quick_gelu}
        if "timm_model_name" not in settings["vision_cfg"]:
            settings["vision_cfg"] = settings["vision_cfg"] | {"image_size": self.size}
        custom_text = settings.pop("custom_text", False)
        module = (CustomTextCLIP if custom_text else CLIP)(**settings)
        if any(isinstance(part, QuickGELU) for part in module.modules()) != self.quick_gelu:
            raise ImpossibleError(f"model.architecture={self.architecture} cannot have quick_gelu={self.quick_gelu}")
        return module

    def _tokenizer(self, weights: Path) -> Any:
        open_clip = _open_clip()
        text = self._config["text_cfg"]
        if not self._has_own_tokenizer:
            return open_clip.SimpleTokenizer(context_length=text["context_length"])
        folder = _tokenizer_folder(self._pinned, weights)
        options = text.get("tokenizer_kwargs", {})
        return open_clip.tokenizer.HFTokenizer(str(folder), context_length=text["context_length"], **options)


class OpenClipBackbone(Backbone):
    """A loaded model of open_clip; only the image tower's attention can be replaced."""

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.layers = open_clip_layers(module.visual)
        self.templates = tuple(PROMPTS.read_text(encoding="utf-8").splitlines())

    def encode_image(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B E"]:
        return self.module.encode_image(images)  # type: ignore[no-any-return]

    def encode_patches(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        tower = self.module.visual
        if hasattr(tower, "trunk"):
            return tower.trunk.forward_features(images)[:, tower.trunk.num_prefix_tokens :]  # type: ignore[no-any-return]
        found = tower.forward_intermediates(
            images, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return found["image_intermediates"][-1]  # type: ignore[no-any-return]

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        patch = _patch_size(self.module.visual)
        return images.shape[-2] // patch, images.shape[-1] // patch

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "T E"]:
        tokens = self.tokenizer(list(texts)).to(self.module.logit_scale.device)
        return normalize(self.module.encode_text(tokens), dim=-1)


def _patch_size(image_tower: Any) -> int:
    trunk = getattr(image_tower, "trunk", None)
    return int((trunk.patch_embed.patch_size if trunk is not None else image_tower.patch_size)[0])


def _tokenizer_folder(checkpoint: str, weights: Path) -> Path:
    """The folder that holds the tokenizer's files."""
    if is_hub_id(checkpoint):
        first, *_ = [find_weights(checkpoint, name) for name in TOKENIZER]
        return first.parent
    if missing := [name for name in TOKENIZER if not weights.with_name(name).is_file()]:
        raise MissingError(
            f"{weights.with_name(missing[0])} is missing; put {', '.join(TOKENIZER)} of the model beside its weights"
        )
    return weights.parent


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingError(
            "model=clip_... and model=siglip... need open_clip; install it with: pip install 'fnabench[clip]'"
        ) from error
    return open_clip
