"""Two folders side by side: images, and label maps named after them that hold a class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fnabench.data.base import IGNORE_INDEX, Sample, Source
from fnabench.data.image_files import check_count, existing_folder, hash_files, list_images, read_image, take
from fnabench.errors import BadInputError, MissingError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class MaskFolder(Source):
    """Images with their label maps, in the order of their names."""

    root: str = field(metadata=LOCATION)
    images: str
    """Folder of the images inside root."""
    masks: str
    """Folder of the label maps inside root: PNG files of the images' names, in the same folders inside it."""
    training_images: str | None = None
    """The training split's folders, which heads are fitted on."""
    training_masks: str | None = None
    listed_in: str | None = None
    """File inside root with the name of an image, without its suffix, in each line; None takes the whole folder."""
    training_listed_in: str | None = None
    image_suffix: str = ""
    """What the name of an image ends with, before its format, where that of its label map has mask_suffix instead."""
    mask_suffix: str = ""
    mask_names: tuple[str, ...]  # type: ignore[misc]
    """Names of the classes 0, 1, ..."""
    renumbered: tuple[int, ...] = ()
    """What the values 0, 1, ... of the files become, and no others are allowed; empty leaves them as they are."""
    ignored: int = IGNORE_INDEX
    """The value in the label maps that does not count."""
    first_value: int = 0
    """The value in the label maps of class 0; 1 in ADE20K, where 0 is ignored."""
    num_images: int | None = None
    """How many images the data set is known to have; any other number is refused."""
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "masks"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"mask"})

    def check(self) -> None:
        for file in self._files:
            mask = self._mask_of(file)
            if not mask.is_file():
                raise BadInputError(f"{self._images / file} has no label map {mask}")
            with Image.open(self._images / file) as image, Image.open(mask) as labels:  # headers only
                if image.size != labels.size:
                    raise BadInputError(
                        f"{mask} has {labels.width}x{labels.height} pixels, its image {image.width}x{image.height}"
                    )

    def fingerprint(self) -> str:
        known = (self.ignored, self.first_value, *self.mask_names, *self.renumbered)
        masks = [self._mask_of(file).relative_to(self._masks).as_posix() for file in self._files]
        images = hash_files(self._images, [(file, known) for file in self._files])
        return images + hash_files(self._masks, [(mask, None) for mask in masks])

    def training_split(self) -> MaskFolder | None:
        if self.training_images is None or self.training_masks is None:
            return None
        return replace(
            self, images=self.training_images, masks=self.training_masks, listed_in=self.training_listed_in,
            training_images=None, training_masks=None, training_listed_in=None, num_images=None, limit=None,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file = self._files[index]
        with Image.open(self._mask_of(file)) as labels:
            values = np.array(labels)
        if values.ndim != 2:
            raise BadInputError(f"{self._mask_of(file)} is no label map: it has {values.ndim} dimensions, not 2")
        if self.renumbered:
            if (largest := values.max()) >= len(self.renumbered):
                raise BadInputError(
                    f"{self._mask_of(file)} has the value {largest}; allowed are 0..{len(self.renumbered) - 1}"
                )
            values = np.array(self.renumbered)[values]
        counts = values != self.ignored
        classes = values.astype(np.int64) - self.first_value
        if (unknown := values[counts & ((classes < 0) | (classes >= len(self.mask_names)))]).size:
            last = self.first_value + len(self.mask_names) - 1
            raise BadInputError(
                f"{self._mask_of(file)} has the value {unknown[0]}; allowed are the classes {self.first_value}..{last} "
                f"and {self.ignored}, which is ignored"
            )
        mask = np.where(counts, classes, IGNORE_INDEX).astype(np.uint8)
        return Sample(id=file, image=read_image(self._images / file), mask=mask)

    @property
    def _images(self) -> Path:
        return Path(self.root) / self.images

    @property
    def _masks(self) -> Path:
        return Path(self.root) / self.masks

    def _mask_of(self, file: str) -> Path:
        name = Path(file).with_suffix("").as_posix().removesuffix(self.image_suffix)
        return self._masks / f"{name}{self.mask_suffix}.png"

    @cached_property
    def _files(self) -> list[str]:
        existing_folder("data.root", self.root, self.obtain)
        existing_folder("data.masks", str(self._masks), self.obtain)
        files = list_images(existing_folder("data.images", str(self._images), self.obtain))
        if self.listed_in is not None:
            files = self._listed(files, Path(self.root) / self.listed_in)
        check_count(self.name, "images", len(files), self.num_images)
        return files[: take(files, self.limit)]

    def _listed(self, files: list[str], path: Path) -> list[str]:
        """The files of the names in a list, in its order."""
        if not path.is_file():
            raise MissingError(f"{path} is missing: a list with the name of an image in each line")
        by_name = {Path(file).stem: file for file in files}
        names = path.read_text(encoding="utf-8").split()
        if absent := [name for name in names if name not in by_name]:
            raise BadInputError(f"{path} lists {absent[0]}, which is not in {self._images}")
        if len(set(names)) < len(names):
            raise BadInputError(f"{path} lists an image more than once")
        return [by_name[name] for name in names]
