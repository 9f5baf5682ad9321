"""Exact nearest neighbours by inner product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Found = tuple[NDArray[np.int64], NDArray[np.float32]]

SPARE = 16
"""So many candidates more than asked for are looked at first."""
QUERIES_AT_ONCE = 1024
PRODUCTS_AT_ONCE = 2**22
"""So many numbers are in fp64 at once: 32 MiB."""


def nearest(database: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Found:
    """Indices and inner products [queries, k], largest first and equal ones by index; never approximate.

    faiss's flat index gives candidates by products in fp32, whose last bits depend on where a row stands. Theirs are
    summed again in fp64 and rounded to fp32: equal rows are equally near, whatever else is asked for. More candidates
    are taken until what rounding can do in fp32 hides none.
    """
    import faiss

    database, queries = (np.ascontiguousarray(each, dtype=np.float32) for each in (database, queries))
    k = min(k, len(database))
    index = faiss.IndexFlatIP(database.shape[1])
    index.add(database)
    # Two products of D terms, each off by at most D / 2 eps |a||b|; one eps more for the rounding to fp32.
    slack = (database.shape[1] + 1) * np.finfo(np.float32).eps * _lengths(queries) * _lengths(database).max()
    found, products = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows, wanted = np.arange(start, min(start + QUERIES_AT_ONCE, len(queries))), k + SPARE
        while len(rows):
            wanted = min(wanted, len(database))
            rough, candidates = index.search(queries[rows], wanted)
            if (candidates < 0).any():
                raise BadInputError("embeddings that are not finite have no nearest neighbours")
            in_reach = (rough >= (rough[:, k - 1] - slack[rows])[:, None]).sum(1)  # of the k-th, come what may
            settled = (in_reach < wanted) | (wanted == len(database))
            if (done := rows[settled]).size:
                candidates = candidates[settled, : in_reach[settled].max()]
                found[done], products[done] = _in_order(database, queries[done], candidates, k)
            rows, wanted = rows[~settled], 4 * wanted
    return found, products


def _in_order(
    database: NDArray[np.float32], queries: NDArray[np.float32], candidates: NDArray[np.int64], k: int
) -> Found:
    """The k best of each query's candidates."""
    products = np.empty(candidates.shape, dtype=np.float32)
    for some in _chunks(len(queries), max(1, PRODUCTS_AT_ONCE // (candidates.shape[1] * database.shape[1]))):
        rows = database[candidates[some]].astype(np.float64)
        products[some] = np.einsum("qd,qnd->qn", queries[some].astype(np.float64), rows)
    order = np.lexsort((candidates, -products))[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(products, order, 1)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return lengths


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
