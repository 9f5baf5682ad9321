"""The seam: what attaching does to a model, what lives through one forward, and which layers a selection names."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from builders import DEPTH, KINDS, random_images, timm_model, watch
from torch import Tensor, nn

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.layers import LayerStack, select_layers
from fnabench.attention.native import Native
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.models.timm_layers import timm_layers

FNA = Fna(num_landmarks=8, inverse="ridge")


def logits(module: nn.Module, seed: int = 0, kind: str = "class token") -> Tensor:
    with torch.no_grad():
        return module(random_images(size=KINDS[kind].image_size, seed=seed))


def hooks_of(module: nn.Module) -> int:
    return sum(len(each._forward_pre_hooks) + len(each._forward_hooks) for each in module.modules())


def overridden(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if "forward" in each.__dict__]


@dataclass(frozen=True, kw_only=True)
class Failing(Attention):
    """FNA that fails in one layer."""

    layer: int

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        output = FNA(inputs)
        if inputs.layer == self.layer:
            raise ArithmeticError("this layer fails")
        return output

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        return 0


# Exact through the seam is the untouched model


@pytest.mark.parametrize("kind", KINDS)
def test_exact_through_the_seam_is_bit_equal_to_the_untouched_model(kind: str) -> None:
    module = timm_model(kind)
    native = logits(module, kind=kind)
    stack = timm_layers(module)
    Exact().attach(stack)
    assert len(overridden(module)) == DEPTH
    assert torch.equal(logits(module, kind=kind), native)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_has_its_layers_and_prefix(kind: str) -> None:
    module = timm_model(kind)
    stack = timm_layers(module)
    watched = watch(Exact())
    watched.attach(stack)
    logits(module, kind=kind)
    assert len(stack) == len(watched.seen) == DEPTH
    assert [inputs.layer for inputs in watched.seen] == list(range(DEPTH))
    assert {inputs.num_prefix for inputs in watched.seen} == {KINDS[kind].num_prefix}
    neurons = 0 if "rotary" in kind else module.blocks[0].mlp.fc1.out_features
    assert [layer.shape(21) for layer in stack] == [
        AttentionShape(
            num_tokens=21, num_heads=3, head_dim=watched.seen[0].q.shape[-1], num_channels=watched.seen[0].x.shape[-1],
            num_prefix=KINDS[kind].num_prefix, num_neurons=neurons,
        )
    ] * DEPTH  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_fna_runs_and_changes_the_output_of_each_kind(kind: str) -> None:
    module = timm_model(kind)
    native = logits(module, kind=kind)
    FNA.attach(timm_layers(module).select("half"))
    assert logits(module, kind=kind).isfinite().all()
    assert not torch.allclose(logits(module, kind=kind), native, atol=1e-3)


def test_all_tokens_as_landmarks_give_the_model_back() -> None:
    module = timm_model()
    native = logits(module)
    Fna(num_landmarks=17, inverse="ridge", ridge=2.1e-6).attach(timm_layers(module))
    torch.testing.assert_close(logits(module), native, atol=2e-2, rtol=0)


def test_the_block_input_comes_before_its_norm() -> None:
    module = timm_model()
    watched = watch(Exact())
    watched.attach(timm_layers(module))
    inputs_of_blocks: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda _, args: inputs_of_blocks.append(args[0])) for block in module.blocks
    ]
    logits(module)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(seen.x, x) for seen, x in zip(watched.seen, inputs_of_blocks, strict=True))


def test_a_mask_given_to_the_model_reaches_the_core() -> None:
    module = timm_model()
    mask = torch.ones(1, 1, 1, 17, dtype=torch.bool)
    mask[..., 12:] = False
    with torch.no_grad():
        native = module.forward_features(random_images(), attn_mask=mask)
        watched = watch(Exact())
        watched.attach(timm_layers(module))
        assert torch.equal(module.forward_features(random_images(), attn_mask=mask), native)
    assert all(inputs.mask is mask for inputs in watched.seen)


def test_attention_dropout_is_refused_while_training() -> None:
    module = timm_model()
    Exact().attach(timm_layers(module))
    module.blocks[2].attn.attn_drop.p = 0.1
    expected = logits(module)
    module.train()
    with pytest.raises(ImpossibleError, match="attention dropout cannot be honoured"):
        logits(module)
    assert torch.equal(logits(module.eval()), expected)


# Attaching and detaching


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_is_the_same_while_attached(kind: str) -> None:
    module = timm_model(kind)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modules = [name for name, _ in module.named_modules()]
    FNA.attach(timm_layers(module))
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in module.named_modules()] == modules


def test_detaching_leaves_nothing_behind() -> None:
    module = timm_model()
    native = logits(module)
    before = {name: set(each.__dict__) for name, each in module.named_modules()}
    stack = timm_layers(module)
    FNA.attach(stack)
    assert hooks_of(module) == DEPTH
    logits(module)
    stack.detach()
    assert overridden(module) == []
    assert hooks_of(module) == 0
    assert {name: set(each.__dict__) for name, each in module.named_modules()} == before
    assert torch.equal(logits(module), native)


def test_detaching_twice_or_before_attaching_does_nothing() -> None:
    module = timm_model()
    stack = timm_layers(module)
    stack.detach()
    FNA.attach(stack)
    stack.detach()
    stack.detach()
    assert overridden(module) == []


def test_attaching_again_replaces_the_variant() -> None:
    module = timm_model()
    native = logits(module)
    stack = timm_layers(module)
    FNA.attach(stack)
    Exact().attach(stack)
    assert hooks_of(module) == DEPTH
    assert torch.equal(logits(module), native)


def test_attaching_native_detaches() -> None:
    module = timm_model()
    stack = timm_layers(module)
    FNA.attach(stack)
    Native().attach(stack)
    assert overridden(module) == []


@pytest.mark.parametrize("chosen", [[2], [0, 3], [1, 2]])
def test_only_the_chosen_layers_change(chosen: list[int]) -> None:
    module = timm_model()
    stack = timm_layers(module)
    watched = watch(FNA)
    watched.attach(stack.select(chosen))
    assert overridden(module) == [f"blocks.{index}.attn" for index in chosen]
    logits(module)
    assert [inputs.layer for inputs in watched.seen] == chosen
    assert stack[0].state.memo == {}


@pytest.mark.parametrize("variant", [Exact(), FNA])
def test_a_copy_of_an_attached_model_is_a_model_of_its_own(variant: Attention) -> None:
    module = timm_model()
    native = logits(module)
    timm_layers(module).detach()
    stack = timm_layers(module)
    variant.attach(stack)
    expected = logits(module)
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(logits(clone), expected)
        layer = clone.blocks[0].attn.forward.__self__
        assert layer.native is clone.blocks[0].attn
        assert layer.block is clone.blocks[0]
        for block in clone.blocks:
            block.attn.forward.__self__.detach()
        assert hooks_of(clone) == 0
        assert torch.equal(logits(clone), native)
        assert torch.equal(logits(module), expected)


def test_changing_the_weights_of_a_copy_leaves_the_original_alone() -> None:
    module = timm_model()
    FNA.attach(timm_layers(module))
    expected = logits(module)
    clone = copy.deepcopy(module)
    for parameter in clone.parameters():
        parameter.zero_()
    assert torch.equal(logits(module), expected)
    assert not torch.equal(logits(clone), expected)


# What lives through one forward


def test_landmarks_are_selected_once_a_forward_and_again_in_the_next() -> None:
    module = timm_model()
    watched = watch(FNA)
    watched.attach(timm_layers(module))
    logits(module, seed=0)
    logits(module, seed=1)
    first, second = watched.landmarks[:DEPTH], watched.landmarks[DEPTH:]
    assert all(each is first[0] for each in first)
    assert all(each is second[0] for each in second)
    assert first[0] is not second[0]


def test_landmarks_are_selected_in_each_layer_where_that_is_asked_for() -> None:
    module = timm_model()
    watched = watch(Fna(num_landmarks=8, resample="layer"))
    watched.attach(timm_layers(module))
    logits(module)
    assert all(one is not next_one for one, next_one in pairwise(watched.landmarks))


@pytest.mark.parametrize("selection", ["all", "half", [1], [0, 2]])
def test_nothing_is_kept_after_a_forward(selection: str | list[int]) -> None:
    module = timm_model()
    stack = timm_layers(module)
    FNA.attach(stack.select(selection))
    logits(module)
    assert stack[0].state.memo == {}
    assert stack[0].state.block_input is None


def test_nothing_is_kept_when_fewer_layers_are_attached_than_before() -> None:
    module = timm_model()
    stack = timm_layers(module)
    FNA.attach(stack)
    stack.detach()
    FNA.attach(stack.select([1, 2]))
    logits(module)
    assert stack[0].state.memo == {}


@pytest.mark.parametrize("layer", range(DEPTH))
def test_nothing_is_kept_after_a_forward_that_raised(layer: int) -> None:
    module = timm_model()
    stack = timm_layers(module)
    Failing(layer=layer).attach(stack)
    with pytest.raises(ArithmeticError):
        logits(module)
    assert stack[0].state.memo == {}
    assert stack[0].state.block_input is None


def test_a_forward_that_raised_does_not_reach_the_next() -> None:
    module = timm_model()
    stack = timm_layers(module)
    FNA.attach(stack)
    expected = logits(module, seed=1)
    handle = module.blocks[2].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(module, seed=0)
    handle.remove()
    assert torch.equal(logits(module, seed=1), expected)


def test_a_forward_that_stopped_early_does_not_reach_the_next() -> None:
    module = timm_model()
    FNA.attach(timm_layers(module))
    expected = logits(module, seed=1)
    with torch.no_grad():
        module.forward_intermediates(random_images(seed=0), indices=[1], stop_early=True)
    assert torch.equal(logits(module, seed=1), expected)


def test_forward_features_alone_works_as_often_as_one_likes() -> None:
    module = timm_model()
    FNA.attach(timm_layers(module))
    with torch.no_grad():
        first, second, again = (module.forward_features(random_images(seed=seed)) for seed in (0, 1, 0))
        assert torch.equal(module.forward_head(first), logits(module))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_an_image_gives_the_same_beside_any_others() -> None:
    module = timm_model()
    FNA.attach(timm_layers(module))
    images = random_images(3) * torch.tensor([1.0, 5.0, 0.0])[:, None, None, None]  # the last is of one colour
    with torch.no_grad():
        together = module(images)
        for position in range(3):
            alone = module(images[position : position + 1])[0]
            torch.testing.assert_close(together[position], alone, atol=2e-3, rtol=0)


def test_calling_a_layer_that_has_nothing_attached_is_an_error() -> None:
    layer = timm_layers(timm_model())[0]
    with pytest.raises(RuntimeError, match="layer 0 was called through the seam with nothing attached"):
        layer.forward(torch.zeros(1, 17, 192))


def test_the_model_compiles_into_one_graph() -> None:
    module = timm_model(depth=2)
    FNA.attach(timm_layers(module))
    expected = logits(module)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(compiled, seed=1), logits(module, seed=1), atol=1e-4, rtol=1e-4)


# Selections


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("half", [6, 7, 8, 9, 10, 11]),
        ("all", list(range(12))),
        ("9:", [9, 10, 11]),
        (" 3:5 ", [3, 4]),
        (":2", [0, 1]),
        ("::5", [0, 5, 10]),
        ("-2:", [10, 11]),
        ("::-4", [3, 7, 11]),
        (7, [7]),
        (-1, [11]),
        ("7", [7]),
        ([3, 1, 1, -1], [1, 3, 11]),
        ((0,), [0]),
        (["2", "4"], [2, 4]),
    ],
)
def test_a_selection_names_blocks_in_order_and_once(selection: object, expected: list[int]) -> None:
    assert select_layers(selection, 12) == expected  # type: ignore[arg-type]


def test_half_of_an_odd_number_is_the_larger_last_half() -> None:
    assert select_layers("half", 5) == [2, 3, 4]
    assert select_layers("half", 1) == [0]


@pytest.mark.parametrize(
    "selection",
    ["", "most", "12:", "5:3", "1:2:3:4", "a:b", "::0", 12, -13, [0, 12], [], ["x"], "1,2", None, [None], 1.5, [1.5]],
)
def test_a_selection_that_names_no_block_is_refused(selection: object) -> None:
    with pytest.raises(BadInputError, match="names no block of this model; allowed: half, all"):
        select_layers(selection, 12)  # type: ignore[arg-type]


def test_a_stack_is_a_sequence_of_layers() -> None:
    stack = timm_layers(timm_model())
    assert [layer.index for layer in stack] == [0, 1, 2, 3]
    assert stack[1:3] == (stack[1], stack[2])
    assert stack.select("half") == (stack[2], stack[3])
    with pytest.raises(ImpossibleError, match="no attention layer"):
        LayerStack([])
