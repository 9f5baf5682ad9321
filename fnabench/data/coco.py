"""COCO's captions as they are handed out: a captions_*.json beside a folder of images."""

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
class CocoCaptions(ListedImages):
    """Images with their captions, in the order of the file. val2017 is not Karpathy's test split: other images."""

    root: str = field(metadata=LOCATION)
    annotations: str
    """File inside root."""
    images: str
    """Folder of the images inside root."""
    num_images: int | None = None
    """How many images and captions the data set is known to have; any other number is refused."""
    num_captions: int | None = None
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "coco"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"captions"})

    def _sample(self, file: str, image: Image.Image, known: tuple[str, ...]) -> Sample:
        return Sample(id=file, image=image, captions=known)

    @property
    def _listed_in(self) -> Path:
        return existing_folder("data.root", self.root, self.obtain) / self.annotations

    @property
    def _folder(self) -> Path:
        return Path(self.root) / self.images

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[str, ...]]]:
        content = read_json(self._listed_in, self.obtain)
        if isinstance(content, dict) and "dataset" in content:
            raise BadInputError(f"{self._listed_in} is a split of Karpathy's, another data set: use data=coco_karpathy")
        try:
            files = {image["id"]: image["file_name"] for image in content["images"]}
            entries = [(entry["id"], entry["image_id"], entry["caption"]) for entry in content["annotations"]]
        except (KeyError, TypeError) as error:
            raise BadInputError(f"{self._listed_in} is no file of COCO captions: it lacks {error}") from error
        if len(files) < len(content["images"]) or len({number for number, _, _ in entries}) < len(entries):
            raise BadInputError(f"{self._listed_in} gives an id to more than one image or caption")
        captions: dict[int, list[str]] = {number: [] for number in files}
        for number, image, caption in entries:
            if image not in captions:
                raise BadInputError(
                    f"{self._listed_in}: caption {number} belongs to image {image}, which is not listed"
                )
            captions[image].append(caption.strip())
        check_count(self.name, "images", len(files), self.num_images)
        check_count(self.name, "captions", len(entries), self.num_captions)
        rows = [(files[number], tuple(texts)) for number, texts in captions.items() if texts]
        return rows[: take(rows, self.limit)]
