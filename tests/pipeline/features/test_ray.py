"""A real Ray on loopback: actors and drivers are killed, and no byte changes."""

import socket
import subprocess
import sys
import uuid
from pathlib import Path
from threading import Thread

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.features.source import SOURCE_NOTE
from tests.pipeline.features.drivers import (
    commits,
    configure,
    embed,
    kill,
    processes_named,
    start_driver,
    store_bytes,
    wait_until,
    write_one_view,
)

RAY = Path(sys.executable).with_name("ray")
ACTOR = b"ray::_Actor"
TWO = {"name": "ray", "workers": 2, "cpus_per_worker": torch.get_num_threads()}


@pytest.fixture(scope="module")
def address():
    """A Ray of two actors' size, with a token of its own instead of one in the home folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    size = [f"--num-cpus={2 * torch.get_num_threads()}", "--object-store-memory=100000000"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.delenv("RAY_ADDRESS", raising=False)
        # Stopped by its own process: `ray stop` would stop every Ray of this machine.
        ray = subprocess.Popen(
            [*command, *size, "--include-dashboard=false"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert ray.stdout is not None
        said = iter(ray.stdout)
        assert any(b"Ray runtime started" in line for line in said)
        yield f"127.0.0.1:{port}"
        ray.terminate()
        ray.communicate()


def test_actors_and_drivers_are_killed_and_no_byte_changes(tmp_path, address, caplog):
    manifest = write_one_view(tmp_path / "dataset")
    reference, store = tmp_path / "reference.zarr", tmp_path / "s.zarr"
    embed(manifest, reference)

    driver = start_driver(configure(manifest, store, address=address, **TWO))
    wait_until(lambda: commits(store))
    driver.kill()
    driver.join()
    wait_until(lambda: not processes_named(ACTOR))
    kept = commits(store)
    assert 0 < len(kept) < 5

    def kill_an_actor() -> None:
        wait_until(lambda: len(processes_named(ACTOR + b".encode_unit")) > 0)
        kill(min(processes_named(ACTOR)))

    killer = Thread(target=kill_an_actor)
    killer.start()
    report = embed(manifest, store, address=address, **TWO)
    killer.join()
    assert "a worker was lost" in caplog.text
    assert kept.items() <= commits(store).items()
    assert report.counts.encoded + report.counts.repeated <= report.num_steps - 256 * (
        len(kept) - 1
    )
    assert store_bytes(store) == store_bytes(reference)
    assert (store / SOURCE_NOTE).read_bytes() == (reference / SOURCE_NOTE).read_bytes()
    wait_until(lambda: not processes_named(ACTOR))


def test_what_no_machine_has_and_where_no_ray_answers_is_said_in_one_line(tmp_path, address):
    manifest = write_one_view(tmp_path / "dataset", (20,))
    many = TWO | {"cpus_per_worker": 4096, "address": address}
    with pytest.raises(ConfigError, match=r"needs 4096 CPUs and 0 GPUs, no machine .* has as many"):
        embed(manifest, tmp_path / "s.zarr", **many)
    with pytest.raises(ConfigError, match=r"--address 127\.0\.0\.1:1: no Ray answers there"):
        embed(manifest, tmp_path / "s.zarr", address="127.0.0.1:1", **TWO)
