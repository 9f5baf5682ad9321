"""LLaVA, LLaVA-NeXT and LLaVA-OneVision of random weights through the real loading code: the seam changes nothing."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from builders import watch
from fnabench.tasks.tokens import Tokens
from PIL import Image
from small_llava import (
    EDGE,
    FAMILIES,
    NUM_DECODER,
    NUM_READ,
    PATCH,
    PROMPT,
    PROMPTS,
    Pictures,
    batch_of,
    load,
    loader,
    model,
    pictures,
    stock_model,
)

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.models.hf_backbone import MAX_NEW_TOKENS
from fnabench.models.hf_layers import SCOPES
from fnabench.tiles import Tiles, stack

VARIANTS = {"fna": Fna(num_landmarks=4), "fna_refined": FnaRefined(num_landmarks=4)}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def depths(family, scope):
    """How many layers each replaced tower has."""
    return {"vision": (NUM_READ[family],), "decoder": (NUM_DECODER,), "both": (NUM_READ[family], NUM_DECODER)}[scope]


def stock_inputs(folder):
    """What transformers' own processor makes of every question with its image, padded on the left."""
    from transformers import AutoProcessor

    rows = [(row, prompt) for row, asked in enumerate(PROMPTS) for prompt in asked]
    images = [pictures()[row] for row, _ in rows]
    texts = [PROMPT.replace("{}", prompt) for _, prompt in rows]
    return AutoProcessor.from_pretrained(folder)(images=images, text=texts, return_tensors="pt", padding=True)


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_answers_are_those_of_the_stock_generation_natively_and_by_exact(llava_folder, family, scope):
    backbone = load(llava_folder(family), scope=scope)
    inputs = stock_inputs(llava_folder(family))
    assert (inputs["attention_mask"] == 0).any(), "rows of different lengths"
    made = stock_model(llava_folder(family)).generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    stock = backbone.dialogue.tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    images = batch_of(backbone)
    native = backbone.generate(images, PROMPTS)
    assert [answer for answers in native for answer in answers] == [text.strip() for text in stock]
    assert len(set(stock)) == len(stock)
    Exact().attach(backbone.layers)
    assert backbone.generate(images, PROMPTS) == native
    backbone.questions_at_once = 1
    assert backbone.generate(images, PROMPTS) == native
    assert [backbone.generate(images[row : row + 1], [asked])[0] for row, asked in enumerate(PROMPTS)] == native


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_logits_are_those_of_the_untouched_model(llava_folder, family, scope):
    backbone = load(llava_folder(family), scope=scope)
    inputs = stock_inputs(llava_folder(family))
    is_text = inputs["attention_mask"].bool()
    native, embedding = (
        stock_model(llava_folder(family))(**inputs).logits[is_text],
        backbone.encode_image(batch_of(backbone)),
    )
    assert torch.equal(backbone.module(**inputs).logits[is_text], native)
    Exact().attach(backbone.layers)
    tolerance = 2e-5 if family == "llava_onevision" and scope != "vision" else 0.0  # grouped queries
    for ours, theirs in (
        (backbone.module(**inputs).logits[is_text], native),
        (backbone.encode_image(batch_of(backbone)), embedding),
    ):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_variants_run_in_every_scope_once_a_layer(llava_folder, family, scope, variant):
    backbone = load(llava_folder(family), scope=scope)
    images = batch_of(backbone)
    exact = backbone.encode_image(images)
    assert backbone.layers.depths == depths(family, scope)
    assert [layer.index for layer in backbone.layers] == list(range(sum(depths(family, scope))))
    seen = watch(variant)
    seen.attach(backbone.layers)
    approximated = backbone.encode_image(images)
    assert approximated.isfinite().all()
    assert ((approximated - exact).norm(dim=1) > 1e-3 * exact.norm(dim=1)).all()
    assert [len(answers) for answers in backbone.generate(images, PROMPTS)] == [2, 1, 1]
    assert [inputs.layer for inputs in seen.seen] == 2 * list(range(sum(depths(family, scope))))
    backbone.layers.detach()
    assert torch.equal(backbone.encode_image(images), exact)


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_the_blueprint_says_what_the_layers_of_one_native_image_see(llava_folder, family, scope):
    blueprint = model(llava_folder(family), scope=scope).blueprint()
    backbone = load(llava_folder(family), scope=scope)
    seen = watch(Exact())
    seen.attach(backbone.layers)
    backbone.encode_image(stack([backbone.transform(Image.new("RGB", (EDGE, EDGE)))]))
    assert [shape.num_tokens for shape in blueprint.shapes] == [inputs.q.shape[2] for inputs in seen.seen]
    assert [shape.num_prefix for shape in blueprint.shapes] == [inputs.num_prefix for inputs in seen.seen]
    assert [shape.num_heads for shape in blueprint.shapes] == [inputs.k.shape[1] for inputs in seen.seen]
    assert blueprint.depths == depths(family, scope)
    tower = 0 if family == "llava_onevision" else 1
    assert [shape.num_prefix for shape in blueprint.shapes] == [
        0 if shape.is_causal else tower for shape in blueprint.shapes
    ]
    assert blueprint.image_size == (EDGE, EDGE)


