"""Images that a LLaVA reads in tiles: each by itself, through loader, tasks and probe."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from fnabench.tasks.fidelity import Fidelity
from fnabench.tasks.segmentation import Segmentation
from fnabench.tasks.tokens import Tokens
from fnabench.tasks.vqa import Vqa
from PIL import Image
from small_llava import (
    EDGE,
    NUM_READ,
    SIZES,
    Pictures,
    batch_of,
    load,
    loader,
    model,
)

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.cost import Probe, measure_cost
from fnabench.errors import ImpossibleError
from fnabench.loader import Batch
from fnabench.macs import count_macs
from fnabench.tiles import Tiles, blank, split_by_size, stack

FNA = Fna(num_landmarks=4)


def test_an_image_of_another_shape_is_read_in_tiles_of_its_own(llava_folder):
    tiled = batch_of(load(llava_folder("llava_next")))
    assert isinstance(tiled, Tiles)
    assert (tiled.counts, tiled.sizes) == ((5, 4, 3), SIZES)
    assert tiled.pixels.shape == (12, 3, EDGE, EDGE)
    assert torch.equal(tiled[1:2].pixels, tiled.pixels[5:9])
    assert (tiled[1:].counts, len(tiled[:0]), tiled[:0].pixels.shape[0]) == ((4, 3), 0, 0)
    assert not blank(tiled).pixels.any()
    assert batch_of(load(llava_folder("llava"))).shape == (3, 3, EDGE, EDGE)


def test_padding_to_a_square_keeps_what_a_crop_would_cut_off(llava_folder):
    wide = Image.new("RGB", (2 * EDGE, EDGE), (255, 255, 255))
    wide.paste((0, 0, 0), (0, 0, EDGE // 2, EDGE))
    cropped = load(llava_folder("llava")).transform(wide)
    padded = load(llava_folder("llava"), pad_to_square=True).transform(wide)
    assert cropped.min() > 0, "black is cut off"
    assert padded.min() < -1
    assert padded[:, 0].abs().max() < 0.05, "the mean colour above and below"


@torch.inference_mode()
@pytest.mark.parametrize("num_workers", [0, 1])
def test_tasks_run_on_tiles(llava_folder, num_workers):
    backbone = load(llava_folder("llava_next"), scope="both")
    asked = replace(loader(backbone), num_workers=num_workers)
    scores = Vqa().evaluate(backbone, asked, {})
    assert len(scores.main.ids) == 4
    in_the_dark = Vqa(blind=True).evaluate(backbone, asked, {})
    assert scores.main.predictions.tolist() != in_the_dark.main.predictions.tolist()
    FNA.attach(backbone.layers)
    fidelity = Fidelity(num_neighbours=1).evaluate(backbone, asked, {})
    assert fidelity.metrics["attention_error_00"].numerator.shape == (3, 1)
    assert 0 < fidelity.metrics["attention_error"].value < 2


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_answers_of_a_variant_do_not_depend_on_the_batch(llava_folder, name):
    """Landmarks of a decoder depend on the length of what it reads, so nothing is padded to a longer neighbour."""
    backbone = load(llava_folder(name), scope="decoder")
    FNA.attach(backbone.layers)
    alone, together = (Vqa().evaluate(backbone, replace(loader(backbone), batch_size=size), {}).main for size in (1, 3))
    assert alone.ids == together.ids
    assert alone.predictions.tolist() == together.predictions.tolist()
    for batch in replace(loader(backbone), batch_size=3):
        assert len(set(batch.images.sizes)) == 1
    parts = split_by_size(stack([batch_of(backbone), batch_of(backbone)]))
    assert [places for _, places in parts] == [[0, 3], [1, 4], [2, 5]]
    assert torch.equal(parts[1][0].pixels, torch.cat(2 * [batch_of(backbone)[1:2].pixels]))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_the_macs_of_an_image_count_each_of_its_tiles(llava_folder, name):
    backbone = load(llava_folder(name))
    with torch.inference_mode():
        batch = loader(backbone).first(2)
        one = Batch(images=batch.images[:1], samples=batch.samples[:1])
        counted = count_macs(partial(Vqa().forward, backbone, one))
    fna = FNA
    probe = Probe(batch_size=2, num_rounds=2, memory=False)
    cost = measure_cost(backbone, fna, list(backbone.layers), Vqa().forward, batch, probe).cost
    assert cost.exact_macs == counted
    shape = backbone.layers[0].shape(17)
    num_tiles = 5 if name == "llava_next" else 1
    saved_macs = Exact().macs(shape, NUM_READ["llava"]) - fna.macs(shape, NUM_READ["llava"])
    assert cost.exact_macs - cost.macs == num_tiles * saved_macs


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_the_macs_of_exact_do_not_depend_on_the_layers_that_are_replaced(llava_folder, name):
    probe, counted = Probe(batch_size=1, num_rounds=1, memory=False), set()

    def embed(backbone, batch):
        return backbone.encode_image(batch.images)

    for scope, layers in (("vision", "half"), ("decoder", [0]), ("both", "all")):
        backbone = load(llava_folder(name), scope=scope)
        chosen = backbone.layers.select(layers)
        cost = measure_cost(backbone, FNA, chosen, embed, loader(backbone).first(1), probe).cost
        counted.add(cost.exact_macs)
    assert len(counted) == 1


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("task", [Tokens(), Segmentation()])
def test_tiles_have_no_one_grid_of_patches(llava_folder, name, task):
    chosen = model(llava_folder(name))
    reason = rf"needs patches of its model, which has embed and generate \({name} reads an image in tiles"
    with pytest.raises(ImpossibleError, match=reason):
        task.check(chosen, chosen.blueprint(), Pictures())
