"""Massive and artifact tokens: exact outcomes of every detector and of the rounds on a planted model."""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import timm
import torch
from builders import KINDS, attention_inputs, random_images, shape_of, timm_model
from fnabench.tasks.segmentation import Segmentation
from fnabench.tasks.tokens import GROUPS, Tokens
from lookup import Numbered, samples
from planted import (
    ARTIFACT,
    DETECT_BLOCK,
    GROWTH,
    GROWTH_BLOCK,
    MASSIVE,
    planted_backbone,
    planted_images,
    tokens,
)
from safetensors.torch import save_file
from small_world import NUM_IMAGES, SmallWorld
from timm.models.vision_transformer import VisionTransformer

from fnabench.attention.exact import Exact
from fnabench.attention.masked import Masked
from fnabench.attention.registers import Registers
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.loader import Loader
from fnabench.models.base import Blueprint
from fnabench.models.timm_vit import TimmBackbone
from fnabench.store import ARRAYS, ROWS, read_record

GROUP = {name: number for number, name in enumerate(GROUPS)}
PLAIN_SIZE, FREE_SIZE, ARTIFACT_SIZE = 0.5 * GROWTH, 1.5 * GROWTH, 0.7 * GROWTH
"""MASSIVE when it is suppressed and when it is not, and ARTIFACT when it is not."""


