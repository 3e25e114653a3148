"""The launch guide and its scripts: they parse, name options that exist, and run on one machine.

The script for Ray runs in tests/pipeline/features/encode/test_ray.py, beside the cluster it needs.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main

import cli.embed
import cli.train
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import CHUNK_ROWS
from tests.pipeline.features.encode.drivers import store_bytes, write_one_view

LAUNCH = Path(cli.embed.__file__).parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sbatch"))
OPTIONS = {
    name: {option for parameter in command.params for option in parameter.opts}
    for name, command in (
        ("vla-embed", typer.main.get_command(cli.embed.main)),
        ("vla-train", typer.main.get_command(cli.train.main)),
    )
}
SBATCH = {
    *("array", "cpus-per-task", "job-name", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "time"),
}


def commands(path: Path) -> list[list[str]]:
    """Return the words of every line that calls a command of ours, from its name on."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    kept = [line for line in lines if line.startswith("    ") or path.suffix == ".sbatch"]
    called = [shlex.split(line, comments=True) for line in kept if re.search("vla-(em|tr)", line)]
    return [words[words.index(name) :] for words in called for name in OPTIONS if name in words]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_parses_and_asks_slurm_for_what_it_knows(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    asked = re.findall(r"^#SBATCH --([a-z-]+)(?:=\S+)?$", text, flags=re.MULTILINE)
    assert len(asked) == text.count("#SBATCH") > 0
    assert set(asked) <= SBATCH
    assert f"]({script.name})" in (LAUNCH / "README.md").read_text()


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "README.md"], ids=lambda path: path.name)
def test_every_option_of_ours_exists(path):
    called = commands(path)
    assert called
    for command, *words in called:
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= OPTIONS[command]


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """Return a folder of srun and scontrol that do what Slurm's do on one machine."""
    folder = tmp_path / "shims"
    folder.mkdir()
    (folder / "srun").write_text(
        '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
    )
    (folder / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\n")
    for shim in folder.iterdir():
        shim.chmod(0o755)
    return folder


def run(shims: Path, script: str, *words: object, **slurm: object) -> subprocess.Popen:
    """Start a script as Slurm would on one machine."""
    path = f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    machine = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": 1}
    machine["SLURM_CPUS_PER_TASK"] = torch.get_num_threads()  # another number is another engine
    environment = {name: str(value) for name, value in (machine | slurm).items()}
    return subprocess.Popen(
        ["bash", LAUNCH / script, *map(str, words)],
        env=os.environ | environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def test_two_tasks_of_an_array_leave_the_store_of_one_command_and_a_run_trains_on_it(
    tmp_path, shims
):
    manifest = write_one_view(tmp_path / "dataset", (CHUNK_ROWS, 40))
    store, reference = tmp_path / "s.zarr", tmp_path / "reference.zarr"
    encoder = "efficientnet-lite0"  # spares each process the seconds of loading transformers
    embed_dataset(
        EmbedConfig(manifest=manifest, store=reference, encoder=encoder, features=("pooled",))
    )
    words = (manifest, store, "--encoder", encoder, "--features", "pooled")
    tasks = [
        run(shims, "slurm_embed.sbatch", *words, SLURM_ARRAY_TASK_ID=i, SLURM_ARRAY_TASK_MAX=2)
        for i in (1, 2)
    ]
    said = [finish(task) for task in tasks]
    assert sum("units are missing" in text for text in said) == 1
    assert store_bytes(store) == store_bytes(reference)
    assert FeatureStore.open(store).is_complete

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"SLURM_JOB_ID": 7, "PORT": free.getsockname()[1]}
    small = ("--preset", "debug", "--set", "steps=3")
    finish(run(shims, "torchrun_train.sbatch", store, tmp_path / "run", *small, **job))
    assert (tmp_path / "run/log.jsonl").read_text().count('"step": 3') == 1
