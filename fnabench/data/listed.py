"""Sources whose images lie in a folder, and of which a file says which they are and what is known of each."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from PIL import Image

from fnabench.data.base import Sample, Source
from fnabench.data.image_files import check_files, hash_files, read_image


class ListedImages(Source):
    """Its subclass says where the images lie, what is listed, and how a row becomes a sample."""

    @property
    @abstractmethod
    def _folder(self) -> Path:
        """Where the images lie."""

    @property
    @abstractmethod
    def _listed_in(self) -> Path:
        """The file that lists them."""

    @property
    @abstractmethod
    def _rows(self) -> list[tuple[str, Any]]:
        """Each image's path inside the folder, and what is known of it; read once."""

    @abstractmethod
    def _sample(self, file: str, image: Image.Image, known: Any) -> Sample:
        """One row with its image."""

    def check(self) -> None:
        check_files(self._folder, [file for file, _ in self._rows], self._listed_in)

    def fingerprint(self) -> str:
        return hash_files(self._folder, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        file, known = self._rows[index]
        return self._sample(file, read_image(self._folder / file), known)
