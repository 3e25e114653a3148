"""A feature store on a real S3 server: the bytes of a local one, and damage is never an outage."""

from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from pipeline.errors import IncompleteStoreError, ObjectStorageError, StoreError
from pipeline.features.encode.target import open_target
from pipeline.features.identity.probe import make_probe
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import check_digest, mark_complete, verify_checksums
from pipeline.storage.location import ObjectUrl
from pipeline.storage.open import open_folder
from tests.object_server import BUCKET, ask, failing_proxy, use_server
from tests.pipeline.tiny import (
    complete_store,
    create_store,
    fill_store,
    tiny_features,
    tiny_identity,
    tiny_start_frames,
    tiny_steps,
)
from tests.tower import load, tiny_tower

LENGTHS = (256, 40, 10)  # two units, the second one short
POOLED_1, RECORD_1 = "features/pooled/c/1/0/0", "commits/000001.json"


@pytest.fixture
def url(request, proxy):
    return ObjectUrl("s3", BUCKET, f"stores/{request.node.name}/x.zarr")


@pytest.fixture(scope="module")
def made(server):
    """A complete store that tests damage and mend."""
    url, endpoint = ObjectUrl("s3", BUCKET, "stores/whole.zarr"), f"http://127.0.0.1:{server}"
    with pytest.MonkeyPatch.context() as environment:
        use_server(environment, endpoint)
        complete_store(url, LENGTHS)
        yield url
        use_server(environment, endpoint)
        assert not verify_checksums(url).damaged


@pytest.fixture
def whole(made, server, monkeypatch):
    use_server(monkeypatch, f"http://127.0.0.1:{server}")
    return FeatureStore.open(made)


def content(location: Path | ObjectUrl) -> dict[str, bytes]:
    folder = open_folder(location)
    return {name: folder.read(name) for name in folder.names()}


def test_a_store_has_the_bytes_of_a_local_one(url, proxy, tmp_path):
    """One request in seven fails, in every way, while it is made, written, marked and read."""
    proxy.share = 1 / 7
    settings = {"rows_per_unit": 512, "told": ("open", "close", "open")}
    complete_store(tmp_path / "x.zarr", LENGTHS, **settings)
    complete_store(url, LENGTHS, **settings)
    assert content(url) == content(tmp_path / "x.zarr")
    store = FeatureStore.open(url)
    with store.unreplaced():
        check_digest(store)
        np.testing.assert_array_equal(store.read_features("pooled"), tiny_features(sum(LENGTHS)))
    assert not verify_checksums(url).damaged
    for path in (url, tmp_path / "x.zarr"):
        FeatureStore.open(path, writable=True).write_instructions(np.ones((2, 9), "f4"))
    assert content(url) == content(tmp_path / "x.zarr")
    assert len(proxy.failed) > 5


@pytest.mark.parametrize("kind", ["503", "500", "drop", "lose", "cut"])
def test_a_store_is_made_and_extended_though_each_first_request_fails(url, server, tmp_path, kind):
    """A further array asks for a new root, which exists: an answer that may be cut."""
    stores = [complete_store(tmp_path / "x.zarr", LENGTHS)]
    with failing_proxy(server) as proxy, pytest.MonkeyPatch.context() as environment:
        proxy.fails_first_time = kind
        use_server(environment, proxy.url)
        stores.append(complete_store(url, LENGTHS))
    with failing_proxy(server) as proxy, pytest.MonkeyPatch.context() as environment:
        proxy.fails_first_time = kind
        use_server(environment, proxy.url)
        for store in stores:
            opened = FeatureStore.open(store.path, writable=True)
            opened.write_instructions(np.ones((2, 9), "f4"))
        assert set(proxy.failed) == {kind}
        assert content(url) == content(tmp_path / "x.zarr")


