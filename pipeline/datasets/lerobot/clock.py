"""The time of each step of a LeRobot episode, on the clock of its videos.

A step's time is frame_index / fps in float64, because the float32 of `timestamp` is too coarse
for long files; if `timestamp` differs by more than a millisecond, it was measured, and is used.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from typing import Final

import numpy as np
from jaxtyping import Float64

from pipeline.datasets.causes import clock_unit
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError

_TOLERANCE_S: Final = 1e-3  # seconds; beyond it `timestamp` was measured
_LATE_START_S: Final = 10.0  # seconds by which a camera may have begun before the first row


def step_seconds(
    table: ParquetTable, rows: slice, fps: float, where: str
) -> Float64[np.ndarray, " t"]:
    """Return seconds from the episode's time 0 to each of its steps, which are `rows` of the table.

    Raises:
        DatasetError: a time is not finite, or not in seconds since the episode's start.
    """
    steps = np.arange(rows.stop - rows.start)
    if "frame_index" in table.columns:
        steps = table.integers("frame_index")[rows]
    even: Float64[np.ndarray, " t"] = steps / fps
    if "timestamp" not in table.columns:
        return even
    times = table.numbers("timestamp")[rows, 0]
    where = f"{where}: timestamp"
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
    if times[0] > _LATE_START_S + even[-1]:
        raise DatasetError(
            f"{where}: expected seconds since the episode's first step, found that it begins at "
            f"{times[0]:.10g} s; subtract each episode's first timestamp, or remove the column, "
            "then a step's time is frame_index / fps"
        )
    # float32 is coarser than the tolerance after some hours
    tolerance = _TOLERANCE_S + np.spacing(times.astype(np.float32))
    is_measured = np.abs(times - even) > tolerance
    return times.astype(np.float64) if is_measured.any() else even
