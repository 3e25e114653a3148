"""Where stored frames are found, against a dictionary of everything that was stored."""

import numpy as np
import pytest

from pipeline.features.encode.known_frames import NEW, RECENT, STORED, FrameIndex, KnownFrames
from tests.pipeline.tiny import VIEWS, complete_store, tiny_environment, tiny_identity

POOLED, ENVIRONMENT = tiny_identity().features, tiny_environment(threads=2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    stores = [complete_store(folder / f"{n}.zarr", (300, 20 + n)) for n in range(2)]
    return [(stores[0], {1}), (stores[1], {0, 1})]


def held_frames(stored) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for store, units in stored:
        for unit in sorted(units):
            hashes = store.read_unit_hashes(unit).ravel()
            features = store.read_unit_features(unit)["pooled"].reshape(len(hashes), -1)
            for frame_hash, feature in zip(hashes, features, strict=True):
                found.setdefault(int(frame_hash), feature)
    return found


def test_every_stored_frame_is_found_and_no_other(stored):
    expected = held_frames(stored)
    known = KnownFrames(POOLED, ENVIRONMENT, FrameIndex.of(stored, place_matters=False))
    absent = [h for h in range(1, 50) if h not in expected]
    asked = np.array([*expected, *absent, 2**64 - 1], np.uint64)
    np.random.default_rng(0).shuffle(asked)
    features, status, environments = known.look_up(asked)
    for frame_hash, feature, found in zip(asked, features["pooled"], status, strict=True):
        assert found == (STORED if int(frame_hash) in expected else NEW)
        np.testing.assert_array_equal(feature, expected.get(int(frame_hash), np.zeros(768)))
    assert environments == {
        e for store, units in stored for u in units for e in store.unit_record(u).environments
    }


def test_a_frame_that_was_just_encoded_needs_no_store(stored):
    known = KnownFrames(POOLED, ENVIRONMENT, FrameIndex.of(stored, place_matters=False))
    [frame_hash] = np.array([7], np.uint64)
    known.add(np.array([7], np.uint64), {"pooled": np.ones((1, 768), np.float16)})
    features, status, environments = known.look_up(np.array([frame_hash], np.uint64))
    assert (features["pooled"].min(), status.tolist()) == (1, [RECENT])
    assert environments == {ENVIRONMENT.digest()}


def test_an_index_of_nothing_finds_nothing():
    known = KnownFrames(POOLED, ENVIRONMENT, FrameIndex.of([], place_matters=False))
    assert known.look_up(np.arange(3, dtype=np.uint64))[1].tolist() == [NEW] * 3


def test_the_index_is_sorted_first_come_first_found_and_12_bytes_a_frame(stored):
    index = FrameIndex.of(stored, place_matters=False)
    stored_hashes = np.concatenate(
        [store.read_unit_hashes(u).ravel() for store, units in stored for u in sorted(units)]
    )
    order = np.argsort(stored_hashes, kind="stable")
    np.testing.assert_array_equal(index.hashes, stored_hashes[order])
    np.testing.assert_array_equal(index.positions, order)
    assert index.hashes.nbytes + index.positions.nbytes == 12 * len(stored_hashes)
    assert len(stored_hashes) == (320 - 256 + 321) * len(VIEWS)
    assert len(np.unique(stored_hashes)) < len(stored_hashes)  # else nothing was said about ties
