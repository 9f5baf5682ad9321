"""TextVQA as it is handed out: a file of questions with ten answers each, OpenImages' images, Rosetta's OCR tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from fnabench.data.base import Question, Sample
from fnabench.data.image_files import check_count, existing_folder, read_json, take
from fnabench.data.listed import ListedImages
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class TextVqa(ListedImages):
    """Images with their questions, in the order in which the file first names the images."""

    root: str = field(metadata=LOCATION)
    questions: str
    """File inside root."""
    images: str
    """Folder of the images inside root."""
    ocr: str | None = None
    """File inside root with OCR tokens, which are then told with each question, as LLaVA-1.5 does: worth 13 points."""
    num_images: int | None = None
    """How many images and questions the data set is known to have; any other number is refused."""
    num_questions: int | None = None
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "textvqa"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"questions"})

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
        path = self._listed_in
        content = read_json(path, self.obtain)
        hints = self._hints(root / self.ocr) if self.ocr else None
        by_image: dict[str, list[Question]] = {}
        try:
            for entry in content["data"]:
                image = entry["image_id"]
                if hints is not None and image not in hints:
                    raise BadInputError(f"{root}/{self.ocr} has no tokens of the image {image}; give data.ocr=null")
                question = Question(
                    id=str(entry["question_id"]), text=entry["question"] + (hints[image] if hints else ""), kind="text",
                    answers=tuple(entry["answers"]),
                )  # fmt: skip
                by_image.setdefault(image, []).append(question)
        except (KeyError, TypeError) as error:
            raise BadInputError(f"{path} is no file of TextVQA with answers: it lacks {error}") from error
        ids = [question.id for questions in by_image.values() for question in questions]
        if len(set(ids)) < len(ids):
            raise BadInputError(f"{path} gives an id to more than one question")
        check_count(self.name, "images", len(by_image), self.num_images)
        check_count(self.name, "questions", len(ids), self.num_questions)
        rows = [(f"{image}.jpg", tuple(questions)) for image, questions in by_image.items()]
        return rows[: take(rows, self.limit)]

    def _hints(self, path: Path) -> dict[str, str]:
        """What is told of the tokens of each image."""
        try:
            return {
                entry["image_id"]: f"\nReference OCR token: {', '.join(entry['ocr_tokens'])}"
                for entry in read_json(path, self.obtain)["data"]
            }
        except (KeyError, TypeError) as error:
            raise BadInputError(f"{path} is no file of TextVQA's OCR tokens: it lacks {error}") from error
