"""VQA accuracy: the evaluation's rules written as cases with known answers."""

from __future__ import annotations

import pytest
from fnabench.tasks.vqa import Vqa
from lookup import Lookup, Numbered, loader, samples

from fnabench.data.base import Question
from fnabench.vqa_answers import normalised, vqa_accuracy


def ten(**counts):
    return [answer.replace("_", " ") for answer, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("matches", "expected"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_leave_one_out_average(matches, expected):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("red", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("the red ball", "red ball"),
        ("A dog.", "dog"),
        ("dont know", "don't know"),
        ("shouldnt've", "shouldn't've"),
        ("shouldn'tve", "shouldn't've"),
        ("1,000", "1000"),
        ("yes, sir", "yes sir"),
        ("black/white", "black white"),
        ("3.5", "3.5"),
        ("line\nbreak", "line break"),
        ("what?", "what"),
    ],
)
def test_an_official_prediction_is_normalised(said, compared):
    assert normalised(said, ["x"], "official")[0] == compared


def test_official_answers_lose_their_punctuation_only_where_they_differ():
    assert normalised("x", ["yes!", "no"], "official")[1] == ["yes ", "no"]
    assert normalised("x", ["yes!", "yes!"], "official")[1] == ["yes!", "yes!"]
    assert normalised("x", ["The dog", "cat"], "official")[1] == ["The dog", "cat"]


def test_the_edges_of_words_are_those_of_the_text_that_was_given():
    assert normalised("on-off/-on", ["x"], "official")[0] == "on off on"  # no "/" or "-" stands beside a space
    assert normalised("a-b/-c", ["x"], "official")[0] == "b c"
    assert normalised("a- b-c", ["x"], "official")[0] == "bc"  # one of them does, and so all of them go
    assert vqa_accuracy("on-off/-on", ["on off on"] * 9 + ["no"]) == 1.0
    assert vqa_accuracy("a-b/-c", ["ab c"] * 10) == 0.0


def test_contractions_of_i_are_left_as_they_are_since_the_official_list_has_them_in_capitals():
    assert vqa_accuracy("IM happy", ["im happy"] * 10) == 1.0
    for said in ("Im", "Ive", "Id've"):
        assert normalised(said, ["x"], "official")[0] == said.lower()


def test_big_vision_leaves_unanimous_answers_alone():
    assert normalised("Two", ["Two"] * 10, "big_vision") == ("Two", ["Two"] * 10)
    assert normalised("Two", ["Two", "2"], "big_vision") == ("2", ["2", "2"])


def test_evalai_normalises_everything_always():
    assert normalised("The Two dogs", ["two dogs"] * 10, "evalai") == ("2 dogs", ["2 dogs"] * 10)
    assert normalised("dog's", ["x"], "evalai")[0] == "dog 's"


def test_the_three_disagree_where_they_are_known_to():
    answers = ten(two=10)
    assert vqa_accuracy("two", answers, "official") == 0.0  # "2" against the raw "two": the official quirk
    assert vqa_accuracy("two", answers, "big_vision") == 1.0
    assert vqa_accuracy("two", answers, "evalai") == 1.0


def test_an_unknown_normalisation_is_an_error():
    with pytest.raises(ValueError, match="official, big_vision, evalai"):
        vqa_accuracy("x", ["x"], "mine")


class Answering(Lookup):
    """Says what it knows of an image, by its number; of number 0, and so of every image it is not shown, "red"."""

    def __init__(self, *known):
        super().__init__([])
        self.known = known

    def generate(self, images, prompts, max_new_tokens=None):
        assert all(prompt == "what?\nShortly." for asked in prompts for prompt in asked)
        numbers = images[:, 0, 0, 0].long().tolist()
        return [[self.known[number]] * len(asked) for number, asked in zip(numbers, prompts, strict=True)]


def asked(*kinds_and_answers):
    return tuple(
        Question(id=f"{kind} {number}", text="what?", kind=kind, answers=(answer,) * 10)
        for number, (kind, answer) in enumerate(kinds_and_answers)
    )


QUESTIONS = [
    asked(("colour", "red"), ("count", "2")),
    asked(("colour", "blue")),
    asked(("colour", "green"), ("count", "red")),
]


def evaluate(**settings):
    source = Numbered(samples(questions=QUESTIONS))
    return Vqa(suffix="Shortly.", **settings).evaluate(Answering("red", "Blue.", "two"), loader(source), {})


def test_every_question_counts_once_and_every_type_for_itself():
    scores = evaluate()
    values = {name: each.value for name, each in scores.metrics.items()}
    assert values == pytest.approx({
        "vqa_official": 0.4, "vqa_big_vision": 0.2, "vqa_evalai": 0.4,
        "vqa_official_colour": 2 / 3, "vqa_official_count": 0.0,
    })  # fmt: skip
    assert scores.main.clusters == ("image 0", "image 0", "image 1", "image 2", "image 2")
    assert scores.main.predictions.ravel().tolist() == ["red", "red", "blue", "2", "2"]


def test_blind_shows_no_image():
    assert evaluate(blind=True).main.predictions.ravel().tolist() == ["red"] * 5
    assert evaluate(blind=True).main.value == pytest.approx(0.4)
