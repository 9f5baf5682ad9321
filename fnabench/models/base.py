"""What a model is before its weights are loaded, and what a backbone can do after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fnabench.attention.base import AttentionShape
from fnabench.attention.layers import LayerStack
from fnabench.beside import LayerErrors, exact_beside
from fnabench.tiles import Images

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """The sizes of a model, had without its weights."""

    shapes: tuple[AttentionShape, ...]
    """One per replaceable layer, in order of depth."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    num_classes: int
    """Width of the library's own classification head; 0 without one."""
    depths: tuple[int, ...] = ()
    """Number of those layers in each tower; all in one unless told."""

    def __post_init__(self) -> None:
        if not self.depths:
            object.__setattr__(self, "depths", (len(self.shapes),))


class Model(ABC):
    """How to get a backbone: its subclass is one final, frozen, keyword-only dataclass of settings."""

    description: str = ""
    """A few words for the head of a table, such as "bundled, 5 M parameters"."""

    @property
    @abstractmethod
    def offers(self) -> frozenset[str]:
        """What the loaded backbone will be able to do, of "classify", "embed", "patches", "text", "generate"."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """Why something is not offered, by its name, where there is more to say."""
        return {}

    @abstractmethod
    def check(self) -> None:
        """Raise MissingError or BadInputError if the weights cannot be had; loads nothing."""

    @abstractmethod
    def blueprint(self) -> Blueprint:
        """The sizes of the model; ImpossibleError where its attention cannot be replaced."""

    @abstractmethod
    def weights_hash(self) -> str:
        """A hash over the content of the weights."""

    @abstractmethod
    def load(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """The backbone with its weights, in eval mode."""


class Backbone:
    """A loaded model with its replaceable layers; Model.offers says which of its methods it has."""

    module: Any
    """The library's own torch.nn.Module."""
    layers: LayerStack
    transform: Callable[[Image.Image], Any]
    """Resize and crop as the model was trained for: a tensor [3, height, width], or Tiles."""
    transform_whole: Callable[[Image.Image], Any]
    """Resize the whole image to the model's input, whatever its shape."""
    text_memory: Callable[[object, Callable[[], Tensor]], Tensor] | None = None
    """Where text features are kept, if they are."""
    templates: tuple[str, ...] = ()
    """Prompts for zero-shot classification with {} for the class, where the model has a text tower."""

    def classify(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B classes"]:
        """Logits of the library's own classification head."""
        raise NotImplementedError(f"{type(self).__name__} has no classification head")

    @property
    def decoder_head(self) -> nn.Module | None:
        """The module whose output are the logits that generate chooses words by, images first; None without one."""
        return None

    def exact_beside(self) -> AbstractContextManager[LayerErrors]:
        """Exact attention in the replaced layers for a while; gives each layer's error of the variant."""
        return exact_beside(self.layers)

    def encode_image(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B E"]:
        """One embedding an image."""
        raise NotImplementedError(f"{type(self).__name__} has no image embedding")

    def embed_and_classify(
        self, images: Float[Tensor, "B 3 height width"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B classes"] | None]:
        """What encode_image and classify give, by one forward; None where there is no classification head."""
        return self.encode_image(images), None

    def encode_patches(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        """The final patch tokens, row by row, without prefix tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no patch tokens")

    def patch_grid(self, images: Float[Tensor, "B 3 height width"]) -> tuple[int, int]:
        """Rows and columns of the patches of such images."""
        raise NotImplementedError(f"{type(self).__name__} has no patch tokens")

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "T E"]:
        """One embedding a text, in the space of encode_image."""
        raise NotImplementedError(f"{type(self).__name__} has no text tower")

    def recall_texts(self, texts: object, embed: Callable[[], Float[Tensor, "T E"]]) -> Float[Tensor, "T E"]:
        """What `embed` gives for these texts, a row for each text or for each list of texts; from memory if it can be.

        Whoever asks for rows of another meaning gives other texts.
        """
        return self.text_memory(texts, embed) if self.text_memory else embed()

    def generate(
        self,
        images: Images,
        prompts: Sequence[Sequence[str]],
        max_new_tokens: int | None = None,
    ) -> list[list[str]]:
        """A greedy answer to each of the prompts [B][any number] about each image; at its full length unless told.

        What stands before the question, the image above all, is read once for all prompts about it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder")
