"""A folder of images with a captions.csv: one row a caption, columns image and caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from fnabench.data.base import Sample
from fnabench.data.image_files import existing_folder, read_table, take
from fnabench.data.listed import ListedImages
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class CaptionFolder(ListedImages):
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

    def _sample(self, file: str, image: Image.Image, known: tuple[str, ...]) -> Sample:
        return Sample(id=file, image=image, captions=known)

    @property
    def _folder(self) -> Path:
        return Path(self.root) / self.images

    @property
    def _listed_in(self) -> Path:
        return existing_folder("data.root", self.root) / self.captions

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[str, ...]]]:
        path = self._listed_in
        captions: dict[str, list[str]] = {}
        for number, (file, caption) in read_table(path, ("image", "caption"), "give data.captions=..."):
            if not file or not caption.strip():
                raise BadInputError(f"{path} line {number} lacks its image or its caption")
            captions.setdefault(file, []).append(caption.strip())
        rows = [(file, tuple(texts)) for file, texts in captions.items()]
        return rows[: take(rows, self.limit)]
