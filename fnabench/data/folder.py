"""A folder of images with a labels.csv: one row an image, columns file and label, optionally name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from fnabench.data.base import Sample
from fnabench.data.image_files import existing_folder, list_images, read_table, take
from fnabench.data.listed import ListedImages
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ListedImages):
    """Images listed in a table; their order is the table's."""

    root: str = field(metadata=LOCATION)
    labels: str | None = "labels.csv"
    """Table inside root, with a header; None takes every image of the folder by name, without labels."""
    limit: int | None = None
    """Only the first so many samples; recorded, and never called the full set."""
    name: str = "folder"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"label"} if self.labels else set())

    def largest_label(self) -> int | None:
        return max((label for _, label in self._rows if label is not None), default=None)

    def _sample(self, file: str, image: Image.Image, known: int | None) -> Sample:
        return Sample(id=file, image=image, label=known)

    @property
    def _folder(self) -> Path:
        return Path(self.root)

    @property
    def _listed_in(self) -> Path:
        return self._folder / (self.labels or "")

    @cached_property
    def _rows(self) -> list[tuple[str, int | None]]:
        root = existing_folder("data.root", self.root)
        rows = _read_labels(self._listed_in) if self.labels else dict.fromkeys(list_images(root))
        return list(rows.items())[: take(rows, self.limit)]


def _read_labels(path: Path) -> dict[str, int | None]:
    rows: dict[str, int | None] = {}
    for number, (file, label) in read_table(path, ("file", "label"), "data.labels=null does without"):
        if not label.strip().isdecimal():
            raise BadInputError(f"{path} line {number}: label={label!r} is not a class index from 0")
        if file in rows:
            raise BadInputError(f"{path} lists {file} more than once")
        rows[file] = int(label)
    return rows
