"""Worker processes: the bytes of one process, whichever of them is killed."""

import multiprocessing
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, EncoderMismatchError, FailedUnitsError
from pipeline.features.encode.executor_choice import ExecutorConfig
from pipeline.features.encode.executors import encode_with_workers
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.encode.process_pool import ProcessPool
from pipeline.features.encode.worker import WorkerPlan
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import CHUNK_ROWS
from tests.pipeline.features.encode.drivers import (
    commits,
    configure,
    embed,
    kill,
    start_driver,
    store_bytes,
    wait_until,
    workers_of,
    write_one_view,
)
from tests.pipeline.features.still_life import break_frame
from tests.tower import tiny_tower

# As many threads as this process has: another number is another engine.
TWO = {"name": "processes", "workers": 2, "cpus_per_worker": torch.get_num_threads()}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    manifest = write_one_view(folder / "dataset")
    embed(manifest, folder / "s.zarr")
    return manifest, folder / "s.zarr", store_bytes(folder / "s.zarr")


def test_a_killed_worker_costs_what_it_held_and_changes_no_byte(embedded, tmp_path, caplog):
    manifest, _, expected = embedded
    store, kept = tmp_path / "s.zarr", {}

    def kill_a_worker() -> None:
        wait_until(lambda: commits(store))
        kept.update(commits(store))
        kill(multiprocessing.active_children()[0].pid)

    killer = Thread(target=kill_a_worker)
    killer.start()
    report = embed(manifest, store, **TWO)
    killer.join()
    assert "a worker was lost (process" in caplog.text
    assert "-9" in caplog.text
    assert store_bytes(store) == expected
    assert commits(store).items() >= kept.items() != set()
    # What the killed worker had committed and not come to tell is not counted.
    counted = report.counts.encoded + report.counts.repeated
    assert counted in {report.num_steps, report.num_steps - CHUNK_ROWS}
    assert "s of 2 workers: decode" in report.summary()


def test_a_killed_driver_takes_its_workers_along_and_the_next_goes_on(embedded, tmp_path):
    manifest, _, expected = embedded
    store = tmp_path / "s.zarr"
    driver = start_driver(configure(manifest, store, **TWO))
    wait_until(lambda: commits(store))
    assert workers_of(store)
    driver.kill()
    driver.join()
    wait_until(lambda: not workers_of(store))
    kept = commits(store)
    report = embed(manifest, store, **TWO)
    assert commits(store).items() >= kept.items() != set()
    counts = report.counts
    assert counts.encoded + counts.repeated + counts.copied <= 1200 - CHUNK_ROWS * (len(kept) - 1)
    assert store_bytes(store) == expected


def test_a_unit_whose_frames_do_not_read_is_named_and_stays_alone(tmp_path):
    manifest, store = write_one_view(tmp_path / "dataset", (300, 300)), tmp_path / "s.zarr"
    break_frame(manifest.parent / "data/episode_1.hdf5", "top", 250)
    with pytest.raises(FailedUnitsError, match=r"1 of 3 units failed.*unit 2: .*episode_1"):
        embed(manifest, store, **TWO)
    assert sorted(commits(store)) == ["000000.json", "000001.json"]


def test_a_worker_that_computes_something_else_is_refused(embedded, tmp_path):
    """As on a machine with other kernels: the tower is the same, the probe's features are not."""
    manifest, store, _ = embedded
    held = FeatureStore.open(store)
    probe = held.read_probe()
    other = replace(probe, features=probe.features + np.float16(1))
    FeatureStore.create(tmp_path / "s.zarr", held.attributes, held.read_steps(), other)
    plan = WorkerPlan(
        manifest=manifest,
        store=tmp_path / "s.zarr",
        backbone=tiny_tower(),
        revision=None,
        device="cpu",
        compiled=False,
        threads=1,
        index=FrameIndex.of([]),
    )
    with pytest.raises(EncoderMismatchError, match="gives probe frame"):
        encode_with_workers(ProcessPool(plan), 1, [0], print, bool)
    assert not commits(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 2}, "--workers and --cpus-per-worker need --executor"),
        ({"cpus_per_worker": 2}, "--workers and --cpus-per-worker need --executor"),
        ({"name": "processes", "address": "auto"}, "need --executor ray"),
        ({"name": "processes", "gpus_per_worker": 1}, "need --executor ray"),
    ],
)
def test_settings_of_another_executor_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ExecutorConfig.model_validate(settings).check()
