"""The bundled models' loading code on tiny random weights: the seam changes nothing, FNA runs, answers are text."""

from __future__ import annotations

import pytest
import torch

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.models.bundled_clip import BundledClipBackbone
from fnabench.models.bundled_decoder import CHAT_WORDS, LlavaConfig, build_llava, build_word_tokenizer
from fnabench.models.bundled_llava import BundledLlavaBackbone
from fnabench.models.bundled_towers import SPECIAL_WORDS, Clip, ClipConfig, Tokenizer
from fnabench.models.bundled_weights import LoadedClip, LoadedLlava

CONFIG = ClipConfig(width=32, depth=2, num_heads=2, embed_width=16, text_width=32, text_depth=1, text_num_heads=2)
CARD = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "prompts": ["a {}"], "sha256": "0"}
CPU = torch.device("cpu")


def clip(image_size=128):
    torch.manual_seed(0)
    vocabulary = (*SPECIAL_WORDS, "a", "red", "ball")
    model = Clip(CONFIG, num_words=len(vocabulary), num_mask_classes=3).eval()
    loaded = LoadedClip(model=model, tokenizer=Tokenizer(vocabulary, context=8), card=CARD)
    return BundledClipBackbone(loaded, image_size, CPU, torch.float32)


def llava():
    torch.manual_seed(0)
    vocabulary = (*CHAT_WORDS, "what", "colour", "red", "blue")
    decoder = LlavaConfig(width=32, depth=2, num_heads=2, mlp_width=48)
    model = build_llava(CONFIG, decoder, num_words=len(vocabulary)).eval()
    loaded = LoadedLlava(model=model, tokenizer=build_word_tokenizer(vocabulary), card=CARD)
    return BundledLlavaBackbone(loaded, CPU, torch.float32)


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
    assert len(backbone.layers) == CONFIG.depth
    Exact().attach(backbone.layers)
    assert torch.equal(backbone.module.model.vision_tower(images()).last_hidden_state, native)


@torch.inference_mode()
def test_answers_are_the_same_through_the_seam_and_do_not_depend_on_padding():
    backbone = llava()
    prompts = ["what colour", "what", "colour what colour red"]
    native = backbone.generate(images(), prompts)
    Exact().attach(backbone.layers)
    assert backbone.generate(images(), prompts) == native
    alone = [backbone.generate(images()[row : row + 1], [prompt])[0] for row, prompt in enumerate(prompts)]
    assert alone == native
    assert not any(word in answer for answer in native for word in CHAT_WORDS)


@torch.inference_mode()
def test_llava_runs_with_fna_in_its_vision_tower():
    backbone = llava()
    native = backbone.module.model.vision_tower(images()).last_hidden_state
    Fna(num_landmarks=16).attach(backbone.layers)
    approximated = backbone.module.model.vision_tower(images()).last_hidden_state
    assert approximated.isfinite().all()
    assert not torch.equal(approximated, native)
    assert len(backbone.generate(images(), ["what"] * 3)) == 3
    backbone.layers.detach()
    assert torch.equal(backbone.module.model.vision_tower(images()).last_hidden_state, native)
