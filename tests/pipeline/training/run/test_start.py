"""Going on from other weights, and from a run's own end with more steps."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import RunError
from pipeline.training.config import with_settings
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import read_average, read_checkpoint
from pipeline.training.run.folder import STEPS_FILE, RunDescription, read_run
from pipeline.training.run.start import Start
from pipeline.training.session import train
from policy.network.readers import InstructionReaderConfig, ReaderConfig
from tests.pipeline.tiny import complete_store

# So small a step that the weights after one are those it began with, to six digits.
STILL = ("steps=1", "optimizer.warmup_steps=0", "optimizer.learning_rate=1e-12")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    return [complete_store(folder / f"{n}.zarr", (9, 9 + n)) for n in range(2)]


@pytest.fixture(scope="module")
def base(stores, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "base"
    train([stores[0].path], run, debug(), resume=False)
    return run


def test_a_run_begins_with_the_averaged_weights_of_another(stores, base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    settings = [*STILL, "seed=5", "agent.state_scaling=deviation"]
    config, run = with_settings(debug(), settings), tmp_path / "run"
    train([stores[1].path], run, config, resume=False, init_from=base)
    (_, theirs), (_, ours) = read_average(base), read_average(run)
    for name in theirs:
        if "normalizer" not in name and "standardizer" not in name:
            torch.testing.assert_close(ours[name], theirs[name])
    data = WindowData(stores[1], features=("pooled",), validation_share=0.05)
    rows = stores[1].read_steps().action[~data.is_validation.numpy()[data.episode_of]]
    middle = (rows.min(axis=0) + rows.max(axis=0)) / 2  # the scales are those of the new data
    np.testing.assert_allclose(ours["action_normalizer.center"], middle, atol=1e-5)
    assert not torch.allclose(ours["action_normalizer.center"], theirs["action_normalizer.center"])
    assert "differs: config.agent.state_scaling=range, now it is deviation\n" in caplog.text
    assert read_run(run).init_from.startswith("base (")
    assert read_run(run).init_from.endswith("step 8")
    longer = config.model_copy(update={"steps": 2})
    again = train([stores[1].path], run, longer, resume=True)  # need not be named again
    assert again.resumed_from == 1
    card = (run / "checkpoints/step_00000002/README.md").read_text()
    assert read_run(run).init_from in card
    with pytest.raises(RunError, match=r"was started with init_from=base \(.*, now it is run \("):
        train([stores[1].path], run, longer, resume=True, init_from=run)
    trained_on = shutil.copytree(base, tmp_path / "base")
    more = with_settings(debug(), ["steps=9"])
    train([stores[0].path], trained_on, more, resume=True)
    named = train([stores[1].path], run, longer, resume=True, init_from=trained_on)
    assert named.resumed_from == 2  # the same command goes on


def test_what_is_no_run_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(RunError, match="nowhere: expected a training run, found none"):
        train([], tmp_path / "run", debug(), resume=False, init_from=tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_refused_by_name(stores, base, tmp_path):
    for setting, part in (
        ("agent.readers.pooled.projection_dim=4", "cond_projector, readers.pooled"),
        ("agent.head.n_layer=3", "head"),
    ):
        config = with_settings(debug(), [setting])
        with pytest.raises(RunError, match=f"other sizes of {part};"):
            train([stores[0].path], tmp_path / "run", config, resume=False, init_from=base)


def test_weights_of_other_inputs_are_refused(base, tmp_path):
    """Features in another order, or another text encoder's vectors, have the same sizes."""
    start = Start.read(base)
    two = ReaderConfig(projection_dim=4)
    held = read_run(base)

    def described(*readers: str, text: str | None = None) -> RunDescription:
        language = text and InstructionReaderConfig()
        agent = held.config.agent.model_copy(
            update={"readers": dict.fromkeys(readers, two), "language": language}
        )
        encoder = text and held.data.encoder.model_copy(update={"weights": text})
        return held.model_copy(
            update={
                "config": held.config.model_copy(update={"agent": agent}),
                "data": held.data.model_copy(update={"text_encoder": encoder}),
            }
        )

    agent = torch.nn.Linear(2, 2)
    for ours, theirs in (
        (described("pooled", "grid"), described("grid", "pooled")),
        (described("pooled", text="a"), described("pooled", text="b")),
    ):
        begun = replace(start, description=theirs, weights=agent.state_dict())
        begun.load_into(agent, theirs)
        with pytest.raises(RunError, match="of another text encoder, or in another order"):
            begun.load_into(agent, ours)


def test_a_run_that_begins_again_has_its_own_number_of_steps(stores, base, tmp_path):
    run = shutil.copytree(base, tmp_path / "run")
    train([stores[0].path], run, with_settings(debug(), ["steps=12"]), resume=True)
    shutil.rmtree(run / "checkpoints")
    train([stores[0].path], run, with_settings(debug(), ["steps=10"]), resume=True)
    assert read_run(run).config.steps == 10
    (run / STEPS_FILE).write_text('{"steps": 1')
    with pytest.raises(RunError, match=r"run: run.json or steps.json cannot be read"):
        read_run(run)


def test_a_finished_run_takes_more_steps_and_says_what_the_schedule_does(
    stores, base, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    run, config = tmp_path / "run", with_settings(debug(), ["steps=12"])
    shutil.copytree(base, run)
    report = train([stores[0].path], run, config, resume=True)
    assert (report.resumed_from, report.steps) == (8, 12)
    assert read_run(run).config == config
    assert "12 steps instead of 8; the cosine schedule is stretched to the new end" in caplog.text
    assert read_checkpoint(run, 8).step == 8  # still belongs to this run
    with pytest.raises(RunError, match=r"config.steps=12, now it is 8"):
        train([stores[0].path], run, debug(), resume=True)
