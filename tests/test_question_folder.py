"""Question files beside images: both forms read alike, or refused in one line before any image is decoded."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fnabench.data.questions import QuestionFolder
from fnabench.errors import BadInputError, MissingError
from fnabench.vqa_answers import vqa_accuracy

ROWS = [["what colour?", "red", 1], ["is it round?", "yes", 0], ["is it large?", "no", 1]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    write(tmp_path, ROWS)
    return tmp_path


def write(folder, entries):
    (folder / "questions.json").write_text(json.dumps(entries))


def source(folder, **options):
    return QuestionFolder(root=str(folder), **options)


def test_questions_are_gathered_by_image_in_the_order_of_the_file(folder):
    found = source(folder)
    found.check()
    asked = [(sample.id, [question.text for question in sample.questions]) for sample in (found[0], found[1])]
    assert asked == [("1.png", ["what colour?", "is it large?"]), ("0.png", ["is it round?"])]


def test_a_single_answer_counts_in_full(folder):
    question = source(folder)[0].questions[0]
    assert vqa_accuracy("red", question.answers) == 1
    assert vqa_accuracy("blue", question.answers) == 0


def test_objects_carry_annotators_types_and_ids(folder):
    answers = ["two"] * 7 + ["three"] * 3
    write(folder, [{"image": "0.png", "question": "how many?", "answers": answers, "type": "count", "id": 17}])
    (question,) = source(folder)[0].questions
    assert (question.id, question.kind, question.answers) == ("17", "count", tuple(answers))


def test_a_limit_takes_the_first_images(folder):
    assert len(source(folder, limit=1)) == 1
    with pytest.raises(BadInputError, match=r"data\.limit=3 must be between 1 and 2"):
        len(source(folder, limit=3))


def test_the_fingerprint_knows_the_answers(folder):
    before = source(folder).fingerprint()
    write(folder, [[text, "another", image] for text, _, image in ROWS])
    assert source(folder).fingerprint() != before


def test_a_question_about_an_image_that_is_not_there_is_refused(folder):
    write(folder, [*ROWS, ["where?", "here", 7]])
    with pytest.raises(BadInputError, match=r"1 of 3 images.*questions\.json.*7\.png"):
        source(folder).check()


@pytest.mark.parametrize(
    "entry",
    [["why?", "so"], {"image": "0.png", "question": "why?"}, {"image": "0.png", "answers": ["a"]}, "why?", None,
     {"image": "0.png", "question": "why?", "answers": []}, ["why?", "so", None], ["why?", None, "0.png"],
     {"image": "0.png", "question": "why?", "answers": ["a"] * 9 + [None]}],
)  # fmt: skip
def test_an_entry_that_lacks_something_is_refused_by_its_number(folder, entry):
    write(folder, [*ROWS, entry])
    with pytest.raises(BadInputError, match=r"entry 3 lacks its image, question or answers; it needs \{"):
        source(folder).check()


def test_too_few_annotators_are_refused(folder):
    write(folder, [{"image": "0.png", "question": "why?", "answers": ["a", "b"]}])
    with pytest.raises(BadInputError, match="entry 0 has 2 answers; VQA accuracy needs one, or at least 4"):
        source(folder).check()


def test_an_id_given_twice_is_refused(folder):
    write(folder, [{"image": "0.png", "question": "why?", "answer": "so", "id": 5}] * 2)
    with pytest.raises(BadInputError, match="the id 5 to more than one question"):
        source(folder).check()


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "no list"), ('{"a": 1}', "no list")])
def test_a_file_of_another_kind_is_refused(folder, text, message):
    (folder / "questions.json").write_text(text)
    with pytest.raises(BadInputError, match=message):
        source(folder).check()


def test_a_missing_file_or_folder_says_what_to_type(folder):
    with pytest.raises(MissingError, match=r"nothing\.json is missing.*give data\.questions="):
        source(folder, questions="nothing.json").check()
    with pytest.raises(MissingError, match=r"data\.root=.*is not a folder"):
        source(folder / "nowhere").check()