@torch.inference_mode()
def examine(backbone=None, images=None, batch_size=2, **settings):
    """All arrays of the task."""
    images = planted_images() if images is None else images
    loader = Loader(
        source=Numbered(samples(label=range(len(images)))),
        transform=lambda image: images[np.array(image)[0, 0, 0]],
        batch_size=batch_size, num_workers=0, device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    task = Tokens(**({"detect_block": DETECT_BLOCK, "start_block": GROWTH_BLOCK} | settings))
    return task.evaluate(backbone or planted_backbone(), loader, {})


# The detectors


@pytest.mark.parametrize("detector", ["norm", "cls"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_massive_token_and_the_artifact_are_found_and_nothing_else(detector, batch_size):
    scores = examine(detector=detector, batch_size=batch_size)
    for name in ("massive", "massive_norm", "massive_cls"):
        np.testing.assert_array_equal(scores.arrays[name], tokens(MASSIVE))
    for name in ("artifact", "one_pass"):
        np.testing.assert_array_equal(scores.arrays[name], tokens(ARTIFACT))
    assert scores.headline == f"massive_{detector}"
    assert {name: each.value for name, each in scores.metrics.items()} == {
        "massive_norm": 0.5, "massive_cls": 0.5, "artifact": 0.5, "one_pass": 0.5, "one_pass_iou": 1.0,
    }  # fmt: skip
    assert scores.rows == {
        "id": ["image 0"] * 2, "token": [MASSIVE, ARTIFACT], "row": [1, 2], "column": [1, 1],
        "kind": ["massive", "artifact"],
    }  # fmt: skip


def test_none_found_is_a_result():
    scores = examine(images=planted_images()[1:], batch_size=1)
    assert {each.value for each in scores.metrics.values()} == {0.0}
    assert scores.arrays["round_num_tokens"].tolist() == [[0]]
    assert np.isnan(scores.arrays["norms"][:, :, GROUP["massive"]]).all()
    assert np.isfinite(scores.arrays["norms"][:, :, GROUP["normal"]]).all()
    assert scores.rows["id"] == []


# The rounds


def test_masking_brings_up_the_artifact_round_by_round():
    arrays = examine().arrays
    assert arrays["round_num_tokens"].tolist() == [[0, 1, 2], [0, 0, 0]]
    rest = arrays["round_norm_rest"][0, :, DETECT_BLOCK]
    assert rest == pytest.approx([sqrt(PLAIN_SIZE**2 + 3), sqrt(ARTIFACT_SIZE**2 + 1.44 + 1), 1], abs=1e-3)
    assert np.isnan(arrays["round_norm_masked"][0, 0]).all()
    masked = arrays["round_norm_masked"][0, 1:, DETECT_BLOCK]
    assert masked == pytest.approx([sqrt(FREE_SIZE**2 + 4 + 2)] * 2, abs=1e-3)
    assert (arrays["round_attention_masked"] == 0).all()
    strongest = arrays["round_attention_strongest"][0]
    assert strongest[0] == pytest.approx(0.5 + 0.05 / 9, abs=1e-4)
    assert strongest[1] == pytest.approx(0.5 + 0.5 / 89, abs=1e-4)


def test_sinking_throws_the_attention_away_so_that_nothing_takes_over():
    arrays = examine(operator="sink").arrays
    assert arrays["round_num_tokens"].tolist() == [[0, 1], [0, 0]]
    assert not arrays["artifact"].any()
    assert arrays["round_attention_cls"][0] == pytest.approx([0.45, 0.45], abs=1e-4)


def test_one_shot_takes_all_massive_tokens_in_one_round_and_one_pass_for_the_artifacts():
    scores = examine(iterative=False)
    arrays = scores.arrays
    assert "one_pass_iou" not in scores.metrics
    assert arrays["round_num_tokens"].tolist() == [[0, 1], [0, 0]]
    np.testing.assert_array_equal(arrays["artifact"], tokens(ARTIFACT))


def test_zero_needs_no_tokens():
    arrays = examine(operator="zero", iterative=False).arrays
    assert arrays["round_num_tokens"].tolist() == [[0, 0], [0, 0]]
    assert arrays["round_norm_rest"][0, 1, DETECT_BLOCK] == pytest.approx(sqrt(FREE_SIZE**2 + 4 + 2), abs=1e-3)


def test_the_rounds_end_at_their_limit():
    assert examine(rounds=1).arrays["round_num_tokens"].tolist() == [[0, 1], [0, 0]]


# Groups


def test_norms_attention_and_suppression_are_told_by_group():
    arrays = examine().arrays
    expected = [sqrt(2), sqrt(PLAIN_SIZE**2 + 3), sqrt(1.04), sqrt(2)]
    assert arrays["norms"][0, DETECT_BLOCK] == pytest.approx(expected, abs=1e-3)
    assert arrays["norms"].shape[1] == arrays["received"].shape[1] + 1
    assert arrays["norms"][0, -1] == pytest.approx(expected, abs=1e-3)  # nothing grows after block 1
    other = 0.1 / 9 / 2
    assert arrays["received"][0, GROWTH_BLOCK] == pytest.approx([0.45, 0.5 + other, other, other], abs=1e-4)
    suppression = np.zeros((2, 4, 4))  # of the second image only CLS and normal tokens count, and theirs is 0
    suppression[0, GROUP["massive"], GROUP["massive"]] = -2 / sqrt(6)
    suppression[0, GROUP["artifact"], GROUP["massive"]] = -1.2 / sqrt(2.44)
    np.testing.assert_allclose(arrays["suppression"][GROWTH_BLOCK], suppression, atol=1e-5)


# Variants, models and mistakes


@pytest.mark.parametrize("kind", ["SigLIP with attention pool", "DINOv2 with registers", "layer scale"])
def test_other_kinds_of_models_can_be_examined(kind):
    backbone = TimmBackbone(timm_model(kind), lambda image: image)
    arrays = examine(backbone, random_images(3, size=KINDS[kind].image_size), detect_block=2, start_block=1).arrays
    num_prefix = KINDS[kind].num_prefix
    assert not arrays["massive"][:, :num_prefix].any()
    assert ("massive_cls" in arrays) == ("one_pass" in arrays) == bool(num_prefix)
    normal = ~(arrays["massive"] | arrays["artifact"])[:, num_prefix:].all(1)
    np.testing.assert_array_equal(np.isfinite(arrays["norms"][:, :, GROUP["normal"]]).all(1), normal)
    assert np.isnan(arrays["norms"][:, :, GROUP["cls"]]).all() == (num_prefix == 0)


def test_without_cls_the_rounds_go_by_the_norms():
    backbone = TimmBackbone(timm_model("SigLIP with attention pool"), lambda image: image)
    huge = torch.zeros(1, 16, 96)
    huge[0, 6] = 50
    huge[0, 9] = 30
    backbone.module.pos_embed += huge
    arrays = examine(backbone, random_images(1), batch_size=1, detect_block=0, start_block=0).arrays
    assert np.flatnonzero(arrays["massive"][0]).tolist() == [6, 9]
    assert arrays["round_num_tokens"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "magic"}, r"task\.detector=magic is not known; allowed: norm, cls"),
        ({"operator": "drop"}, r"task\.operator=drop is not known; allowed: mask, sink, zero"),
        ({"pattern": "type3"}, r"task\.pattern=type3"),
        ({"rounds": 0}, r"task\.rounds=0 must be at least 1"),
        ({"operator": "zero"}, "give task.iterative=false"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(BadInputError, match=message):
        Tokens(**settings)


class Offering:
    """A model and a data set that have all that is needed."""

    offers = frozenset({"embed", "patches"})
    provides = frozenset({"mask"})


def test_a_block_that_is_not_there_and_cls_where_there_is_none_are_refused():
    shape = shape_of(attention_inputs(num_prefix=0))
    blueprint = Blueprint(shapes=(shape,) * 4, image_size=(64, 64), num_classes=0)
    with pytest.raises(ImpossibleError, match=r"task\.start_block=4 is no block of this model; allowed: 0\.\.3"):
        Tokens(start_block=4).check(Offering(), blueprint, Offering())
    with pytest.raises(ImpossibleError, match=r"task\.detector=cls .* use task\.detector=norm"):
        Tokens(detector="cls").check(Offering(), blueprint, Offering())
    Tokens().check(Offering(), blueprint, Offering())


@pytest.mark.parametrize("task", [Tokens(), Segmentation()])
def test_a_decoder_is_refused(task):
    shape = replace(shape_of(attention_inputs(num_prefix=0)), is_causal=True)
    blueprint = Blueprint(shapes=(shape,) * 4, image_size=(64, 64), num_classes=0)
    with pytest.raises(ImpossibleError, match=r"not into a decoder; give model\.scope=vision"):
        task.check(Offering(), blueprint, Offering())


@pytest.mark.parametrize("inner", [Exact(), Registers(neurons=(), inner=Exact())])
def test_a_register_is_not_taken_for_cls(inner):
    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=64, embed_dim=48, depth=4, num_heads=3, class_token=False, reg_tokens=1, global_pool="avg"
    ).eval()
    backbone = TimmBackbone(module, lambda image: image)
    inner.attach(backbone.layers)
    arrays = examine(backbone, random_images(2), detect_block=2, start_block=1).arrays
    assert arrays["massive"].shape == (2, 17 + (inner != Exact()))
    assert not {"massive_cls", "one_pass"} & set(arrays)
    assert np.isnan(arrays["norms"][:, :, GROUP["cls"]]).all()
    shape = backbone.layers[0].shape(17)
    assert (shape.num_prefix, shape.has_cls) == (1, False)
    with pytest.raises(ImpossibleError, match="has no CLS token"):
        Masked(tokens="artifact", inner=Exact()).check(shape)


# The command


NO_CLS = {"task": "tokens", "model__architecture": "test_vit3", "attention": "exact"}


def test_without_cls_the_command_refuses_its_detectors_by_name_and_takes_the_norm_it_offers(
    tmp_path, monkeypatch, capsys
):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    module = timm.create_model("test_vit3", img_size=64, num_classes=7)
    save_file(module.state_dict(), world.checkpoint)
    assert "task.detector=cls" in world.refused(**NO_CLS, task__detector="cls")
    for setting in ({"tokens": "artifact"}, {"tokens": "both"}, {"detector": "cls"}):
        changes = {f"attention__{name}": value for name, value in setting.items()}
        line = world.refused(model__architecture="test_vit3", attention="exact_masked", **changes)
        assert "has no CLS token; use attention.tokens=massive attention.detector=norm" in line
    assert world.records() == []
    assert world.run(**NO_CLS, task__detector="norm")[0] == 0
    assert world.run(model__architecture="test_vit3", attention="exact_masked", attention__detector="norm")[0] == 0


def test_the_vision_tower_of_a_llava_is_examined_and_its_decoder_is_refused(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    given = (
        "task=tokens",
        "model=llava",
        "data=scenes",
        "data.limit=2",
        "attention=exact",
        "probe=none",
        "tracker=none",
    )
    assert world.run_as_given(*given, "task.rounds=2")[0] == 0
    (folder,) = world.records()
    with np.load(folder / ARRAYS) as arrays:
        depth = read_record(folder).num_layers
        assert arrays["norms"].shape == (2, depth + 1, len(GROUPS))
        assert arrays["grid"].prod() + 1 == arrays["massive"].shape[1]
    for scope in ("decoder", "both"):
        code, _, err = world.run_as_given(*given, f"model.scope={scope}")
        assert (code, err.count("give model.scope=vision")) == (2, 1)


def test_the_command_keeps_the_masks_beside_the_record(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    code, out, _ = world.run(task="tokens", data__labels="null", format="json")
    assert code == 0
    assert json.loads(out)["metric"] == "massive_norm"
    for folder in world.records():
        record = read_record(folder)
        assert {ARRAYS, ROWS} <= set(record.files)
        with np.load(folder / ARRAYS) as arrays:
            assert arrays["massive"].shape == (NUM_IMAGES, 17)
            assert arrays["massive"].sum() == record.score.value * NUM_IMAGES
    (folder / ARRAYS).write_bytes(b"")
    assert "is not the file that was written" in world.refused(task="tokens", data__labels="null")
