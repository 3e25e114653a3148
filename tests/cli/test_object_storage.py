"""The way from recordings to a policy with the store in object storage, through the commands."""

import pytest

from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import parse_location
from pipeline.storage.objects.requests import RETRY
from pipeline.storage.open import open_folder
from tests.cli.test_commands import invoke, refusal_line
from tests.object_server import BUCKET, KEY_ID, SECRET, FailingProxy
from tests.pipeline.features.still_life import write_still_episode, write_still_life
from tests.tower import tiny_tower

LENGTHS = (258, 6)  # two units


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write_still_life(tmp_path_factory.mktemp("recorded"), LENGTHS)


def embed(manifest, store, *words):
    return invoke("vla-embed", manifest, "--store", store, "--encoder", tiny_tower(), *words)


@pytest.fixture(scope="module")
def local(recorded):
    """The same store on the disk."""
    store = recorded.parent / "local.zarr"
    assert embed(recorded, store).exit_code == 0
    return store


def content(location) -> dict[str, bytes]:
    folder = open_folder(location)
    return {name: folder.read(name) for name in folder.names()}


def train(store, out, *words) -> dict[str, bytes]:
    """Train three steps; return the files with weights."""
    words = ("--preset", "debug", "--set", "steps=3", "--out", out, *words)
    trained = invoke("vla-train", store, *words)
    assert trained.exit_code == 0, trained.output
    held = out.glob("checkpoints/step_00000003/*.safetensors")
    return {path.name: path.read_bytes() for path in held}


def count(proxy: FailingProxy, method: str, ending: str) -> int:
    return sum(asked == method and path.endswith(ending) for asked, path in proxy.seen)


def test_embed_verify_and_train_where_one_request_in_ten_fails(recorded, local, proxy, tmp_path):
    proxy.share = 0.1
    store = f"s3://{BUCKET}/ten/x.zarr"
    result = embed(recorded, store)
    assert result.exit_code == 0, result.stderr
    assert f"{store}: 2 episodes, 264 steps x 3 views" in result.stdout
    assert content(parse_location(store)) == content(local)

    checked = invoke("vla-data", "verify", store, "--checksums")
    assert checked.exit_code == 0, checked.output
    assert ": all intact" in checked.stdout
    verified = invoke("vla-data", "verify", store, "--sample", 5, "--encoder", tiny_tower())
    assert verified.exit_code == 0, verified.output
    assert f"{store}: OK (5 steps bit for bit" in verified.stdout
    assert FeatureStore.open(local).digest() in invoke("vla-data", "info", store).stdout

    cache = ("--set", f"data.cache={tmp_path / 'cache'}")
    assert train(local, tmp_path / "here") == train(store, tmp_path / "there", *cache) != {}
    assert len(list((tmp_path / "cache").rglob("00000?"))) == 2  # units
    assert len(set(proxy.failed)) > 3


def test_a_server_that_dies_in_the_middle_is_one_line_and_the_same_command_goes_on(
    recorded, local, proxy, monkeypatch, tmp_path
):
    monkeypatch.setitem(RETRY, "max_retries", 1)
    store = f"s3://{BUCKET}/dies/x.zarr"
    proxy.dies_at = lambda method, path: method == "PUT" and "/frame_hash/c/1/" in path
    said = refused(embed(recorded, store))
    assert f"{store}/frame_hash/c/1/0: object storage does not respond after 1 retries" in said
    assert "then run the same command again" in said
    assert "does not respond" in refused(invoke("vla-data", "verify", store, "--checksums"))
    assert "does not respond" in refused(embed(recorded, store))

    proxy.is_dead, proxy.dies_at = False, lambda _method, _path: False
    assert count(proxy, "PUT", "commits/000000.json") == 1
    out = tmp_path / "run"
    assert "stopped after 1 of 2 units" in refused(invoke("vla-train", store, "--out", out))
    assert not out.exists()
    result = embed(recorded, store)
    assert result.exit_code == 0, result.stderr
    assert count(proxy, "PUT", "commits/000000.json") == 1  # what was committed stays
    assert content(parse_location(store)) == content(local)


def test_parts_fill_one_store_without_a_lock(recorded, local, proxy):
    store = f"s3://{BUCKET}/parts/x.zarr"
    first = embed(recorded, store, "--units", "1/2")
    assert "part 1/2 is done; 1 of 2 units are missing: 1 of part 2/2" in first.stdout
    assert embed(recorded, store, "--units", "2/2").exit_code == 0
    assert content(parse_location(store)) == content(local)


def test_a_dataset_of_other_rows_is_refused_and_changes_nothing(proxy, tmp_path):
    manifest = write_still_life(tmp_path, (9,))
    store = f"s3://{BUCKET}/grown/x.zarr"
    assert embed(manifest, store).exit_code == 0
    before = content(parse_location(store))
    write_still_episode(manifest.parent / "data", 1, 8)
    said = refused(embed(manifest, store))
    assert f"{store}: its 9 steps are not the 17 steps of the dataset" in said
    assert "cannot be extended: use another --store" in said
    assert content(parse_location(store)) == before


def refused(result) -> str:
    said = refusal_line(result.exit_code, result.stderr)
    assert KEY_ID not in result.output
    assert SECRET not in result.output
    return said


@pytest.mark.parametrize(
    "words",
    [
        ("vla-embed", "m.toml", "--store"),
        ("vla-train", "--out", "run"),
        ("vla-data", "info"),
        ("vla-data", "verify"),
    ],
)
def test_an_address_with_credentials_is_refused_by_every_command(words):
    said = refused(invoke(*words, f"s3://{KEY_ID}:{SECRET}@{BUCKET}/x.zarr"))
    assert "credentials come from the environment" in said


def test_what_is_not_there_is_said_in_a_line(proxy):
    said = refused(invoke("vla-data", "info", f"s3://{BUCKET}/none.zarr"))
    assert f"s3://{BUCKET}/none.zarr: expected a dataset, found nothing" in said
    assert "expected a feature store, found none" in refused(
        invoke("vla-train", f"s3://{BUCKET}/no", "--out", "r")
    )
    proxy.denies = True
    said = refused(invoke("vla-data", "info", f"s3://{BUCKET}/none.zarr"))
    assert "403 Forbidden" in said
    assert "check the credentials" in said
