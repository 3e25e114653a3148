"""An objective by jumps learns from the averaged weights: these, at every step, and resumed."""

import shutil

import pytest
import torch

from pipeline.training.config import with_settings
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import read_checkpoint
from pipeline.training.run.folder import read_run
from pipeline.training.session import train
from pipeline.training.trainer import Trainer
from policy.agent import VLAAgent
from tests.pipeline.tiny import complete_store

CONFIG = with_settings(debug(), ["agent.objective.kind=improved_meanflow_jump"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("teacher") / "s.zarr")


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train([store.path], run, CONFIG, resume=False)
    return run


def trainer_of(store, run):
    data = WindowData(store, features=("pooled",), validation_share=0.05)
    return Trainer(run, read_run(run), data, torch.device("cpu"))


def test_the_averaged_weights_of_the_step_teach(store, uninterrupted):
    trainer = trainer_of(store, uninterrupted)
    teacher = VLAAgent(CONFIG.agent, trainer.data.spec)
    for step in range(4):
        (batch,) = trainer.batches.chunks(step)
        teacher.load_state_dict(trainer.average.averaged)
        taught, alone = (
            trainer.agent.compute_loss(
                batch.features,
                batch.state,
                batch.actions,
                batch.valid,
                seeded_generator(CONFIG.seed, "loss", step),
                teacher=known,
            ).value.item()
            for known in (teacher, None)
        )
        assert trainer.advance()["loss"].item() == taught
        assert (taught == alone) == (step < 2)  # the average starts as the agent itself


def test_a_run_that_died_is_taught_on_by_the_same_weights(store, uninterrupted, tmp_path):
    """Stopped between checkpoints, at step 6 of 8: the resumed run starts from 4 and must agree."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "checkpoints")
    (run / "log.jsonl").unlink()
    dying = trainer_of(store, run)
    for _ in range(4):
        dying.advance()
    dying.save({})
    dying.advance()

    assert train([store.path], run, CONFIG, resume=True).resumed_from == 4

    ours, expected = (read_checkpoint(path, 8) for path in (run, uninterrupted))
    for part in ("agent", "average", "optimizer"):
        for name, tensor in getattr(expected, part).items():
            assert torch.equal(getattr(ours, part)[name], tensor), f"{part}: {name}"
