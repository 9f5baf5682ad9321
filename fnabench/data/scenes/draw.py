"""Random integers, the same on every platform: raw Philox words, mapped to ranges by integer arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = TypeVar("Item")

SPLITS = ("train", "val", "test")
STREAMS = ("layout", "texture", "captions", "questions")
MAX_SEED = 2**32 - 1


class Draw:
    """An endless stream of draws that depends on nothing but (split, stream, seed, index).

    numpy promises the bits of a bit generator for ever but not the numbers of `Generator`'s methods, so only
    the bits are used. The four values are packed into the 128-bit key without loss: no two streams share one.
    """

    def __init__(self, *, split: str, stream: str, seed: int, index: int) -> None:
        first = (SPLITS.index(split) << 40) | (STREAMS.index(stream) << 32) | seed
        self._bits = np.random.Philox(key=np.array([first, index], dtype=np.uint64))
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        if not self._words:
            self._words = self._bits.random_raw(128).tolist()
        return ((self._words.pop() >> 32) * limit) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 draws."""
        return self.below(100) < percent

    def choose(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        """Random bytes of the given shape."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape)
