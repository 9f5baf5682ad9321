"""VQAv2 as it is handed out: a file of questions, a file of annotations and COCO's images."""

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
class VqaFiles(ListedImages):
    """Images with their questions, in the order in which the file first names the images; ten answers a question."""

    root: str = field(metadata=LOCATION)
    questions: str
    """Files inside root."""
    annotations: str
    images: str
    """Folder of the images inside root."""
    file_name: str = "COCO_val2014_{:012d}.jpg"
    """Name of an image, {} for its number."""
    num_images: int | None = None
    """How many images and questions the data set is known to have; any other number is refused."""
    num_questions: int | None = None
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "vqav2"
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
        asked = read_json(self._listed_in, self.obtain)
        answered = read_json(root / self.annotations, self.obtain)
        try:
            annotations = {entry["question_id"]: entry for entry in answered["annotations"]}
            if len(annotations) < len(answered["annotations"]):
                raise BadInputError(f"{root / self.annotations} answers a question more than once")
            by_image: dict[int, list[Question]] = {}
            for entry in asked["questions"]:
                annotation = annotations.pop(entry["question_id"])
                question = Question(
                    id=str(entry["question_id"]),
                    text=entry["question"],
                    kind=annotation["answer_type"],
                    answers=tuple(answer["answer"] for answer in annotation["answers"]),
                )
                by_image.setdefault(entry["image_id"], []).append(question)
        except (KeyError, TypeError) as error:
            raise BadInputError(
                f"{self._listed_in} and {self.annotations} do not belong together: {error} is missing, or given "
                "to more than one question"
            ) from error
        check_count(self.name, "images", len(by_image), self.num_images)
        check_count(self.name, "questions", sum(map(len, by_image.values())), self.num_questions)
        rows = [(self.file_name.format(image), tuple(questions)) for image, questions in by_image.items()]
        return rows[: take(rows, self.limit)]
