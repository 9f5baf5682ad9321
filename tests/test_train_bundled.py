"""The weights that come with fnabench are whole and do what their cards say."""

from __future__ import annotations

import pytest
import torch

from fnabench.data.scenes import Scenes
from fnabench.models.bundled_weights import WEIGHTS, load_clip, load_llava
from fnabench.train.clip_metrics import measure_clip


def test_bundled_files_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 25 * 2**20


def test_bundled_clip_scores_as_its_card_says() -> None:
    clip = load_clip()
    measured = measure_clip(clip.model, clip.tokenizer, Scenes(split="test", limit=60))
    card = clip.card["metrics"]["test_128px"]
    assert measured["top1"] == pytest.approx(card["top1"], abs=15)
    assert measured["miou"] == pytest.approx(card["miou"], abs=10)
    assert measured["text_to_image_r1"] > card["text_to_image_r1"] - 5, "fewer images are easier"


def test_bundled_llava_has_the_tower_of_the_bundled_clip() -> None:
    from fnabench.models.bundled_decoder import vision_weights

    tower = load_llava().model.model.vision_tower.state_dict()
    for name, value in vision_weights(load_clip().model.image_tower).items():
        assert torch.equal(tower[name], value), name


def test_bundled_llava_answers_better_than_the_questions_alone() -> None:
    card = load_llava().card["metrics"]
    (metrics,) = card.values()
    assert metrics["vqa"] > metrics["question_only"]
