"""Text features, kept from one attention variant to the next: no variant touches the text tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fnabench.identity import digest
from fnabench.store import Store

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TextMemory:
    """Features in the store, by the model and its texts."""

    store: Store
    key: str
    """Hash of the model and of whatever else its text features depend on."""

    def __call__(self, texts: object, embed: Callable[[], Tensor]) -> Tensor:
        """What `embed` gives for these texts, on the CPU; it is called for texts that are new only."""
        key = digest([self.key, texts])
        with self.store.lock(key):
            kept = self.store.find_fitted(key) or self.store.save_fitted(key, {"texts": embed()})
        return kept.state["texts"]
