"""Parquet files of a data set: a local folder, or a hub repository pinned to a revision; read with HF `datasets`, or
streamed."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from fnabench.data.streamed import StreamedRows, read_metadata
from fnabench.errors import BadInputError, MissingError, reason_of
from fnabench.hub_access import is_pin, newest_commit, quiet_hub

HASHED_BYTES = 65536
"""So much of the beginning and of the end of each file is hashed, with its size: parquet keeps its statistics there."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository at a commit: what is read of it is fetched, and not kept on disk."""

    repository: str
    revision: str
    files: str
    """Pattern of the split's files."""
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.repository}"

    @contextmanager
    def open(self, mode: str) -> Iterator[IO[bytes]]:
        from huggingface_hub import HfFileSystem

        path = _on_the_hub(self.repository, self.revision, str(PurePosixPath(self.files).with_name(self.name)))
        with (
            _asking(self.repository, self.revision, self.files, streaming=True),
            HfFileSystem().open(path, mode, cache_type="none") as file,  # each read is one request
        ):
            yield file


def find_parquet(
    repository: str,
    revision: str | None,
    files: str,
    root: str | None,
    num_rows: int | None = None,
    streaming: bool = False,
) -> Sequence[Path | HubFile]:
    """The parquet files of a split by name: those in the folder `root`, or else of the hub repository.

    `files` is a pattern such as data/test-*.parquet. With `num_rows` only the first files that hold so many rows are
    found, and of a split in numbered parts no others are downloaded. The hub's cache is used where it has them;
    HF_HUB_OFFLINE holds. With `streaming` nothing is downloaded: the files stay where they are.
    """
    found: Sequence[Path | HubFile]
    if root:
        folder = _folder_of(root)
        found = sorted(folder.glob(files)) or sorted(folder.glob(Path(files).name))
    elif streaming:
        found = _list_hub(repository, _pinned(repository, revision), files)
    else:
        found = _first_parts(repository, revision, files, num_rows) if num_rows else []
        found = found or sorted(_download(repository, revision, files).glob(files))
    if not found:
        raise MissingError(f"{root or repository} holds no {files}; run: {_command(repository, revision, files)}")
    totals = accumulate(map(_num_rows, found)) if num_rows else ()
    return found[: next((number for number, total in enumerate(totals, 1) if total >= (num_rows or 0)), len(found))]


def read_parquet(paths: Sequence[Path | HubFile], columns: Sequence[str], streaming: bool = False) -> Any:
    """The rows as a datasets.Dataset with these columns, memory-mapped, or as StreamedRows; images stay encoded."""
    described = [(path, read_metadata(path)) for path in paths]
    for path, known in described:
        _check_columns(path, known.schema.to_arrow_schema(), columns)
    if streaming:
        return StreamedRows(described, columns)
    import datasets

    try:
        rows = datasets.Dataset.from_parquet([str(path) for path in paths], columns=list(columns))
    except datasets.exceptions.DatasetGenerationError as error:
        raise BadInputError(
            f"{paths[0]} and what belongs to it cannot be read as parquet: {reason_of(error.__cause__ or error)}"
        ) from error
    if "image" in columns and isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    return rows


def has_image(rows: Any) -> list[bool]:
    """Of each row of read_parquet whether it has an image; of streamed rows as little is read as tells."""
    if isinstance(rows, StreamedRows):
        return rows.has("image")
    return rows.data.column("image").is_valid().to_pylist()  # type: ignore[no-any-return]


def decode(image: dict[str, Any], where: str) -> Image.Image:
    """The RGB image of a row."""
    try:
        return Image.open(io.BytesIO(image["bytes"])).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, TypeError) as error:
        raise BadInputError(f"{where} has no readable image ({error})") from error


def hash_parquet(paths: Sequence[Path | HubFile]) -> str:
    """A hash over names, sizes, beginnings and ends of the files."""
    hashed = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            hashed.update(f"{path.name}\0{size}\n".encode() + file.read(HASHED_BYTES))
            file.seek(max(0, size - HASHED_BYTES))
            hashed.update(file.read())
    return hashed.hexdigest()


