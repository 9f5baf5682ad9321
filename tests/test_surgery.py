"""The two lines without Hydra: attach and detach on a model of one's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from builders import DEPTH, random_images, timm_model, watch
from torch import Tensor, nn

import fnabench
from fnabench import Exact, Fna, attach, detach
from fnabench.attention.native import Native
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.models.timm_layers import timm_layers

FNA = Fna(num_landmarks=8)


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(random_images())


def test_attach_and_detach_return_the_same_model() -> None:
    module = timm_model()
    assert attach(module, FNA) is module
    assert detach(module) is module


@pytest.mark.parametrize("selection", ["half", "all", "3:", 1, [0, -1]])
def test_detach_gives_back_the_untouched_model(selection: str | int | list[int]) -> None:
    module = timm_model()
    native = logits(module)
    names = list(module.state_dict())
    attach(module, FNA, layers=selection)
    assert not torch.equal(logits(module), native)
    assert list(module.state_dict()) == names
    detach(module)
    assert torch.equal(logits(module), native)
    assert all("forward" not in each.__dict__ and not each._forward_pre_hooks for each in module.modules())


def test_half_of_the_layers_is_the_default() -> None:
    module = timm_model()
    watched = watch(FNA)
    attach(module, watched)
    logits(module)
    assert [inputs.layer for inputs in watched.seen] == list(range(DEPTH // 2, DEPTH))


def test_attaching_again_leaves_only_the_newer_choice() -> None:
    module = timm_model()
    native = logits(module)
    attach(module, FNA, layers="all")
    watched = watch(Exact())
    attach(module, watched, layers=[1])
    assert torch.equal(logits(module), native)
    assert [inputs.layer for inputs in watched.seen] == [1]


def test_attaching_native_gives_the_untouched_model() -> None:
    module = timm_model()
    attach(module, FNA)
    attach(module, Native())
    assert all("forward" not in each.__dict__ for each in module.modules())


def test_a_choice_of_layers_that_names_none_is_refused() -> None:
    with pytest.raises(BadInputError, match="layers=7: names no block"):
        attach(timm_model(), FNA, layers="7:")


def test_a_model_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="Sequential is not a timm Vision Transformer"):
        attach(nn.Sequential(nn.Linear(2, 2)), FNA)


def test_detaching_a_model_that_was_never_attached_does_nothing() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    assert detach(module) is module


def test_a_copied_or_unpickled_model_can_be_detached() -> None:
    module = timm_model()
    native = logits(module)
    attach(module, FNA)
    attached = logits(module)
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(logits(detach(clone)), native)
        assert torch.equal(logits(module), attached)


def test_the_package_offers_the_two_lines_and_nothing_else_unexpected() -> None:
    assert set(fnabench.__all__) >= {"Exact", "Fna", "attach", "detach"}
    assert all(getattr(fnabench, name) is not None for name in fnabench.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Fnaa'"):
        fnabench.Fnaa  # noqa: B018


def test_detaching_one_stack_frees_what_another_had_attached():
    model = timm_model()
    attach(model, FNA, layers="all")
    timm_layers(model).detach()
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(block._forward_pre_hooks for block in model.blocks)
