"""Checkpoints of random weights in the layout of llava-hf: the real classes, a tokenizer of bytes, a processor, and
what is asked about three pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fnabench.data.base import Question, Sample, Source
from fnabench.loader import Loader
from fnabench.models.hf_llava import HfLlava
from fnabench.tiles import stack

FAMILIES = ("llava", "llava_next", "llava_onevision")
PROMPT = "USER: <image>\n{} ASSISTANT:"
NUM_VISION, NUM_DECODER = 3, 4
NUM_READ = {"llava": NUM_VISION - 1, "llava_next": NUM_VISION - 1, "llava_onevision": NUM_VISION}
"""Vision blocks up to the one that the projector reads."""
EDGE, PATCH = 32, 8
SIZES = ((48, 48), (40, 90), (EDGE, EDGE))
"""Height and width of the images: two of them of other than native size, in 4 and 3 tiles with the whole image."""
PROMPTS = [["what is it?", "hi"], ["which colour?"], ["two?"]]
CPU = torch.device("cpu")
GRID = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>", "<image>", "<video>")
VISION = {
    "image_size": EDGE, "patch_size": PATCH, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": NUM_VISION, "num_attention_heads": 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": NUM_DECODER, "num_attention_heads": 6,
    "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3,
}  # fmt: skip


def save_llava(folder: Path, family: str = "llava", *, with_template: bool = True, **text: object) -> Path:
    """A small LLaVA of a family with everything that its hub repository holds."""
    tokenizer = byte_tokenizer()
    module = build_llava(family, len(tokenizer), **text)
    module.save_pretrained(folder)
    processor = build_processor(family, tokenizer)
    if with_template:
        processor.chat_template = "{% for m in messages %}USER: <image>\n{{ m.content[1].text }} ASSISTANT:{% endfor %}"
    processor.save_pretrained(folder)
    return folder


def byte_tokenizer():
    """Every byte is a token, so that any text can be read and written."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(BPE(vocab={word: number for number, word in enumerate((*SPECIAL, *letters))}, merges=[]))
    words.add_special_tokens(list(SPECIAL))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        padding_side="left", extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )  # fmt: skip


def build_llava(family: str, num_words: int, **text: object) -> nn.Module:
    """The module with weights under which attention is far from uniform and answers differ."""
    from transformers import (
        AutoModelForImageTextToText,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaNextConfig,
        LlavaOnevisionConfig,
        Qwen2Config,
        SiglipVisionConfig,
    )

    settings = {**TEXT, "vocab_size": num_words, **text}
    tokens = {"image_token_index": SPECIAL.index("<image>")}
    tiles = {"image_grid_pinpoints": GRID}
    if family == "llava_onevision":
        config = LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
            text_config=Qwen2Config(**{"num_key_value_heads": 2, "tie_word_embeddings": True} | settings),
            video_token_index=SPECIAL.index("<video>"), vision_aspect_ratio="anyres_max_9",
            vision_feature_layer=-1, vision_feature_select_strategy="full", **tiles, **tokens,
        )  # fmt: skip
    else:
        vision, decoder = CLIPVisionConfig(**VISION, projection_dim=32), LlamaConfig(**settings)
        kind, tiles = (LlavaNextConfig, tiles) if family == "llava_next" else (LlavaConfig, {})
        config = kind(vision_config=vision, text_config=decoder, **tiles, **tokens)
    torch.manual_seed(0)
    module = AutoModelForImageTextToText.from_config(config)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    module.generation_config.eos_token_id = 1
    return module.eval()


def build_processor(family: str, tokenizer):
    """The processor of a family, for images of EDGE pixels."""
    from transformers import (
        CLIPImageProcessor,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        LlavaProcessor,
    )

    square = {"height": EDGE, "width": EDGE}
    crop = {"size": {"shortest_edge": EDGE}, "crop_size": square}
    clip = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava":
        return LlavaProcessor(CLIPImageProcessor(**crop), tokenizer, **clip)
    if family == "llava_next":
        return LlavaNextProcessor(LlavaNextImageProcessor(**crop, image_grid_pinpoints=GRID), tokenizer, **clip)
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=GRID), tokenizer,
        LlavaOnevisionVideoProcessor(size=square), num_image_tokens=(EDGE // PATCH) ** 2,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip


def copied(folder, into):
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    return into


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


def stock_model(folder):
    """The checkpoint as transformers loads it, every vision block included."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()


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
