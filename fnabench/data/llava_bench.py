"""LLaVA-Bench (COCO) as it is handed out: a file of questions, a file of GPT-4's answers and COCO's images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from fnabench.data.base import Question, Sample
from fnabench.data.image_files import check_count, existing_folder, take
from fnabench.data.listed import ListedImages
from fnabench.errors import BadInputError, MissingError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class LlavaBench(ListedImages):
    """Images with their open questions, in the order in which the file first names them; one answer a question."""

    root: str = field(metadata=LOCATION)
    questions: str
    """Files inside root, one JSON object a line."""
    answers: str
    images: str
    """Folder of the images inside root."""
    prefix: str = "COCO_val2014_"
    """What the name of an image file has in front of the name that a question gives."""
    num_images: int | None = None
    """How many images and questions the data set is known to have; any other number is refused."""
    num_questions: int | None = None
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "llava_bench"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"open_questions"})

    def _sample(self, file: str, image: Image.Image, known: tuple[Question, ...]) -> Sample:
        return Sample(id=file, image=image, questions=known)

    @property
    def _folder(self) -> Path:
        return Path(self.root) / self.images

    @property
    def _listed_in(self) -> Path:
        return Path(self.root) / self.questions

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[Question, ...]]]:
        root = existing_folder("data.root", self.root, self.obtain)
        asked = _read_lines(self._listed_in, self.obtain)
        answered = _read_lines(root / self.answers, self.obtain)
        try:
            answers = {entry["question_id"]: entry["text"] for entry in answered}
            if len(answers) < len(answered):
                raise BadInputError(f"{root / self.answers} answers a question more than once")
            by_image: dict[str, list[Question]] = {}
            for entry in asked:
                question = Question(
                    id=str(entry["question_id"]),
                    text=entry["text"],
                    kind=entry["category"],
                    answers=(answers.pop(entry["question_id"]),),
                )
                by_image.setdefault(self.prefix + entry["image"].removeprefix(self.prefix), []).append(question)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInputError(
                f"{self._listed_in} and {self.answers} do not belong together: {error} is missing, or given to "
                "more than one question"
            ) from error
        check_count(self.name, "images", len(by_image), self.num_images)
        check_count(self.name, "questions", sum(map(len, by_image.values())), self.num_questions)
        rows = [(file, tuple(questions)) for file, questions in by_image.items()]
        return rows[: take(rows, self.limit)]


def _read_lines(path: Path, obtain: str) -> list[Any]:
    """What a file of one JSON object a line holds."""
    if not path.is_file():
        raise MissingError(f"{path} is missing; {obtain}")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise BadInputError(f"{path} is not one JSON object a line: {error}") from error
