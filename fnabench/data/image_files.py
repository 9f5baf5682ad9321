"""Image files on disk: listed, read and hashed the same way by every source that stands on a folder."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from fnabench.errors import BadInputError, MissingError

NUM_HASHED = 256
"""So many evenly spaced files are hashed whole; of the others the name and the size in bytes."""


def existing_folder(option: str, path: str, obtain: str = "") -> Path:
    """The folder of an option; where there is none, MissingError says how to obtain what belongs there."""
    if not Path(path).is_dir():
        assets = os.environ.get("FNABENCH_ASSETS", "assets")
        moves = "set FNABENCH_ASSETS or " if Path(path).is_relative_to(assets) else ""
        advice = f"{obtain}; then put it there or " if obtain else f"put the images there, or {moves}"
        raise MissingError(f"{option}={path} is not a folder; {advice}give {option}=...")
    return Path(path)


def read_json(path: Path, obtain: str = "") -> Any:
    """What a JSON file holds; where there is none, MissingError says how to obtain it."""
    if not path.is_file():
        raise MissingError(f"{path} is missing" + (f"; {obtain}" if obtain else ""))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error


def check_count(name: str, what: str, found: int, expected: int | None) -> None:
    """Raise BadInputError if a data set has not the number of samples that its name stands for."""
    if expected is not None and found != expected:
        raise BadInputError(
            f"{name} has {expected:,} {what}, here are {found:,}; complete the data or choose another data= "
            "(a part of it is data.limit=N, which is recorded)"
        )


def list_images(folder: Path) -> list[str]:
    """Paths of all image files below a folder, relative to it, in order."""
    suffixes = Image.registered_extensions()
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    if not files:
        raise BadInputError(f"{folder} holds no image")
    return files


def check_files(folder: Path, files: Sequence[str], listed_in: Path) -> None:
    """Raise BadInputError if a file that a table lists is not in the folder."""
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise BadInputError(
            f"{len(missing)} of {len(files)} images in {listed_in} are not in {folder}, the first is {missing[0]}"
        )


def take(what: Sized, limit: int | None) -> int:
    """How many samples a limit leaves; BadInputError unless it is between 1 and all."""
    if limit is not None and not 0 < limit <= len(what):
        raise BadInputError(f"data.limit={limit} must be between 1 and {len(what)}")
    return limit or len(what)


def hash_files(folder: Path, rows: Iterable[tuple[str, object]]) -> str:
    """A hash over files and what is known of each: NUM_HASHED of them by content, the others by name and size."""
    listed = list(rows)
    hashed = hashlib.sha256()
    spacing = max(1, len(listed) // NUM_HASHED)
    for position, (file, known) in enumerate(listed):
        path = folder / file
        hashed.update(f"{file}\0{known}\0{path.stat().st_size}\n".encode())
        if position % spacing == 0:
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


def read_table(path: Path, columns: Sequence[str], instead: str) -> list[tuple[int, list[str]]]:
    """Line number and the values of these columns for each row of a CSV table with a header."""
    if not path.is_file():
        raise MissingError(f"{path} is missing: a table with the columns {','.join(columns)}; {instead}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte order mark in front
            table = csv.DictReader(file)
            if not set(columns) <= set(table.fieldnames or ()):
                raise BadInputError(
                    f"{path} has the columns {', '.join(table.fieldnames or ())}; it needs {' and '.join(columns)}"
                )
            rows = [(table.line_num, [line[column] or "" for column in columns]) for line in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path} is not a table in UTF-8: {error}") from error
    if not rows:
        raise BadInputError(f"{path} names no image")
    return rows


def read_image(path: Path) -> Image.Image:
    """The image in RGB, fully decoded; BadInputError names the file that is none."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise BadInputError(
            f"{path} is not a readable image ({error}); restore it or take it out of the data"
        ) from error
