"""Batches of a source on their way to the device."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from fnabench.data.base import Sample, Source
from fnabench.decoded import Decoded, Entries
from fnabench.errors import BadInputError, FnabenchError
from fnabench.tiles import Images, split_by_size, stack

if TYPE_CHECKING:
    from jaxtyping import Int
    from PIL import Image
    from torch import Tensor

    from fnabench.decoded import Keep

    Transform = Callable[[Image.Image], Any]

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Images ready for the model, and what the data set knows about them."""

    images: Any
    """One tensor [B, 3, height, width], or Tiles."""
    samples: tuple[Sample, ...]
    """Without their images."""

    def part(self, chosen: Int[Tensor, " b"]) -> Batch:
        """The images at these places."""
        return Batch(images=self.images[chosen], samples=tuple(self.samples[place] for place in chosen.tolist()))


@dataclass(frozen=True, kw_only=True)
class Loader:
    """All samples of a source in order, decoded and transformed in worker processes; the last batch may be short.

    A batch of images in tiles comes in parts of one image size each. Where the transform keeps what it makes, the first
    whole pass writes it and later ones read it.
    """

    source: Source
    transform: Transform
    batch_size: int
    num_workers: int
    """Processes that decode and transform for `iter`; 0: it is done in between."""
    device: torch.device
    dtype: torch.dtype
    num_processes: int = 1
    """Processes that share a batch of `through`."""
    before_batch: Callable[[tuple[Sample, ...]], None] = lambda samples: None
    """Told the samples of each batch before it is used."""
    on_batch: Callable[[int], None] = lambda num_samples: None
    """Told the number of samples each time a batch has been used."""

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        items = self._items()
        batches = DataLoader(
            items,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        with self._keeping(items) as keep:
            for collated in batches:
                images, samples = _no_error(collated)
                if keep is not None:
                    keep(images, samples)
                for batch in self._parts(images, samples):
                    yield batch
                    self.on_batch(len(batch.samples))

    def through(self, work: Callable[[Batch], Made]) -> Iterator[tuple[tuple[Sample, ...], Made]]:
        """The samples of each batch and what `work` makes of it, in order.

        Where the loader has several processes, each does all of it for a part of the batch, from the file to what
        `work` makes, on one thread: an operation that threads share leaves some of them waiting. They are copies of
        this process, so that what else `work` changes is lost.
        """
        num_processes = min(self.num_processes, self.batch_size)
        if num_processes == 1 or len(self) <= self.batch_size:
            for batch in self:
                yield batch.samples, work(batch)
            return
        items = self._items()
        with self._keeping(items) as keep:
            batches = DataLoader(
                items,
                batch_size=self.batch_size // num_processes,
                num_workers=num_processes,
                collate_fn=partial(self._work_on, work, keep is not None),
                multiprocessing_context="fork",
            )
            for collated in batches:
                whole, made = pickle.loads(_no_error(collated))
                if keep is not None:
                    keep(*whole)
                for samples, each in made:
                    yield samples, each
                    self.on_batch(len(samples))

    def _work_on(
        self, work: Callable[[Batch], object], with_images: bool, items: Sequence[_Item]
    ) -> bytes | FnabenchError:
        """In bytes, since each tensor that a process sends by itself takes a file descriptor."""
        try:
            whole = _no_error(_collate(items))
            made = [(batch.samples, work(batch)) for batch in self._parts(*whole)]
        except FnabenchError as error:
            return error
        file = io.BytesIO()
        _Pickler(file).dump((whole if with_images else None, made))
        return file.getvalue()

    def _parts(self, images: Images, samples: Sequence[Sample]) -> Iterator[Batch]:
        """What a model takes at once, on the device; whoever asked to be told is told of each."""
        for part, places in split_by_size(images):
            moved = part.to(self.device, non_blocking=self.device.type == "cuda")  # as it is pinned; converted there
            batch = Batch(images=moved.to(self.dtype), samples=tuple(samples[place] for place in places))
            self.before_batch(batch.samples)
            yield batch

    def _keeping(self, items: _Transformed) -> AbstractContextManager[Keep | None]:
        """Where the images of this pass are kept, if they are."""
        if isinstance(self.transform, Decoded) and items.kept is None:
            return self.transform.write(self.source)
        return nullcontext()

    def first(self, size: int) -> Batch:
        """The first samples as one batch, over and over where the source is shorter."""
        items = self._items()
        images, samples = _no_error(_collate([items[position % len(self.source)] for position in range(size)]))
        return Batch(images=images.to(self.device, self.dtype), samples=samples)

    def _items(self) -> _Transformed:
        kept = self.transform.read(self.source) if isinstance(self.transform, Decoded) else None
        return _Transformed(self.source, self.transform, kept)


_Item = tuple[Images, Sample] | FnabenchError


class _Transformed(Dataset[_Item]):
    def __init__(self, source: Source, transform: Transform, kept: Entries | None) -> None:
        self.source = source
        self.transform = transform
        self.kept = kept

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Item:
        # An error travels as a value: raised in a worker it would arrive wrapped in that worker's traceback.
        try:
            if self.kept is not None:
                return self.kept[index]
            sample = self.source[index]
            if sample.image is None:
                raise BadInputError(f"sample {sample.id} has no image")
            return self.transform(sample.image), sample.without_image()
        except FnabenchError as error:
            return error


def _collate(items: Sequence[_Item]) -> tuple[Images, tuple[Sample, ...]] | FnabenchError:
    for item in items:
        if isinstance(item, FnabenchError):
            return item
    images, samples = zip(*items, strict=True)  # type: ignore[arg-type]
    return stack(images), samples


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A tensor alone, without the larger one that it may be a view of."""
        if isinstance(value, torch.Tensor):
            return value.clone().__reduce_ex__(pickle.DEFAULT_PROTOCOL)  # type: ignore[no-untyped-call]
        return NotImplemented


def _no_error(value: Made | FnabenchError) -> Made:
    if isinstance(value, FnabenchError):
        raise value
    return value
