"""Test-time registers: exact outcomes on a planted register neuron, a naive forward, clean removal, refusals."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import partial
from math import sqrt

import pytest
import torch
from builders import KINDS, attention_inputs, random_images, shape_of, timm_model
from builders import watch as watched
from planted import DETECT_BLOCK, GROWTH, GROWTH_BLOCK, MASSIVE, planted_backbone, planted_images
from small_world import NUM_IMAGES, SmallWorld
from test_layers import hooks_of, overridden

import fnabench
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.masked import Masked
from fnabench.attention.registers import Registers
from fnabench.beside import exact_beside
from fnabench.cost import Probe, capture_inputs, measure_cost
from fnabench.data.base import Sample
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.loader import Batch
from fnabench.macs import count_macs
from fnabench.models.timm_layers import timm_layers
from fnabench.models.timm_vit import TimmBackbone
from fnabench.store import read_record
from fnabench.watch import watch

PLANTED = (GROWTH_BLOCK, 0)
"""The one neuron of the planted model that makes a token massive."""
REGISTER = 1
"""Where the first register stands, after CLS."""
NEURONS = ((0, 3), (2, 5), (2, 9))


def calibrated(images=None, **settings):
    """What is found in the planted model, image by image."""
    backbone = planted_backbone()
    images = planted_images() if images is None else images
    variant = Registers(**({"detect_block": DETECT_BLOCK, "num_neurons": 1, "inner": Exact()} | settings))
    with torch.inference_mode():
        return variant.calibrate(backbone.layers, [partial(backbone.encode_image, image[None]) for image in images])


def attached(inner=None, chosen="all", **settings):
    """A random model with registers, and its layers."""
    module = timm_model()
    stack = timm_layers(module)
    variant = Registers(**({"neurons": NEURONS, "inner": inner or Exact()} | settings))
    variant.attach(stack.select(chosen))
    return module, stack


def naive(module, images, num_registers, neurons):
    """The forward written out: blocks one by one, the registers at the end of the sequence."""
    x = module.norm_pre(module._pos_embed(module.patch_embed(images)))
    num_tokens = x.shape[1]
    x = torch.cat([x, torch.zeros(len(x), num_registers, x.shape[2])], 1)
    for number, block in enumerate(module.blocks):
        x = x + block.attn(block.norm1(x))
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(x)))
        for neuron in (neuron for at, neuron in neurons if at == number):
            for image in hidden:
                image[num_tokens:, neuron] = image[1:num_tokens, neuron].max()
                image[1:num_tokens, neuron] = 0
        x = x + block.mlp.fc2(hidden)
    return module.norm(x[:, :num_tokens])


def classify(backbone, batch):
    return backbone.classify(batch.images)


# Which neurons


def test_the_planted_register_neuron_is_found():
    found = calibrated()
    assert found.attention.neurons == (PLANTED,)
    assert found.found == {
        "num_neurons": 1, "neurons": [list(PLANTED)], "mean_magnitudes": [0.5], "num_images": 2,
        "num_images_with_outliers": 1, "outliers_per_image": 0.5,
    }  # fmt: skip
    assert (found.attention.num_calibration_images, Registers(inner=Exact()).num_calibration_images) == (0, 100)


def test_where_no_image_has_an_outlier_no_neuron_is_taken():
    found = calibrated(planted_images()[1:])
    assert found.attention.neurons == ()
    assert found.found["num_images_with_outliers"] == 0


@pytest.mark.parametrize(("threshold", "outliers"), [(19.0, 1), (21.0, 0), (1.2, 8)])
def test_a_threshold_says_which_patches_are_outliers(threshold, outliers):
    found = calibrated(planted_images()[:1], threshold=threshold).found
    assert found["outliers_per_image"] == outliers


def test_only_blocks_up_to_the_top_block_are_searched():
    assert {block for block, _ in calibrated(top_block=0, num_neurons=8).attention.neurons} == {0}
    assert calibrated(top_block=3, num_neurons=1).attention.neurons == (PLANTED,)


def test_calibrating_leaves_nothing_behind():
    backbone = planted_backbone()
    Registers(detect_block=2, inner=Exact()).calibrate(
        backbone.layers, [partial(backbone.encode_image, planted_images())]
    )
    assert hooks_of(backbone.module) == 0


# What they do


@pytest.mark.parametrize("num_registers", [1, 3])
def test_the_outlier_disappears_from_the_patches_and_appears_on_the_registers(num_registers):
    backbone = planted_backbone()
    replace(calibrated().attention, num_registers=num_registers).attach(backbone.layers)
    with torch.inference_mode(), watch(backbone.layers) as views:
        backbone.encode_image(planted_images())
    norms = views[DETECT_BLOCK].norms
    assert norms.shape == (2, 10 + num_registers)
    size = sqrt((0.5 * GROWTH) ** 2 + 1)  # its drive fell by 1, as everyone's
    assert norms[0, REGISTER : REGISTER + num_registers].tolist() == pytest.approx([size] * num_registers)
    assert norms[0, MASSIVE + num_registers].item() == pytest.approx(sqrt(3), abs=1e-3)
    assert norms[0, REGISTER + num_registers :].max() < 2
    assert norms[1].max().item() == pytest.approx(1)  # an image without outlier stays without
    assert not views[DETECT_BLOCK].massive("norm", 0.3, 0.7).any()


@pytest.mark.parametrize("num_registers", [1, 2])
@pytest.mark.parametrize("neurons", [(), NEURONS])
@pytest.mark.parametrize("chosen", ["all", "half", "3"])
def test_a_whole_model_with_registers_is_what_a_naive_forward_gives(num_registers, neurons, chosen):
    module, _ = attached(num_registers=num_registers, neurons=neurons, chosen=chosen)
    with torch.inference_mode():
        actual = module.forward_features(random_images())
        expected = naive(timm_model(), random_images(), num_registers, neurons)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_without_neurons_no_activation_of_a_patch_is_moved():
    module, _ = attached(neurons=())
    plain = timm_model()
    seen = []
    for each in (module, plain):
        each.blocks[0].attn.proj.weight.zero_()  # so that only the MLP could change a patch
        each.blocks[0].mlp.act.register_forward_hook(lambda _, __, hidden: seen.append(hidden))
    with torch.inference_mode():
        module(random_images())
        plain(random_images())
    assert torch.equal(seen[0][:, [0, *range(2, 18)]], seen[1])


def test_cls_keeps_its_own_activation():
    module, _ = attached()
    hidden = []
    module.blocks[0].mlp.drop1.register_forward_hook(lambda _, __, output: hidden.append(output))
    module.blocks[0].mlp.act.register_forward_hook(lambda _, __, output: hidden.append(output), prepend=True)
    with torch.inference_mode():
        module(random_images())
    before, after = hidden
    assert torch.equal(after[:, 0], before[:, 0])
    assert torch.equal(after[:, 1, 3], before[:, 2:, 3].amax(1))
    assert not after[:, 2:, 3].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "rotary" not in kind])
def test_registers_run_in_each_kind_of_model_and_leave_its_tokens(kind):
    module = timm_model(kind)
    images = random_images(size=KINDS[kind].image_size)
    shape = module.forward_features(images).shape
    seen = watched(Exact())
    Registers(neurons=NEURONS, inner=seen).attach(timm_layers(module))
    assert module.forward_features(images).shape == shape
    assert {inputs.num_prefix for inputs in seen.seen} == {KINDS[kind].num_prefix + 1}
    assert {inputs.x.shape[1] for inputs in seen.seen} == {shape[1] + 1}


def test_registers_are_landmarks_like_the_models_own():
    inner = watched(Fna(num_landmarks=6))
    module, _ = attached(inner, "half", num_registers=2)
    module(random_images())
    assert all(landmarks.index[:, :3].tolist() == [[0, 1, 2]] * 2 for landmarks in inner.landmarks)


def test_masking_beside_registers_never_masks_them():
    inner = watched(Exact())
    module, _ = attached(Masked(tokens="both", inner=inner))
    module(10 * random_images())
    masks = [inputs.mask for inputs in inner.seen if inputs.mask is not None]
    assert all(mask[:, 0, 0, :2].all() for mask in masks)


def test_half_precision_keeps_its_dtype():
    module, _ = attached()
    assert module.bfloat16()(random_images().bfloat16()).dtype == torch.bfloat16


def test_a_mask_given_to_the_model_is_refused():
    module, _ = attached()
    with pytest.raises(ImpossibleError, match="with test-time registers"):
        module.forward_features(random_images(), attn_mask=torch.ones(1, 1, 1, 17, dtype=torch.bool))


# Attaching and detaching


def test_detaching_leaves_nothing_behind():
    module, stack = attached(chosen="half")
    stack.detach()
    assert (hooks_of(module), overridden(module)) == (0, [])
    assert stack[0].state.num_registers == 0
    assert torch.equal(module(random_images()), timm_model()(random_images()))


def test_another_variant_takes_the_registers_away():
    module, stack = attached()
    Exact().attach(stack)
    assert torch.equal(module(random_images()), timm_model()(random_images()))


def test_the_two_lines_take_neurons_that_are_given():
    module = fnabench.attach(timm_model(), Registers(neurons=NEURONS, inner=Exact()))
    assert not torch.equal(module(random_images()), timm_model()(random_images()))
    assert torch.equal(fnabench.detach(module)(random_images()), timm_model()(random_images()))
    with pytest.raises(BadInputError, match=r"give attention\.neurons"):
        fnabench.attach(module, Registers(inner=Exact()))


@pytest.mark.parametrize("chosen", ["half", "3"])
def test_looking_on_keeps_the_registers(chosen):
    module, stack = attached(chosen=chosen)
    with torch.inference_mode():
        before = module(random_images())
        with watch(stack) as views:
            assert torch.equal(module(random_images()), before)
        assert torch.equal(module(random_images()), before)
    assert views[0].norms.shape == (2, 18)


@pytest.mark.parametrize("inner", [Exact(), Fna(num_landmarks=6)])
def test_exact_beside_is_the_model_without_registers(inner):
    module, stack = attached(inner, "half")
    with torch.inference_mode():
        before = module(random_images())
        with exact_beside(stack) as errors:
            torch.testing.assert_close(module(random_images()), timm_model()(random_images()), atol=1e-5, rtol=1e-5)
        assert sorted(errors) == ([] if inner == Exact() else [2, 3])
        assert torch.equal(module(random_images()), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda backbone: pickle.loads(pickle.dumps(backbone))])
def test_a_copy_has_registers_of_its_own(duplicate):
    module, stack = attached()
    module.layers_of_it = stack
    other = duplicate(module)
    expected = module(random_images())
    stack.detach()
    assert torch.equal(other(random_images()), expected)
    other.layers_of_it.detach()
    assert torch.equal(other(random_images()), module(random_images()))


# Refusals


def model_of(num_blocks=4, **changes):
    return [replace(shape_of(attention_inputs()), **({"num_neurons": 8} | changes))] * num_blocks


@pytest.mark.parametrize(
    ("settings", "shapes", "message"),
    [
        ({}, model_of(num_neurons=0), "need the hidden layer of each block's MLP"),
        ({"detect_block": 4}, model_of(), r"attention\.detect_block=4 is no block .*; allowed: 1\.\.3"),
        ({"detect_block": 0}, model_of(), r"attention\.detect_block=0 is no block .*; allowed: 1\.\.3"),
        ({"top_block": 9}, model_of(), r"attention\.top_block=9 is no block .*; allowed: 0\.\.3"),
        ({"num_neurons": 17}, model_of(), r"attention\.num_neurons=17 is more .*top_block=1 .*allowed: 0\.\.16"),
        ({"neurons": [[1, 8]]}, model_of(), r"neuron 8 of block 1; this model has neurons 0\.\.7 in blocks 0\.\.3"),
        ({"neurons": [[4, 0]]}, model_of(), "neuron 0 of block 4"),
    ],
)
def test_what_the_model_has_not_is_refused_in_one_line(settings, shapes, message):
    with pytest.raises(ImpossibleError, match=message) as error:
        Registers(inner=Exact(), **settings).check_model(shapes)
    assert "\n" not in str(error.value)
    Registers(inner=Exact()).check_model(model_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_registers": 0}, r"attention\.num_registers=0 must be at least 1"),
        ({"num_neurons": -1}, r"attention\.num_neurons=-1 must be at least 0"),
        ({"num_images": 0}, r"attention\.num_images=0 must be at least 1"),
        ({"threshold": 0}, "must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(BadInputError, match=message):
        Registers(inner=Exact(), **settings)


def test_the_inner_variant_is_checked_with_the_registers_in_the_prefix():
    shape = shape_of(attention_inputs(num_prefix=5))
    with pytest.raises(ImpossibleError, match=r"choose 7\.\.18"):
        Registers(inner=Fna(num_landmarks=6)).check(shape)
    Registers(inner=Fna(num_landmarks=7)).check(shape)


def test_rotary_attention_is_refused_when_it_is_attached():
    module = timm_model("DINOv3 with rotary attention")
    with pytest.raises(ImpossibleError, match="need the hidden layer"):
        Registers(neurons=(), inner=Exact()).attach(timm_layers(module))
    assert hooks_of(module) == 0


# Cost


def test_the_cost_is_that_of_the_model_with_its_registers():
    backbone = TimmBackbone(timm_model(), None)
    batch = Batch(images=random_images(2), samples=(Sample(id="a", image=None), Sample(id="b", image=None)))
    variant, layers = Registers(neurons=NEURONS, inner=Exact()), backbone.layers.select("half")

    cost = measure_cost(backbone, variant, layers, classify, batch, Probe(batch_size=2, num_rounds=1, memory=True)).cost
    assert hooks_of(backbone.module) == 0
    assert cost.memory is not None  # a fresh process had the registers too
    with torch.no_grad():
        assert cost.exact_macs == count_macs(lambda: backbone.module(random_images(1)))
        variant.attach(layers)
        assert cost.macs == count_macs(lambda: backbone.module(random_images(1))) > cost.exact_macs


def test_the_cores_alone_are_given_the_registers_too():
    backbone = TimmBackbone(timm_model(), lambda image: image)
    batch = Batch(images=random_images(2), samples=())
    variant = Registers(neurons=NEURONS, inner=Exact())
    captured = capture_inputs(backbone, backbone.layers, classify, batch, variant.around)
    assert {(inputs.q.shape[2], inputs.num_prefix) for inputs in captured} == {(18, 2)}


# The command


def test_the_record_says_what_was_found_and_whose_images_they_were(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    settings = {"attention__num_neurons": "3", "attention__min_gap": "0.01", "attention__num_images": "4"}
    code, out, _ = world.run(attention="exact_registers", **settings)
    assert code == 0
    assert "found before: split=scored, num_neurons=3, num_images=4" in " ".join(out.split())
    record = next(r for r in map(read_record, world.records()) if r.attention == "exact_registers")
    assert len(record.calibration["neurons"]) == 3
    assert record.num_samples == NUM_IMAGES
    assert record.identity["calibrated_on"] == record.identity["data"]
    assert record.comparison is not None
    given = str(record.calibration["neurons"]).replace(" ", "")
    world.run(attention="exact_registers", attention__neurons=given, **settings)
    records = [r for r in map(read_record, world.records()) if r.attention == "exact_registers"]
    assert len({each.key for each in records}) == 2
    assert [each.score for each in records] == [record.score] * 2
    assert [each.calibration for each in records].count(None) == 1


def test_a_training_split_is_calibrated_on_where_there_is_one(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    world.run_as_given(
        "task=classification", "model=clip", "data=scenes", "data.limit=4", "attention=fna_registers",
        "attention.num_images=2", "attention.threshold=90", "attention.detect_block=6", "probe=none", "tracker=none",
    )  # fmt: skip
    record = next(r for r in map(read_record, world.records()) if r.attention == "fna_registers")
    assert record.calibration["split"] == "training"
    assert (record.calibration["num_images"], record.calibration["num_neurons"]) == (2, 10)
    assert record.identity["calibrated_on"] not in (None, record.identity["data"])


def test_what_cannot_have_registers_is_refused_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    line = world.refused(attention="exact_registers", attention__num_neurons="99999")
    assert "attention.num_neurons=99999 is more than" in line
    assert not world.records()
