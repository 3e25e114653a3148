"""Trackers, each read back with its own library; no network."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import ConfigError
from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.run.tracking import TRACKERS, flat_configuration, open_trackers
from pipeline.training.session import train
from policy.errors import MissingExtraError
from tests.pipeline.tiny import complete_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("tracked") / "s.zarr").path


class Noting:
    """Takes what a tracker takes."""

    def __init__(self):
        self.told, self.is_closed = [], False

    def log(self, step, figures):
        self.told.append({"step": step, **figures})

    def close(self):
        self.is_closed = True


def test_tensorboard_is_told_every_figure_of_the_log_once(store, tmp_path, monkeypatch):
    run = tmp_path / "run"
    dying = Noting()
    monkeypatch.setattr(dying, "log", fail_after(6, dying.log))
    monkeypatch.setattr(
        "pipeline.training.session.open_trackers",
        lambda names, *where: [*open_trackers(names, *where), dying],
    )
    with pytest.raises(KeyError, match="step 7"):
        train([store], run, debug(), resume=False, track=["tensorboard"])
    monkeypatch.undo()
    train([store], run, debug(), resume=True, track=["tensorboard"])

    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "val_error", "learning_rate"):
        expected = [(entry["step"], entry[name]) for entry in log if name in entry]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected], name
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def fail_after(step_before, log):
    def failing(step, figures):
        log(step, figures)
        if step > step_before:
            raise KeyError(f"step {step}")

    return failing


def test_weights_and_biases_is_told_offline(store, tmp_path):
    program = "from cli.train import main; main()"
    words = [str(store), "--preset", "debug", "--out", str(tmp_path / "run"), "--track", "wandb"]
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (records,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    content = records.read_bytes()
    for name in (b"val_error", b"learning_rate", b"optimizer.learning_rate"):
        assert name in content


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(store, tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match="--track: expected one of tensorboard, wandb, found 'mlflow'"
    ):
        open_trackers(["mlflow"], tmp_path, {}, 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[wandb\]'"):
        open_trackers(["wandb"], tmp_path, {}, 0)


def test_a_tracker_that_cannot_be_opened_leaves_no_run(store, tmp_path):
    with pytest.raises(ConfigError, match="expected one of"):
        train([store], tmp_path / "run", debug(), resume=False, track=["mlflow"])
    assert not (tmp_path / "run").exists()


def type_train(store, run, home, *words):
    """Type the command without any setting or login of Weights & Biases."""
    program = "from cli.train import main; main()"
    command = [str(store), "--preset", "debug", "--out", str(run), "--track", "wandb", *words]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", program, *command],
        env=plain | {"HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_without_a_login_nothing_is_trained_and_nothing_blocks_the_retry(store, tmp_path):
    run = tmp_path / "run"
    done = type_train(store, run, tmp_path)
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: --track wandb: cannot start the tracker (UsageError: ")
    assert "Traceback" not in done.stderr
    assert not (run / "log.jsonl").exists()
    changed = with_settings(debug(), ["seed=1"])
    assert train([store], run, changed, resume=False).steps == 8


def test_a_tracker_that_fails_is_warned_of_once_and_training_continues(
    store, tmp_path, monkeypatch, caplog
):
    class Failing(Noting):
        def __init__(self, run, configuration, step):
            super().__init__()

        def log(self, step, figures):
            if step > 3:
                raise ConnectionError("no\nnetwork")
            super().log(step, figures)

    monkeypatch.setitem(TRACKERS, "tensorboard", Failing)
    report = train([store], tmp_path / "run", debug(), resume=False, track=["tensorboard"])
    assert report.steps == 8
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 8
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
