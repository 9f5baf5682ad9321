"""Karpathy's splits of COCO and Flickr30k: a dataset_*.json that says which image belongs to which split."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from fnabench.data.base import Sample
from fnabench.data.image_files import check_count, existing_folder, read_json, take
from fnabench.data.listed import ListedImages
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class KarpathySplit(ListedImages):
    """The images of one split with all their captions, in the order of the file."""

    root: str = field(metadata=LOCATION)
    splits: str
    """File inside root."""
    dataset: str
    """What the file must call itself: coco or flickr30k."""
    images: str = "."
    """Folder of the images inside root; the file may name a folder inside it, as COCO's does."""
    split: str = "test"
    num_images: int | None = None
    """How many images and captions the split is known to have; any other number is refused."""
    num_captions: int | None = None
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "karpathy"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"captions"})

    def _sample(self, file: str, image: Image.Image, known: tuple[str, ...]) -> Sample:
        return Sample(id=Path(file).name, image=image, captions=known)

    @property
    def _listed_in(self) -> Path:
        return existing_folder("data.root", self.root, self.obtain) / self.splits

    @property
    def _folder(self) -> Path:
        return Path(self.root) / self.images

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[str, ...]]]:
        content = read_json(self._listed_in, self.obtain)
        found = content.get("dataset") if isinstance(content, dict) else None
        if found != self.dataset:
            raise BadInputError(
                f"{self._listed_in} calls itself {found}, not {self.dataset}; COCO's own captions_val2017.json is "
                "another data set: data=coco_val2017"
            )
        try:
            rows = [
                (
                    str(Path(image.get("filepath", "")) / image["filename"]),
                    tuple(sentence["raw"].strip() for sentence in image["sentences"]),
                )
                for image in content["images"]
                if image["split"] == self.split
            ]
        except (KeyError, TypeError) as error:
            raise BadInputError(f"{self._listed_in} is no file of Karpathy's splits: it lacks {error}") from error
        if len({file for file, _ in rows}) < len(rows):
            raise BadInputError(f"{self._listed_in} lists an image of split {self.split} more than once")
        check_count(self.name, "images", len(rows), self.num_images)
        check_count(self.name, "captions", sum(len(captions) for _, captions in rows), self.num_captions)
        return rows[: take(rows, self.limit)]
