"""Parquet files as arrays: the only file that imports pyarrow.

Source: Apache Parquet format; columns as huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py
writes them, times as its dataset_reader.py reads them (facts only).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float64

from pipeline.datasets.base import as_floating
from pipeline.datasets.causes import clock_unit, why_unreadable
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError

_TOLERANCE_S: Final = 1e-3  # seconds; beyond it `timestamp` was measured
# What pyarrow raises for files that are damaged, cut off or of another kind.
_DAMAGE: Final = (pa.ArrowException, OSError, ValueError, KeyError, EOFError)


class ParquetTable:
    """One parquet file, read column by column; columns of numbers stay in memory."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its footer (DatasetError: it is missing, damaged or unfinished)."""
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
        """Read some columns of every row as Python values (DatasetError: one does not read)."""
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

    def flags(self, column: str) -> Float64[np.ndarray, " t"]:
        """Read one truth value per row as 0 or 1, NaN for an empty one (DatasetError: damaged)."""
        key = f"flags {column}"
        if key not in self._arrays:
            array = self._column(column)
            flat = array.flatten() if pa.types.is_nested(array.type) else array
            try:
                values = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
                self._arrays[key] = values.reshape(self.num_rows)
            except ValueError as error:  # pyarrow's own too
                raise DatasetError(
                    f"{self.path}: {column}: expected one truth value per row, found {array.type}; "
                    "write the column again"
                ) from error
        return self._arrays[key]

    def step_seconds(self, rows: slice, fps: float, where: str) -> Float64[np.ndarray, " t"]:
        """Return seconds from an episode's time 0 to each of its steps, on its videos' clock.

        A step's time is frame_index / fps in float64, because the float32 of `timestamp` is too
        coarse for long files; if `timestamp` differs by more than a millisecond, it was measured,
        and is used. `rows` are the episode's, `where` names it in messages.
        DatasetError: a time is not finite, or not in seconds.
        """
        steps: np.ndarray = np.arange(rows.stop - rows.start)
        if "frame_index" in self.columns:
            steps = self.numbers("frame_index")[rows, 0]
        even: Float64[np.ndarray, " t"] = steps / fps
        if "timestamp" not in self.columns:
            return even
        times, where = self.numbers("timestamp")[rows, 0], f"{where}: timestamp"
        if not np.isfinite(times).all():
            raise DatasetError(
                f"{where}: expected finite seconds, found {times[~np.isfinite(times)][0]}; correct "
                f"this episode, or {LEAVE_OUT}"
            )
        unit = clock_unit(float(times[-1] - times[0]), float(even[-1] - even[0]))
        if unit is not None:
            raise DatasetError(
                f"{where}: expected seconds, found {unit}; write the column again in seconds"
            )
        # float32 is coarser than the tolerance after some hours
        tolerance = _TOLERANCE_S + np.spacing(times.astype(np.float32))
        is_measured = np.abs(times - even) > tolerance
        return times.astype(np.float64) if is_measured.any() else even

    def images(self, column: str, start: int, stop: int) -> list[dict[str, Any]]:
        """Read rows [start, stop) of a column of images; one row group stays in memory.

        Returns `bytes`, the encoded image, or `path`, its file, of each; one of both may be None.
        DatasetError: the column is missing or damaged, or a row has neither.
        """
        found = []
        for row in range(start, stop):
            first, rows = self._images.get(column, (0, ()))
            if not first <= row < first + len(rows):
                group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
                self._images.pop(column, None)  # so that memory never contains two row groups
                first, rows = int(self._group_starts[group]), self._column(column, [group])
                self._images[column] = (first, rows)
            image = rows[row - first].as_py()
            if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
                raise DatasetError(
                    f"{self.path}: {column}: row {row}: expected an image's bytes or path, found "
                    f"{type(image).__name__}; write the column again"
                )
            found.append(image)
        return found

    def close(self) -> None:
        """Close the file; it cannot be read afterwards."""
        self._arrays.clear()
        self._images.clear()
        self._file.close()

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
