"""Multiple-choice questions in parquet files, as ScienceQA lies on the hub; the answer is a choice's letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from fnabench.data.base import NUM_ANNOTATORS, Question, Sample, Source
from fnabench.data.hub import HubFile, decode, find_parquet, has_image, hash_parquet, read_parquet
from fnabench.data.image_files import check_count, take
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class HubChoices(Source):
    """Rows that have an image, in their order; each is one image with one question."""

    repository: str
    revision: str | None = None
    """Commit of the repository."""
    files: str
    """Pattern of the split's files."""
    root: str | None = field(default=None, metadata=LOCATION)
    """A folder with those files, instead of the repository."""
    streaming: bool = field(default=False, metadata=LOCATION)
    """Whether rows are read where the files lie, each time anew, instead of downloading them."""
    num_images: int | None = None
    """How many rows have an image in the data set as it is known; any other number is refused."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "scienceqa"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"questions"})

    def check(self) -> None:
        given = zip(self._with_image, self._rows["answer"], self._rows["choices"], strict=True)
        for number, answer, choices in given:
            num_choices = len(choices or ())
            if not (isinstance(answer, int) and 0 <= answer < num_choices <= len(ascii_uppercase)):
                raise BadInputError(
                    f"row {number} of {self.name} has the answer {answer} and {num_choices} choices; allowed are at "
                    f"most {len(ascii_uppercase)} choices and the number of one of them, from 0"
                )

    def fingerprint(self) -> str:
        return f"{self._hash}-{len(self)}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        name = str(self._with_image[index])
        options = [f"{ascii_uppercase[place]}. {choice}" for place, choice in enumerate(row["choices"])]
        context = [f"Context: {row['hint']}"] if row["hint"] else []
        question = Question(
            id=name,
            text="\n".join([*context, row["question"], *options]),
            kind=row["subject"],
            answers=(ascii_uppercase[row["answer"]],) * NUM_ANNOTATORS,
        )
        return Sample(id=name, image=decode(row["image"], f"row {name} of {self.name}"), questions=(question,))

    @cached_property
    def _hash(self) -> str:
        return hash_parquet(self._paths)

    @cached_property
    def _paths(self) -> Sequence[Path | HubFile]:
        return find_parquet(self.repository, self.revision, self.files, self.root, streaming=self.streaming)

    @cached_property
    def _all(self) -> Any:
        return read_parquet(self._paths, ("image", "question", "choices", "answer", "hint", "subject"), self.streaming)

    @cached_property
    def _with_image(self) -> list[int]:
        """The numbers of the rows with an image."""
        numbers = [number for number, has in enumerate(has_image(self._all)) if has]
        check_count(self.name, "questions with an image", len(numbers), self.num_images)
        return numbers[: take(numbers, self.limit)]

    @cached_property
    def _rows(self) -> Any:
        return self._all.select(self._with_image)
