"""Processes that read frames: the same bytes as from a thread, and no unit lost with a process."""

import os
import signal
import uuid
from pathlib import Path

import pytest

from pipeline.datasets.manifest.model import Manifest
from pipeline.errors import FailedUnitsError
from pipeline.features.store.feature_store import FeatureStore
from tests.forked import start
from tests.pipeline.datasets.format_contract import TINY_FPS
from tests.pipeline.datasets.lerobot import lerobot_files
from tests.pipeline.features.encode.drivers import (
    commits,
    embed,
    kill,
    processes_with,
    store_bytes,
    wait_until,
    write_one_view,
)
from tests.pipeline.features.still_life import break_frame

EMBED = "from cli.embed import main; main()"


def write_av1(folder: Path) -> Path:
    """Write two episodes of two AV1 videos and one file each; three units, the last one short."""
    episodes = lerobot_files.counted_episodes(90, 430)
    root = lerobot_files.write_v3(folder / "data", episodes, codec="av1")
    keys = {"front": lerobot_files.FRONT, "wrist": lerobot_files.WRIST}
    manifest = Manifest.from_dict(
        {
            **{"name": "av1", "source": "a test", "revision": "1", "license": "none"},
            **{"path": str(root), "fps": TINY_FPS, "resize": [256, 256]},
            "views": [{"name": name, "key": key} for name, key in keys.items()],
            "state": {"key": "observation.state", "units": "none"},
            "action": {"key": "action", "units": "none"},
        }
    )
    (folder / "av1.toml").write_text(manifest.to_toml())
    return folder / "av1.toml"


@pytest.mark.filterwarnings("ignore:This DataLoader will create [34]")  # more than there are cores
@pytest.mark.parametrize(("write", "num_units"), [(write_one_view, 5), (write_av1, 3)])
def test_the_bytes_are_the_same_with_a_thread_one_process_and_several(write, num_units, tmp_path):
    manifest = write(tmp_path)
    held, num_read = {}, set()
    for number in (0, 1, 4):
        store = tmp_path / f"{number}.zarr"
        counts = embed(manifest, store, read_workers=number, images_per_pass=32).counts
        held[number] = store_bytes(store)
        num_read.add(counts.encoded + counts.repeated)
    assert embed(manifest, store, read_workers=4).counts.encoded == 0
    assert len(commits(store)) == num_units
    assert len(num_read) == 1  # nobody reads another's units
    assert held[0] == held[1] == held[4]


def test_a_damaged_frame_fails_its_unit_alone_in_a_process_too(tmp_path):
    manifest, store = write_one_view(tmp_path, (300, 300)), tmp_path / "s.zarr"
    path = tmp_path / "data/episode_1.hdf5"
    healthy = path.read_bytes()
    break_frame(path, "top", 20)  # row 320, of the second unit
    with pytest.raises(FailedUnitsError, match=r"1 of 3 units failed.*episode_1.*top: step 20: "):
        embed(manifest, store, read_workers=2)
    assert sorted(commits(store)) == ["000000.json", "000002.json"]
    path.write_bytes(healthy)
    assert embed(manifest, store, read_workers=2).seconds["compare"] > 0  # by processes too
    assert FeatureStore.open(store).is_complete


def test_killed_processes_and_parents_lose_no_committed_unit(tmp_path, monkeypatch):
    manifest, store = write_one_view(tmp_path, (1000, 1000)), tmp_path / "s.zarr"
    encoder = "efficientnet-lite0"  # spares each command the seconds of loading transformers
    embed(manifest, tmp_path / "reference.zarr", encoder=encoder)
    mark = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARK", mark)
    output = tmp_path / "output"
    words = [manifest, "--store", store, "--encoder", encoder, "--set", "read_workers=2"]

    def readers() -> set[int]:
        ours = processes_with(mark.encode(), in_their="environ")
        return ours & processes_with(b"spawn_main", in_their="cmdline")

    process = start(EMBED, *words, output=output)
    wait_until(lambda: commits(store))
    assert len(readers()) == 2
    kill(max(readers()))
    process.join(timeout=120)
    assert process.exitcode == 2
    complained = output.read_text()
    assert "Traceback" not in complained
    [line] = [line for line in complained.splitlines() if line.startswith("error: ")]
    assert "a process that reads frames was lost" in line
    kept = commits(store)

    # A worker that is late has not begun to watch its parent when that is killed.
    process = start(EMBED, *words, output=output)
    wait_until(lambda: len(readers()) == 2)
    late = max(readers())
    os.kill(late, signal.SIGSTOP)
    wait_until(lambda: len(commits(store)) > len(kept))
    kill(process.pid)
    os.kill(late, signal.SIGCONT)
    process.join(timeout=120)
    wait_until(lambda: not processes_with(mark.encode(), in_their="environ"))
    assert kept.items() <= commits(store).items()

    embed(manifest, store, encoder=encoder, read_workers=2)
    assert kept.items() <= commits(store).items()
    assert store_bytes(store) == store_bytes(tmp_path / "reference.zarr")
