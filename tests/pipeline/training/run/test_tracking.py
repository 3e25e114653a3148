"""Trackers, each read back with its own library; no network."""

import json
import os
import sys

import pytest

from pipeline.errors import ConfigError
from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.run.tracking import TRACKERS, Tracker, check_trackers, flat_configuration
from pipeline.training.session import train
from pipeline.training.trainer import TrainingWatcher
from policy.errors import MissingExtraError
from tests.forked import start
from tests.pipeline.tiny import complete_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("tracked") / "s.zarr").path


class Dying(TrainingWatcher):
    """Raises after the seventh step, whose figures are logged already."""

    steps = 0

    def figures(self):
        self.steps += 1
        if self.steps > 6:
            raise KeyError(f"step {self.steps}")
        return ()


def test_tensorboard_is_told_every_figure_of_the_log_once(store, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    with pytest.raises(KeyError, match="step 7"):
        train([store], run, debug(), resume=False, track=["tensorboard"], watchers=[Dying()])
    train([store], run, debug(), resume=True, track=["tensorboard"])

    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "val_error", "learning_rate"):
        expected = [(entry["step"], entry[name]) for entry in log if name in entry]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected], name
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def type_train(store, run, home, settings):
    """Type the command with these settings of Weights & Biases alone, and without any login."""
    words = (store, "--preset", "debug", "--out", run, "--track", "wandb")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment, output = plain | settings | {"HOME": str(home)}, home / "said.txt"
    program = "from cli.train import main; main()"
    process = start(program, *words, output=output, environment=environment)
    process.join(600)
    return process.exitcode, output.read_text()


def test_weights_and_biases_is_told_offline(store, tmp_path):
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    exit_code, said = type_train(store, tmp_path / "run", tmp_path, quiet)
    assert exit_code == 0, said
    (records,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    content = records.read_bytes()
    for name in (b"val_error", b"learning_rate", b"optimizer.learning_rate"):
        assert name in content


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(
        ConfigError, match="--track: expected one of tensorboard, wandb, found 'mlflow'"
    ):
        check_trackers(["mlflow"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[wandb\]'"):
        check_trackers(["wandb"])


def test_a_tracker_that_cannot_be_opened_leaves_no_run(store, tmp_path):
    with pytest.raises(ConfigError, match="expected one of"):
        train([store], tmp_path / "run", debug(), resume=False, track=["mlflow"])
    assert not (tmp_path / "run").exists()


def test_without_a_login_nothing_is_trained_and_nothing_blocks_the_retry(store, tmp_path):
    run = tmp_path / "run"
    exit_code, said = type_train(store, run, tmp_path, {})
    assert exit_code == 2, said
    error = said.splitlines()[-1]
    assert error.startswith("error: --track wandb: cannot start the tracker (UsageError: ")
    assert "Traceback" not in said
    assert not (run / "log.jsonl").exists()
    changed = with_settings(debug(), ["seed=1"])
    assert train([store], run, changed, resume=False).steps == 8


def test_a_tracker_that_fails_is_warned_of_once_and_training_continues(
    store, tmp_path, monkeypatch, caplog
):
    told = []

    def log(step, figures):
        if step > 3:
            raise ConnectionError("no\nnetwork")
        told.append(step)

    monkeypatch.setitem(TRACKERS, "tensorboard", lambda *_: Tracker(log, close=list))
    report = train([store], tmp_path / "run", debug(), resume=False, track=["tensorboard"])
    assert report.steps == 8
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 8
    assert told == [1, 2, 3]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "--track tensorboard: tracking stopped (ConnectionError: no network); training continues, "
        "and log.jsonl contains all metrics"
    ]


def test_a_configuration_is_told_flat():
    config = with_settings(debug(), ["agent.head.n_layer=3"])
    flat = flat_configuration(config.model_dump(mode="json"))
    assert flat["agent.head.n_layer"] == 3
    assert flat["optimizer.betas"] == [0.9, 0.95]
    assert all("." in name or not isinstance(value, dict) for name, value in flat.items())
