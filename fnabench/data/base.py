"""What a data set is: a numbered source of samples that can prove which samples it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORE_INDEX = 255
"""The mask value that no metric counts."""
NUM_ANNOTATORS = 10
"""So many answer a question of VQAv2; where a data set knows one answer, it stands for so many who agree."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about an image with the answers that annotators gave."""

    id: str
    text: str
    kind: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with whatever its data set knows about it."""

    id: str
    image: Image.Image | None
    """RGB; None once the image has become a tensor."""
    label: int | None = None
    """Class index of the image."""
    captions: tuple[str, ...] = ()
    mask: NDArray[np.uint8] | None = None
    """Class index per pixel [height, width], IGNORE_INDEX where it does not count."""
    questions: tuple[Question, ...] = ()

    def without_image(self) -> Sample:
        """The same sample, cheap to keep and to send between processes."""
        return replace(self, image=None)


class Source(ABC):
    """A data set: `len(source)` samples, `source[i]` one of them, always the same for the same i."""

    name: str
    description: str = ""
    """A few words for the head of a table, such as "bundled" or "sample of 500 images"."""
    class_names: tuple[str, ...] = ()
    """Names of the image classes, by label, where the data set has them."""
    mask_names: tuple[str, ...] = ()
    """Names of the mask classes, by value, where the data set has them."""
    training_option: ClassVar[str] = ""
    """What names a training split, where that is for the user to do, such as "data.training_root=..."."""

    @property
    @abstractmethod
    def provides(self) -> frozenset[str]:
        """What is known of a sample: of "label", "captions", "mask", "questions" with short answers of annotators, and
        "open_questions" with texts to compare with. Reads no image."""

    @abstractmethod
    def check(self) -> None:
        """Raise MissingError or BadInputError if the data is not there or not whole; reads no image."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash over the content, as far as reading it costs little: of many files on disk the names, the sizes and
        every so many whole. Two sources with the same fingerprint count as the same samples."""

    def training_split(self) -> Source | None:
        """The samples that a head may be fitted on: never one of these; None where there are none."""
        return None

    def largest_label(self) -> int | None:
        """The largest class index that occurs, where that is known without reading images."""
        return len(self.class_names) - 1 if self.class_names else None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...
