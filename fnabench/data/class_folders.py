"""ImageNet and its kin as they are handed out: one folder a class, the images inside."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from fnabench.data.base import Sample, Source
from fnabench.data.image_files import check_count, existing_folder, hash_files, list_images, read_image, take
from fnabench.data.imagenet_names import imagenet_names
from fnabench.errors import BadInputError, one_of
from fnabench.identity import LOCATION

ORDERS = ("name", "number")


@dataclass(frozen=True, kw_only=True)
class ClassFolders(Source):
    """Images by class, in the order of the images' own names: the first N are of many classes, not of the first few."""

    training_option: ClassVar[str] = "data.training_root=..."

    root: str = field(metadata=LOCATION)
    classes_by: str = "name"
    """How folders are numbered: by name (synsets), or by the number that is their name (0, 1, ..., 10)."""
    num_classes: int = 1000
    num_images: int | None = None
    """How many images the data set is known to have; any other number is refused."""
    training_root: str | None = field(default=None, metadata=LOCATION)
    """The training split in the same layout, which k-NN and linear probe are fitted on."""
    obtain: str = ""
    """What to download and accept, told where root is not there."""
    limit: int | None = None
    """Only the first so many images; recorded, and never called the full set."""
    name: str = "imagenet"
    description: str = ""

    def __post_init__(self) -> None:
        if self.classes_by not in ORDERS:
            raise one_of("data.classes_by", self.classes_by, ORDERS)

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"label"})

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return imagenet_names(self.num_classes)

    def check(self) -> None:
        _ = self._rows  # lists every folder, which is the check
        if (training := self.training_split()) is not None:
            training.check()

    def fingerprint(self) -> str:
        return hash_files(Path(self.root), self._rows)

    def training_split(self) -> ClassFolders | None:
        if self.training_root is None:
            return None
        return replace(self, root=self.training_root, training_root=None, num_images=None, limit=None)

    def largest_label(self) -> int:
        return self.num_classes - 1

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        file, label = self._rows[index]
        return Sample(id=Path(file).name, image=read_image(Path(self.root) / file), label=label)

    @cached_property
    def _rows(self) -> list[tuple[str, int]]:
        root = existing_folder("data.root", self.root, self.obtain)
        folders = [path.name for path in root.iterdir() if path.is_dir()]
        if len(folders) != self.num_classes:
            raise BadInputError(
                f"{root} holds {len(folders)} folders; {self.name} has {self.num_classes}, one for each class, with "
                "its images inside"
            )
        if self.classes_by == "number" and set(folders) != set(map(str, range(self.num_classes))):
            raise BadInputError(f"the folders in {root} are not named 0..{self.num_classes - 1}")
        folders.sort(key=int if self.classes_by == "number" else str)
        label_of = {folder: label for label, folder in enumerate(folders)}
        files = sorted(list_images(root), key=lambda file: (Path(file).name, file))
        rows = [(file, label_of[file.partition("/")[0]]) for file in files if "/" in file]
        names = {Path(file).name for file, _ in rows}
        if len(names) < len(rows):
            raise BadInputError(f"{root} holds images of the same name in more than one folder")
        check_count(self.name, "images", len(rows), self.num_images)
        return rows[: take(rows, self.limit)]
