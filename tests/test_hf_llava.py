"""LLaVA, LLaVA-NeXT and LLaVA-OneVision of random weights through the real loading code: the seam changes nothing."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import watch
from fnabench.tasks.fidelity import Fidelity
from fnabench.tasks.segmentation import Segmentation
from fnabench.tasks.tokens import Tokens
from fnabench.tasks.vqa import Vqa
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from small_llava import (
    EDGE,
    FAMILIES,
    NUM_DECODER,
    NUM_READ,
    PATCH,
    PROMPT,
    build_processor,
    byte_tokenizer,
    save_llava,
)

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.cost import Probe, measure_cost
from fnabench.data.base import Question, Sample, Source
from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.loader import Batch, Loader
from fnabench.macs import count_macs
from fnabench.models.hf_backbone import MAX_NEW_TOKENS
from fnabench.models.hf_layers import SCOPES
from fnabench.models.hf_llava import HfLlava
from fnabench.tiles import Tiles, blank, split_by_size, stack

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
CPU = torch.device("cpu")
ROWS = ("llava_1_5_7b", "llava_1_6_vicuna_7b", "llava_onevision_0_5b")
SIZES = ((48, 48), (40, 90), (EDGE, EDGE))
"""Height and width of the images: two of them of other than native size, in 4 and 3 tiles with the whole image."""
PROMPTS = [["what is it?", "hi"], ["which colour?"], ["two?"]]
VARIANTS = {"fna": Fna(num_landmarks=4), "fna_refined": FnaRefined(num_landmarks=4)}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of a family's checkpoint."""
    return cache(lambda family: save_llava(tmp_path_factory.mktemp(family), family))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def model(folder, **settings):
    return HfLlava(checkpoint=str(folder), **settings)


def load(folder, dtype=torch.float32, **settings):
    chosen = model(folder, **settings)
    chosen.blueprint()
    chosen.check()
    return chosen.load(CPU, dtype)


def pictures():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(256, size=(*size, 3), dtype=np.uint8)) for size in SIZES]


def batch_of(backbone):
    return stack([backbone.transform(picture) for picture in pictures()])


def depths(family, scope):
    """How many layers each replaced tower has."""
    return {"vision": (NUM_READ[family],), "decoder": (NUM_DECODER,), "both": (NUM_READ[family], NUM_DECODER)}[scope]


def stock_model(folder):
    """The checkpoint as transformers loads it, every vision block included."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()


def stock_inputs(folder):
    """What transformers' own processor makes of every question with its image, padded on the left."""
    from transformers import AutoProcessor

    rows = [(row, prompt) for row, asked in enumerate(PROMPTS) for prompt in asked]
    images = [pictures()[row] for row, _ in rows]
    texts = [PROMPT.replace("{}", prompt) for _, prompt in rows]
    return AutoProcessor.from_pretrained(folder)(images=images, text=texts, return_tensors="pt", padding=True)


# Through the seam


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_answers_are_those_of_the_stock_generation_natively_and_by_exact(saved, family, scope):
    backbone = load(saved(family), scope=scope)
    inputs = stock_inputs(saved(family))
    assert (inputs["attention_mask"] == 0).any(), "rows of different lengths"
    made = stock_model(saved(family)).generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
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
def test_logits_are_those_of_the_untouched_model(saved, family, scope):
    backbone = load(saved(family), scope=scope)
    inputs = stock_inputs(saved(family))
    is_text = inputs["attention_mask"].bool()
    native, embedding = stock_model(saved(family))(**inputs).logits[is_text], backbone.encode_image(batch_of(backbone))
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
def test_variants_run_in_every_scope_once_a_layer(saved, family, scope, variant):
    backbone = load(saved(family), scope=scope)
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
def test_the_blueprint_says_what_the_layers_of_one_native_image_see(saved, family, scope):
    blueprint = model(saved(family), scope=scope).blueprint()
    backbone = load(saved(family), scope=scope)
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
def test_bfloat16_runs(saved, family):
    backbone = load(saved(family), torch.bfloat16, scope="both")
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
def test_a_loaded_model_can_be_sent_to_another_process(saved, family):
    backbone = load(saved(family), scope="both")
    VARIANTS["fna"].attach(backbone.layers.select("half"))
    images = batch_of(backbone)
    embedding, answers = backbone.encode_image(images), backbone.generate(images, PROMPTS)
    other, received = pickle.loads(pickle.dumps((backbone, images)))
    assert torch.equal(other.encode_image(received), embedding)
    assert other.generate(received, PROMPTS) == answers
    assert [layer.core for layer in other.layers] == [layer.core for layer in backbone.layers]


# Patches of the vision tower


