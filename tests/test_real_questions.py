"""VQAv2, TextVQA, ScienceQA and LLaVA-Bench in their official layouts: questions with their answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import configured, copy_of, counts, write_json

from fnabench.errors import BadInputError, MissingError
from fnabench.vqa_answers import vqa_accuracy

pytestmark = pytest.mark.usefixtures("no_hub")


def test_vqav2_gathers_questions_by_image_whatever_the_order_of_the_annotations(tmp_path: Path) -> None:
    source = copy_of("vqav2_val", tmp_path)
    first = source[0]
    assert first.id == "COCO_val2014_000000262148.jpg"
    assert [question.text for question in first.questions] == ["question 0?", "question 2?", "question 4?"]
    assert (first.questions[0].id, first.questions[0].kind) == ("262148000", "yes/no")
    assert first.questions[0].answers == ("no", *["yes"] * 9)
    assert vqa_accuracy("yes", first.questions[0].answers) == 1


def test_questions_and_annotations_of_different_splits_are_refused(tmp_path: Path) -> None:
    source = copy_of("vqav2_val", tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"annotations": content["annotations"][1:]})
    with pytest.raises(BadInputError, match="do not belong together"):
        source.check()


@pytest.mark.parametrize(
    ("name", "file", "listed", "reason"),
    [
        ("vqav2_val", "v2_OpenEnded_mscoco_val2014_questions.json", "questions", "to more than one question"),
        ("vqav2_val", "v2_mscoco_val2014_annotations.json", "annotations", "answers a question more than once"),
        ("textvqa", "TextVQA_0.5.1_val.json", "data", "gives an id to more than one question"),
    ],
)
def test_a_question_given_or_answered_twice_is_refused(
    name: str, file: str, listed: str, reason: str, tmp_path: Path
) -> None:
    source = copy_of(name, tmp_path)
    content = json.loads((tmp_path / file).read_text())
    write_json(tmp_path / file, content | {listed: [*content[listed], content[listed][0]]})
    with pytest.raises(BadInputError, match=reason):
        source.check()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("qa90_questions.jsonl", "to more than one question"),
        ("qa90_gpt4_answer.jsonl", "answers a question more than once"),
    ],
)
def test_a_line_of_llava_bench_given_twice_is_refused(file: str, reason: str, tmp_path: Path) -> None:
    source = copy_of("llava_bench_coco", tmp_path)
    lines = (tmp_path / file).read_text().splitlines()
    (tmp_path / file).write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(BadInputError, match=reason):
        source.check()


def test_textvqa_tells_ocr_tokens_only_where_that_is_asked_for(tmp_path: Path) -> None:
    plain = copy_of("textvqa", tmp_path)
    hinted = configured("textvqa", tmp_path, **counts(plain), ocr="TextVQA_Rosetta_OCR_v0.2_val.json")
    assert plain[0].questions[0].text == "what is written 0?"
    assert hinted[0].questions[0].text == "what is written 0?\nReference OCR token: NOKIA, 12:30"
    assert plain.fingerprint() != hinted.fingerprint()


def test_textvqa_names_the_file_of_tokens_where_that_is_not_whole(tmp_path: Path) -> None:
    name = "TextVQA_Rosetta_OCR_v0.2_val.json"
    source = copy_of("textvqa", tmp_path, ocr=name)
    content = json.loads((tmp_path / name).read_text())
    write_json(tmp_path / name, {"data": content["data"][:1]})
    with pytest.raises(
        BadInputError, match=rf"{name} has no tokens of the image 00685bc495504d61; give data\.ocr=null"
    ):
        source.check()
    write_json(tmp_path / name, {"tokens": []})
    with pytest.raises(BadInputError, match=rf"{name} is no file of TextVQA's OCR tokens: it lacks 'data'"):
        replace(source).check()


def test_scienceqa_keeps_the_questions_with_an_image_and_asks_for_a_letter(tmp_path: Path) -> None:
    source = copy_of("scienceqa", tmp_path)
    assert [source[index].id for index in range(4)] == ["1", "2", "4", "5"]
    (question,) = source[0].questions
    assert question.text == "Context: Look at the picture.\nWhich one is 1?\nA. iron\nB. wood\nC. glass"
    assert vqa_accuracy("B", question.answers, "big_vision") == 1
    (question,) = source[1].questions
    assert vqa_accuracy("A", question.answers, "big_vision") == 1
    assert vqa_accuracy("B", question.answers, "big_vision") == 0


def test_llava_bench_gives_each_question_the_one_answer_of_its_id(tmp_path: Path) -> None:
    first = copy_of("llava_bench_coco", tmp_path)[0]
    assert first.id == "COCO_val2014_000000441147.jpg"
    assert [question.kind for question in first.questions] == ["conv", "detail", "complex"]
    assert [question.answers for question in first.questions] == [(f"A long answer, {number}.",) for number in range(3)]


def test_llava_bench_refuses_files_that_are_not_whole(tmp_path: Path) -> None:
    source = copy_of("llava_bench_coco", tmp_path)
    path = tmp_path / "qa90_gpt4_answer.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(BadInputError, match="do not belong together: 8 is missing"):
        source.check()
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadInputError, match="is not one JSON object a line"):
        replace(source).check()
    path.unlink()
    with pytest.raises(MissingError, match=r"qa90_gpt4_answer\.jsonl is missing; download val2014\.zip"):
        replace(source).check()
