"""Parquet files as arrays: the only file that imports pyarrow.

Source: Apache Parquet format; columns as huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py
writes them (facts only).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float64, Int64

from pipeline.datasets.base import as_floating
from pipeline.datasets.causes import why_unreadable
from pipeline.errors import DatasetError

# What pyarrow raises for files that are damaged, cut off or of another kind.
_DAMAGE: Final = (pa.ArrowException, OSError, ValueError, KeyError, EOFError)


class ParquetTable:
    """One parquet file, read column by column; columns of numbers stay in memory."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its footer.

        Raises:
            DatasetError: it is missing, damaged, not a parquet file, or was never finished.
        """
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}
        self._images: dict[str, tuple[int, Any]] = {}  # key: (first row, rows of one row group)
        try:
            self._file = pq.ParquetFile(path)
        except _DAMAGE as error:
            advice = "finalize the recording if it was not finished, or download the file again"
            raise DatasetError(
                f"{path}: expected a parquet file, {why_unreadable(path, error, advice)}"
            ) from error
        metadata = self._file.metadata
        self.num_rows: int = metadata.num_rows
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Read some columns of every row as Python values.

        Raises:
            DatasetError: a column is missing or damaged.
        """
        values = [self._column(column).to_pylist() for column in columns]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]

    def numbers(self, column: str) -> Float[np.ndarray, "t d"]:
        """Read every row of a column of numbers or lists as float32 if exact, else as float64.

        Raises:
            DatasetError: the column is missing or damaged, contains no numbers, lacks some, or its
                rows differ in width.
        """
        if column not in self._arrays:
            self._arrays[column] = as_floating(self._rectangle(column))
        return self._arrays[column]

    def integers(self, column: str) -> Int64[np.ndarray, " t"]:
        """Read every row of a column of whole numbers.

        Raises:
            DatasetError: the column is missing or damaged, or contains other values.
        """
        key = f"int64 {column}"
        if key not in self._arrays:
            values = self._rectangle(column)
            if values.dtype.kind not in "iu" or values.shape[1] != 1:
                raise DatasetError(
                    f"{self.path}: {column}: expected one whole number per row, found "
                    f"{values.shape[1]} of {values.dtype}; write the column again"
                )
            self._arrays[key] = values[:, 0].astype(np.int64)
        return self._arrays[key]

    def flags(self, column: str) -> Float64[np.ndarray, " t"]:
        """Read one truth value per row as 0 or 1; NaN for an empty one.

        Raises:
            DatasetError: the column is missing or damaged, or contains other values.
        """
        key = f"flags {column}"
        if key not in self._arrays:
            array = self._column(column)
            try:
                flat = array.flatten() if pa.types.is_nested(array.type) else array
                values = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
                self._arrays[key] = values.reshape(self.num_rows)
            except _DAMAGE as error:
                raise DatasetError(
                    f"{self.path}: {column}: expected one boolean per row, found {array.type}; "
                    "write the column again"
                ) from error
        return self._arrays[key]

    def images(self, column: str, start: int, stop: int) -> list[tuple[bytes | None, str | None]]:
        """Read rows [start, stop) of a column of images; one row group stays in memory.

        Returns:
            The encoded bytes and the path of an image file; one of both may be None.

        Raises:
            DatasetError: the column is missing or damaged, or contains other values.
        """
        found = []
        for row in range(start, stop):
            first, rows = self._image_rows(column, row)
            value = rows[row - first].as_py()
            if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
                raise DatasetError(
                    f"{self.path}: {column}: row {row}: expected an image's bytes or path, found "
                    f"{type(value).__name__}; write the column again"
                )
            found.append((value.get("bytes"), value.get("path")))
        return found

    def close(self) -> None:
        """Close the file; it cannot be read afterwards."""
        self._arrays.clear()
        self._images.clear()
        self._file.close()

    def _image_rows(self, column: str, row: int) -> tuple[int, Any]:
        first, rows = self._images.get(column, (0, ()))
        if not first <= row < first + len(rows):
            group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
            self._images.pop(column, None)  # so that memory never contains two row groups
            first, rows = int(self._group_starts[group]), self._column(column, [group])
            self._images[column] = (first, rows)
        return first, rows

    def _column(self, column: str, groups: list[int] | None = None) -> Any:
        """Read a column as one Arrow array, of some row groups or of all."""
        if column not in self.columns:
            raise DatasetError(
                f"{self.path}: expected a column {column}, found "
                f"{', '.join(sorted(self.columns)[:20])}; correct the key, or download the file "
                "again"
            )
        every = list(range(self._file.metadata.num_row_groups))
        try:
            # A name also selects columns that begin with it and a dot; `column` picks the one.
            table = self._file.read_row_groups(groups or every, columns=[column])
            return table.column(column).combine_chunks()
        except _DAMAGE as error:
            raise DatasetError(
                f"{self.path}: {column}: expected a readable column, "
                f"{why_unreadable(self.path, error, 'download the file again')}"
            ) from error

    def _rectangle(self, column: str) -> np.ndarray:
        """Flatten lists of any depth into rows of equal width."""
        array = self._column(column)
        problem = None if self.num_rows else "no rows"
        while not problem and pa.types.is_nested(array.type):
            lengths = np.unique(array.value_lengths())
            if array.null_count or len(lengths) != 1 or not lengths[0]:
                problem = "empty values, or lists of different lengths"
            array = array.flatten()
        kind = array.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.bool_()
        if not problem and (array.null_count or not is_number):
            problem = f"{array.null_count} empty values" if is_number else str(kind)
        if problem:
            raise DatasetError(
                f"{self.path}: {column}: expected the same number of values in each row, found "
                f"{problem}; use a numeric column, or write this one again"
            )
        return np.asarray(array.to_numpy(zero_copy_only=False).reshape(self.num_rows, -1))