@torch.inference_mode()
def test_patches_through_the_seam_are_those_of_the_untouched_tower(saved, family):
    backbone = load(saved(family))
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
def test_the_tower_of_one_grid_is_looked_into_and_segments_the_whole_image(saved):
    chosen, backbone = model(saved("llava")), load(saved("llava"), pad_to_square=True)
    Tokens().check(chosen, chosen.blueprint(), Pictures())
    scores = Tokens(rounds=2).evaluate(backbone, loader(backbone), {})
    assert scores.arrays["massive"].shape == (3, (EDGE // PATCH) ** 2 + 1)
    assert scores.arrays["norms"].shape[1] == NUM_READ["llava"] + 1
    wide = Image.new("RGB", (3 * EDGE, EDGE), (255, 255, 255))
    wide.paste((0, 0, 0), (0, 0, EDGE // 2, EDGE))
    whole = backbone.transform_whole(wide)
    assert whole.shape == (3, EDGE, EDGE)
    assert whole[:, :, 0].max() < -1 < 1 < whole[:, :, -1].min(), "nothing is cut off and nothing is added"


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("task", [Tokens(), Segmentation()])
def test_tiles_have_no_one_grid_of_patches(saved, name, task):
    chosen = model(saved(name))
    reason = rf"needs patches of its model, which has embed and generate \({name} reads an image in tiles"
    with pytest.raises(ImpossibleError, match=reason):
        task.check(chosen, chosen.blueprint(), Pictures())


# Images in tiles


def test_an_image_of_another_shape_is_read_in_tiles_of_its_own(saved):
    tiled = batch_of(load(saved("llava_next")))
    assert isinstance(tiled, Tiles)
    assert (tiled.counts, tiled.sizes) == ((5, 4, 3), SIZES)
    assert tiled.pixels.shape == (12, 3, EDGE, EDGE)
    assert torch.equal(tiled[1:2].pixels, tiled.pixels[5:9])
    assert (tiled[1:].counts, len(tiled[:0]), tiled[:0].pixels.shape[0]) == ((4, 3), 0, 0)
    assert not blank(tiled).pixels.any()
    assert batch_of(load(saved("llava"))).shape == (3, 3, EDGE, EDGE)


def test_padding_to_a_square_keeps_what_a_crop_would_cut_off(saved):
    wide = Image.new("RGB", (2 * EDGE, EDGE), (255, 255, 255))
    wide.paste((0, 0, 0), (0, 0, EDGE // 2, EDGE))
    cropped = load(saved("llava")).transform(wide)
    padded = load(saved("llava"), pad_to_square=True).transform(wide)
    assert cropped.min() > 0, "black is cut off"
    assert padded.min() < -1
    assert padded[:, 0].abs().max() < 0.05, "the mean colour above and below"


class Pictures(Source):
    """The three pictures with their questions."""

    name = "pictures"
    provides = frozenset({"questions"})

    def check(self):
        pass

    def fingerprint(self):
        return "pictures"

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        questions = tuple(
            Question(id=f"{index} {prompt}", text=prompt, kind="any", answers=("yes",) * 10)
            for prompt in PROMPTS[index]
        )
        return Sample(id=str(index), image=pictures()[index], questions=questions)


def loader(backbone, **options):
    return Loader(
        source=Pictures(), transform=backbone.transform, batch_size=2, num_workers=0, device=CPU, dtype=torch.float32,
        **options,
    )  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("num_workers", [0, 1])
def test_tasks_run_on_tiles(saved, num_workers):
    backbone = load(saved("llava_next"), scope="both")
    asked = replace(loader(backbone), num_workers=num_workers)
    scores = Vqa().evaluate(backbone, asked, {})
    assert len(scores.main.ids) == 4
    in_the_dark = Vqa(blind=True).evaluate(backbone, asked, {})
    assert scores.main.predictions.tolist() != in_the_dark.main.predictions.tolist()
    VARIANTS["fna"].attach(backbone.layers)
    fidelity = Fidelity(num_neighbours=1).evaluate(backbone, asked, {})
    assert fidelity.metrics["attention_error_00"].numerator.shape == (3, 1)
    assert 0 < fidelity.metrics["attention_error"].value < 2


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_answers_of_a_variant_do_not_depend_on_the_batch(saved, name):
    """Landmarks of a decoder depend on the length of what it reads, so nothing is padded to a longer neighbour."""
    backbone = load(saved(name), scope="decoder")
    VARIANTS["fna"].attach(backbone.layers)
    alone, together = (Vqa().evaluate(backbone, replace(loader(backbone), batch_size=size), {}).main for size in (1, 3))
    assert alone.ids == together.ids
    assert alone.predictions.tolist() == together.predictions.tolist()
    for batch in replace(loader(backbone), batch_size=3):
        assert len(set(batch.images.sizes)) == 1
    parts = split_by_size(stack([batch_of(backbone), batch_of(backbone)]))
    assert [places for _, places in parts] == [[0, 3], [1, 4], [2, 5]]
    assert torch.equal(parts[1][0].pixels, torch.cat(2 * [batch_of(backbone)[1:2].pixels]))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_the_macs_of_an_image_count_each_of_its_tiles(saved, name):
    backbone = load(saved(name))
    with torch.inference_mode():
        batch = loader(backbone).first(2)
        one = Batch(images=batch.images[:1], samples=batch.samples[:1])
        counted = count_macs(partial(Vqa().forward, backbone, one))
    fna = VARIANTS["fna"]
    probe = Probe(batch_size=2, num_rounds=2, memory=False)
    cost = measure_cost(backbone, fna, list(backbone.layers), Vqa().forward, batch, probe).cost
    assert cost.exact_macs == counted
    shape = backbone.layers[0].shape(17)
    num_tiles = 5 if name == "llava_next" else 1
    saved_macs = Exact().macs(shape, NUM_READ["llava"]) - fna.macs(shape, NUM_READ["llava"])
    assert cost.exact_macs - cost.macs == num_tiles * saved_macs


# Where a checkpoint comes from


@pytest.mark.parametrize("layout", ["hub", "module"])
def test_weights_under_either_names_are_the_same_model(saved, family, tmp_path, layout):
    """llava-hf's files have vision_tower.vision_model and language_model.model; newer ones have the module's own."""
    folder, theirs = copied(saved(family), tmp_path), load(saved(family))
    if layout == "hub":
        weights = load_file(folder / "model.safetensors")
        weights = {name.replace("vision_tower.", "vision_tower.vision_model."): each for name, each in weights.items()}
    else:
        weights = {name: each.clone() for name, each in stock_model(folder).named_parameters()}
    assert any(name.startswith({"hub": "language_model.model", "module": "model.language"}[layout]) for name in weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    ours = load(folder)
    with torch.inference_mode():
        assert torch.equal(ours.encode_image(batch_of(ours)), theirs.encode_image(batch_of(theirs)))
        assert ours.generate(batch_of(ours), PROMPTS) == theirs.generate(batch_of(theirs), PROMPTS)
    assert model(folder).weights_hash() != model(saved(family)).weights_hash()


def copied(folder, into):
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    return into


def test_what_a_folder_lacks_is_named(saved, tmp_path):
    with pytest.raises(MissingError, match=r"model\.checkpoint=.*nowhere is not a folder; give .*hf-hub:owner/name@"):
        model(tmp_path / "nowhere").blueprint()
    with pytest.raises(MissingError, match=r"lacks config\.json; complete it"):
        model(tmp_path).blueprint()
    folder = copied(saved("llava"), tmp_path)
    (folder / "model.safetensors").unlink()
    model(folder).blueprint()
    with pytest.raises(MissingError, match=r"lacks model\.safetensors or model\.safetensors\.index\.json"):
        model(folder).check()
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingError, match=r"lacks model-1\.safetensors"):
        model(folder).check()


def test_what_is_no_llava_is_refused(saved, tmp_path):
    folder = copied(saved("llava"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))
    with pytest.raises(ImpossibleError, match="model_type=qwen2_vl; model=hf_llava understands llava, llava_next, "):
        model(folder).blueprint()
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInputError, match=r"config\.json cannot be read") as caught:
        model(folder).blueprint()
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"the processor in .* cannot be read") as caught:
        model(folder).blueprint()
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(saved, tmp_path):
    folder = copied(saved("llava"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name)
    kept = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match=r"lack 1 parameters, the first is model\.language_model"):
        model(folder).load(CPU, torch.float32)
    save_file(weights | {name: kept[:8].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match="cannot be read"):
        model(folder).load(CPU, torch.float32)


def test_a_tower_or_decoder_of_another_kind_is_refused_only_where_it_is_replaced(saved, tmp_path):
    folder = copied(saved("llava"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    mistral = config["text_config"] | {"model_type": "mistral", "architectures": None}
    (folder / "config.json").write_text(json.dumps(config | {"text_config": mistral}))
    assert len(model(folder).blueprint().shapes) == NUM_READ["llava"]
    with pytest.raises(ImpossibleError, match=r"MistralAttention in block 0 of MistralModel is not understood; only "):
        model(folder, scope="decoder").blueprint()
    sliding = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
    save_llava(folder, "llava_onevision", **sliding)
    with pytest.raises(ImpossibleError, match=r"Qwen2Model attends to the last 16 tokens only"):
        model(folder, scope="both").blueprint()


def test_the_prompt_is_the_checkpoints_own_unless_given(saved, tmp_path):
    assert load(saved("llava")).dialogue.prompt == PROMPT
    given = load(saved("llava"), prompt="<s>Look: <image>{}!").dialogue
    assert given.before == tuple(given.tokenizer.encode("Look: "))  # one start, not two
    assert given.tokenizer.decode(given.encode("Who?")) == "Who?!"
    bare = load(saved("llava"), prompt="<image>{}")
    bare.dialogue.before = ()
    with torch.inference_mode():
        assert [len(answers) for answers in bare.generate(batch_of(bare), PROMPTS)] == [2, 1, 1]
    folder = save_llava(tmp_path, with_template=False)
    with pytest.raises(
        BadInputError, match=r"has no chat template; give model\.prompt='USER: <image> \{\} ASSISTANT:'"
    ):
        model(folder).blueprint()
    for prompt in ("{} ASSISTANT:", "{} <image>"):
        with pytest.raises(BadInputError, match=r"needs <image> before \{\}"):
            model(folder, prompt=prompt).blueprint()
    with pytest.raises(BadInputError, match=r"model\.prompt='hello' needs \{\} once"):
        model(folder, prompt="hello")
    with pytest.raises(BadInputError, match=r"model\.scope=text is not known; allowed: vision, decoder, both"):
        model(folder, scope="text")


def test_a_pinned_repository_is_read_from_the_cache_without_a_network(saved, tmp_path, monkeypatch):
    revision = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = HfLlava(checkpoint="hf-hub:llava-hf/small", revision=revision)
    with pytest.raises(
        MissingError, match=r"hf download llava-hf/small --include .*safetensors.* --revision 0123"
    ) as caught:
        hub.blueprint()
    assert "\n" not in str(caught.value)
    snapshot = tmp_path / "models--llava-hf--small" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    copied(saved("llava"), snapshot)
    fresh = replace(hub)
    assert fresh.weights_hash() == model(saved("llava")).weights_hash()
    assert len(fresh.load(CPU, torch.float32).layers) == NUM_READ["llava"]
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="is not whole in the local cache"):
        replace(hub).check()


# The rows of conf/model


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_its_source_licence_size_and_prompt(name):
    text = (CONF / f"{name}.yaml").read_text()
    row = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "Weights: " in head[0]
    assert f"model={name}" in head[1]
    assert head[2].startswith("# Native size ")
    assert ("model.revision=<commit>" in text) == (row.revision is None)
    assert row.revision is None or len(row.revision) == 40
    assert row.checkpoint.startswith("hf-hub:llava-hf/")
    assert row.description
    with pytest.raises(BadInputError, match=r"is not pinned; .* or give model\.revision=<commit>; git ls-remote https"):
        replace(row, revision=None).blueprint()


FULL = {  # layers and tokens of the tower and of the decoder for an image of native size, heads, key and value heads
    "llava_1_5_7b": ("llava", 23, 577, 32, 576, 32),
    "llava_1_6_vicuna_7b": ("llava_next", 23, 577, 32, 576 + 24 * 24 + 24, 32),
    "llava_onevision_0_5b": ("llava_onevision", 26, 729, 24, 729 + 27 * 27 + 27, 14),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_seam_finds_the_layers_of_the_full_model(name, tmp_path):
    """Built on the meta device from the sizes of the published model."""
    family, num_vision, num_patches, num_decoder, num_features, num_heads = FULL[name]
    full_config(family).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    processor = build_processor(family, tokenizer)
    edge = 384 if family == "llava_onevision" else 336
    square = {"height": edge, "width": edge}
    processor.image_processor.size = square if family == "llava_onevision" else {"shortest_edge": edge}
    processor.image_processor.crop_size = square
    processor.image_processor.image_grid_pinpoints = getattr(full_config(family), "image_grid_pinpoints", None)
    processor.save_pretrained(tmp_path)
    row = instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"checkpoint": str(tmp_path)}))
    blueprint = replace(row, scope="both").blueprint()
    num_before = len(tokenizer.encode(row.prompt.partition("<image>")[0]))
    assert blueprint.depths == (num_vision, num_decoder)
    assert blueprint.shapes[0].num_tokens == num_patches
    assert blueprint.shapes[-1].num_tokens == num_before + num_features
    assert blueprint.shapes[-1].num_heads == num_heads
    assert blueprint.image_size == (edge, edge)


def full_config(family):
    from transformers import LlavaConfig, LlavaNextConfig, LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    tokens = {"image_token_index": 4}
    if family != "llava_onevision":
        return (LlavaNextConfig if family == "llava_next" else LlavaConfig)(**tokens)
    siglip = SiglipVisionConfig(
        hidden_size=1152, image_size=384, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=26,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    qwen = Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2
    )
    return LlavaOnevisionConfig(vision_config=siglip, text_config=qwen, **tokens)
