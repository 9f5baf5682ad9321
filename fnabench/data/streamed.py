"""Rows of parquet files where they lie: a row group is read when one of its rows is asked for, none is kept on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fnabench.errors import BadInputError, reason_of

if TYPE_CHECKING:
    import pyarrow


class StreamedRows:
    """To its users what a datasets.Dataset is, with one row group in memory; its files have the open() of a Path."""

    def __init__(self, files: Sequence[tuple[Any, Any]], columns: Sequence[str]) -> None:
        """Each file comes with its metadata."""
        self._groups = [(file, known, group) for file, known in files for group in range(known.num_row_groups)]
        self._ends = list(accumulate(known.row_group(group).num_rows for _, known, group in self._groups))
        self._columns = columns
        self._numbers: Sequence[int] = range(self._ends[-1] if self._ends else 0)
        self._held: tuple[int, pyarrow.Table] | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, which: int | str) -> Any:
        """A row by its number, or the values of a column."""
        if isinstance(which, str):
            return self._of_each(lambda group: self._read(group, [which]).column(0).to_pylist())
        group, row = self._place(self._numbers[which])
        if self._held is None or self._held[0] != group:
            self._held = group, self._read(group, self._columns)
        return self._held[1].slice(row, 1).to_pylist()[0]

    def select(self, numbers: Sequence[int]) -> StreamedRows:
        """Of these rows alone."""
        chosen = copy(self)
        chosen._numbers = [self._numbers[number] for number in numbers]
        return chosen

    def has(self, name: str) -> list[bool]:
        """Of each row whether the column has a value: of a struct the smallest field is read, none where no field has
        a null."""
        return self._of_each(lambda group: self._is_valid(group, name))

    def _is_valid(self, group: int, name: str) -> list[bool]:
        _, known, number = self._groups[group]
        described = known.row_group(number)
        columns = [described.column(place) for place in range(described.num_columns)]
        fields = [column for column in columns if column.path_in_schema.split(".")[0] == name]
        if any(field.statistics is not None and field.statistics.null_count == 0 for field in fields):
            return [True] * described.num_rows
        smallest = min(fields, key=lambda field: field.total_compressed_size)
        valid: list[bool] = self._read(group, [smallest.path_in_schema]).column(0).is_valid().to_pylist()
        return valid

    def _of_each(self, of_group: Callable[[int], list[Any]]) -> list[Any]:
        """What a function says of each row of a row group, for the rows here; asked once for each of their groups."""
        places = [self._place(number) for number in self._numbers]
        values = {group: of_group(group) for group in dict.fromkeys(group for group, _ in places)}
        return [values[group][row] for group, row in places]

    def _place(self, number: int) -> tuple[int, int]:
        """The row group of a row of the files, and the row's number in it."""
        group = bisect_right(self._ends, number)
        return group, number - (self._ends[group - 1] if group else 0)

    def _read(self, group: int, columns: Sequence[str]) -> pyarrow.Table:
        file, known, number = self._groups[group]
        with _opened(file, metadata=known, pre_buffer=True) as parquet:
            return parquet.read_row_group(number, columns=list(columns), use_threads=False)


def read_metadata(file: Any) -> Any:
    """What the end of a parquet file says of it; BadInputError where it is none."""
    with _opened(file) as parquet:
        return parquet.metadata


@contextmanager
def _opened(file: Any, **options: Any) -> Iterator[Any]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        with file.open("rb") as opened, ParquetFile(opened, **options) as parquet:
            yield parquet
    except (ArrowInvalid, OSError) as error:
        raise BadInputError(f"{file} cannot be read as parquet: {reason_of(error)}") from error
