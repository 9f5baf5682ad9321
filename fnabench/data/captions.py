"""A folder of images with a captions.csv: one row a caption, columns image and caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fnabench.data.base import Sample, Source
from fnabench.data.image_files import check_files, existing_folder, hash_files, read_image, read_table, take
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class CaptionFolder(Source):
    """Images with their captions, in the order in which the table first names them."""

    root: str = field(metadata=LOCATION)
    captions: str = "captions.csv"
    """Table inside root, with a header."""
    images: str = "images"
    """Folder of the images inside root."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "captions"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"captions"})

    def check(self) -> None:
        check_files(self._folder, [file for file, _ in self._rows], Path(self.root) / self.captions)

    def fingerprint(self) -> str:
        return hash_files(self._folder, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        file, captions = self._rows[index]
        return Sample(id=file, image=read_image(self._folder / file), captions=captions)

    @property
    def _folder(self) -> Path:
        return Path(self.root) / self.images

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[str, ...]]]:
        path = existing_folder("data.root", self.root) / self.captions
        captions: dict[str, list[str]] = {}
        for number, (file, caption) in read_table(path, ("image", "caption"), "give data.captions=..."):
            if not file or not caption.strip():
                raise BadInputError(f"{path} line {number} lacks its image or its caption")
            captions.setdefault(file, []).append(caption.strip())
        rows = [(file, tuple(texts)) for file, texts in captions.items()]
        return rows[: take(rows, self.limit)]
