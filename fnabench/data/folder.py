"""A folder of images with a labels.csv: one row an image, columns file and label, optionally name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fnabench.data.base import Sample, Source
from fnabench.data.image_files import (
    check_files,
    existing_folder,
    hash_files,
    list_images,
    read_image,
    read_table,
    take,
)
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
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

    def check(self) -> None:
        check_files(Path(self.root), [file for file, _ in self._rows], Path(self.root) / (self.labels or ""))

    def fingerprint(self) -> str:
        return hash_files(Path(self.root), self._rows)

    def largest_label(self) -> int | None:
        return max((label for _, label in self._rows if label is not None), default=None)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        file, label = self._rows[index]
        return Sample(id=file, image=read_image(Path(self.root) / file), label=label)

    @cached_property
    def _rows(self) -> list[tuple[str, int | None]]:
        root = existing_folder("data.root", self.root)
        rows = _read_labels(root / self.labels) if self.labels else dict.fromkeys(list_images(root))
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
