"""The store on a real disk: what counts as written, and what is never read as data."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.store.attributes import FORMAT_VERSION
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest, mark_complete
from pipeline.features.store.records import COMPLETE_MARK, UnitRecord, read_sealed, write_sealed
from pipeline.features.store.units import CHUNK_ROWS
from tests.forked import start
from tests.pipeline.tiny import (
    complete_store,
    create_store,
    fill_store,
    tiny_features,
    tiny_identity,
    tiny_probe,
    tiny_start_frames,
    tiny_steps,
)

LENGTHS = (CHUNK_ROWS, 40, 10)  # two units, the second one short, cut within no episode end
NUM_ROWS = sum(LENGTHS)


def test_features_and_steps_come_back_bit_for_bit(tmp_path):
    complete_store(tmp_path / "s.zarr", LENGTHS)

    store = FeatureStore.open(tmp_path / "s.zarr")

    np.testing.assert_array_equal(store.read_features("pooled"), tiny_features(NUM_ROWS))
    steps, expected = store.read_steps(), tiny_steps(LENGTHS)
    for name in ("state", "action", "timestamp", "episode_ends"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(expected, name))


def test_steps_of_two_chunks_come_back(tmp_path):
    store, expected = create_store(tmp_path / "s.zarr", (70_000, 3)), tiny_steps((70_000, 3))
    assert (tmp_path / "s.zarr/state/c/1/0").is_file()
    for name in ("state", "action", "timestamp", "episode_ends"):
        np.testing.assert_array_equal(getattr(store.read_steps(), name), getattr(expected, name))


def test_other_zarr_readers_read_it(tmp_path):
    complete_store(tmp_path / "s.zarr", LENGTHS)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    np.testing.assert_array_equal(group["features/pooled"][:], tiny_features(NUM_ROWS))
    assert group.attrs["view_names"] == ["front", "top", "r_vis"]


def test_a_chunk_is_the_raw_array_and_a_checksum(tmp_path):
    complete_store(tmp_path / "s.zarr", LENGTHS)
    content = (tmp_path / "s.zarr/features/pooled/c/0/0/0").read_bytes()
    assert content[:-4] == tiny_features(NUM_ROWS)[:CHUNK_ROWS].tobytes()


def test_unwritten_rows_read_as_nan_and_never_as_zero(tmp_path):
    create_store(tmp_path / "s.zarr", LENGTHS)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert np.isnan(group["features/pooled"][:]).all()


def test_an_incomplete_store_is_refused_and_says_how_far_it_is(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS)
    fill_store(store, [1])
    with pytest.raises(IncompleteStoreError, match="1 of 2 units; run the same vla-embed"):
        FeatureStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"unit 0\) have no commit record"):
        mark_complete(store)
    assert not (tmp_path / "s.zarr" / COMPLETE_MARK).exists()


def test_only_committed_units_are_valid(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS)
    fill_store(store)
    (tmp_path / "s.zarr/commits/000001.json").unlink()
    assert store.valid_units() == {0}


def read_unit(store: FeatureStore, unit: int) -> None:
    store.read_unit_features(unit)
    store.read_unit_hashes(unit)


@pytest.mark.parametrize(
    "name", ["features/pooled/c/0/0/0", "frame_hash/c/0/0", "commits/000000.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_never_read_as_data(tmp_path, name, damage):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    path = tmp_path / "s.zarr" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()

    with pytest.raises(StoreError, match=r"rows 0\.\.256 \(unit 0\)|features|frame_hash"):
        read_unit(store, 0)
    assert store.valid_units() == {1}


def test_a_flipped_bit_among_the_hashes_costs_its_own_unit_alone(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    expected = store.read_unit_hashes(1)
    assert expected.tolist() == np.arange(3 * 50).reshape(50, 3).tolist()
    path = store.path / "frame_hash/c/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    assert store.valid_units() == {1}
    np.testing.assert_array_equal(store.read_unit_hashes(1), expected)
    with pytest.raises(StoreError, match=r"frame_hash: cannot be read"):
        store.read_unit_hashes(0)


def test_hashes_that_another_program_rewrote_do_not_pass(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    zarr.open_group(store.path, mode="r+")["frame_hash"][3, 1] = 7
    with pytest.raises(StoreError, match=r"unit 0\) of frame_hash differ from the checksum"):
        store.read_unit_hashes(0)


def test_a_record_of_another_encoder_is_not_taken(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    name = "commits/000000.json"
    record = read_sealed(store.folder, name, UnitRecord)
    write_sealed(store.folder, name, record.model_copy(update={"fingerprint": "0" * 64}))
    assert store.valid_units() == {1}


def test_rewriting_a_unit_takes_the_complete_mark_away_first(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    digest = store.digest()
    fill_store(store, [0])
    assert not store.is_complete
    mark_complete(store)
    assert store.digest() == digest


def test_creating_over_something_is_refused(tmp_path):
    create_store(tmp_path / "s.zarr", (4,))
    with pytest.raises(StoreError, match="expected an empty or new folder"):
        create_store(tmp_path / "s.zarr", (4,))


def test_other_folders_and_newer_formats_are_refused(tmp_path):
    with pytest.raises(StoreError, match="expected a feature store, found none"):
        FeatureStore.open(tmp_path)
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="cannot be read as a feature store"):
        FeatureStore.open(tmp_path / "other.zarr")
    store = create_store(tmp_path / "s.zarr", (4,))
    path, newer = store.path / "zarr.json", FORMAT_VERSION + 1
    text = path.read_text()
    path.write_text(text.replace(f'version": {FORMAT_VERSION}', f'version": {newer}'))
    with pytest.raises(StoreError, match=f"format version {FORMAT_VERSION}, found {newer};"):
        FeatureStore.open(store.path, allow_incomplete=True)
    fill_store(store)
    mark_complete(store)  # as the newer program would have done
    with pytest.raises(StoreError, match=f"format version {FORMAT_VERSION}, found {newer};"):
        FeatureStore.open(store.path)


def replace_steps(store: FeatureStore, name: str, value: float) -> None:
    """Write into a finished store with another Zarr program: every checksum is right."""
    zarr.open_group(store.path, mode="r+")[name][0] = value


@pytest.mark.parametrize(
    ("name", "value"), [("state", np.nan), ("action", 0.5), ("episode_ends", 2), ("timestamp", 9.0)]
)
def test_steps_changed_after_completion_are_noticed(tmp_path, name, value):
    store = complete_store(tmp_path / "s.zarr", (4, 4))
    check_digest(store)
    replace_steps(store, name, value)
    with pytest.raises(StoreError, match=rf"s\.zarr/{name}: differs from what was embedded"):
        FeatureStore.open(store.path).read_steps()


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_complete_mark_marks_nothing(tmp_path, content):
    store = complete_store(tmp_path / "s.zarr", (4,))
    (store.path / COMPLETE_MARK).write_text(content)
    with pytest.raises(IncompleteStoreError, match="run the same"):
        FeatureStore.open(store.path)


@pytest.mark.parametrize("name", ["features/pooled", "state", "episode_ends"])
def test_a_missing_array_is_a_store_error(tmp_path, name):
    store = complete_store(tmp_path / "s.zarr", (4,))
    (store.path / name / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"s\.zarr"):
        check_digest(FeatureStore.open(store.path))


def test_an_empty_folder_becomes_a_store(tmp_path):
    (tmp_path / "s.zarr").mkdir()
    complete_store(tmp_path / "s.zarr", (4,))
    assert FeatureStore.open(tmp_path / "s.zarr").num_rows == 4


def test_the_digest_names_the_content(tmp_path):
    digests = {
        complete_store(tmp_path / "a.zarr", (4, 5)).digest(),
        complete_store(tmp_path / "b.zarr", (4, 5)).digest(),
        complete_store(tmp_path / "c.zarr", (5, 4)).digest(),
    }
    assert len(digests) == 2


def test_the_probe_comes_back_bit_for_bit(tmp_path):
    create_store(tmp_path / "s.zarr", (4,))
    held, expected = FeatureStore.open(tmp_path / "s.zarr", allow_incomplete=True), tiny_probe()
    probe = held.read_probe()
    np.testing.assert_array_equal(probe.frames, expected.frames)
    np.testing.assert_array_equal(probe.features["pooled"], expected.features["pooled"])
    assert (probe.environment, probe.tolerance) == (expected.environment, expected.tolerance)
    assert held.attributes.environment == expected.environment


def test_start_frames_come_back_spread_over_the_episodes_and_name_the_content(tmp_path):
    lengths = (1,) * 130
    store = complete_store(tmp_path / "s.zarr", lengths)
    held, digest = store.read_start_frames(), store.digest()
    np.testing.assert_array_equal(held.frames, tiny_start_frames(64))
    assert (held.episodes[0], held.episodes[-1]) == (0, 129)
    assert set(np.diff(held.episodes)) == {2, 3}
    store.write_start_frames(255 - held.frames)
    assert not store.is_complete
    mark_complete(store)
    assert store.digest() != digest
    path = store.path / "start_frames/c/0/0/0/0/0"
    path.unlink()
    with pytest.raises(StoreError, match="start_frames"):
        store.read_start_frames()


def test_a_probe_that_another_program_rewrote_is_refused(tmp_path):
    """Every checksum is right, and the store is not complete: its own digest tells."""
    store = create_store(tmp_path / "s.zarr", (4,))
    zarr.open_group(store.path, mode="r+")["probe/features/pooled"][0, 0, 0] = 1
    with pytest.raises(StoreError, match="probe: damaged"):
        FeatureStore.open(store.path, allow_incomplete=True).read_probe()


def test_units_record_which_environments_computed_them(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS)
    features = {"pooled": tiny_features(NUM_ROWS)[:CHUNK_ROWS]}
    store.write_unit(0, features, np.ones((CHUNK_ROWS, 3), np.uint64), {"b", "a"})
    assert store.unit_record(0).environments == ("a", "b")
    with pytest.raises(StoreError, match="no commit record"):
        store.unit_record(1)


def test_the_source_digest_names_what_was_seen_whoever_encoded_it(tmp_path):
    ours = complete_store(tmp_path / "a.zarr", (4, 5))
    digest = ours.source_digest()
    other_encoder = tiny_identity("0" * 64)
    theirs = complete_store(tmp_path / "b.zarr", (4, 5), identity=other_encoder, codec="blosc")
    assert theirs.source_digest() == digest
    assert theirs.digest() != ours.digest()
    assert complete_store(tmp_path / "c.zarr", (5, 4)).source_digest() != digest
    fill_store(ours, [0])
    with pytest.raises(IncompleteStoreError):
        ours.source_digest()
    hashes = ours.read_unit_hashes(0)
    hashes[3, 1] += 1  # the pixels of one frame
    ours.write_unit(0, ours.read_unit_features(0), hashes, {"0"})
    mark_complete(ours)
    assert ours.source_digest() != digest


@pytest.mark.parametrize("codec", ["none", "blosc"])
def test_a_flipped_bit_is_no_data_in_either_codec(tmp_path, codec):
    store = complete_store(tmp_path / "s.zarr", (8,), codec=codec)
    path = store.path / "features/pooled/c/0/0/0"
    content = bytearray(path.read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] ^= 8
        path.write_bytes(content)
        with pytest.raises(StoreError):
            store.read_unit_features(0)
        content[place] ^= 8
    # For readers that know no commit records: the checksum that Zarr itself verifies.
    assert bytes(content[-4:]) == google_crc32c.value(bytes(content[:-4])).to_bytes(4, "little")


def test_attributes_changed_after_completion_are_noticed(tmp_path):
    store = complete_store(tmp_path / "s.zarr", (4,))
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace('"fps": 50.0', '"fps": 10.0'))
    with pytest.raises(StoreError, match=r"zarr\.json: is missing or was changed"):
        FeatureStore.open(store.path)


# A limit on the size of a file stops a write halfway, as a full disk does, whoever the user is.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.pipeline.tiny import create_store, fill_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest, mark_complete
path, limit, step = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if step == "create":
        create_store(path, (4,))
    else:
        store = FeatureStore.open(path, allow_incomplete=True, writable=True)
        fill_store(store, [1]) if step == "unit" else mark_complete(store)
except OSError as error:
    print("OSError", error.errno, error.filename)
"""