def test_the_store_is_there_once_its_root_is_and_a_unit_once_its_record_is(url, proxy):
    fill_store(create_store(url, LENGTHS))
    put = [name.removeprefix(f"{url.path}/") for method, name in proxy.seen if method == "PUT"]
    assert put.index("zarr.json") > max(put.index("state/zarr.json"), put.index("probe/zarr.json"))
    for unit in range(2):
        arrays = [f"features/pooled/c/{unit}/0/0", f"frame_hash/c/{unit}/0"]
        assert put[-6 + 3 * unit :][:3] == [*arrays, f"commits/00000{unit}.json"]


@pytest.mark.usefixtures("impatient")
def test_what_a_creation_that_died_left_is_no_store_and_makes_room(url, proxy):
    whole = ObjectUrl("s3", BUCKET, f"{url.path}.whole")
    create_store(whole, LENGTHS)
    proxy.dies_at = lambda method, path: method == "PUT" and path.endswith("x.zarr/zarr.json")
    with pytest.raises(ObjectStorageError, match=r"x\.zarr/zarr\.json: object storage does not"):
        create_store(url, (*LENGTHS, 9))
    proxy.is_dead = False
    proxy.dies_at = lambda _method, _path: False
    assert "state/zarr.json" in set(open_folder(url).names())
    with pytest.raises(StoreError, match="expected a feature store, found none"):
        FeatureStore.open(url, allow_incomplete=True)
    create_store(url, LENGTHS)
    assert content(url) == content(whole)


@pytest.mark.parametrize(
    ("name", "committed"),
    [("features/pooled/c/1/0/0", {0}), ("commits/000001.json", {0}), ("COMPLETE.json", {0, 1})],
)
@pytest.mark.usefixtures("impatient")
def test_a_death_at_any_put_leaves_what_was_committed_and_no_more(
    whole, url, proxy, name, committed
):
    proxy.dies_at = lambda method, path: method == "PUT" and path.endswith(f"/x.zarr/{name}")
    with pytest.raises(ObjectStorageError, match=f"{name}: object storage does not respond"):
        complete_store(url, LENGTHS)
    proxy.is_dead, proxy.dies_at = False, lambda _method, _path: False
    with pytest.raises(IncompleteStoreError, match=f"after {len(committed)} of 2 units"):
        FeatureStore.open(url)
    store = FeatureStore.open(url, allow_incomplete=True, writable=True)
    assert store.valid_units() == committed
    fill_store(store, sorted({0, 1} - committed))
    store.write_start_frames(tiny_start_frames(len(LENGTHS)))
    mark_complete(store)
    assert content(url) == content(whole.path)


@pytest.mark.parametrize("is_same", [True, False])
def test_of_two_that_create_it_at_once_one_wins(url, proxy, server, is_same):
    """The other one's root arrives just before ours: equal stores are one, others are refused."""
    twin = ObjectUrl("s3", BUCKET, f"{url.path}.twin")
    identity = None if is_same else tiny_identity("e" * 64)
    root = create_store(twin, LENGTHS, identity=identity).folder.read("zarr.json")

    def is_quicker(method: str, path: str) -> bool:
        if method == "PUT" and path.endswith("x.zarr/zarr.json"):
            ask(server, "PUT", f"/{BUCKET}/{url.path}/zarr.json", root)
        return False

    proxy.dies_at = is_quicker
    if is_same:
        assert create_store(url, LENGTHS).num_rows == sum(LENGTHS)
    else:
        with pytest.raises(StoreError, match="another process has created a store there meanwhile"):
            create_store(url, LENGTHS)
    assert open_folder(url).read("zarr.json") == root


