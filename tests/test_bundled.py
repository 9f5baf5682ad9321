"""The bundled models' loading code on tiny random weights: the seam changes nothing, FNA runs, answers are text."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from builders import watch
from transformers import LlamaConfig, LlamaModel, StaticCache

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.data.scenes import Scenes
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.memory import peak_memory
from fnabench.models.bundled_clip import BundledClipBackbone
from fnabench.models.bundled_decoder import (
    ANSWER,
    CHAT_WORDS,
    END,
    IMAGE,
    LlavaConfig,
    build_llava,
    build_word_tokenizer,
)
from fnabench.models.bundled_llava import BundledLlava, bundled_backbone
from fnabench.models.bundled_towers import PAD, SPECIAL_WORDS, START, Clip, ClipConfig, Tokenizer
from fnabench.models.bundled_weights import LoadedClip, LoadedLlava
from fnabench.models.hf_backbone import MAX_NEW_TOKENS
from fnabench.models.hf_layers import SCOPES, decoder_layers

CONFIG = ClipConfig(width=32, depth=2, num_heads=2, embed_width=16, text_width=32, text_depth=1, text_num_heads=2)
CARD = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "prompts": ["a {}"], "sha256": "0"}
SMALL_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40,
}  # fmt: skip
CPU = torch.device("cpu")


def clip(image_size=128):
    torch.manual_seed(0)
    vocabulary = (*SPECIAL_WORDS, "a", "red", "ball")
    model = Clip(CONFIG, num_words=len(vocabulary), num_mask_classes=3).eval()
    loaded = LoadedClip(model=model, tokenizer=Tokenizer(vocabulary, context=8), card=CARD)
    return BundledClipBackbone(loaded, image_size, CPU, torch.float32)


def llava(scope="vision"):
    torch.manual_seed(0)
    vocabulary = (*CHAT_WORDS, "what", "colour", "red", "blue")
    decoder = LlavaConfig(width=32, depth=2, num_heads=2, mlp_width=48)
    tower = replace(CONFIG, depth=3)  # the projector reads two blocks of it
    model = build_llava(tower, decoder, num_words=len(vocabulary)).eval()
    loaded = LoadedLlava(model=model, tokenizer=build_word_tokenizer(vocabulary), card=CARD)
    return bundled_backbone(loaded, scope, CPU, torch.float32)


def images(size=128, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_exact_through_the_seam_is_the_untouched_clip():
    backbone = clip()
    native = backbone.encode_image(images())
    Exact().attach(backbone.layers)
    assert torch.equal(backbone.encode_image(images()), native)
    assert len(backbone.layers) == CONFIG.depth


@torch.inference_mode()
@pytest.mark.parametrize("size", [128, 192])
def test_clip_runs_with_fna_at_native_and_larger_size(size):
    backbone = clip(size)
    native = backbone.encode_image(images(size))
    Fna(num_landmarks=16).attach(backbone.layers)
    approximated = backbone.encode_image(images(size))
    assert approximated.isfinite().all()
    assert not torch.equal(approximated, native)
    patches = backbone.encode_patches(images(size))
    assert patches.shape == (3, (size // 8) ** 2, CONFIG.width)
    assert backbone.patch_grid(images(size)) == (size // 8, size // 8)


@torch.inference_mode()
def test_a_text_does_not_depend_on_what_it_is_batched_with():
    backbone = clip()
    alone = backbone.encode_text(["a ball"])
    together = backbone.encode_text(["a ball", "a red red red ball"])
    torch.testing.assert_close(alone[0], together[0])


@torch.inference_mode()
def test_exact_through_the_seam_is_the_untouched_llava():
    backbone = llava()
    native = backbone.module.model.vision_tower(images()).last_hidden_state
    assert len(backbone.layers) == 2
    Exact().attach(backbone.layers)
    assert torch.equal(backbone.module.model.vision_tower(images()).last_hidden_state, native)


PROMPTS = [["what colour", "what"], ["colour what colour red"], []]


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_answers_are_the_same_through_the_seam_and_do_not_depend_on_padding(scope):
    backbone = llava(scope)
    native = backbone.generate(images(), PROMPTS)
    Exact().attach(backbone.layers)
    assert backbone.generate(images(), PROMPTS) == native
    for row, asked in enumerate(PROMPTS):
        alone = [backbone.generate(images()[row : row + 1], [[prompt]]) for prompt in asked]
        assert alone == [[[answer]] for answer in native[row]]
    assert not any(word in answer for answers in native for answer in answers for word in CHAT_WORDS)


@torch.inference_mode()
def test_answers_are_those_of_the_stock_generation():
    """Reading an image once for all its questions changes nothing but the time."""
    backbone = BundledLlava().load(CPU, torch.float32)
    scenes = [Scenes(split="test", limit=3)[index] for index in range(3)]
    pixels = torch.stack([backbone.transform(scene.image) for scene in scenes])
    prompts = [[question.text for question in scene.questions] for scene in scenes]
    ours = [answer for answers in backbone.generate(pixels, prompts) for answer in answers]
    texts = [[*backbone.dialogue.tokenizer.encode(prompt).ids, ANSWER] for asked in prompts for prompt in asked]
    before = [START] + [IMAGE] * 256
    ids = torch.tensor([[PAD] * (max(map(len, texts)) - len(text)) + before + text for text in texts])
    rows = [row for row, asked in enumerate(prompts) for _ in asked]
    stock = backbone.module.generate(
        input_ids=ids, attention_mask=(ids != PAD).long(), pixel_values=pixels[rows], do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    made = stock[:, ids.shape[1] :].tolist()
    assert ours == [backbone.dialogue.tokenizer.decode(row, skip_special_tokens=True) for row in made]
    assert len(set(ours)) > 3
    shorter = backbone.generate(pixels, prompts, max_new_tokens=1)
    assert [answer.split()[:1] for answer in ours] == [answer.split() for answers in shorter for answer in answers]


@torch.inference_mode()
@pytest.mark.parametrize("num_groups", [1, 2])
def test_exact_through_the_seam_is_the_untouched_decoder(num_groups):
    """Logits and the whole cache, with padding on the left; grouped queries too."""
    model = LlamaModel(LlamaConfig(**SMALL_LLAMA, num_key_value_heads=4 // num_groups)).eval()
    ids = torch.randint(5, 40, (3, 30), generator=torch.Generator().manual_seed(0))
    for padding in (0, 11):
        mask = torch.ones_like(ids)
        mask[1, :padding] = 0
        native = model(input_ids=ids, attention_mask=mask)
        Exact().attach(decoder_layers(model))
        through = model(input_ids=ids, attention_mask=mask)
        [layer.detach() for layer in decoder_layers(model)]
        compare = torch.equal if num_groups == 1 else torch.allclose
        assert compare(through.last_hidden_state[mask.bool()], native.last_hidden_state[mask.bool()])
        for ours, theirs in zip(through.past_key_values.layers, native.past_key_values.layers, strict=True):
            assert ours.keys.shape == theirs.keys.shape == (3, 4 // num_groups, 30, 8)
            assert torch.allclose(ours.keys.mT[..., padding:], theirs.keys.mT[..., padding:], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_half_of_the_layers_is_half_of_each_tower(scope):
    backbone = llava(scope)
    depths = {"vision": (2,), "decoder": (2,), "both": (2, 2)}[scope]
    assert backbone.layers.depths == depths
    assert [layer.index for layer in backbone.layers.select("half")] == {"both": [1, 3]}.get(scope, [1])
    assert [layer.index for layer in backbone.layers] == list(range(sum(depths)))


@torch.inference_mode()
@pytest.mark.parametrize("scope", ["decoder", "both"])
def test_fna_in_the_decoder_reads_the_image_only_and_keeps_the_whole_cache(scope):
    backbone = llava(scope)
    exact = backbone.encode_image(images())
    seen = watch(Fna(num_landmarks=16))
    seen.attach(backbone.layers)
    approximated = backbone.encode_image(images())
    assert approximated.isfinite().all()
    assert not torch.allclose(approximated, exact)
    seen.seen.clear()
    assert [len(answers) for answers in backbone.generate(images(), PROMPTS)] == [2, 1, 0]
    assert [inputs.layer for inputs in seen.seen] == list(range(len(backbone.layers)))  # once each: no later step
    assert {inputs.q.shape[2] for inputs in seen.seen} == {257}
    assert backbone._read(images())[0].get_seq_length() == 257


@torch.inference_mode()
@pytest.mark.parametrize("scope", SCOPES)
def test_a_llava_that_has_run_can_be_sent_to_another_process(scope):
    """As the memory pass does, with a variant attached to some layers."""
    backbone = llava(scope)
    Fna(num_landmarks=16).attach(backbone.layers.select("half"))
    embedding = backbone.encode_image(images())
    other = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(other.encode_image(images()), embedding)
    assert [layer.core for layer in other.layers] == [layer.core for layer in backbone.layers]
    measured = peak_memory(partial(backbone.encode_image, images()), partial(backbone.encode_image, images()[:1]), CPU)
    assert measured.peak_mib > 0


@torch.inference_mode()
def test_fna_in_a_decoder_takes_nothing_from_padding():
    model = LlamaModel(LlamaConfig(**SMALL_LLAMA)).eval()
    Fna(num_landmarks=4).attach(decoder_layers(model))
    ids = torch.randint(5, 40, (3, 50), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    before = model(input_ids=ids, attention_mask=mask).last_hidden_state
    after = model(input_ids=ids.masked_fill(mask == 0, 7), attention_mask=mask).last_hidden_state
    assert torch.equal(before[mask.bool()], after[mask.bool()])


@torch.inference_mode()
def test_a_mask_that_is_more_than_causal_is_refused():
    model = LlamaModel(LlamaConfig(**SMALL_LLAMA)).eval()
    Exact().attach(decoder_layers(model))
    everyone = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    with pytest.raises(ImpossibleError, match="more than causal with padding"):
        model(input_ids=torch.ones(1, 9, dtype=torch.long), attention_mask=everyone)


def test_a_decoder_of_another_kind_and_a_fixed_cache_are_refused():
    with pytest.raises(ImpossibleError, match="no plain sequence of blocks with LlamaAttention or Qwen2Attention"):
        decoder_layers(torch.nn.Linear(2, 2))
    model = LlamaModel(LlamaConfig(**SMALL_LLAMA)).eval()
    Exact().attach(decoder_layers(model))
    cache = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ImpossibleError, match=r"fixed length \(64\)"):
        model(input_ids=torch.ones(1, 9, dtype=torch.long), past_key_values=cache)


def test_an_unknown_scope_is_refused():
    with pytest.raises(BadInputError, match=r"model\.scope=text is not known; allowed: vision, decoder, both"):
        BundledLlava(scope="text")


@torch.inference_mode()
def test_llava_runs_with_fna_in_its_vision_tower():
    backbone = llava()
    native = backbone.module.model.vision_tower(images()).last_hidden_state
    Fna(num_landmarks=16).attach(backbone.layers)
    approximated = backbone.module.model.vision_tower(images()).last_hidden_state
    assert approximated.isfinite().all()
    assert not torch.equal(approximated, native)
    assert len(backbone.generate(images(), [["what"]] * 3)) == 3
    backbone.layers.detach()
    assert torch.equal(backbone.module.model.vision_tower(images()).last_hidden_state, native)
