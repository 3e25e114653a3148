"""When each step of a LeRobot episode was taken, on the clock that its videos follow.

A step's time is frame_index / fps in float64, because the float32 of `timestamp` is too coarse
for long files; where `timestamp` says otherwise by more than a millisecond, it was measured, and
counts.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Float64

from pipeline.datasets.causes import clock_unit
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError

_TOLERANCE_S: Final = 1e-3  # seconds; `timestamp` is taken for measured beyond it
_LATE_START_S: Final = 10.0  # seconds by which a camera may have begun before the first row
_SINCE_1970_S: Final = 1e9  # seconds; a time of this century


def step_seconds(
    table: ParquetTable, rows: slice, fps: float, where: str
) -> Float64[np.ndarray, " t"]:
    """Return seconds from the episode's time 0 to each of its steps.

    Args:
        table: the file of the episode's rows.
        rows: the episode's.
        fps: control steps per second.
        where: names file and episode in messages.

    Raises:
        DatasetError: a time is not finite, or no number of seconds since the episode's start.
    """
    steps = np.arange(rows.stop - rows.start)
    if "frame_index" in table.columns:
        steps = table.integers("frame_index")[rows]
    even: Float64[np.ndarray, " t"] = steps / fps
    if "timestamp" not in table.columns:
        return even
    kept = table.numbers("timestamp")[rows, 0]
    where = f"{where}: timestamp"
    if not np.isfinite(kept).all():
        raise DatasetError(
            f"{where}: expected finite seconds, found {kept[~np.isfinite(kept)][0]}; correct this "
            f"episode, or {LEAVE_OUT}"
        )
    _require_seconds_since_start(kept, even, where)
    # float32 is coarser than the tolerance after some hours
    tolerance = _TOLERANCE_S + np.spacing(kept.astype(np.float32))
    is_measured = np.abs(kept - even) > tolerance
    return kept.astype(np.float64) if is_measured.any() else even


def _require_seconds_since_start(
    kept: Float[np.ndarray, " t"], even: Float64[np.ndarray, " t"], where: str
) -> None:
    """Refuse a clock of another unit, or one that began long before its episode."""
    unit = clock_unit(float(kept[-1] - kept[0]), float(even[-1] - even[0]))
    if unit is not None:
        raise DatasetError(
            f"{where}: expected seconds, found {unit}; write the column again in seconds"
        )
    if kept[0] > _LATE_START_S + even[-1]:
        since = " (since 1970, as it seems)" if kept[0] > _SINCE_1970_S else ""
        raise DatasetError(
            f"{where}: expected seconds since the episode's first step, found that it begins at "
            f"{kept[0]:.10g} s{since}; subtract each episode's first timestamp, or remove the "
            "column, which makes a step's time frame_index / fps"
        )
