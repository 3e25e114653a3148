"""Several seeds at once: each as alone, together in one report, interrupted together."""

import os
import signal
import time

import pytest
import torch
from typer.testing import CliRunner

from cli.train import main
from pipeline.rollout.report.comparison import find_repeats
from pipeline.rollout.report.contents import read_contents
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import checkpoint_steps, read_checkpoint
from pipeline.training.session import train
from tests.pipeline.tiny import complete_store
from tests.pipeline.training.test_interrupt import start_training, wait_for


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("seeds") / "s.zarr").path


@pytest.fixture(scope="module")
def trained(store):
    """The folder of two seeds that the command trained."""
    out = store.parent / "trained"
    words = [store, "--preset", "debug", "--seeds", "3,5", "--out", out]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "seed-3: 8 steps" in result.output
    assert "seed-5: 8 steps" in result.output
    return out


@pytest.mark.parametrize("seed", [3, 5])
def test_a_seed_gets_the_bits_that_it_gets_alone(store, trained, tmp_path, seed):
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        train([store], tmp_path, debug().model_copy(update={"seed": seed}), resume=True)
    finally:
        torch.set_num_threads(threads)
    ours = read_checkpoint(trained / f"seed-{seed}", 8)
    alone = read_checkpoint(tmp_path, 8)
    for part in ("agent", "average", "optimizer"):
        for name, tensor in getattr(alone, part).items():
            assert torch.equal(getattr(ours, part)[name], tensor), (part, name)


def test_the_report_shows_mean_and_spread(trained):
    """Of all runs that differ by the seed alone, and of no others."""
    runs = read_contents([trained / "seed-3", trained / "seed-5"])
    (repeats,) = find_repeats(runs)
    errors = [run.validation_error[0].value for run in runs]
    assert errors[0] != errors[1]
    assert repeats.figures == {"validation error": errors}
    page = (trained / "report.html").read_text()
    assert f"<b>{sum(errors) / 2:.3f}</b>" in page
    assert f"({min(errors):.3f} to {max(errors):.3f})" in page
    assert find_repeats(runs[:1]) == []


def test_runs_of_other_settings_are_no_repeats(store, trained, tmp_path):
    other = debug().model_copy(update={"seed": 7, "batch_size": 4})
    train([store], tmp_path / "other", other, resume=False)
    assert find_repeats(read_contents([trained / "seed-3", tmp_path / "other"])) == []


JOB = """
import multiprocessing, os
os.setsid()
# The trainings are forked: two processes less that load torch, and in the command's group as ever.
contexts = multiprocessing.context._concrete_contexts
contexts["spawn"] = contexts["fork"]
"""


@pytest.mark.parametrize(
    ("end", "number", "exit_code"),
    [
        (os.killpg, signal.SIGTERM, 130),
        (os.killpg, signal.SIGINT, 130),
        (os.kill, signal.SIGKILL, -9),
    ],
    ids=["a job's end", "Ctrl-C", "kill -9"],
)
def test_whatever_ends_the_command_leaves_a_checkpoint_of_each_seed(
    store, tmp_path, end, number, exit_code
):
    run = tmp_path / "run"
    run.mkdir()
    process, output = start_training(store, run, "--seeds", "0,1", "--resume", program=JOB)
    for seed in (0, 1):
        wait_for(run / f"seed-{seed}/log.jsonl", '{"step": 40', process, output)
    end(process.pid, number)
    process.join(600)
    said = output.read_text()
    assert process.exitcode == exit_code, said
    assert "Traceback" not in said
    deadline = time.monotonic() + 60
    while not all(checkpoint_steps(run / f"seed-{seed}") for seed in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for seed in (0, 1):
        assert checkpoint_steps(run / f"seed-{seed}")[-1] >= 40


def test_what_one_training_raises_ends_the_command(store, trained):
    """The folder of one seed holds a run of other settings."""
    words = [store, "--preset", "debug", "--seeds", "3,6", "--out", trained, "--resume"]
    words += ["--set", "batch_size=4"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "seed-3" in line


@pytest.mark.parametrize("seeds", ["0,0", "-1", "0,x", "0,", f"0,{2**63}"])
def test_seeds_that_cannot_be_meant_are_refused(store, tmp_path, seeds):
    words = [store, "--preset", "debug", f"--seeds={seeds}", "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 2
    assert "--seeds" in result.stderr
    assert not (tmp_path / "run").exists()


def test_torchrun_whose_processes_share_a_run_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    words = [store, "--preset", "debug", "--seeds", "0,1", "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 2
    assert "--seeds: expected no torchrun" in result.stderr
