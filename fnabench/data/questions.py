"""A folder of images with a questions.json: a list of questions, each with its image and its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from fnabench.data.base import NUM_ANNOTATORS, Question, Sample
from fnabench.data.image_files import existing_folder, read_json, take
from fnabench.data.listed import ListedImages
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION

FEWEST_ANNOTATORS = 4
"""From so many on an answer that all give can count in full: leaving one out, 3 must be left."""
FORM = '{"image": "1.png", "question": "...", "answers": ["...", ...]} or ["question", "answer", "1.png"]'


@dataclass(frozen=True, kw_only=True)
class QuestionFolder(ListedImages):
    """Images with their questions, in the order in which the file first names the images.

    An entry of the file is an object with image, question and answers (one for each annotator), optionally id and type;
    or a row of question, answer and image, where a number n means n.png. A single answer stands for ten that agree.
    """

    root: str = field(metadata=LOCATION)
    questions: str = "questions.json"
    """File inside root."""
    images: str = "images"
    """Folder of the images inside root."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "questions"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"questions", "open_questions"})

    def _sample(self, file: str, image: Image.Image, known: tuple[Question, ...]) -> Sample:
        return Sample(id=file, image=image, questions=known)

    @property
    def _listed_in(self) -> Path:
        return existing_folder("data.root", self.root) / self.questions

    @property
    def _folder(self) -> Path:
        return Path(self.root) / self.images

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[Question, ...]]]:
        path = self._listed_in
        entries = read_json(path, f"give data.questions=..., a list of {FORM}")
        if not isinstance(entries, list) or not entries:
            raise BadInputError(f"{path} holds no list of questions; it needs {FORM}")
        by_image: dict[str, list[Question]] = {}
        seen: set[str] = set()
        for number, entry in enumerate(entries):
            file, question = _read(path, number, entry)
            if question.id in seen:
                raise BadInputError(f"{path} gives the id {question.id} to more than one question")
            seen.add(question.id)
            by_image.setdefault(file, []).append(question)
        rows = [(file, tuple(questions)) for file, questions in by_image.items()]
        return rows[: take(rows, self.limit)]


def _read(path: Path, number: int, entry: Any) -> tuple[str, Question]:
    """The image and the question of one entry."""
    if isinstance(entry, list) and len(entry) == 3:
        entry = {"question": entry[0], "answer": entry[1], "image": entry[2]}
    known = entry if isinstance(entry, dict) else {}
    answers = known.get("answers", [known["answer"]] if "answer" in known else [])
    if isinstance(answers, list) and len(answers) == 1:
        answers = answers * NUM_ANNOTATORS
    image, text = known.get("image"), known.get("question")
    file = f"{image}.png" if isinstance(image, int) else image
    is_answered = isinstance(answers, list) and answers and all(isinstance(each, str | int | float) for each in answers)
    if not (file and isinstance(file, str) and text and isinstance(text, str) and is_answered):
        raise BadInputError(f"{path}: entry {number} lacks its image, question or answers; it needs {FORM}")
    if len(answers) < FEWEST_ANNOTATORS:
        raise BadInputError(
            f"{path}: entry {number} has {len(answers)} answers; VQA accuracy needs one, or at least "
            f"{FEWEST_ANNOTATORS} annotators"
        )
    kind = str(known.get("type", "any"))
    return file, Question(id=str(known.get("id", number)), text=text, kind=kind, answers=tuple(map(str, answers)))
