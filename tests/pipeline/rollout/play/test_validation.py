"""Rolling out while training goes on: real processes, one at a time, none left behind."""

import json
import sys
import time

import pytest

from pipeline.errors import ConfigError, EnvError
from pipeline.rollout.play.validation import RolloutValidation, validate_by_rollouts
from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import checkpoint_steps
from pipeline.training.session import train
from tests.pipeline.tiny import complete_store

# Reads the run as a rollout does, and takes as long as it is told.
STUDENT = """
import json, sys, time
from pathlib import Path
from pipeline.rollout.gate.camera_verdict import CameraCheckResult
from pipeline.rollout.play.result import Latency, RolloutResult, EpisodeResult
from pipeline.training.run.checkpoint import read_average
from pipeline.training.run.folder import read_probe, read_run
seconds, run, out = float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])
time.sleep(seconds)
description = read_run(run)
read_probe(run, description)
step, _ = read_average(run)
out.mkdir(parents=True)
instant = Latency.of([0.0])
result = RolloutResult(
    env="none", run=run.name, checkpoint_step=step, num_evaluations=1, max_steps=1,
    encoder=description.data.encoder, store_digest=description.data.store_digest,
    episodes=(
        EpisodeResult(
            seed=0, success=step > 4, steps=1, reward=0.0, max_reward=0.0, decisions=1
        ),
    ),
    dataset="tiny", code_version="0", render_size=256, num_envs=1, gate_overridden=(),
    camera_check=CameraCheckResult(mode="refuse", starts=()),
    success_rate=float(step > 4), success_interval=(0.0, 1.0),
    render_s=instant, encode_s=instant, head_s=instant,
)
(out / "result.json").write_text(result.model_dump_json())
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("validated") / "s.zarr").path


def command(program, *words):
    return [sys.executable, "-c", program, *words]


def rows(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["rollout_success"] for row in lines if "rollout_success" in row}


def test_success_reaches_the_log_and_no_file_is_left(store, tmp_path):
    run = tmp_path / "run"
    config = with_settings(debug(), ["checkpoint_every=2", "keep_checkpoints=1"])
    with RolloutValidation(command(STUDENT, "0"), every=4) as validation:
        train([store], run, config, resume=False, watchers=[validation])
    assert rows(run) == {4: 0.0, 8: 1.0}
    assert checkpoint_steps(run) == [8]  # the one of step 4 was read although it is deleted
    assert validation.failures == []
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == [
        "step_00000004",
        "step_00000008",
    ]
    found = json.loads((run / "rollouts/step_00000004/result.json").read_text())
    assert (found["run"], found["checkpoint_step"]) == ("run", 4)


def test_one_that_waits_gives_way_to_a_newer_one_and_the_log_says_so(store, tmp_path, caplog):
    config = with_settings(debug(), ["checkpoint_every=2"])
    with RolloutValidation(command(STUDENT, "3"), every=2) as validation:
        train([store], tmp_path / "run", config, resume=False, watchers=[validation])
    assert sorted(rows(tmp_path / "run")) == [2, 8]
    assert "step 4 is not rolled out" in caplog.text
    assert "step 6 is not rolled out" in caplog.text


def test_a_rollout_that_fails_is_said_and_training_goes_on(store, tmp_path, caplog):
    failing = "import sys; print('error: no such robot', file=sys.stderr); sys.exit(2)"
    with RolloutValidation(command(failing), every=8) as validation:
        report = train([store], tmp_path / "run", debug(), resume=False, watchers=[validation])
    assert report.steps == 8
    assert rows(tmp_path / "run") == {}
    assert validation.failures == ["step 8 was not rolled out: error: no such robot"]
    assert "no such robot; training goes on" in caplog.text


def test_what_would_never_be_rolled_out_is_refused_before_training(store):
    ask = {"every": 6, "episodes": 1, "store": store, "config": debug()}
    with pytest.raises(ConfigError, match="rollouts every 6 steps, checkpoints every 4"):
        validate_by_rollouts((), env="metaworld/drawer-open-v3", **ask)
    with pytest.raises(EnvError, match="drawer-open-v3"):
        validate_by_rollouts((), env="metaworld/drawer-opne-v3", **(ask | {"every": 8}))


def test_leaving_ends_the_process(store, tmp_path):
    train([store], tmp_path / "run", debug(), resume=False)
    started = time.monotonic()
    with RolloutValidation(command("import time; time.sleep(600)"), every=8) as validation:
        validation.checkpoint_written(tmp_path / "run", 8)
        process = validation._current.process
        validation.checkpoint_written(tmp_path / "run", 8)
    assert process.returncode < 0
    assert time.monotonic() - started < 30
    assert list((tmp_path / "run/rollouts").iterdir()) == []
