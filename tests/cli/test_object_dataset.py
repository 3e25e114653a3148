"""Datasets in object storage, on a real S3 server: read in ranges, and an outage is no damage."""

import gc
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.hdf5.aloha import AlohaHdf5Reader
from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from pipeline.errors import ObjectStorageError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import Location, ObjectUrl
from pipeline.storage.objects import folder as object_folder
from pipeline.storage.objects.requests import RETRY, open_bucket
from pipeline.storage.open import open_folder
from tests.cli.test_commands import invoke
from tests.cli.test_object_storage import refused
from tests.object_server import BUCKET, KEY_ID, SECRET
from tests.pipeline.datasets.hdf5 import aloha_files, robomimic_files
from tests.pipeline.features.still_life import break_frame, write_still_episode, write_still_life
from tests.tower import tiny_tower

LENGTHS = (250, 6, 6, 2)  # the first two episodes are one unit, the others another
CHANGED_ROW = 6  # of the second unit: the first of the last episode


@pytest.fixture
def url(request, proxy):
    return ObjectUrl("s3", BUCKET, request.node.name.replace("[", "/").rstrip("]"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write_still_life(tmp_path_factory.mktemp("recorded"), LENGTHS)


@pytest.fixture(scope="module")
def local(recorded):
    """The store of the same dataset on the disk."""
    store = recorded.parent / "local.zarr"
    assert embed(recorded, store).exit_code == 0
    return store


def embed(manifest, store, *words):
    return invoke("vla-embed", manifest, "--store", store, "--encoder", tiny_tower(), *words)


def upload(root: Path, url: ObjectUrl) -> None:
    for path in [root] if root.is_file() else root.iterdir():
        name = path.name if root.is_dir() else ""
        folder, name = (url, name) if name else (url.parent, url.name)
        open_folder(folder).write(name, path.read_bytes())


def describe(recorded: Path, folder: Path, place: object, extra: str = "") -> Path:
    """Write the manifest of `recorded` for a dataset in another place."""
    manifest = folder / "there.toml"
    text = recorded.read_text().replace('path = "data"', f'path = "{place}"')
    text = text.replace('format = "aloha_hdf5"\n', "")
    assert str(place) in text
    assert "format" not in text
    manifest.write_text(text + extra)
    return manifest


def rows(store: Path) -> dict[str, bytes]:
    """Return the bytes of every chunk: features, frame_hash and the arrays of the steps."""
    held = {str(path.relative_to(store)): path for path in store.rglob("c/**/*") if path.is_file()}
    assert {"features/pooled/c/1/0/0", "frame_hash/c/1/0", "state/c/0/0"} <= held.keys()
    return {name: path.read_bytes() for name, path in held.items()}


def test_a_dataset_in_a_bucket_gives_the_bytes_of_a_local_one(
    recorded, local, url, proxy, tmp_path
):
    """One request in ten fails; then an object is replaced, and its frames are compared."""
    upload(recorded.parent / "data", url)
    one = recorded.parent / "data" / "episode_2.hdf5"
    sums = f'[checksums]\n"{one.name}" = "{sha256(one.read_bytes()).hexdigest()}"\n'
    manifest, store = describe(recorded, tmp_path, url, sums), tmp_path / "x.zarr"
    proxy.share = 0.1
    assert "\nepisodes      4\n" in invoke("vla-data", "info", url).stdout  # without a manifest
    result = embed(manifest, store)
    assert result.exit_code == 0, result.stderr
    assert proxy.failed
    assert rows(store) == rows(local)
    verified = invoke("vla-data", "verify", store, "--sample", 2, "--encoder", tiny_tower())
    assert verified.exit_code == 0, verified.output

    assert " 0 images encoded" in embed(manifest, store).stdout
    folder = tmp_path / "changed"
    folder.mkdir()
    upload(write_still_episode(folder, 3, LENGTHS[3], {0: 99}), url / "episode_3.hdf5")
    before = FeatureStore.open(store).read_unit_hashes(1)
    assert " 0 images encoded" not in embed(manifest, store).stdout
    changed = (FeatureStore.open(store).read_unit_hashes(1) != before).any(axis=1)
    assert list(np.flatnonzero(changed)) == [CHANGED_ROW]

    upload(write_still_episode(folder, 2, LENGTHS[2], {0: 99}), url / "episode_2.hdf5")
    said = refused(embed(manifest, store))
    assert f"{url}/episode_2.hdf5: expected sha256" in said


@pytest.mark.usefixtures("impatient")
def test_an_outage_while_frames_are_read_ends_in_one_line_and_the_same_command_goes_on(
    recorded, local, url, proxy, tmp_path
):
    upload(recorded.parent / "data", url)
    manifest, store = describe(recorded, tmp_path, url), tmp_path / "x.zarr"

    def dies_at(method: str, path: str) -> bool:
        is_frame = method == "GET" and path.endswith("episode_2.hdf5")
        if not is_frame or not (store / "zarr.json").exists():
            return False
        deadline = time.monotonic() + 30
        while not (store / "commits" / "000000.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return True

    proxy.dies_at = dies_at
    # h5py holds its lock while it waits for the frame, and needs it to free any object: no thread,
    # not even the one that answers, may meet what an earlier test left as garbage.
    gc.collect()
    gc.disable()
    try:
        said = refused(embed(manifest, store))
    finally:
        gc.enable()
    assert f"{url}/episode_2.hdf5: object storage does not respond after 1 retries" in said
    assert "then run the same command again" in said
    assert [path.name for path in (store / "commits").iterdir()] == ["000000.json"]
    proxy.is_dead, proxy.dies_at = False, lambda _method, _path: False
    result = embed(manifest, store)
    assert result.exit_code == 0, result.stderr
    assert rows(store) == rows(local)


def test_a_broken_frame_fails_its_unit_alone(url, proxy, tmp_path):
    manifest = write_still_life(tmp_path, (4,))
    break_frame(tmp_path / "data" / "episode_0.hdf5", "front", 2)
    upload(tmp_path / "data", url)
    said = refused(embed(describe(manifest, tmp_path, url), tmp_path / "x.zarr"))
    assert "1 of 1 units failed" in said
    assert f"{url}/episode_0.hdf5: observations/images/front: step 2: " in said


def aloha(root: Location) -> AlohaHdf5Reader:
    keys = (aloha_files.FRONT, aloha_files.WRIST), (aloha_files.STATE, aloha_files.ACTION)
    return AlohaHdf5Reader(DatasetConfig(root, *keys))


def robomimic(root: Location) -> RobomimicHdf5Reader:
    keys = robomimic_files.FRONT, robomimic_files.WRIST
    numbers = robomimic_files.STATE, robomimic_files.ACTION
    return RobomimicHdf5Reader(DatasetConfig(root, keys, numbers))


def write_tiny(folder: Path, layout: str) -> Path:
    if layout == "robomimic":
        masks = {"valid": (1,)}
        path = folder / "image.hdf5"
        return robomimic_files.write_robomimic(path, {0: 0, 1: 1}, masks=masks, compress=True)
    (folder / "episodes").mkdir()
    write = aloha_files.write_compressed if layout == "jpeg" else aloha_files.write_raw
    return write(folder / "episodes")


READERS = {"raw": aloha, "jpeg": aloha, "robomimic": robomimic}


def everything(layout: str, root: Location) -> list[np.ndarray]:
    reader = READERS[layout](root)
    read: list[np.ndarray] = []
    for episode in range(reader.num_episodes):
        read += reader.frames(episode, 0, reader.episode_length(episode))
        read += [reader.numbers(episode, key) for key in reader._episodes[0].widths]
    if layout == "robomimic":
        read.append(np.array(reader.subset("valid")))
    reader.close()
    return read


@pytest.mark.parametrize("layout", READERS)
def test_an_outage_at_whatever_request_is_no_damage(layout, url, proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(object_folder, "BLOCK_BYTES", 4096)  # so that there are many requests
    monkeypatch.setattr(object_folder, "MAX_BLOCKS", 2)
    root = write_tiny(tmp_path, layout)
    place = url if root.is_dir() else url / root.name
    upload(root, place)
    proxy.seen.clear()
    read = everything(layout, place)
    num_requests = len(proxy.seen)
    for ours, theirs in zip(read, everything(layout, root), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert num_requests > 10
    # Only now: the proxy closes a connection that was idle for seconds, as on a busy machine.
    monkeypatch.setitem(RETRY, "max_retries", 0)
    open_bucket.cache_clear()
    for last in range(0, num_requests, 1 + num_requests // 10):
        proxy.is_dead = False
        proxy.seen.clear()
        proxy.dies_at = lambda _method, _path, last=last: len(proxy.seen) >= last
        with pytest.raises(ObjectStorageError, match="does not respond"):
            everything(layout, place)


def test_ranges_are_read_and_never_the_whole_object(url, proxy, tmp_path):
    """Of 8 MB, a byte in the middle costs one block; what was replaced meanwhile is refused."""
    content = np.random.default_rng(0).bytes(8 * 2**20 + 5)
    open_folder(url).write("x", content)
    held = object_folder.ObjectFile(url / "x")
    proxy.seen.clear()
    for start, size in [(5_000_000, 1), (5_000_001, 9), (3 * 2**20 - 4, 8), (len(content) - 3, 9)]:
        target = bytearray(b"?" * size)
        held.seek(start)
        assert held.readinto(target) == min(size, len(content) - start)
        assert bytes(target) == content[start : start + size].ljust(size, b"\0")
    assert len(proxy.seen) == 4  # of four blocks
    held.seek(7)
    assert held.read(2_500_000) == content[7:2_500_007]
    assert len(proxy.seen) == 5
    open_folder(url).write("x", content[::-1])
    held.seek(7_000_000)
    with pytest.raises(ObjectStorageError, match="replaced while it was read"):
        held.read(1)


def test_what_cannot_be_read_from_there_is_said_in_a_line(recorded, url, proxy, tmp_path):
    def said_of(place: object, extra: str = "") -> str:
        manifest = describe(recorded, tmp_path, place)
        manifest.write_text(extra + manifest.read_text())
        return refused(embed(manifest, tmp_path / "x.zarr"))

    assert f"{url}: expected a dataset, found nothing" in said_of(url)
    open_folder(url).write("meta/info.json", b"{}")
    for said in (said_of(url), said_of(url, 'format = "lerobot_v3"\n')):
        assert f"{url}: expected one of the formats aloha_hdf5, robomimic_hdf5" in said
        assert "to a disk" in said
    said = said_of(f"s3://{KEY_ID}:{SECRET}@{BUCKET}/x")
    assert "path: s3://...: expected s3://bucket/path" in said
