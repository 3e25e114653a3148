"""Windows streamed from a real S3 server: those of the disk, through failures and an outage."""

from contextlib import closing

import pytest
import torch

from pipeline.errors import ObjectStorageError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import ObjectUrl
from pipeline.storage.objects.requests import RETRY
from pipeline.training.config import with_settings
from pipeline.training.distributed import Ranks
from pipeline.training.presets import debug
from tests.object_server import BUCKET, failing_proxy, s3_server, use_server
from tests.pipeline.tiny import complete_store
from tests.pipeline.training.data.test_streaming import SETTINGS, drawn, expect_equal, streamed

LENGTHS = (300, 200, 400, 250)  # five units, in more than one group
STEPS = range(300)  # two epochs


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the same store gives on the disk."""
    store = complete_store(tmp_path_factory.mktemp("objects") / "s.zarr", LENGTHS)
    with closing(streamed(store)) as data:
        return drawn(data, STEPS)


def test_windows_are_those_of_the_disk_where_requests_fail_and_after_an_outage(
    expected, monkeypatch
):
    monkeypatch.setitem(RETRY, "max_retries", 5)
    with s3_server() as port, failing_proxy(port) as proxy:
        use_server(monkeypatch, proxy.url)
        store = complete_store(ObjectUrl("s3", BUCKET, "s.zarr"), LENGTHS)
        proxy.share = 0.1
        with closing(streamed(FeatureStore.open(store.path))) as data:
            batches = data.batches(with_settings(debug(), SETTINGS), Ranks())
            for step in STEPS[:60]:
                for part, windows in enumerate(batches.parts(step)):
                    expect_equal(windows, expected[2 * step + part])
            proxy.is_dead = True
            with pytest.raises(ObjectStorageError, match="object storage does not answer after"):
                [part for step in STEPS for part in batches.parts(step)]
        assert proxy.failed
        proxy.is_dead = False
        with closing(streamed(FeatureStore.open(store.path))) as data:
            again = drawn(data, STEPS[60:])
        rows = torch.cat([windows.rows for windows in expected])
        assert torch.equal(torch.cat([windows.rows for windows in again]), rows[60 * 8 :])
        for ours, theirs in zip(again, expected[120:], strict=True):
            expect_equal(ours, theirs)
