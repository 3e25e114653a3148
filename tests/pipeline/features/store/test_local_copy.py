"""Local copies of features: checked, resumed, bounded; from a real S3 server through failures."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ObjectStorageError, StoreError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.rows import StoredRows
from pipeline.storage.local import user_cache
from pipeline.storage.location import ObjectUrl
from pipeline.storage.objects.requests import RETRY
from pipeline.training.data.windows import WindowData
from tests.object_server import BUCKET, failing_proxy, s3_server, use_server
from tests.pipeline.tiny import complete_store, tiny_features

LENGTHS = (300, 200, 400, 250)  # five units
ROW_BYTES = 3 * 768 * 2


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def everything(store: FeatureStore, cache: Path) -> np.ndarray:
    rows = StoredRows([store], "features/pooled", cache)
    return rows.read(torch.arange(3 * store.num_rows)).view(-1, 3, 768).numpy()


def copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_bucket_is_copied_where_requests_fail_and_resumed_after_an_outage(cache, monkeypatch):
    monkeypatch.setitem(RETRY, "max_retries", 1)
    with s3_server() as port, failing_proxy(port) as proxy:
        use_server(monkeypatch, proxy.url)
        store = complete_store(ObjectUrl("s3", BUCKET, "s.zarr"), LENGTHS)
        proxy.dies_at = lambda method, path: method == "GET" and "/features/pooled/c/3/" in path
        with pytest.raises(ObjectStorageError, match="object storage does not respond after"):
            everything(FeatureStore.open(store.path), cache)
        assert copies(cache) == ["000000", "000001", "000002", "000003.partial"]
        proxy.is_dead, proxy.dies_at = False, lambda _method, _path: False
        monkeypatch.setitem(RETRY, "max_retries", 5)
        proxy.share, before = 0.1, len(proxy.seen)
        found = everything(FeatureStore.open(store.path), cache)
        np.testing.assert_array_equal(found, tiny_features(sum(LENGTHS)))
        fetched = {
            path.split("/features/pooled/c/")[-1][0]
            for _, path in proxy.seen[before:]
            if "/c/" in path
        }
        assert not {"0", "1", "2"} & {unit for unit in fetched if unit.isdigit()} - {"3", "4"}
    assert copies(cache) == [f"{unit:06d}" for unit in range(5)]


def test_a_damaged_unit_is_not_copied(cache, tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS, codec="blosc")
    folder = store.path / "features/pooled/c"
    (folder / "1/0/0").write_bytes((folder / "2/0/0").read_bytes())
    with pytest.raises(StoreError, match=r"unit 1\) of features/pooled differ from"):
        everything(store, cache)
    assert copies(cache)[0] == "000000"
    assert "000001" not in copies(cache)


def test_a_copy_that_was_damaged_is_found_before_training(cache, tmp_path):
    store = complete_store(tmp_path / "s.zarr", LENGTHS, codec="blosc")
    everything(store, cache)
    (path,) = cache.rglob("000002")
    path.write_bytes(path.read_bytes()[:-6])  # as a full disk may leave it: it is copied again
    np.testing.assert_array_equal(everything(store, cache), tiny_features(sum(LENGTHS)))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        StoreError,
        match=r"unit 2.*differ from the checksum of their commit record.* delete the copies",
    ):
        WindowData(store, features=["pooled"], validation_share=0.0, cache=cache)


def test_copies_that_would_fill_the_disk_are_refused_before_the_first(cache, tmp_path, monkeypatch):
    store = complete_store(tmp_path / "s.zarr", LENGTHS, codec="blosc")
    free = sum(LENGTHS) * ROW_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(ConfigError, match=r"needs 0.0 GB more, .* use another data.cache"):
        everything(store, cache)
    assert copies(cache) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    np.testing.assert_array_equal(everything(store, cache), tiny_features(sum(LENGTHS)))


def test_copies_are_kept_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("features") == tmp_path / "frozen-vla/features"
