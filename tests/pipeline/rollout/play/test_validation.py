"""Rolling out while training goes on: real rollouts of the toy environment, in real processes."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, EnvError
from pipeline.rollout.play.validation import (
    RolloutValidation,
    ValidationConfig,
    validate_by_rollouts,
)
from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import checkpoint_steps
from pipeline.training.session import train
from tests.pipeline.rollout.toy_run import write_env
from tests.tower import tiny_tower


@pytest.fixture(scope="module")
def store(toy_run):
    return toy_run.parent / "features.zarr"


@contextmanager
def validation(env: str, every: int) -> Iterator[RolloutValidation]:
    config = ValidationConfig(
        run=Path("run"),
        out=Path("out"),
        envs=(env,),
        episodes=1,
        videos="none",
        encoder=tiny_tower(),
        camera_check="warn",
        every=every,
    )
    with closing(RolloutValidation(config)) as watcher:
        yield watcher


def rows(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["rollout_success"] for row in lines if "rollout_success" in row}


def test_success_reaches_the_log_and_one_that_waits_gives_way_to_a_newer_one(
    store, tmp_path, caplog
):
    """Training takes its 8 steps while the first rollout plays an episode of 2 seconds."""
    run = tmp_path / "run"
    config = with_settings(debug(), ["checkpoint_every=2", "keep_checkpoints=1"])
    with validation(write_env(tmp_path / "env.toml", step_s=0.1), every=2) as watcher:
        train([store], run, config, resume=False, watchers=[watcher])
    assert watcher.failures == []
    assert checkpoint_steps(run) == [8]  # the one of step 2 was read although it is deleted
    assert "rollout of step 4 was skipped" in caplog.text
    assert "rollout of step 6 was skipped" in caplog.text
    folders = sorted((run / "rollouts").iterdir())
    assert [folder.name for folder in folders] == ["step_00000002", "step_00000008"]
    assert sorted(rows(run)) == [2, 8]
    for step, folder in zip((2, 8), folders, strict=True):
        found = json.loads((folder / "result.json").read_text())
        assert (found["run"], found["checkpoint_step"]) == ("run", step)
        assert rows(run)[step] == found["success_rate"]


def test_a_rollout_that_fails_is_logged_and_training_continues(store, tmp_path, caplog):
    env = write_env(tmp_path / "env.toml", fault="reset")
    with validation(env, every=8) as watcher:
        report = train([store], tmp_path / "run", debug(), resume=False, watchers=[watcher])
    assert report.steps == 8
    assert rows(tmp_path / "run") == {}
    (failure,) = watcher.failures
    assert failure.startswith(f"step 8 was not rolled out: {env}: seed 100000, step 0: reset raise")
    assert "no such robot" in failure
    assert f"{failure}; training continues" in caplog.messages


def test_what_would_never_be_rolled_out_is_refused_before_training(store, tmp_path):
    def refused(env: str, every: int) -> None:
        rollout = ValidationConfig(run=tmp_path, out=tmp_path, envs=(env,), every=every)
        validate_by_rollouts(rollout, store, debug())

    for every in (6, 12):
        found = f"multiple of checkpoint_every=4, at most steps=8, found {every};"
        with pytest.raises(ConfigError, match=found):
            refused(write_env(tmp_path / "env.toml"), every)
    with pytest.raises(EnvError, match=r"gymnasium\.make to build .*TypeError.*lag"):
        refused(write_env(tmp_path / "env.toml", lag=1), 8)


def test_a_process_that_dies_at_its_start_is_told_and_training_continues(store, tmp_path):
    run = tmp_path / "run"
    train([store], run, debug(), resume=False)
    with validation(write_env(tmp_path / "env.toml"), every=8) as watcher:
        watcher.checkpoint_written(run, 8)
        watcher._current.process.kill()
        watcher.finish()
    assert watcher.failures == ["step 8 was not rolled out: exit code -9"]


def test_leaving_ends_the_process(store, tmp_path):
    run = tmp_path / "run"
    train([store], run, debug(), resume=False)
    started = time.monotonic()
    with validation(write_env(tmp_path / "env.toml", step_s=600.0), every=8) as watcher:
        watcher.checkpoint_written(run, 8)
        process = watcher._current.process
        watcher.checkpoint_written(run, 8)
    assert not process.is_alive()
    assert time.monotonic() - started < 60
    assert not list((run / "rollouts").glob(".*"))  # nor what it read
    assert not list((run / "rollouts").rglob("result.json"))
