"""Generation: free answers compared with texts, scored for every question and every kind."""

from __future__ import annotations

import json

import pytest
from fnabench.tasks.generation import Generation
from lookup import Lookup, Numbered, loader, samples
from PIL import Image
from small_encoder import save_encoder
from small_llava import save_llava
from small_world import SmallWorld

from fnabench.cli import compose
from fnabench.data.base import Question
from fnabench.errors import BadInputError
from fnabench.experiment import Experiment

QUESTIONS = [
    (Question(id="1", text="what?", kind="conv", answers=("a red ball",)),),
    (
        Question(id="2", text="what?", kind="conv", answers=("a dog",)),
        Question(id="3", text="tell!", kind="detail", answers=("two", "two blue balls")),
    ),
]


class Describing(Lookup):
    """Says the same of every image, however it is asked."""

    def __init__(self):
        super().__init__([])
        self.asked = []

    def generate(self, images, prompts, max_new_tokens=None):
        self.asked.append((prompts, max_new_tokens))
        return [["a red ball"] * len(asked) for asked in prompts]


def evaluate(backbone, **settings):
    return Generation(**settings).evaluate(backbone, loader(Numbered(samples(questions=QUESTIONS))), {})


def test_without_an_encoder_common_words_are_the_headline():
    backbone = Describing()
    scores = evaluate(backbone, suffix="In one sentence.", max_new_tokens=99)
    values = {name: each.value for name, each in scores.metrics.items()}
    assert values == pytest.approx({"rouge_l": (1 + 0.4) / 3, "rouge_l_conv": 0.7, "rouge_l_detail": 0.0})
    assert scores.main.clusters == ("image 0", "image 1", "image 1")
    assert scores.main.predictions.ravel().tolist() == ["a red ball"] * 3
    assert backbone.asked[0] == (
        [["what?\nIn one sentence."], ["what?\nIn one sentence.", "tell!\nIn one sentence."]],
        99,
    )


def test_with_an_encoder_bertscore_is_the_headline(tmp_path):
    scores = evaluate(Describing(), bertscore=str(save_encoder(tmp_path)), bertscore_layer=1)
    assert scores.headline == "bertscore_f1"
    names = {"precision", "recall", "f1", "f1_conv", "f1_detail"}
    assert set(scores.metrics) == {"rouge_l", *(f"bertscore_{name}" for name in names)}
    f1 = scores.main.numerator[:, 0]
    assert f1[0] == pytest.approx(1)
    assert f1[1:].max() < 0.99
    by_idf = evaluate(Describing(), bertscore=str(tmp_path), bertscore_idf=True)
    assert by_idf.main.value != pytest.approx(scores.main.value)


def test_settings_without_their_encoder_are_refused():
    for settings in ({"bertscore_layer": 3}, {"bertscore_idf": True}):
        with pytest.raises(BadInputError, match=r"need an encoder; give task\.bertscore=\.\.\."):
            Generation(**settings)
    with pytest.raises(BadInputError, match=r"task\.max_new_tokens=0 must be at least 1"):
        Generation(max_new_tokens=0)


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    """A LLaVA, an encoder and a folder of open questions."""
    made = SmallWorld(tmp_path, monkeypatch, capsys)
    save_llava(tmp_path / "llava", "llava_next")
    save_encoder(tmp_path / "encoder")
    (tmp_path / "asked" / "images").mkdir(parents=True)
    entries = []
    for number in range(3):
        Image.new("RGB", (30 + 20 * number, 40), (80 * number, 90, 10)).save(tmp_path / f"asked/images/{number}.png")
        entries.append({"image": f"{number}.png", "question": "what is there?", "answer": "a red ball"})
    (tmp_path / "asked" / "questions.json").write_text(json.dumps(entries))
    return made


GENERATION = {
    "task": "generation", "task.bertscore": "encoder", "task.max_new_tokens": "4", "data": "questions",
    "data.root": "asked", "model": "hf_llava", "model.checkpoint": "llava", "model.architecture": None,
    "model.num_classes": None, "model.image_size": None, "model.scope": "both",
}  # fmt: skip


def test_the_command_line_compares_a_variant_with_exact(world):
    code, out, err = world.run("probe.num_rounds=1", "probe.batch_size=2", **(GENERATION | {"probe": "default"}))
    assert code == 0, err
    assert "bertscore_f1 (%)" in out
    (folder,) = [path for path in world.records() if path.name.startswith("fna-")]
    record = json.loads((folder / "record.json").read_text())
    assert record["identity"]["task"]["weights"]
    assert "bertscore" not in record["identity"]["task"], "where it lies changes nothing"
    assert record["config"]["task"]["bertscore"] == "encoder"
    assert record["num_layers"] == 6, "two vision blocks that the projector reads, four of the decoder"
    assert record["cost"]["memory"]["peak_mib"] > 0


def test_the_key_is_of_the_encoders_content(world):
    def key():
        options = world._options(GENERATION | {"attention": "exact"})
        return Experiment.of(*compose(options)).key

    before = key()
    (world.folder / "encoder").rename(world.folder / "moved")
    save_encoder(world.folder / "encoder")
    assert key() == before
    config = world.folder / "encoder" / "config.json"
    config.write_text(config.read_text() + " ")
    assert key() != before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"task.bertscore": "nowhere"},
            "task.bertscore=nowhere is not a folder; give the one that holds the checkpoint",
        ),
        ({"task.bertscore": "asked"}, "task.bertscore=asked lacks config.json; complete it"),
        (
            {"model.checkpoint": "encoder"},
            "encoder lacks processor_config.json or preprocessor_config.json; complete it",
        ),
        ({"model.checkpoint": "nowhere"}, "model.checkpoint=nowhere is not a folder"),
        ({"data": "scenes", "data.root": None}, "this task needs open_questions of its data, which has captions"),
    ],
)
def test_what_is_missing_is_told_in_one_line(world, changes, line):
    assert line in world.refused(**(GENERATION | changes))


def test_a_task_with_an_encoder_checks_what_it_needs_first(world):
    model = "timm"
    options = {"model": model, "model.checkpoint": str(world.checkpoint), "model.scope": None}
    options |= {"model.architecture": "test_vit", "model.num_classes": "7", "model.image_size": "64"}
    assert "this task needs generate of its model" in world.refused(**(GENERATION | options))
