"""Ctrl-C, SIGTERM and a full disk: a checkpoint of the step, or the ones before it."""

import os
import shutil
import signal
import time

import pytest
import torch

from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.data.windows import WindowData
from pipeline.training.run.checkpoint import checkpoint_steps, read_checkpoint
from pipeline.training.run.folder import read_run
from pipeline.training.trainer import Trainer
from tests.forked import start
from tests.pipeline.tiny import complete_store

TRAIN = "from cli.train import main; main()"
SETTINGS = ["steps=100000", "optimizer.warmup_steps=2", "checkpoint_every=100000", "log_every=20"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("interrupt") / "s.zarr").path


def start_training(store, run, *more, program=""):
    """Return the process, and the file that it writes to."""
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    words = [store, "--preset", "debug", "--out", run, *words, *more]
    output = run.with_suffix(".txt")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the trainer it is compared with
    return start(program + TRAIN, *words, output=output, environment=one_thread), output


def wait_for(path, content, process, output):
    deadline = time.monotonic() + 600
    while not path.exists() or content not in path.read_text():
        assert process.is_alive(), output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupt(store, run, kind, *more):
    """Interrupt a training after 40 steps of this start; return the step it stopped at."""
    before = checkpoint_steps(run)[-1] if run.exists() else 0
    process, output = start_training(store, run, *more)
    wait_for(run / "log.jsonl", f'{{"step": {before - before % 20 + 40}', process, output)
    os.kill(process.pid, kind)
    process.join(600)
    said = output.read_text()
    assert process.exitcode == 130, said
    assert "interrupted; add --resume" in said
    assert "Traceback" not in said
    assert checkpoint_steps(run)[-1] > before
    return checkpoint_steps(run)[-1]


@pytest.fixture(scope="module")
def interrupted(store):
    run = store.parent / "interrupted"
    interrupt(store, run, signal.SIGINT)
    return run


def test_an_interrupt_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_bits(
    store, interrupted, tmp_path
):
    run = shutil.copytree(interrupted, tmp_path / "run")
    stopped = interrupt(store, run, signal.SIGTERM, "--resume")
    # The cosine ends where the run does, so the same configuration is stopped at the same step.
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(run / "run.json", whole)
    straight = trainer_at(store, whole, stopped)
    ours = read_checkpoint(run, stopped)
    for name, tensor in straight.agent.state_dict().items():
        assert torch.equal(ours.agent[name], tensor), name
    for name, tensor in straight.average.averaged.items():
        assert torch.equal(ours.average[name], tensor), name


def trainer_at(store, run, step):
    torch.set_num_threads(1)
    description = read_run(run)
    data = WindowData(
        FeatureStore.open(store),
        features=("pooled",),
        validation_share=description.config.validation_share,
        weights=(1.0,),
    )
    trainer = Trainer(run, description, data, torch.device("cpu"))
    while trainer.step < step:
        trainer.advance()
    return trainer


def test_a_full_disk_leaves_the_checkpoints_before_it(store, interrupted, tmp_path):
    run = shutil.copytree(interrupted, tmp_path / "run")
    kept = checkpoint_steps(run)
    files = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}

    size = max(map(len, files.values()))
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 1},) * 2); "
    process, output = start_training(store, run, "--resume", program=limited)
    wait_for(run / "log.jsonl", f'{{"step": {kept[0] - kept[0] % 20 + 20},', process, output)
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    said = output.read_text()
    assert process.exitcode == 2, said
    assert ".safetensors: File too large" in said
    assert "Traceback" not in said
    found = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert found == files
