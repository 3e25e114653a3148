"""Two processes that stream one run's windows: who sees what, and that a run goes on exactly."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.streaming import StreamedWindowData
from pipeline.training.session import train
from tests.pipeline.tiny import complete_store
from tests.pipeline.training.data.stream_ranks import CONFIG, MEMORY

LENGTHS = (700, 90, 40, 1_000, 300, 17, 650, 260)
HELDOUT = (1, 5)
UNIT_ROWS = 512  # a shard of two chunks
TRAIN_ROWS = np.flatnonzero(~np.isin(np.repeat(np.arange(8), LENGTHS), HELDOUT))
STEPS = 2 * len(TRAIN_ROWS) // 8


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    path = tmp_path_factory.mktemp("ranks") / "s.zarr"
    return complete_store(path, LENGTHS, rows_per_unit=UNIT_ROWS, heldout=HELDOUT)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train([store.path], folder, CONFIG, resume=False)
    return folder


@pytest.fixture(scope="module")
def seen(store, run, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What two processes of gloo wrote."""
    folder = tmp_path_factory.mktemp("out")
    shutil.copy(run / "run.json", folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.pipeline.training.data.stream_ranks"]
    done = subprocess.run(
        [*command, *map(str, (store.path, folder, STEPS))],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_every_window_comes_once_an_epoch_to_the_process_that_owns_its_unit(store, seen):
    """Each draws 4 of the 8 windows of a step; its own epochs follow one another."""
    owned = [np.unique(rank["current"]) for rank in seen]
    np.testing.assert_array_equal(np.sort(np.concatenate(owned)), TRAIN_ROWS)
    units = [set(rows // UNIT_ROWS) for rows in owned]
    assert not units[0] & units[1]
    assert abs(len(owned[0]) - len(owned[1])) < UNIT_ROWS
    features = store.read_features()
    for rank, own in zip(seen, owned, strict=True):
        for epoch in range(len(rank["current"]) // len(own)):
            rows = rank["current"][epoch * len(own) : (epoch + 1) * len(own)]
            np.testing.assert_array_equal(np.sort(rows), own)
        np.testing.assert_array_equal(rank["features"], features[rank["current"]])


def test_what_the_first_pass_learns_is_the_same_in_one_process_and_in_two(store, seen):
    with closing(StreamedWindowData(store, config=CONFIG, memory=MEMORY)) as alone:
        statistics = alone.statistics()
    for rank in seen:
        np.testing.assert_array_equal(rank["mean"], statistics.feature_mean)
        np.testing.assert_array_equal(rank["std"], statistics.feature_std)


def test_two_processes_go_on_to_the_same_bits(seen):
    for rank in seen:
        np.testing.assert_array_equal(rank["resumed"], rank["whole"])
        np.testing.assert_array_equal(rank["whole"], seen[0]["whole"])
        assert (rank["unfinished"] != rank["whole"]).any()


def test_a_run_does_not_go_on_with_another_number_of_processes(store, run):
    description = json.loads((run / "run.json").read_text())
    assert description["num_streams"] == 1
    (run / "run.json").write_text(json.dumps(description | {"num_streams": 2}))
    with pytest.raises(RunError, match="num_streams=2, now it is 1"):
        train([store.path], run, CONFIG, resume=True)
