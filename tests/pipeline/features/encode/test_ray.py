"""A real Ray on loopback: actors and drivers are killed, and no byte changes."""

import os
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

import cli.embed
from pipeline.errors import ConfigError, EncoderMismatchError, WorkerLostError
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.identity.source import SOURCE_NOTE
from pipeline.features.store.feature_store import FeatureStore
from tests.forked import start
from tests.pipeline.features.encode.drivers import (
    commits,
    configure,
    embed,
    kill,
    processes_with,
    store_bytes,
    wait_until,
    write_one_view,
)

RAY = Path(sys.executable).with_name("ray")
EMBED = "from cli.embed import main; main()"
LIGHT = {"encoder": "efficientnet-lite0", "features": ("pooled",)}
"""An encoder whose actors start without transformers, which takes each of them seconds."""
LIGHT_WORDS = ["--encoder", "efficientnet-lite0", "--features", "pooled"]
SCRIPT = Path(cli.embed.__file__).parent / "launch/ray_embed.sbatch"


@pytest.fixture(scope="module")
def address():
    """A Ray of two actors' size, with a token of its own instead of one in the home folder."""
    from pipeline.features.encode.ray_pool import ADDRESS

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    size = [f"--num-cpus={2 * torch.get_num_threads()}", "--object-store-memory=100000000"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_prestart_worker_first_driver", "0")  # workers without an actor
        environment.setenv("RAY_worker_niceness", "0")  # 15 would starve next to other tests
        environment.delenv(ADDRESS, raising=False)
        # Stopped by its own process: `ray stop` would stop every Ray of this machine.
        ray = subprocess.Popen(
            [*command, *size, "--include-dashboard=false"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert ray.stdout is not None
        said = iter(ray.stdout)
        assert any(b"Ray runtime started" in line for line in said)
        environment.setenv(ADDRESS, f"127.0.0.1:{port}")
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
        ["bash", SCRIPT, manifest, store, *LIGHT_WORDS],
        env=os.environ | slurm | workers | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_actors_and_drivers_are_killed_and_no_byte_changes(tmp_path, address):
    manifest = write_one_view(tmp_path / "dataset", (1000, 1000))  # eight units
    reference, store = tmp_path / "reference.zarr", tmp_path / "s.zarr"
    embed(manifest, reference, **LIGHT)
    shims = tmp_path / "shims"
    shims.mkdir()

    words = [manifest, "--store", store, "--ray-workers", 1, *LIGHT_WORDS]
    driver = start(EMBED, *words, output=tmp_path / "output")
    wait_until(lambda: commits(store))
    kill(driver.pid)
    driver.join()
    wait_until(lambda: not actors())
    kept = commits(store)
    assert 0 < len(kept) < 8

    script = start_script(shims, address, manifest, store, 2)
    wait_until(lambda: actors(".encode"))
    kill(min(actors()))
    said, complained = script.communicate()
    assert script.returncode == 0, complained
    assert "a worker was lost" in complained
    assert "s of 2 workers: read" in said
    assert kept.items() <= commits(store).items()
    assert store_bytes(store) == store_bytes(reference)
    assert (store / SOURCE_NOTE).read_bytes() == (reference / SOURCE_NOTE).read_bytes()
    wait_until(lambda: not actors())


def test_actors_that_are_lost_three_times_at_one_unit_end_the_job(tmp_path, address):
    manifest, store = write_one_view(tmp_path / "dataset", (3000,)), tmp_path / "s.zarr"
    killed: list[int] = []

    def kill_three() -> None:
        while len(killed) < 3:
            wait_until(lambda: actors(".encode") - set(killed))
            killed.extend(actors(".encode") - set(killed))
            kill(killed[-1])

    killer = Thread(target=kill_three)
    killer.start()
    with pytest.raises(WorkerLostError, match=r"^3 workers were lost at unit 0, the last one: .*"):
        embed(manifest, store, ray_workers=1, shard_above=0, **LIGHT)  # one unit, of a second
    killer.join()
    assert not commits(store)
    wait_until(lambda: not actors())


def test_a_worker_that_computes_something_else_is_refused(tmp_path, address):
    """As on a machine with other kernels: the encoder is the same, its features are not."""
    from pipeline.features.encode.ray_pool import encode_with_ray

    manifest = write_one_view(tmp_path / "dataset", (20,))
    both = {"features": ("pooled", "grid")}  # the tower's grid has a basis
    embed(manifest, tmp_path / "reference.zarr", **both)
    held = FeatureStore.open(tmp_path / "reference.zarr")
    probe = held.read_probe()
    other = replace(
        probe, features=probe.features | {"grid": probe.features["grid"] + np.float16(1)}
    )
    path, steps = tmp_path / "s.zarr", held.read_steps()
    FeatureStore.create(path, held.attributes, steps, other, held.read_bases())
    config = configure(manifest, path, ray_workers=1, **both)
    index = FrameIndex.of([], place_matters=False)
    with pytest.raises(EncoderMismatchError, match=r"computes for probe frame .* `grid`"):
        list(encode_with_ray(config, config.store, torch.device("cpu"), [0], index))
    assert not commits(tmp_path / "s.zarr")


def test_what_no_machine_has_and_where_no_ray_answers_is_one_line(tmp_path, address, monkeypatch):
    from pipeline.features.encode.ray_pool import ADDRESS

    manifest = write_one_view(tmp_path / "dataset", (20,))
    threads = torch.get_num_threads()
    torch.set_num_threads(512)
    with pytest.raises(
        ConfigError, match=r"needs 512 CPUs and 0 GPUs, but no node .* has that many"
    ):
        embed(manifest, tmp_path / "s.zarr", ray_workers=2)
    torch.set_num_threads(threads)
    for nowhere, reason in (
        ("127.0.0.1:1", "cannot connect to Ray"),
        ("auto", "expected host:port"),
    ):
        monkeypatch.setenv(ADDRESS, nowhere)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS.*: {reason}"):
            embed(manifest, tmp_path / "s.zarr", ray_workers=2)
