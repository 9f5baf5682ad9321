"""Two lines for a model of one's own: attach a variant to its attention layers, detach it again."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from fnabench.attention.base import Attention
from fnabench.attention.layers import LayerSelection, attached_layer
from fnabench.models.timm_layers import timm_layers

Module = TypeVar("Module", bound=nn.Module)


def attach(model: Module, attention: Attention, layers: LayerSelection = "half") -> Module:
    """Run the chosen layers of a model through an attention variant, in place; returns the same model.

    Parameters, modules and state_dict keys stay as they are; a variant attached before is detached first. Raises
    ImpossibleError for a model or a layer that is not understood, BadInputError for a choice of layers that names none.

    >>> import timm, torch, fnabench
    >>> model = timm.create_model("vit_tiny_patch16_224").eval()
    >>> images = torch.rand(1, 3, 224, 224)
    >>> exact = model(images)
    >>> model = fnabench.attach(model, fnabench.Fna(num_landmarks=64), layers="half")
    >>> bool(torch.equal(model(images), exact))
    False
    >>> model = fnabench.detach(model)
    >>> bool(torch.equal(model(images), exact))
    True
    """
    detach(model)
    attention.attach(timm_layers(model).select(layers))
    return model


def detach(model: Module) -> Module:
    """Give every attention layer of the model back as its library made it, in place; returns the same model."""
    for module in model.modules():
        if (layer := attached_layer(module)) is not None:
            layer.detach()
    return model
