"""A folder of images with a labels.csv: one row an image, columns file and label, optionally name."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TextIO

from PIL import Image, UnidentifiedImageError

from fnabench.data.base import Sample, Source
from fnabench.errors import BadInputError, MissingError
from fnabench.identity import LOCATION

NUM_HASHED = 256
"""So many evenly spaced images are hashed whole; of the others the name and the size in bytes."""


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
        missing = [row.file for row in self._rows if not (Path(self.root) / row.file).is_file()]
        if missing:
            raise BadInputError(
                f"{len(missing)} of {len(self._rows)} images in {self._table} are not in {self.root}, "
                f"the first is {missing[0]}"
            )

    def fingerprint(self) -> str:
        hashed = hashlib.sha256()
        spacing = max(1, len(self) // NUM_HASHED)
        for position, row in enumerate(self._rows):
            path = Path(self.root) / row.file
            hashed.update(f"{row.file}\0{row.label}\0{path.stat().st_size}\n".encode())
            if position % spacing == 0:
                hashed.update(path.read_bytes())
        return hashed.hexdigest()

    def largest_label(self) -> int | None:
        return max((row.label for row in self._rows if row.label is not None), default=None)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        return Sample(id=row.file, image=read_image(Path(self.root) / row.file), label=row.label)

    @property
    def _table(self) -> Path:
        return Path(self.root) / (self.labels or "")

    @cached_property
    def _rows(self) -> list[Row]:
        if not Path(self.root).is_dir():
            raise MissingError(
                f"data.root={self.root} is not a folder; put the images there, or set FNABENCH_ASSETS or data.root"
            )
        rows = _read_table(self._table) if self.labels else _list_images(Path(self.root))
        if not rows:
            raise BadInputError(f"{self._table} names no image")
        if self.limit is not None and not 0 < self.limit <= len(rows):
            raise BadInputError(f"data.limit={self.limit} must be between 1 and {len(rows)}")
        return rows[: self.limit]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    file: str
    label: int | None


def read_image(path: Path) -> Image.Image:
    """The image in RGB, fully decoded; BadInputError names the file that is none."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise BadInputError(
            f"{path} is not a readable image ({error}); restore it or take it out of the table"
        ) from error


def _read_table(path: Path) -> list[Row]:
    if not path.is_file():
        raise MissingError(f"{path} is missing: a table with the columns file,label; data.labels=null does without")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte order mark in front
            rows = list(_parse_table(path, file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path} is not a table in UTF-8: {error}") from error
    files = [row.file for row in rows]
    if len(set(files)) < len(files):
        twice = next(file for position, file in enumerate(files) if file in files[:position])
        raise BadInputError(f"{path} lists {twice} more than once")
    return rows


def _parse_table(path: Path, file: TextIO) -> Iterator[Row]:
    table = csv.DictReader(file)
    if not {"file", "label"} <= set(table.fieldnames or ()):
        raise BadInputError(f"{path} has the columns {', '.join(table.fieldnames or ())}; it needs file and label")
    for line in table:
        label = line["label"] or ""
        if not label.strip().isdecimal():
            raise BadInputError(f"{path} line {table.line_num}: label={label!r} is not a class index from 0")
        yield Row(line["file"], int(label))


def _list_images(root: Path) -> list[Row]:
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    return [Row(path.relative_to(root).as_posix(), None) for path in paths]