@torch.inference_mode()
def test_bfloat16_runs(llava_folder, family):
    backbone = load(llava_folder(family), torch.bfloat16, scope="both")
    images = batch_of(backbone).to(torch.bfloat16)
    native = backbone.encode_image(images)
    for variant in (Exact(), *VARIANTS.values()):
        variant.attach(backbone.layers)
        embedding = backbone.encode_image(images)
        assert embedding.dtype == torch.bfloat16
        assert embedding.isfinite().all()
        if variant == Exact():
            torch.testing.assert_close(embedding, native, atol=0.1, rtol=0.1)
    assert len(backbone.generate(images, PROMPTS)) == 3


@torch.inference_mode()
def test_a_loaded_model_can_be_sent_to_another_process(llava_folder, family):
    backbone = load(llava_folder(family), scope="both")
    VARIANTS["fna"].attach(backbone.layers.select("half"))
    images = batch_of(backbone)
    embedding, answers = backbone.encode_image(images), backbone.generate(images, PROMPTS)
    other, received = pickle.loads(pickle.dumps((backbone, images)))
    assert torch.equal(other.encode_image(received), embedding)
    assert other.generate(received, PROMPTS) == answers
    assert [layer.core for layer in other.layers] == [layer.core for layer in backbone.layers]


@torch.inference_mode()
def test_patches_through_the_seam_are_those_of_the_untouched_tower(llava_folder, family):
    backbone = load(llava_folder(family))
    images = batch_of(backbone)
    pixels = images.pixels if isinstance(images, Tiles) else images
    native = backbone.encode_patches(pixels)
    tower = backbone.module.model.vision_tower(pixels).last_hidden_state
    assert native.shape[:2] == (len(pixels), np.prod(backbone.patch_grid(pixels)))
    assert torch.equal(native, tower[:, -native.shape[1] :])
    Exact().attach(backbone.layers)
    assert torch.equal(backbone.encode_patches(pixels), native)
    VARIANTS["fna"].attach(backbone.layers.select("half"))
    assert not torch.equal(backbone.encode_patches(pixels), native)


@torch.inference_mode()
def test_the_tower_of_one_grid_is_looked_into_and_segments_the_whole_image(llava_folder):
    chosen, backbone = model(llava_folder("llava")), load(llava_folder("llava"), pad_to_square=True)
    Tokens().check(chosen, chosen.blueprint(), Pictures())
    scores = Tokens(rounds=2).evaluate(backbone, loader(backbone), {})
    assert scores.arrays["massive"].shape == (3, (EDGE // PATCH) ** 2 + 1)
    assert scores.arrays["norms"].shape[1] == NUM_READ["llava"] + 1
    wide = Image.new("RGB", (3 * EDGE, EDGE), (255, 255, 255))
    wide.paste((0, 0, 0), (0, 0, EDGE // 2, EDGE))
    whole = backbone.transform_whole(wide)
    assert whole.shape == (3, EDGE, EDGE)
    assert whole[:, :, 0].max() < -1 < 1 < whole[:, :, -1].min(), "nothing is cut off and nothing is added"
