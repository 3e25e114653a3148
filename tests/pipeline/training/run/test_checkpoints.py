"""Which checkpoints stay, and which one is asked for."""

import json
import shutil

import pytest
import torch

from pipeline.errors import RunError
from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    read_average,
    resolve_step,
    write_checkpoint,
)
from pipeline.training.session import train
from tests.pipeline.tiny import complete_store


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def save(run, step, val_error=None, keep=1):
    tensors = {"weight": torch.full((2,), float(step))}
    checkpoint = Checkpoint(step=step, agent=tensors, average=tensors, optimizer=tensors)
    write_checkpoint(run, checkpoint, card="", keep=keep, val_error=val_error)


def test_the_best_checkpoint_outlives_the_latest(run):
    for step, error in ((10, 0.5), (20, 0.2), (30, 0.3), (40, None), (50, 0.25)):
        save(run, step, error)
    assert checkpoint_steps(run) == [20, 50]
    assert resolve_step(run, "best") == 20
    assert read_average(run, resolve_step(run, "best"))[1]["weight"][0] == 20
    save(run, 60, 0.1)
    assert checkpoint_steps(run) == [60]


def test_checkpoints_are_asked_for_by_name_or_step(run):
    with pytest.raises(RunError, match="expected a checkpoint, found none"):
        resolve_step(run, "latest")
    save(run, 10, keep=3)
    save(run, 20, keep=3)
    assert resolve_step(run, "latest") == 20
    assert resolve_step(run, "10") == 10
    with pytest.raises(RunError, match="the best checkpoint is unknown"):
        resolve_step(run, "best")
    for wrong in ("15", "-10", "newest", ""):
        with pytest.raises(RunError, match=r"expected latest, best or one of \[10, 20\]"):
            resolve_step(run, wrong)


def test_a_best_checkpoint_that_is_gone_or_damaged_is_not_believed(run):
    save(run, 10, 0.1, keep=2)
    save(run, 20, 0.2, keep=2)
    shutil.rmtree(run / "checkpoints/step_00000010")
    assert resolve_step(run, "best") == 20
    save(run, 30, 0.1)
    assert resolve_step(run, "best") == 30
    (run / "checkpoints/step_00000030/checkpoint.json").write_text('{"step": "../../etc"}')
    with pytest.raises(RunError, match=r"checkpoint\.json: cannot be read.*delete"):
        resolve_step(run, "best")


def test_a_disk_that_fails_is_not_taken_for_damage(run):
    """Whoever deletes what could not be read for a moment deletes a whole checkpoint."""
    save(run, 10)
    average = run / "checkpoints/step_00000010/average.safetensors"
    average.unlink()
    average.mkdir()  # reading it fails, also for root, whom no permission stops
    with pytest.raises(IsADirectoryError):
        read_average(run)
    average.rmdir()
    with pytest.raises(RunError, match=r"average\.safetensors: cannot be read.*delete"):
        read_average(run)


def test_training_remembers_its_best_step_across_a_resume(tmp_path):
    store = complete_store(tmp_path / "s.zarr")
    config = with_settings(debug(), ["validate_every=2", "checkpoint_every=2"])
    train([store.path], tmp_path / "whole", config, resume=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in checkpoint_steps(tmp_path / "whole"):  # it died before it could write these
        shutil.rmtree(tmp_path / f"resumed/checkpoints/step_{step:08d}")
    train([store.path], tmp_path / "resumed", config, resume=True)
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    errors = {entry["step"]: entry["val_error"] for entry in log if "val_error" in entry}
    assert sorted(errors) == [2, 4, 6, 8]
    assert resolve_step(tmp_path / "whole", "best") == min(errors, key=errors.__getitem__)
    assert resolve_step(tmp_path / "resumed", "best") == resolve_step(tmp_path / "whole", "best")
    assert checkpoint_steps(tmp_path / "resumed") == checkpoint_steps(tmp_path / "whole")
    losses = [entry["val_loss"] for entry in log if "val_loss" in entry]
    assert len(set(losses)) == 4
