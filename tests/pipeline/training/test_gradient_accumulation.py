"""Batches in parts, and processes that share them: the same steps, but for the last bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import with_settings
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.data.windows import WindowData
from pipeline.training.distributed import Ranks
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import checkpoint_steps, read_checkpoint
from pipeline.training.run.folder import read_run
from pipeline.training.session import train
from pipeline.training.trainer import Trainer
from tests.forked import start
from tests.object_server import free_port
from tests.pipeline.tiny import complete_store

SETTINGS = ("gradient_accumulation_steps=2", "checkpoint_every=4", "optimizer.learning_rate=0.01")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("parts") / "s.zarr", (20, 20, 20)).path


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train([store], run, with_settings(debug(), SETTINGS), resume=False)
    return run


def trainer_of(store, run, ranks=Ranks()):  # noqa: B008
    data = WindowData(
        FeatureStore.open(store), features=("pooled",), validation_share=0.05, weights=(1.0,)
    )
    return Trainer(run, read_run(run), data, torch.device("cpu"), ranks)


def test_the_gradient_of_a_batch_is_the_mean_over_its_parts(store, alone):
    trainer = trainer_of(store, alone)
    batches = list(trainer.batches.chunks(0))
    expected = {}
    for part, batch in enumerate(batches):
        loss = trainer.agent.compute_loss(
            batch.features,
            batch.state,
            batch.actions,
            batch.valid,
            seeded_generator(0, "loss", part),
        )
        for name, parameter in trainer.agent.named_parameters():
            (gradient,) = torch.autograd.grad(loss.value, parameter, retain_graph=True)
            expected[name] = expected.get(name, 0) + gradient / 2
    parts = [trainer._backward(part, batch) for part, batch in enumerate(batches)]
    for name, parameter in trainer.agent.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)
    assert parts[0]["loss"] != parts[1]["loss"]


TRAIN = "from cli.train import main; main()"


def words_for(store, run, *more):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return [str(store), "--preset", "debug", "--out", str(run), *settings, *more]


def torchrun(store, run, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--no-python", sys.executable, "-c", TRAIN]
    return subprocess.Popen(
        [*command, *words_for(store, run, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def train_on_two(store, run, *more):
    """Train with two processes, in the variables that torchrun sets; return what they say."""
    shared = {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = {}
    for rank in "01":
        output = run.with_suffix(f".{rank}.txt")
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        words = words_for(store, run, *more)
        started[output] = start(TRAIN, *words, output=output, environment=environment)
    for output, process in started.items():
        process.join(600)
        assert process.exitcode == 0, output.read_text()
    return "".join(output.read_text() for output in started)


def test_two_processes_take_the_steps_of_one(store, alone, tmp_path):
    assert train_on_two(store, tmp_path / "run").count(": 8 steps") == 1
    ours, expected = (read_checkpoint(run, 8) for run in (tmp_path / "run", alone))
    for part in ("agent", "average"):
        for name, tensor in getattr(expected, part).items():
            torch.testing.assert_close(
                getattr(ours, part)[name], tensor, rtol=1e-4, atol=1e-5, msg=name
            )
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", alone)
    ]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for ours_entry, entry in zip(*logs, strict=True):
        assert ours_entry["loss"] == pytest.approx(entry["loss"], rel=1e-4)
    # Stopped at step 4 and resumed, two processes come to the same bits.
    whole = read_checkpoint(tmp_path / "run", 8)
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000008")
    assert "resumed at step 4" in train_on_two(store, tmp_path / "run", "--resume")
    for name, tensor in read_checkpoint(tmp_path / "run", 8).agent.items():
        assert torch.equal(tensor, whole.agent[name]), name


def test_a_process_that_dies_ends_the_others_and_leaves_the_last_checkpoint(store, tmp_path):
    run = tmp_path / "run"
    words = ("--set", "steps=100000", "--set", "checkpoint_every=10")
    process = torchrun(store, run, *words)
    deadline = time.monotonic() + 600
    while not checkpoint_steps(run):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = [
        int(line)
        for line in subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
    ]
    os.kill(max(children), signal.SIGKILL)  # not the first one, which writes
    killed = time.monotonic()
    said = process.communicate(timeout=600)[1]
    assert time.monotonic() - killed < 40
    assert process.returncode != 0
    assert "error: another process of this training has ended" in said, said
    step = checkpoint_steps(run)[-1]
    read_checkpoint(run, step)
    assert not list((run / "checkpoints").glob(".*"))


def test_processes_that_cannot_share_a_batch_are_refused(store, alone):
    with pytest.raises(ConfigError, match="3 processes cannot share gradient_accumulation_steps=2"):
        trainer_of(store, alone, Ranks(0, 3))
    with pytest.raises(
        ConfigError,
        match="batch_size: expected a multiple of gradient_accumulation_steps=3, found 8",
    ):
        with_settings(debug(), ["gradient_accumulation_steps=3"])