def _check_columns(path: Path | HubFile, schema: Any, columns: Sequence[str]) -> None:
    """BadInputError for a file that lacks a column, or whose images are not encoded in it."""
    from pyarrow.types import is_struct

    if lacking := set(columns) - set(schema.names):
        raise BadInputError(
            f"{path} lacks the column {' and '.join(sorted(lacking))}; it has {', '.join(schema.names)}"
        )
    if "image" in columns:
        kind = schema.field("image").type
        if not is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise BadInputError(
                f"{path} has images as {kind}; allowed is a struct with the encoded image in its field bytes, as "
                "datasets.Image writes it"
            )


def _folder_of(root: str) -> Path:
    if not Path(root).is_dir():
        raise MissingError(f"data.root={root} is not a folder; give the one that holds the parquet files")
    return Path(root)


def _first_parts(repository: str, revision: str | None, files: str, num_rows: int) -> list[Path]:
    """The first of numbered parts that hold so many rows; none where parts are not numbered."""
    found: list[Path] = []
    while len(found) < _num_parts(found) and sum(map(_num_rows, found)) < num_rows:
        part = files.replace("*", f"{len(found):05}-of-*")
        if not (latest := sorted(_download(repository, revision, part).glob(part))):
            break
        found += latest
    return found


def _download(repository: str, revision: str | None, files: str) -> Path:
    pin = _pinned(repository, revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    pinned = partial(snapshot_download, repository, repo_type="dataset", revision=pin, allow_patterns=[files])
    with _asking(repository, pin, files):
        with suppress(LocalEntryNotFoundError):  # what is there needs no network
            folder = Path(pinned(local_files_only=True))
            if _is_whole(sorted(folder.glob(files)), files):
                return folder
        return Path(pinned())


def _list_hub(repository: str, pin: str, files: str) -> list[HubFile]:
    from huggingface_hub import HfFileSystem

    with _asking(repository, pin, files, streaming=True):
        paths = sorted(HfFileSystem().glob(_on_the_hub(repository, pin, files)))
    return [HubFile(repository=repository, revision=pin, files=files, name=PurePosixPath(path).name) for path in paths]


def _on_the_hub(repository: str, pin: str, path: str) -> str:
    return f"datasets/{repository}@{pin}/{path}"


def _pinned(repository: str, revision: str | None) -> str:
    if revision is None or not is_pin(revision):
        raise BadInputError(
            f"data.revision={revision} pins nothing; give data.revision=<commit> or data.root=<folder of the parquet "
            f"files>; {newest_commit(f'datasets/{repository}')}"
        )
    return revision


@contextmanager
def _asking(repository: str, pin: str, files: str, streaming: bool = False) -> Iterator[None]:
    """The hub's errors, and those of the way to it, become lines that say what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    failed = "cannot be streamed" if streaming else "is not in the local cache and cannot be downloaded"
    instead = _command(repository, pin, files) + " and leave out data.streaming" * streaming
    try:
        with quiet_hub():
            yield
    except GatedRepoError as error:
        raise MissingError(
            f"{repository} asks you to accept its terms at https://huggingface.co/datasets/{repository}; then run: "
            f"hf auth login{'' if streaming else f' && {_command(repository, pin, files)}'}"
        ) from error
    except (OSError, *HfHubHTTPError.__bases__) as error:  # type: ignore[misc]  # of whichever library it stands on
        raise MissingError(
            f"{files} of {repository} at revision {pin} {failed} ({type(error).__name__}); where there is a network, "
            f"run: {instead}"
        ) from error


def _is_whole(paths: Sequence[Path], files: str) -> bool:
    """Whether these are all that the pattern names: one numbered part, or as many as the parts' names say."""
    return bool(paths) and ("-of-" in files or len(paths) == _num_parts(paths))


def _num_parts(paths: Sequence[Path]) -> float:
    """Of how many the first is one, by its name: validation-00000-of-00014.parquet; infinity where none says so."""
    parts = re.search(r"-of-(\d+)", paths[0].name) if paths else None
    return int(parts[1]) if parts else inf


def _num_rows(path: Path | HubFile) -> int:
    return int(read_metadata(path).num_rows)


def _command(repository: str, revision: str | None, files: str) -> str:
    return f"hf download {repository} --repo-type dataset --include '{files}' --revision {revision or '<commit>'}"
