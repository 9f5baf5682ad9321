"""Labelled images in parquet files, as ImageNet lies on the hub: the columns image and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fnabench.data.base import Sample, Source
from fnabench.data.hub import HubFile, decode, find_parquet, hash_parquet, read_parquet
from fnabench.data.image_files import check_count, take
from fnabench.data.imagenet_names import imagenet_names
from fnabench.errors import BadInputError
from fnabench.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class HubLabels(Source):
    """Rows of parquet files in their order."""

    repository: str
    revision: str | None = None
    """Commit of the repository."""
    files: str
    """Pattern of the split's files."""
    root: str | None = field(default=None, metadata=LOCATION)
    """A folder with those files, instead of the repository."""
    streaming: bool = field(default=False, metadata=LOCATION)
    """Whether rows are read where the files lie, each time anew, instead of downloading them."""
    num_classes: int = 1000
    num_images: int | None = None
    """How many images the data set is known to have; any other number is refused."""
    limit: int | None = None
    """Only the first so many images; recorded, never called the full set, and no more files are downloaded for it."""
    name: str = "imagenet"
    description: str = ""

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"label"})

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return imagenet_names(self.num_classes)

    def check(self) -> None:
        labels = self._rows["label"]
        if wrong := [label for label in labels if not 0 <= label < self.num_classes]:
            raise BadInputError(
                f"{self.name} has the label {wrong[0]}; allowed are 0..{self.num_classes - 1} (a test split has -1)"
            )

    def fingerprint(self) -> str:
        return f"{self._hash}-{len(self)}"

    def largest_label(self) -> int:
        return self.num_classes - 1

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        return Sample(id=str(index), image=decode(row["image"], f"row {index} of {self.name}"), label=row["label"])

    @cached_property
    def _hash(self) -> str:
        return hash_parquet(self._paths)

    @cached_property
    def _paths(self) -> Sequence[Path | HubFile]:
        return find_parquet(self.repository, self.revision, self.files, self.root, self.limit, self.streaming)

    @cached_property
    def _rows(self) -> Any:
        rows = read_parquet(self._paths, ("image", "label"), self.streaming)
        if not self.limit:  # which need not see all
            check_count(self.name, "images", len(rows), self.num_images)
        return rows.select(range(take(rows, self.limit)))
