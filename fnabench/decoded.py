"""Images as a transform leaves them, kept on disk: read again, they are what they were to the bit.

The file of a source holds an entry a sample: what is known of it as JSON, its mask, its pixels. A normalised image has
at most 256 values in a channel, one for each that a pixel can have: the file begins with a table of them, and pixels
are places in it, a byte instead of four. An image that has other values is kept as it is. An index with a checksum of
each entry closes the file.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from PIL import Image, features

from fnabench.data.base import Question, Sample, Source
from fnabench.errors import BadInputError, reason_of
from fnabench.identity import digest
from fnabench.tiles import Images, Tiles

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy.typing import NDArray
    from torch import Tensor

    Keep = Callable[[Images, Sequence[Sample]], None]

MAGIC = b"fnabench"
LEVELS = (3, 256)
"""A file begins with float32 of this shape: the table."""
_START = len(MAGIC) + 4 * LEVELS[0] * LEVELS[1]
_ROW = np.dtype([("end", "<i8"), ("checksum", "<u4")])
_END = struct.Struct(f"<qI{len(MAGIC)}s")
"""Number of entries, checksum of the index, MAGIC: a file that was cut off has no such end."""
_LENGTH = struct.Struct("<I")
_SHORT_KEY = 12


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A transform, and where what it makes of the images of a source is kept."""

    transform: Callable[[Image.Image], Any]
    folder: Path
    key: str
    """Hash of everything that the transform depends on besides the image."""

    def __call__(self, image: Image.Image) -> Images:
        return self.transform(image)  # type: ignore[no-any-return]

    def then(self, transform: Callable[[Image.Image], Any], *settings: object) -> Decoded:
        """Another transform, which depends on this one and on these settings alone."""
        return replace(self, transform=transform, key=digest([self.key, *settings]))

    def read(self, source: Source) -> Entries | None:
        """What is kept of the source; None where nothing is, or the file was cut off."""
        entries = Entries(self._file(source))
        return entries if entries.is_whole and len(entries) == len(source) else None

    @contextmanager
    def write(self, source: Source) -> Iterator[Keep]:
        """Call what it yields with one batch of the source after the other; the file is there once all have been kept.

        Nothing is kept where another process is at it.
        """
        path = self._file(source)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        with suppress(Timeout):
            lock.acquire(blocking=False)
        if not lock.is_locked:
            yield lambda images, samples: None
            return
        partial = path.with_suffix(".partial")
        file = partial.open("wb")
        try:
            writer = _Writer(file, self.transform)
            yield writer.keep
            writer.close()
            partial.replace(path)
        finally:
            with suppress(OSError):  # what was not written on a full disk
                file.close()
            partial.unlink(missing_ok=True)
            lock.release()

    def _file(self, source: Source) -> Path:
        decoders = [PIL.__version__, features.version("jpg"), torch.backends.cpu.get_cpu_capability()]
        return self.folder / f"{digest([self.key, source.fingerprint(), decoders])[:_SHORT_KEY]}.images"


