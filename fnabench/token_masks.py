"""Masks of massive and artifact tokens that task=tokens has stored, for runs of the same model on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.identity import digest
from fnabench.record import Record
from fnabench.store import ARRAYS, RECORD, read_record

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

KINDS = ("massive", "artifact")


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenMasks:
    """What one record of task=tokens holds."""

    folder: Path
    record: Record
    ids: tuple[str, ...]
    """The images."""
    masks: dict[str, Bool[Tensor, "images N"]]
    """By kind, one row an image."""
    detect_block: int
    """Where the tokens were looked for."""

    @property
    def origin(self) -> dict[str, Any]:
        """A few words on them."""
        return {"masks_of": self.record.key, "found_in_block": self.detect_block}

    def check(self, identity: Mapping[str, Any], image_size: tuple[int, int]) -> None:
        """Raise ImpossibleError unless they are of this run's model, size, data and, where it names one, block."""
        theirs, detect_block = self.record.identity, identity["attention"].get("detect_block")
        if self.record.image_size != image_size:
            height, width = self.record.image_size
            wrong = f"another image size, {height}x{width}"
        elif digest(theirs["model"]) != digest(identity["model"]):
            wrong = f"another model, {self.record.model}"
        elif theirs["data"] != identity["data"]:
            wrong = f"other data, {self.record.num_samples} images of {self.record.data}"
        elif detect_block not in (None, self.detect_block):
            wrong = f"another block, {self.detect_block}, and not to attention.detect_block={detect_block}"
        else:
            return
        raise ImpossibleError(
            f"the masks in {self.folder} belong to {wrong}; run task=tokens with the same settings of model, data and "
            "block, and give the folder of its record as attention.masks"
        )


def read_masks(folder: str | Path) -> TokenMasks:
    """The masks in the folder of a record; MissingError or BadInputError where there are none."""
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise MissingError(
            f"attention.masks={folder} holds no record; give the folder that a run of task=tokens prints"
        )
    record = read_record(folder)
    if ARRAYS not in record.files:
        raise BadInputError(f"attention.masks={folder} is a record of task={record.task}; give one of task=tokens")
    with np.load(folder / ARRAYS) as file:
        if "ids" not in file:
            raise BadInputError(f"attention.masks={folder} does not say which images it is of; run task=tokens again")
        return TokenMasks(
            folder=folder,
            record=record,
            ids=tuple(file["ids"].tolist()),
            masks={kind: torch.from_numpy(file[kind]) for kind in KINDS},
            detect_block=int(file["blocks"][0]),
        )