@pytest.mark.parametrize(
    ("name", "damage", "message", "reported"),
    [
        (
            POOLED_1,
            lambda held: held[: len(held) // 2],
            "pooled: cannot be read",
            "features/pooled",
        ),
        (POOLED_1, lambda held: held[:9] + b"?" + held[10:], "pooled: cannot", "features/pooled"),
        (POOLED_1, None, r"unit 1\) of features/pooled differ from", "features/pooled, unit 1: "),
        ("frame_hash/c/1/0", None, r"unit 1\) of frame_hash differ from", "frame_hash, unit 1: "),
        (RECORD_1, lambda held: held[:-9], "damaged commit record", "commit record of unit 1: "),
        (RECORD_1, None, r"unit 1\) have no commit record", "commit record of unit 1: "),
        ("state/c/0/0", None, "/state: differs from what was embedded", "state: "),
        ("COMPLETE.json", lambda held: held[:-9], "stopped after 2 of 2", "COMPLETE.json: "),
    ],
)
def test_nothing_torn_is_read_as_whole(whole, name, damage, message, reported):
    """A cut, changed or absent object of a store that was complete."""
    folder, held = whole.folder, whole.folder.read(name)
    if damage is None:
        folder.delete([name])
    else:
        folder.write(name, damage(held))
    try:
        with pytest.raises(StoreError, match=message):
            read_all(whole.path)
        [line] = verify_checksums(whole.path).damaged
        assert line.startswith(reported)
    finally:
        folder.write(name, held)


def test_a_store_without_its_mark_is_incomplete(whole):
    held = whole.folder.read("COMPLETE.json")
    whole.folder.delete(["COMPLETE.json"])
    for read in (read_all, verify_checksums):
        with pytest.raises(IncompleteStoreError):
            read(whole.path)
    whole.folder.write("COMPLETE.json", held)


def read_all(location: ObjectUrl) -> None:
    store = FeatureStore.open(location)
    with store.unreplaced():
        store.read_steps()
        store.read_features("pooled")
        for unit in range(store.num_units):
            store.read_unit_hashes(unit)


def test_who_believes_to_have_created_it_finds_that_another_has_with_other_rows(url):
    """The roots of two datasets of one manifest are equal: they name no rows."""
    encoder, ours = load(tiny_tower()), tiny_steps((256, 40, 20))
    probe = make_probe(encoder, np.zeros((0, 3, 256, 256, 3), np.uint8))
    held = create_store(url, LENGTHS, identity=encoder.identity, probe=probe)
    with pytest.raises(
        StoreError,
        match=r"306 steps are not the 316 steps of the dataset.* "
        "cannot be extended",
    ):
        open_target(held, held.attributes, ours, encoder, probe, may_grow=True)


def test_a_store_that_is_written_while_it_is_read_is_noticed(url):
    writer, reader = complete_store(url, LENGTHS), FeatureStore.open(url)
    other = tiny_features(sum(LENGTHS))[:256] + np.float16(1)
    with ExitStack() as reading:
        reading.enter_context(reader.unreplaced())
        hashes = np.zeros(other.shape[:2], np.uint64)
        writer.write_unit(0, {"pooled": other}, hashes, {"environment"})
        mark_complete(writer)
        with pytest.raises(StoreError, match="replaced or changed while it was read"):
            reading.close()


def test_two_writers_of_the_same_units_leave_whole_ones(url, tmp_path):
    """Nothing locks them out: both put the same bytes, in whatever order."""
    complete_store(tmp_path / "x.zarr", LENGTHS)
    stores = [
        create_store(url, LENGTHS),
        FeatureStore.open(url, allow_incomplete=True, writable=True),
    ]
    writers = [Thread(target=fill_store, args=(store,)) for store in stores]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stores[0].write_start_frames(tiny_start_frames(len(LENGTHS)))
    mark_complete(stores[0])
    assert content(url) == content(tmp_path / "x.zarr")


@pytest.mark.usefixtures("impatient")
def test_an_outage_is_no_damage(url, proxy):
    """What cannot be asked for must not count as absent: it would all be encoded again."""
    store = complete_store(url, LENGTHS)
    assert store.valid_units() == {0, 1}
    proxy.is_dead = True
    for ask_for in (
        store.valid_units,
        lambda: store.read_features("pooled"),
        store.read_probe,
        lambda: store.is_complete,
        lambda: verify_checksums(url),
        lambda: FeatureStore.open(url),
        lambda: fill_store(store),
    ):
        with pytest.raises(ObjectStorageError, match="does not respond after 1 retries"):
            ask_for()
    proxy.is_dead = False
    read_all(url)
