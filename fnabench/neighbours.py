"""Exact nearest neighbours by inner product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def nearest(
    database: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and inner products [queries, k], largest first, by faiss's flat index in fp32; never approximate."""
    import faiss

    index = faiss.IndexFlatIP(database.shape[1])
    index.add(np.ascontiguousarray(database, dtype=np.float32))
    products, found = index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(database)))
    return found, products
