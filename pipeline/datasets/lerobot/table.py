"""Parquet files as arrays: the only file that knows pyarrow.

Lists of fixed and of variable size, lists in lists and single values all become rows of numbers;
pictures become their bytes.
Source: Apache Parquet format; the columns that LeRobot writes, formats facts of
huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float64, Int64

from pipeline.datasets.causes import one_line, why_unreadable
from pipeline.datasets.limits import MAX_NUMBERS
from pipeline.errors import DatasetError

# What pyarrow raises for files that are damaged, cut off or of another kind.
_DAMAGE: Final = (pa.ArrowException, OSError, ValueError, KeyError, EOFError, MemoryError)


@dataclass(frozen=True)
class StoredImage:
    """A picture of an image column: its encoded bytes, or the path of a file that has them."""

    data: bytes | None
    path: str | None


class ParquetTable:
    """One parquet file, read column by column; columns of numbers are kept once read."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its footer.

        Raises:
            DatasetError: it is absent, damaged, no parquet file, or was never finished.
        """
        self.path = path
        self._arrays: dict[str, Any] = {}
        self._pictures: dict[str, tuple[int, Any]] = {}  # key: (first row, rows of one row group)
        try:
            self._file = pq.ParquetFile(path)
        except _DAMAGE as error:
            advice = "download the file again"
            if "magic bytes" in str(error).lower():
                advice = "finalize the recording if it was not finished, or copy it again"
            raise DatasetError(
                f"{path}: expected a parquet file, {why_unreadable(path, error, advice)}"
            ) from error
        metadata = self._file.metadata
        self.num_rows: int = metadata.num_rows
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)

    def numbers(self, column: str) -> Float[np.ndarray, "t d"]:
        """Read every row of a column; float32 and smaller become float32, others float64.

        Raises:
            DatasetError: the column is absent or damaged, holds no numbers, lacks some, its rows
                differ in width, or there are more than `MAX_NUMBERS`.
        """
        if column not in self._arrays:
            values = self._rectangle(column)
            is_small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
            self._arrays[column] = values.astype(np.float32 if is_small else np.float64)
        return np.asarray(self._arrays[column])

    def integers(self, column: str) -> Int64[np.ndarray, " t"]:
        """Read every row of a column of whole numbers.

        Raises:
            DatasetError: the column is absent or damaged, or holds something else.
        """
        key = f"int64 {column}"
        if key not in self._arrays:
            values = self._rectangle(column)
            if values.dtype.kind not in "iu" or values.shape[1] != 1:
                raise DatasetError(
                    f"{self.path}: {column}: expected one whole number a row, found "
                    f"{values.shape[1]} of {values.dtype}; write the column again"
                )
            self._arrays[key] = values[:, 0].astype(np.int64)
        return np.asarray(self._arrays[key])

    def values_or_nan(self, column: str) -> Float64[np.ndarray, " t"]:
        """Read one number per row; a row without one is NaN.

        Raises:
            DatasetError: the column is absent or damaged, or holds something else.
        """
        key = f"or nan {column}"
        if key not in self._arrays:
            self._require_memory(column)
            array = self._column(column)
            if pa.types.is_nested(array.type) and len(flat := array.flatten()) == len(array):
                array = flat  # a list of one number per row
            kind = array.type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                if kind not in (pa.bool_(), pa.null()):
                    raise DatasetError(
                        f"{self.path}: {column}: expected one number per row, found "
                        f"{one_line(kind)}; write the column again"
                    )
                array = array.cast(pa.int8())
            self._arrays[key] = array.to_numpy(zero_copy_only=False).astype(np.float64)
        return np.asarray(self._arrays[key])

    def objects(self, column: str) -> list[Any]:
        """Read every row of a column of texts or lists of them.

        Raises:
            DatasetError: the column is absent or damaged.
        """
        self._require_memory(column)
        return list(self._column(column).to_pylist())

    def images(self, column: str, start: int, stop: int) -> list[StoredImage]:
        """Read rows [start, stop) of a column of pictures; keeps one row group in memory.

        Raises:
            DatasetError: the column is absent or damaged, or holds something else.
        """
        found: list[StoredImage] = []
        while start < stop:
            first, rows = self._picture_rows(column, start)
            upto = min(stop, first + len(rows))
            for row in rows.slice(start - first, upto - start).to_pylist():
                found.append(_stored_image(row, f"{self.path}: {column}: row {start}"))
                start += 1
        return found

    def close(self) -> None:
        """Close the file and forget what was read; no reading is possible after it."""
        self._arrays.clear()
        self._pictures.clear()
        self._file.close()

    def _picture_rows(self, column: str, row: int) -> tuple[int, Any]:
        first, rows = self._pictures.get(column, (0, ()))
        if not first <= row < first + len(rows):
            group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
            self._pictures.pop(column, None)  # so that never two row groups are held
            first, rows = int(self._group_starts[group]), self._column(column, [group])
            self._pictures[column] = (first, rows)
        return first, rows

    def _column(self, column: str, groups: list[int] | None = None) -> Any:
        """Read a column as one Arrow array, of some row groups or of all."""
        if self.columns.count(column) != 1:
            raise DatasetError(
                f"{self.path}: expected one column {column}, found "
                f"{', '.join(sorted(self.columns)[:20])}; correct the key, or write the file again"
            )
        every = range(self._file.metadata.num_row_groups)
        try:
            # A name also selects columns that begin with it and a dot; `column` picks the one.
            table = self._file.read_row_groups(groups or list(every), columns=[column])
            rows = table.column(column)
            return pa.concat_arrays(rows.chunks) if rows.num_chunks != 1 else rows.chunk(0)
        except _DAMAGE as error:
            raise DatasetError(
                f"{self.path}: {column}: expected it to decode, "
                f"{why_unreadable(self.path, error, 'download the file again')}"
            ) from error

    def _require_memory(self, column: str) -> None:
        """Refuse numbers that would fill the memory, however small they are in the file."""
        metadata, num_values = self._file.metadata, 0
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for part in map(group.column, range(group.num_columns)):
                path = part.path_in_schema
                num_values += part.num_values if f"{path}.".startswith(f"{column}.") else 0
        if num_values > MAX_NUMBERS:
            raise DatasetError(
                f"{self.path}: {column}: expected at most {MAX_NUMBERS} numbers in a file, found "
                f"{num_values}; spread the episodes over several files"
            )

    def _rectangle(self, column: str) -> np.ndarray:
        """Flatten lists of any depth into rows of equal width."""
        where = f"{self.path}: {column}"
        self._require_memory(column)
        array = self._column(column)
        if not self.num_rows:
            raise DatasetError(f"{where}: expected rows, found none; download the file again")
        while True:
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            if array.null_count:
                raise DatasetError(
                    f"{where}: expected a value in every row, found {array.null_count} empty "
                    "ones; write the column again"
                )
            kind = array.type
            if pa.types.is_list(kind) or pa.types.is_large_list(kind):
                lengths = array.value_lengths().to_numpy(zero_copy_only=False)
                if len(lengths) and (lengths != lengths[0]).any():
                    raise DatasetError(
                        f"{where}: expected rows of one width, found lists of {lengths.min()} to "
                        f"{lengths.max()} values; write the column again"
                    )
            elif not pa.types.is_fixed_size_list(kind):
                break
            array = array.flatten()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.bool_()):
            raise DatasetError(
                f"{where}: expected numbers, found {one_line(kind)}; name a column of numbers"
            )
        values = array.to_numpy(zero_copy_only=False)
        if not len(values):
            raise DatasetError(f"{where}: expected numbers in every row, found empty lists")
        return np.asarray(values.reshape(self.num_rows, -1))


def _stored_image(row: Any, where: str) -> StoredImage:
    if isinstance(row, dict):
        data, path = row.get("bytes"), row.get("path")
        if isinstance(data, bytes) or isinstance(path, str):
            return StoredImage(
                data=data if isinstance(data, bytes) else None,
                path=path if isinstance(path, str) else None,
            )
    raise DatasetError(
        f"{where}: expected a picture's bytes or path, found {one_line(type(row).__name__)}; write "
        "the column again"
    )
