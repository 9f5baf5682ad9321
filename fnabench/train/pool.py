"""Training pictures drawn once and kept in a folder, because drawing them anew costs a core."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fnabench.data.scenes import Scenes
from fnabench.data.scenes.world import COLOURS, SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 2000
MAX_THINGS = 5
PATCH = 8
NONE = 255


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive samples of a split."""

    pixels: NDArray[np.uint8]
    """RGB [n, height, width, 3]."""
    shares: NDArray[np.uint8]
    """How many pixels of each patch belong to each thing [n, rows, columns, MAX_THINGS]."""
    things: NDArray[np.uint8]
    """Index of each thing's shape and colour, the main one first, NONE for no thing [n, MAX_THINGS, 2]."""


def load_chunk(folder: Path, source: Scenes, number: int) -> Chunk:
    """CHUNK samples from number * CHUNK on; drawn and stored if the folder lacks them."""
    stem = f"{source.split}-{source.seed}-{source.image_size}-{number:04d}"
    paths = {part: folder / f"{stem}-{part}.npy" for part in ("pixels", "shares", "things")}
    if not all(path.exists() for path in paths.values()):
        chunk = _draw_chunk(source, range(number * CHUNK, (number + 1) * CHUNK))
        folder.mkdir(parents=True, exist_ok=True)
        for part, path in paths.items():
            unfinished = path.with_suffix(f".{os.getpid()}")
            with unfinished.open("wb") as file:
                np.save(file, getattr(chunk, part))
            unfinished.rename(path)
    return Chunk(**{part: np.load(path, mmap_mode="r") for part, path in paths.items()})


def _draw_chunk(source: Scenes, indices: range) -> Chunk:
    size, patches = source.image_size, source.image_size // PATCH
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    shares = np.zeros((len(indices), patches, patches, MAX_THINGS), dtype=np.uint8)
    things = np.full((len(indices), MAX_THINGS, 2), NONE, dtype=np.uint8)
    for row, index in enumerate(indices):
        picture, scene = source.picture(index), source.scene(index)
        pixels[row] = picture.pixels
        tiles = picture.owner.reshape(patches, PATCH, patches, PATCH)
        for number, thing in enumerate(scene.things):
            shares[row, :, :, number] = (tiles == number).sum(axis=(1, 3))
            things[row, number] = SHAPES.index(thing.shape), COLOURS.index(thing.colour)
    return Chunk(pixels=pixels, shares=shares, things=things)


def main() -> None:
    """Draw the training pictures ahead of time."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pool", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--num", type=int, required=True, help="how many training samples")
    parser.add_argument("--image-size", type=int, default=128)
    arguments = parser.parse_args()
    source = Scenes(split="train", limit=arguments.num, image_size=arguments.image_size)
    for number in range(len(source) // CHUNK):
        load_chunk(arguments.pool, source, number)


if __name__ == "__main__":
    main()
