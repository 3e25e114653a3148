"""A clean dataset in which defects are planted, and its check."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.datasets.check.dataset import check_dataset
from pipeline.datasets.check.report import CheckReport, Finding
from tests.pipeline.datasets.replay_buffer.zarr_files import write_replay_buffer

FPS = 10.0
LENGTHS = (20, 24, 20, 22, 20, 20, 20)
ENDS = tuple(np.cumsum(LENGTHS).tolist())
ROWS_PER_CHUNK = 12  # one file each: of fewer rows, most of a check would be opening files
SIZES = {"front": (24, 32), "top": (30, 40), "wrist": (24, 32)}

MANIFEST = """
name = "clean"
source = "random numbers"
revision = "1"
license = "CC0-1.0"
format = "diffusion_policy_zarr"
path = "clean.zarr"
fps = 10.0
resize = [256, 256]

[[views]]
name = "front"
key = "data/front"

[[views]]
name = "top"
key = "data/top"

[[views]]
name = "wrist"
key = "data/wrist"

[state]
key = "data/state"
units = "none"

[action]
key = "data/action"
units = "none"
"""

Arrays = dict[str, np.ndarray]


def clean_arrays() -> Arrays:
    """Seven episodes in which everything changes at every step and nothing happens twice."""
    numbers = np.random.default_rng(0)
    arrays = {
        view: numbers.integers(0, 256, (ENDS[-1], *size, 3), np.uint8)
        for view, size in SIZES.items()
    }
    arrays["state"] = numbers.normal(size=(ENDS[-1], 4)).cumsum(axis=0)
    arrays["action"] = numbers.uniform(-1, 1, (ENDS[-1], 3))
    starts = np.repeat((0, *ENDS[:-1]), LENGTHS)
    arrays["timestamp"] = (np.arange(ENDS[-1]) - starts) / FPS + 1e9
    return arrays


def step(episode: int, index: int) -> int:
    """Row of a step."""
    return (0, *ENDS)[episode] + index


def check(
    folder: Path,
    plant: Callable[[Arrays], None] = lambda arrays: None,
    manifest: str = MANIFEST,
    *,
    harm: Callable[[Path], None] = lambda root: None,
    episodes: int | None = 5,
    sheet: Path | None = None,
) -> CheckReport:
    """Write a clean dataset, plant a defect in its arrays or its files, and check it."""
    arrays = clean_arrays()
    plant(arrays)
    harm(write_replay_buffer(folder / "clean.zarr", arrays, ENDS, rows_per_chunk=ROWS_PER_CHUNK))
    path = folder / "clean.toml"
    path.write_text(manifest)
    return check_dataset(str(path), episodes=episodes, sheet=sheet)


def only(report: CheckReport) -> Finding:
    [finding] = report.findings
    assert not report.is_clean
    return finding
