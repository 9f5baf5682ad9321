"""Masks that task=tokens stored and other runs take: the same tokens, known by their image, or a refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import attention_inputs
from small_world import NUM_IMAGES, write_checkpoint

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.masked import Masked
from fnabench.attention.masks import without_keys
from fnabench.attention.registers import Registers
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.store import ARRAYS, read_record, read_scores

IDS = ("a", "b", "c")
MASKS = {"massive": torch.zeros(3, 17, dtype=torch.bool), "artifact": torch.zeros(3, 17, dtype=torch.bool)}
MASKS["massive"][0, 4] = MASKS["artifact"][1, 9] = True
BLOCK = 4


def stored(tokens="both", inner=None, **settings):
    masked = Masked(tokens=tokens, detector="stored", masks="somewhere", inner=inner or Exact(), **settings)
    return masked.with_masks(IDS, MASKS)


def given(*ids, **changes):
    return replace(attention_inputs(batch=len(ids)), ids=ids, **changes)


@pytest.fixture
def folder(world):
    """A record of task=tokens with massive tokens and artifacts."""
    world.run(task="tokens", attention="exact", task__min_gap="0.01", task__detect_block=str(BLOCK), task__rounds="3")
    return world.records()[0]


def record_of(world, attention):
    (found,) = [path for path in world.records() if path.name.startswith(f"{attention}-")]
    return read_record(found), read_scores(found, "top1")


# In one layer


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a"), ("b", "c", "a", "b")])
@pytest.mark.parametrize(("tokens", "kinds"), [("massive", ["massive"]), ("both", ["massive", "artifact"])])
def test_the_tokens_are_those_of_the_image_wherever_it_stands_in_the_batch(ids, tokens, kinds):
    expected = torch.stack([sum(MASKS[kind][IDS.index(image)] for kind in kinds) > 0 for image in ids])
    inputs = given(*ids)
    assert torch.equal(stored(tokens).find(inputs), expected)
    assert torch.equal(stored(tokens)(inputs), Exact()(without_keys(inputs, expected)))


@pytest.mark.parametrize("inner", [Exact(), Fna(num_landmarks=6)])
def test_images_without_tokens_are_given_to_the_inner_variant_as_they_are(inner):
    assert torch.equal(stored(inner=inner)(given("c")), inner(given("c")))
    assert torch.equal(stored("none", inner)(given("a")), inner(given("a")))


def test_tokens_are_masked_from_the_start_block_on_be_it_below_the_block_they_were_found_in():
    variant = stored(start_block=2)
    assert variant.find(given("a", layer=1)) is None
    assert variant.find(given("a", layer=2)) is not None
    variant.check_layers([2, 3])


@pytest.mark.parametrize("inputs", [given("a", "unknown"), attention_inputs(), replace(given("a", "b"), ids=("a",))])
def test_an_image_that_is_not_known_is_refused(inputs):
    with pytest.raises(ImpossibleError, match="needs to know which images it is given"):
        stored()(inputs)
    with pytest.raises(ImpossibleError, match="needs to know which images"):
        Masked(detector="stored", masks="somewhere", inner=Exact())(inputs)


def test_masks_of_another_number_of_tokens_are_refused():
    with pytest.raises(ImpossibleError, match=r"are of 17 tokens, and this block has 18"):
        stored()(replace(attention_inputs(batch=1, tokens=18), ids=("a",)))


@pytest.mark.parametrize("settings", [{"detector": "stored"}, {"masks": "somewhere"}])
def test_the_detector_and_its_folder_go_together(settings):
    with pytest.raises(BadInputError, match="do not go together"):
        Masked(inner=Exact(), **settings)


def test_registers_would_shift_the_tokens():
    with pytest.raises(BadInputError, match="without test-time registers"):
        Registers(inner=stored())


# From the command line


@pytest.mark.parametrize("attention", ["exact_masked", "fna_masked"])
def test_stored_masks_give_what_detection_in_the_same_forward_gives(world, folder, attention):
    with np.load(folder / ARRAYS) as arrays:
        assert arrays["massive"].any(1).sum() >= NUM_IMAGES // 2
    shared = {"layers": "4:", "attention__min_gap": "0.01"}
    if attention == "fna_masked":
        shared["attention__inner__num_landmarks"] = "5"
    world.run(attention=attention, attention__detect_block=str(BLOCK), **shared)
    detected, expected = record_of(world, attention)
    world.run("rerun=true", attention=attention, attention__detector="stored", attention__masks=str(folder), **shared)
    ((found, actual),) = [
        (read_record(path), read_scores(path, "top1"))
        for path in world.records()
        if path.name.startswith(f"{attention}-") and path.name[-12:] != detected.key[:12]
    ]
    np.testing.assert_array_equal(actual.predictions, expected.predictions)
    assert found.calibration == {"masks_of": read_record(folder).key, "found_in_block": BLOCK}
    assert found.identity["masks"] == read_record(folder).key
    assert "masks" not in found.identity["attention"]


def test_the_probe_knows_its_images_too(world, folder):
    settings = {"probe": "default", "probe.num_rounds": "1", "probe.batch_size": "2"}
    code, out, _ = world.run(
        *(f"{name}={value}" for name, value in settings.items() if name != "probe"), probe="default",
        attention="exact_masked", attention__detector="stored", attention__masks=str(folder),
    )  # fmt: skip
    assert code == 0
    assert "of which token detection (ms)" in out


def test_masks_of_other_runs_are_refused_in_one_line(world, folder):
    asked = {"attention": "exact_masked", "attention__detector": "stored", "attention__masks": str(folder)}
    other = write_checkpoint(world.folder / "other.safetensors", seed=1)
    for changes, reason in (
        ({"data__limit": "3"}, f"belong to other data, {NUM_IMAGES} images of folder"),
        ({"model__image_size": "80"}, "belong to another image size, 64x64"),
        ({"model__checkpoint": str(other)}, "belong to another model, timm"),
        ({"attention__detect_block": "5"}, f"belong to another block, {BLOCK}, and not to attention.detect_block=5"),
        ({"attention__masks": str(world.folder)}, "holds no record"),
    ):
        assert reason in world.refused(**(asked | changes))
    assert len(world.records()) == 1
    world.run(attention="exact")
    (scores,) = [path for path in world.records() if path != folder]
    assert "give one of task=tokens" in world.refused(**(asked | {"attention__masks": str(scores)}))