def run_on_a_full_disk(store: Path, limit: int, step: str) -> None:
    output = store.parent.with_suffix(".txt")
    process = start(FULL_DISK, store, limit, step, output=output)
    process.join(120)
    assert process.exitcode == 0, output.read_text()
    kind, number, name = output.read_text().split()
    assert (kind, int(number)) == ("OSError", errno.EFBIG), output.read_text()
    assert name.startswith(str(store.parent))


def test_a_full_disk_leaves_no_half_store(tmp_path):
    run_on_a_full_disk(tmp_path / "s.zarr", 100_000, "create")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_what_was_committed(tmp_path):
    store = create_store(tmp_path / "s.zarr", LENGTHS)
    fill_store(store, [0])
    run_on_a_full_disk(store.path, 100_000, "unit")
    held = FeatureStore.open(store.path, allow_incomplete=True, writable=True)
    assert held.valid_units() == {0}
    fill_store(held, [1])
    run_on_a_full_disk(store.path, 1_000, "mark")
    assert not held.is_complete
    mark_complete(held)
    np.testing.assert_array_equal(
        FeatureStore.open(store.path).read_features("pooled"), tiny_features(NUM_ROWS)
    )


# Bound onto itself read-only in a namespace of its own: even root cannot write there, and the
# mount goes away with the process.
READ_ONLY = """
from pathlib import Path
import sys
from tests.pipeline.tiny import create_store, fill_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest, mark_complete
path = Path(sys.argv[1])
print(len(FeatureStore.open(path).read_features("pooled")))
store = FeatureStore.open(path, writable=True)
for write in (lambda: fill_store(store, [0]), lambda: create_store(path.parent / "b.zarr", (4,))):
    try:
        write()
    except OSError as error:
        print(error.strerror)
print(sorted(store.valid_units()), store.is_complete)
"""


def test_a_store_on_a_read_only_disk_is_read_and_refuses_to_be_written(tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS)
    alone = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system gives no namespace of its own")
    mounts = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    words = [*alone, "sh", "-c", mounts, tmp_path, sys.executable, "-c", READ_ONLY, store.path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == [
        str(NUM_ROWS),
        "Read-only file system",
        "Read-only file system",
        "[0, 1] True",
    ], done.stderr
