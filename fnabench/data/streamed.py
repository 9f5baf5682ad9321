"""Rows of parquet files where they lie: a row group is read when one of its rows is asked for, none is kept on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow


class StreamedRows:
    """To its users what a datasets.Dataset is, with one row group in memory; its files have the open() of a Path."""

    def __init__(self, files: Sequence[Any], columns: Sequence[str]) -> None:
        described = [(file, read_metadata(file)) for file in files]
        self._groups = [(file, known, group) for file, known in described for group in range(known.num_row_groups)]
        self._ends = list(accumulate(known.row_group(group).num_rows for _, known, group in self._groups))
        self._columns = columns
        self._numbers: Sequence[int] = range(self._ends[-1] if self._ends else 0)
        self._held: tuple[int, pyarrow.Table] | None = None
        self.column_names: list[str] = described[0][1].schema.to_arrow_schema().names

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, which: int | str) -> Any:
        """A row by its number, or the values of a column."""
        if isinstance(which, str):
            return self.column(which).to_pylist()
        number = self._numbers[which]
        group = bisect_right(self._ends, number)
        if self._held is None or self._held[0] != group:
            self._held = group, self._read(group, self._columns)
        rows = self._held[1]
        return rows.slice(number - self._ends[group] + len(rows), 1).to_pylist()[0]

    def select(self, numbers: Sequence[int]) -> StreamedRows:
        """Of these rows alone."""
        chosen = copy(self)
        chosen._numbers = [self._numbers[number] for number in numbers]
        return chosen

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """A column, or as `image.path` a part of one, of the row groups up to the last that is asked for."""
        import pyarrow

        last = bisect_right(self._ends, max(self._numbers, default=-1))
        whole = pyarrow.concat_tables([self._read(group, [name]) for group in range(last + 1)])
        return whole.column(0).take(pyarrow.array(self._numbers))

    def _read(self, group: int, columns: Sequence[str]) -> pyarrow.Table:
        from pyarrow.parquet import ParquetFile

        file, known, number = self._groups[group]
        with file.open("rb") as opened, ParquetFile(opened, metadata=known, pre_buffer=True) as parquet:
            return parquet.read_row_group(number, columns=list(columns), use_threads=False)


def read_metadata(file: Any) -> Any:
    """What the end of a parquet file says of it."""
    from pyarrow.parquet import read_metadata

    with file.open("rb") as opened:
        return read_metadata(opened)
