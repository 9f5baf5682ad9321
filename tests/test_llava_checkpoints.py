"""Where the weights, the prompt and the sizes of a LLaVA come from, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from small_llava import (
    CPU,
    FAMILIES,
    NUM_READ,
    PROMPT,
    PROMPTS,
    batch_of,
    build_processor,
    byte_tokenizer,
    copied,
    load,
    model,
    save_llava,
    stock_model,
)

from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.models.hf_llava import HfLlava

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
ROWS = ("llava_1_5_7b", "llava_1_6_vicuna_7b", "llava_onevision_0_5b")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("layout", ["hub", "module"])
def test_weights_under_either_names_are_the_same_model(llava_folder, family, tmp_path, layout):
    """llava-hf's files have vision_tower.vision_model and language_model.model; newer ones have the module's own."""
    folder, theirs = copied(llava_folder(family), tmp_path), load(llava_folder(family))
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
    assert model(folder).weights_hash() != model(llava_folder(family)).weights_hash()


def test_what_a_folder_lacks_is_named(llava_folder, tmp_path):
    with pytest.raises(MissingError, match=r"model\.checkpoint=.*nowhere is not a folder; give .*hf-hub:owner/name@"):
        model(tmp_path / "nowhere").blueprint()
    with pytest.raises(MissingError, match=r"lacks config\.json; complete it"):
        model(tmp_path).blueprint()
    folder = copied(llava_folder("llava"), tmp_path)
    (folder / "model.safetensors").unlink()
    model(folder).blueprint()
    with pytest.raises(MissingError, match=r"lacks model\.safetensors or model\.safetensors\.index\.json"):
        model(folder).check()
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingError, match=r"lacks model-1\.safetensors"):
        model(folder).check()


def test_what_is_no_llava_is_refused(llava_folder, tmp_path):
    folder = copied(llava_folder("llava"), tmp_path)
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


def test_weights_that_do_not_fit_are_refused(llava_folder, tmp_path):
    folder = copied(llava_folder("llava"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name)
    kept = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match=r"lack 1 parameters, the first is model\.language_model"):
        model(folder).load(CPU, torch.float32)
    save_file(weights | {name: kept[:8].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match="cannot be read"):
        model(folder).load(CPU, torch.float32)


def test_a_tower_or_decoder_of_another_kind_is_refused_only_where_it_is_replaced(llava_folder, tmp_path):
    folder = copied(llava_folder("llava"), tmp_path)
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


def test_the_prompt_is_the_checkpoints_own_unless_given(llava_folder, tmp_path):
    assert load(llava_folder("llava")).dialogue.prompt == PROMPT
    given = load(llava_folder("llava"), prompt="<s>Look: <image>{}!").dialogue
    assert given.before == tuple(given.tokenizer.encode("Look: "))  # one start, not two
    assert given.tokenizer.decode(given.encode("Who?")) == "Who?!"
    bare = load(llava_folder("llava"), prompt="<image>{}")
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


def test_a_pinned_repository_is_read_from_the_cache_without_a_network(llava_folder, tmp_path, monkeypatch):
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
    copied(llava_folder("llava"), snapshot)
    fresh = replace(hub)
    assert fresh.weights_hash() == model(llava_folder("llava")).weights_hash()
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
