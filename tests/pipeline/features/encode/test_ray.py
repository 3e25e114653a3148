"""A real Ray on loopback: actors and drivers are killed, and no byte changes."""

import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

import cli.embed
from pipeline.errors import ConfigError
from pipeline.features.identity.source import SOURCE_NOTE
from tests.pipeline.features.encode.drivers import (
    commits,
    embed,
    kill,
    processes_with,
    store_bytes,
    wait_until,
    write_one_view,
)
from tests.tower import tiny_tower

RAY = Path(sys.executable).with_name("ray")
SCRIPT = Path(cli.embed.__file__).parent / "launch/ray_embed.sbatch"
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


def actors(doing: str = "") -> set[int]:
    return processes_with(f"ray::_Actor{doing}".encode(), in_their="cmdline")


def start_script(
    folder: Path, address: str, manifest: Path, store: Path, num_workers: int
) -> subprocess.Popen:
    """Run the launch script for Ray as Slurm would on one machine; its cluster is there already."""
    host, port = address.split(":")
    bare_srun = 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'
    for name, does in {
        "srun": bare_srun,
        "scontrol": f"echo {host}",
        "ray": '[ "$1" = status ] || exec sleep 600',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": host, "SLURM_JOB_NUM_NODES": "1", "PORT": port}
    workers = {"WORKERS": str(num_workers), "SLURM_CPUS_PER_TASK": str(torch.get_num_threads())}
    path = {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", SCRIPT, manifest, store, "--backbone", tiny_tower()],
        env=os.environ | slurm | workers | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_actors_and_drivers_are_killed_and_no_byte_changes(tmp_path, address):
    manifest = write_one_view(tmp_path / "dataset")
    reference, store = tmp_path / "reference.zarr", tmp_path / "s.zarr"
    embed(manifest, reference)
    shims = tmp_path / "shims"
    shims.mkdir()

    script = start_script(shims, address, manifest, store, 1)
    wait_until(lambda: commits(store))
    os.killpg(script.pid, signal.SIGKILL)
    script.communicate()
    wait_until(lambda: not actors())
    kept = commits(store)
    assert 0 < len(kept) < 5

    script = start_script(shims, address, manifest, store, 2)
    wait_until(lambda: actors(".encode_unit"))
    kill(min(actors()))
    said, complained = script.communicate()
    assert script.returncode == 0, complained
    assert "a worker was lost" in complained
    assert "s of 2 workers: decode" in said
    assert kept.items() <= commits(store).items()
    assert store_bytes(store) == store_bytes(reference)
    assert (store / SOURCE_NOTE).read_bytes() == (reference / SOURCE_NOTE).read_bytes()
    wait_until(lambda: not actors())


def test_what_no_machine_has_and_where_no_ray_answers_is_said_in_one_line(tmp_path, address):
    manifest = write_one_view(tmp_path / "dataset", (20,))
    many = TWO | {"cpus_per_worker": 4096, "address": address}
    with pytest.raises(ConfigError, match=r"needs 4096 CPUs and 0 GPUs, no machine .* has as many"):
        embed(manifest, tmp_path / "s.zarr", **many)
    with pytest.raises(ConfigError, match=r"--address 127\.0\.0\.1:1: no Ray answers there"):
        embed(manifest, tmp_path / "s.zarr", address="127.0.0.1:1", **TWO)


def test_auto_does_not_wait_for_a_cluster_that_has_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # before the one that Ray remembers
    manifest = write_one_view(tmp_path / "dataset", (20,))
    with pytest.raises(ConfigError, match="--address auto: no Ray answers there"):
        embed(manifest, tmp_path / "s.zarr", address="auto", **TWO)
