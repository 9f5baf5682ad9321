"""Batches of a source on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

    Transform = Callable[[Image.Image], Any]


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
    device: torch.device
    dtype: torch.dtype
    before_batch: Callable[[tuple[Sample, ...]], None] = lambda samples: None
    """Told the samples of each batch before it is used."""
    on_batch: Callable[[int], None] = lambda num_samples: None
    """Told the number of samples each time a batch has been used."""

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        on_gpu = self.device.type == "cuda"
        items = self._items()
        batches = DataLoader(
            items,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=on_gpu,
        )
        decoded = self.transform if isinstance(self.transform, Decoded) and items.kept is None else None
        with decoded.write(self.source) if decoded else nullcontext() as keep:
            for collated in batches:
                if isinstance(collated, FnabenchError):
                    raise collated
                images, samples = collated
                if keep is not None:
                    keep(images, samples)
                for part, places in split_by_size(images):
                    moved = part.to(self.device, self.dtype, non_blocking=on_gpu)
                    batch = Batch(images=moved, samples=tuple(samples[place] for place in places))
                    self.before_batch(batch.samples)
                    yield batch
                    self.on_batch(len(places))

    def first(self, size: int) -> Batch:
        """The first samples as one batch, over and over where the source is shorter."""
        items = self._items()
        collated = _collate([items[position % len(self.source)] for position in range(size)])
        if isinstance(collated, FnabenchError):
            raise collated
        images, samples = collated
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