class Entries:
    """The samples of a file in order, mapped into memory: processes that read it share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}  # whoever gets this maps the file for himself

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> tuple[Images, Sample]:
        start, end = self._index["end"][number - 1] if number else _START, self._index["end"][number]
        entry = memoryview(self._mapped)[start:end]
        if zlib.crc32(entry) != self._index["checksum"][number]:
            raise BadInputError(f"{self.path} is damaged; delete it: it is made again")
        return _unpack(entry, self._levels)

    @property
    def is_whole(self) -> bool:
        """Whether the file is there and was written to its end."""
        try:
            return bool(len(self._index))
        except (OSError, ValueError, struct.error):
            return False

    @cached_property
    def _mapped(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _levels(self) -> Float[Tensor, "3 256"]:
        return torch.frombuffer(bytearray(self._mapped[len(MAGIC) : _START]), dtype=torch.float32).view(LEVELS)

    @cached_property
    def _index(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """ValueError or struct.error if the file does not end as it should."""
        count, checksum, magic = _END.unpack(self._mapped[-_END.size :])
        index = self._mapped[-_END.size - count * _ROW.itemsize : -_END.size]
        if magic != MAGIC or zlib.crc32(index) != checksum:
            raise ValueError(f"{self.path} has no index")
        return np.frombuffer(index, dtype=_ROW)


class _Writer:
    def __init__(self, file: BinaryIO, transform: Callable[[Image.Image], Any]) -> None:
        self.file = file
        self.levels = _levels(transform)
        self.rows: list[tuple[int, int]] = []
        self._write(MAGIC + self.levels.numpy().tobytes())

    def keep(self, images: Images, samples: Sequence[Sample]) -> None:
        for place, sample in enumerate(samples):
            image = images[place] if isinstance(images, torch.Tensor) else images.take([place])
            entry = _pack(image, sample, self.levels)
            self._write(entry)
            self.rows.append((self.file.tell(), zlib.crc32(entry)))

    def close(self) -> None:
        index = np.array(self.rows, dtype=_ROW).tobytes()
        self._write(index + _END.pack(len(self.rows), zlib.crc32(index), MAGIC))

    def _write(self, content: bytes) -> None:
        try:
            self.file.write(content)
            self.file.flush()
        except OSError as error:
            raise BadInputError(
                f"{self.file.name} cannot be written: {reason_of(error)}; make room or leave out data.cache=decoded"
            ) from error


def _levels(transform: Callable[[Image.Image], Any]) -> Float[Tensor, "3 256"]:
    """What becomes of an image of each grey, in its middle: no more than a guess at what becomes of others."""
    found = []
    for grey in range(LEVELS[1]):
        images = transform(Image.new("RGB", (32, 32), (grey, grey, grey)))
        pixels = images.pixels if isinstance(images, Tiles) else images
        found.append(pixels.reshape(-1, *pixels.shape[-3:])[0, :, pixels.shape[-2] // 2, pixels.shape[-1] // 2])
    return torch.stack(found, 1).float().expand(LEVELS).contiguous()


def _pack(images: Images, sample: Sample, levels: Float[Tensor, "3 256"]) -> bytes:
    pixels = (images.pixels if isinstance(images, Tiles) else images).contiguous()
    places = _places(pixels, levels)
    head = {
        "known": vars(sample) | {"image": None, "mask": None},
        "mask": None if sample.mask is None else sample.mask.shape,
        "tiles": {"counts": images.counts, "sizes": images.sizes} if isinstance(images, Tiles) else None,
        "dtype": None if places is not None else str(pixels.dtype).removeprefix("torch."),
        "shape": pixels.shape,
    }
    text = json.dumps(head, default=_plain).encode()
    mask = b"" if sample.mask is None else sample.mask.tobytes()
    content = pixels.view(torch.uint8) if places is None else places
    return b"".join([_LENGTH.pack(len(text)), text, mask, content.numpy().tobytes()])


def _unpack(entry: memoryview, levels: Float[Tensor, "3 256"]) -> tuple[Images, Sample]:
    (length,) = _LENGTH.unpack_from(entry)
    end = _LENGTH.size + length
    head = json.loads(bytes(entry[_LENGTH.size : end]))
    known, mask = head["known"], None
    if head["mask"] is not None:
        start, end = end, end + prod(head["mask"])
        mask = np.frombuffer(entry[start:end], dtype=np.uint8).reshape(head["mask"]).copy()
    if head["dtype"] is None:
        pixels = _look_up(np.frombuffer(entry[end:], dtype=np.uint8).reshape(head["shape"]), levels)
    else:
        pixels = torch.frombuffer(bytearray(entry[end:]), dtype=getattr(torch, head["dtype"])).view(head["shape"])
    questions = tuple(Question(**each | {"answers": tuple(each["answers"])}) for each in known["questions"])
    sample = Sample(**known | {"captions": tuple(known["captions"]), "questions": questions, "mask": mask})
    if head["tiles"] is None:
        return pixels, sample
    return Tiles(
        pixels=pixels,
        counts=tuple(head["tiles"]["counts"]),
        sizes=tuple((height, width) for height, width in head["tiles"]["sizes"]),
    ), sample


def _places(pixels: Tensor, levels: Float[Tensor, "3 256"]) -> UInt8[Tensor, "*n 3 height width"] | None:
    """Where in the table the pixels stand; None unless all stand there, to the bit."""
    if pixels.dtype != torch.float32 or pixels.shape[-3] != len(levels):
        return None
    first, last = levels[:, :1, None], levels[:, -1:, None]
    places = ((pixels - first) * (LEVELS[1] - 1) / (last - first)).round().clamp(0, LEVELS[1] - 1).to(torch.uint8)
    found = _look_up(places.numpy(), levels)
    return places if torch.equal(found.view(torch.int32), pixels.view(torch.int32)) else None


def _look_up(places: NDArray[np.uint8], levels: Float[Tensor, "3 256"]) -> Float[Tensor, "*n 3 height width"]:
    found = np.empty(places.shape, dtype=np.float32)
    for channel, values in enumerate(levels.numpy()):
        np.take(values, places[..., channel, :, :], out=found[..., channel, :, :], mode="clip")
    return torch.from_numpy(found)


def _plain(value: Any) -> Any:
    """What JSON does not know: questions, and labels that are numpy's."""
    return vars(value) if isinstance(value, Question) else value.item()
