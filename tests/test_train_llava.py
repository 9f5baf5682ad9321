"""Training the bundled LLaVA: packed questions are answered as lone ones, and the tower is CLIP's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from fnabench.data.base import Question
from fnabench.data.scenes import Scenes
from fnabench.data.scenes.questions import Asked, plural
from fnabench.data.scenes.world import COLOURS
from fnabench.errors import BadInputError, MissingError
from fnabench.models.bundled_decoder import (
    ANSWER,
    CHAT_WORDS,
    END,
    IMAGE,
    LlavaConfig,
    build_llava,
    build_word_tokenizer,
    vision_weights,
)
from fnabench.models.bundled_towers import PAD, START, Clip, ClipConfig, Tokenizer, build_image_tower, split_words
from fnabench.models.bundled_weights import LoadedClip, load_clip, load_llava
from fnabench.train.export import round_to_half, write_weights
from fnabench.train.grounding import answering_loss, find_mentions, grounding_loss
from fnabench.train.llava import Trainer, Training
from fnabench.train.llava_metrics import answer, measure_question_only, vqa_accuracy
from fnabench.train.pool import CHUNK
from fnabench.train.questions import PROMPT_SUFFIX, ask_about, build_pack, collect_chat_vocabulary, start_ids

CLIP = ClipConfig(width=32, depth=2, num_heads=2, embed_width=16, text_width=32, text_depth=1, text_num_heads=2)
LLAVA = LlavaConfig(width=32, depth=2, num_heads=2, mlp_width=48)


def _chat_tokenizer() -> Tokenizer:
    return Tokenizer(collect_chat_vocabulary(), context=1024)


def test_transformers_tower_is_the_timm_tower() -> None:
    torch.manual_seed(0)
    tower = build_image_tower(CLIP).eval()
    model = build_llava(CLIP, LLAVA, num_words=20).eval()
    model.model.vision_tower.load_state_dict(vision_weights(tower))
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model.model.vision_tower(images).last_hidden_state
        ours = tower.forward_features(images)
    assert torch.allclose(tower.norm(theirs), ours, atol=1e-5)


def test_packed_questions_are_answered_as_lone_ones() -> None:
    torch.manual_seed(0)
    tokenizer = _chat_tokenizer()
    model = build_llava(CLIP, LLAVA, num_words=len(tokenizer.vocabulary)).eval()
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    asked = list(ask_about(Scenes(split="train").scene(0), index=0, series=0))
    pack = build_pack(tokenizer, [asked], torch.arange(256)[None], num_patches=256, suffix=True)
    with torch.no_grad():
        visual = torch.stack(list(model.model.get_image_features(image).pooler_output))
        embed = model.get_input_embeddings()
        inputs = torch.cat((embed(start_ids(1)), visual, embed(pack.ids)), dim=1)
        hidden = model.model.language_model(
            inputs_embeds=inputs, attention_mask=pack.visible, position_ids=pack.positions, use_cache=False
        ).last_hidden_state[:, -pack.ids.shape[1] :]
        packed = model.lm_head(hidden[pack.ids == ANSWER])
        for number, one in enumerate(asked):
            text = tokenizer.encode(f"{one.text} {PROMPT_SUFFIX}")[1:]
            ids = torch.tensor([[START, *[IMAGE] * 256, *text, ANSWER]])
            alone = model(input_ids=ids, pixel_values=image).logits[0, -1]
            assert torch.allclose(packed[number], alone, atol=1e-4)


def test_targets_are_the_answer_and_the_end() -> None:
    tokenizer = _chat_tokenizer()
    asked = list(ask_about(Scenes(split="train").scene(3), index=3, series=0))
    pack = build_pack(tokenizer, [asked], torch.arange(4)[None], num_patches=256, suffix=False)
    wanted = pack.targets[pack.targets != -100].tolist()
    truths = [tokenizer.encode(one.truth)[1] for one in asked]
    assert wanted == [number for truth in truths for number in (truth, END)]
    assert (pack.ids[pack.targets != -100].view(-1, 2)[:, 0] == ANSWER).all()


def test_every_series_asks_other_questions() -> None:
    scene = Scenes(split="train").scene(0)
    texts = {tuple(one.text for one in ask_about(scene, index=0, series=series)) for series in range(5)}
    assert len(texts) == 5


def test_decoder_tokenizer_is_the_training_tokenizer() -> None:
    tokenizer = _chat_tokenizer()
    words = build_word_tokenizer(tokenizer.vocabulary)
    for text in ("Is there a RED ring?", f"how many moons are there?\n{PROMPT_SUFFIX}", "is Zanzibar large"):
        assert [START, *words.encode(text).ids] == tokenizer.encode(text)
    prompt = words.encode("[start] [image][image] is there a ring? [answer]")
    assert prompt.ids[:3] == [START, IMAGE, IMAGE]
    assert prompt.ids[-1] == ANSWER
    assert words.decode([tokenizer.encode("yes")[1], END]) == "yes"


def test_answers_do_not_depend_on_the_other_questions() -> None:
    torch.manual_seed(0)
    tokenizer = _chat_tokenizer()
    model = build_llava(CLIP, LLAVA, num_words=len(tokenizer.vocabulary)).eval()
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    questions = ["is there a red ring?", "are there more purple objects than yellow objects?"]
    together = answer(model, tokenizer, image, questions)
    assert together == [answer(model, tokenizer, image, [question])[0] for question in questions]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("yes", 1.0), ("no", (7 * 1.0 + 3 * 2 / 3) / 10), ("maybe", 0.0)],
)
def test_vqa_accuracy_of_known_answers(given: str, expected: float) -> None:
    answers = ("yes",) * 7 + ("no",) * 3
    question = Question(id="q", text="is it?", kind="exist", answers=answers)
    assert vqa_accuracy(given, question) == pytest.approx(expected)


def test_questions_alone_do_not_give_the_answers_away() -> None:
    scores = measure_question_only(Scenes(split="val", limit=60), num_training=1500)
    assert scores["question_only_colour"] < 35
    assert scores["question_only"] < 65


def test_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = LoadedClip(
        model=Clip(CLIP, num_words=10, num_mask_classes=11).eval(),
        tokenizer=_chat_tokenizer(),
        card={},
    )
    training = Training(steps=4, num_samples=CHUNK, batch=2, num_kept=32, warmup=2, whole=0.25)
    folder, pool = tmp_path / "run", tmp_path / "pool"
    whole = Trainer(training, clip, folder, pool)
    losses = [whole.train_step()["loss"] for _ in range(4)]
    first = Trainer(training, clip, folder, pool)
    first.train_step()
    first.train_step()
    first.save()
    second = Trainer(training, clip, folder, pool)
    second.resume()
    assert [second.train_step()["loss"] for _ in range(2)] == losses[2:]
    for name, value in whole.averaged().items():
        assert torch.equal(value, second.averaged()[name])


def _write_tiny_clip(folder: Path) -> Clip:
    torch.manual_seed(0)
    model = Clip(CLIP, num_words=4, num_mask_classes=11)
    model.load_state_dict(round_to_half(model.state_dict()))
    card = {
        "config": {name: getattr(CLIP, name) for name in CLIP.__dataclass_fields__},
        "vocabulary": ["[pad]", "[start]", "[unknown]", "ring"],
        "mask_names": list(Scenes.mask_names),
    }
    write_weights(folder, "clip", model.state_dict(), card)
    return model


def test_written_weights_come_back_equal(tmp_path: Path) -> None:
    model = _write_tiny_clip(tmp_path)
    loaded = load_clip(tmp_path)
    assert loaded.tokenizer.encode("ring") == [START, 3]
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name])


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    _write_tiny_clip(tmp_path)
    path = tmp_path / "clip.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="sha256"):
        load_clip(tmp_path)


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    for load in (load_clip, load_llava):
        with pytest.raises(MissingError, match="make train-bundled"):
            load(tmp_path)


def test_card_holds_the_checksum_and_the_size(tmp_path: Path) -> None:
    _write_tiny_clip(tmp_path)
    card = json.loads((tmp_path / "clip.json").read_text())
    assert card["num_parameters"] == sum(value.numel() for value in load_clip(tmp_path).model.state_dict().values())
    assert card["sha256"] == hashlib.sha256((tmp_path / "clip.safetensors").read_bytes()).hexdigest()


def test_special_words_lead_the_vocabulary() -> None:
    vocabulary = collect_chat_vocabulary()
    assert vocabulary[: len(CHAT_WORDS)] == CHAT_WORDS
    assert [vocabulary[number] for number in (PAD, START, IMAGE, ANSWER, END)] == [
        "[pad]",
        "[start]",
        "[image]",
        "[answer]",
        "[end]",
    ]


def test_mentions_are_the_things_that_words_name() -> None:
    source = Scenes(split="train")
    for index in range(50):
        scene = source.scene(index)
        for one in ask_about(scene, index=index, series=0):
            words = split_words(one.text)
            for place, things in find_mentions(one, scene):
                if words[place] in ("object", "objects") and words[place - 1] not in ("large", *COLOURS):
                    assert len(things) == len(scene.things)
                for number in things:
                    thing = scene.things[number]
                    assert words[place] in ("object", "objects", thing.shape, plural(thing.shape))
                    assert words[place - 1] not in COLOURS or words[place - 1] == thing.colour
            if one.kind == "exist":
                assert [bool(things) for _, things in find_mentions(one, scene)] == [one.truth == "yes"]


def test_looking_at_the_right_patches_costs_nothing() -> None:
    scene = Scenes(split="train").scene(0)
    asked = [[Asked(kind="exist", text=f"is there a {scene.things[1].name}?", truth="yes")]]
    shown = torch.tensor([[0, 1, 1, -100]])
    attention = torch.zeros(1, 2, 5 + 6, 5 + 6)
    attention[0, :, 5 + 4, 2:4] = 0.5
    assert grounding_loss(attention, asked, [scene], shown) == pytest.approx(0, abs=1e-5)
    attention[0, :, 5 + 4] = 1 / 4
    assert grounding_loss(attention, asked, [scene], shown) == pytest.approx(0.6931, abs=1e-3)


def test_answer_looking_at_the_naming_word_costs_nothing() -> None:
    scene = Scenes(split="train").scene(0)
    asked = [[Asked(kind="exist", text=f"is there a {scene.things[1].name}?", truth="yes")]]
    answers = torch.tensor([[False] * 5 + [True]])
    attention = torch.zeros(1, 2, 5 + 6, 5 + 6)
    attention[0, :, 5 + 5, 5 + 4] = 1.0
    assert answering_loss(attention, asked, [scene], answers) == pytest.approx(0, abs=1e-5)
