"""A rollout in a simulator that fails, and one that is killed: what is kept, and how it resumes."""

import json
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pipeline.errors import EnvError, EpisodeError, RunError
from pipeline.rollout.play.journal import JOURNAL
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.storage.locks import sole_writer
from tests.forked import start
from tests.pipeline.rollout.toy_run import write_env
from tests.tower import tiny_tower

ROOT = Path(__file__).parents[4]
TIMES = ("render_s", "encode_s", "head_s")


def config(run: Path, env: str, out: Path, **settings) -> RolloutConfig:
    fixed = {"episodes": 3, "videos": "none", "encoder": tiny_tower(), "camera_check": "warn"}
    return RolloutConfig(run=run, out=out, **({"envs": (env,)} | fixed | settings))


def but_times(out: Path) -> dict[str, object]:
    result = json.loads((out / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in TIMES}


@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_episode_that_its_simulator_ends_is_not_solved_and_the_others_are_played(
    toy_run, tmp_path, caplog, num_envs
):
    faults = {"fault": "raise", "at": 10, "seeds": [100_001]}
    failing = write_env(tmp_path / "env.toml", **faults)
    sound = write_env(tmp_path / "sound.toml")
    settings = {"num_envs": num_envs, "videos": "all"}
    result = roll_out(config(toy_run, failing, tmp_path / "out", **settings))
    expected = roll_out(config(toy_run, sound, tmp_path / "sound"))

    one, failed, other = result.episodes
    assert (one, other) == (expected.episodes[0], expected.episodes[2])
    assert (failed.seed, failed.steps, failed.success) == (100_001, 9, False)
    assert failed.failure.startswith(f"{failing}: seed 100001, step 9: step raised Floating")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{failed.failure}; the episode counts as not solved"]
    assert result.alarms()[0].startswith("the simulator itself failed in 1 of 3 episodes")
    assert (tmp_path / "out/videos/seed_100001.mp4").exists()


def test_an_action_space_that_would_clip_the_trainings_actions_needs_a_word(toy_run, tmp_path):
    """As with joint targets in radians, and an environment that declares -1 to 1 for them."""
    narrow = write_env(tmp_path / "env.toml", limit=0.5)
    with pytest.raises(
        EnvError, match=r"action\[0\]: the training data's scale is .* is \[-0\.5, 0\.5\]"
    ):
        roll_out(config(toy_run, narrow, tmp_path / "out"))
    file = tmp_path / "env.toml"
    file.write_text(file.read_text().replace("[action]", "[action]\nclip = true"))
    assert roll_out(config(toy_run, narrow, tmp_path / "out", episodes=1)).episodes


def test_success_that_holds_from_the_start_is_an_alarm(toy_run, tmp_path):
    """As with a shaped reward, and a limit below all of its values."""
    env = write_env(tmp_path / "env.toml")
    file = tmp_path / "env.toml"
    file.write_text(file.read_text().replace('info = "task/is_success"', "reward_at_least = -9"))
    result = roll_out(config(toy_run, env, tmp_path / "out", episodes=2))
    assert result.success_rate == 1
    assert result.alarms()[0].startswith("2 of 2 episodes were solved by their first step")


def test_a_simulator_that_fails_before_the_policy_acts_is_an_error_and_episodes_are_kept(
    toy_run, tmp_path
):
    out, name = tmp_path / "out", tmp_path / "env.toml"
    failing = write_env(name, fault="render", at=0, seeds=[100_002])
    with pytest.raises(EpisodeError, match="seed 100002, step 0: render raised RuntimeError"):
        roll_out(config(toy_run, failing, out))
    assert not (out / "result.json").exists()
    _, *lines = (out / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["result"]["seed"] for line in lines] == [100_000, 100_001]


def start_command(run: Path, env: str, out: Path, *words: str) -> BaseProcess:
    """Type the command in a process of its own."""
    command = [run, "--env", env, "--out", out, "--encoder", tiny_tower()]
    command += ["--episodes", "4", "--set", "camera_check=warn", *words]
    output = out.with_suffix(".txt")
    return start("from cli.rollout import main; main()", *command, output=output)


def kill_after(process: BaseProcess, out: Path, lines: int) -> None:
    """Kill a rollout as soon as its journal has so many lines."""
    journal = out / JOURNAL
    while process.is_alive():
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            process.kill()
            break
        time.sleep(0.02)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("others", [(), ("other.toml",)])
def test_a_rollout_that_was_killed_resumes_to_the_result_of_one_that_was_not(
    toy_run, tmp_path, caplog, others
):
    """The line that the kill cut short is planted: a kill hardly ever meets one."""
    env = write_env(tmp_path / "env.toml")
    envs = (env, *(write_env(tmp_path / other, speed=0.2) for other in others))
    settings = {"episodes": 4, "videos": "all", "envs": envs}
    roll_out(config(toy_run, env, tmp_path / "undisturbed", **settings))

    out = tmp_path / "killed"
    write_env(tmp_path / "env.toml", step_s=0.02)
    more = [word for other in envs[1:] for word in ("--env", other)]
    kill_after(start_command(toy_run, env, out, "--videos", "all", *more), out, lines=3)
    assert not (out / "result.json").exists()
    kept = (out / JOURNAL).read_bytes()
    with (out / JOURNAL).open("ab") as file:
        file.write(kept.splitlines()[1][:40])
    assert "resuming" not in caplog.text
    roll_out(config(toy_run, env, out, **settings))
    assert "resuming after 2 finished episodes" in caplog.text
    assert (out / JOURNAL).read_bytes().startswith(kept)
    assert but_times(out) == but_times(tmp_path / "undisturbed")
    names = [path.name for path in sorted((out / "videos").rglob("*.mp4"))]
    assert names == [f"seed_{seed}.mp4" for seed in range(100_000, 100_004)] * len(envs)


def test_a_folder_that_another_rollout_writes_to_is_refused(toy_run, tmp_path):
    with sole_writer(tmp_path, RunError), pytest.raises(RunError, match="another process is writ"):
        roll_out(config(toy_run, write_env(tmp_path / "env.toml"), tmp_path))


def test_another_rollout_in_the_same_folder_starts_anew_and_so_does_one_that_was_complete(
    toy_run, tmp_path, caplog
):
    env, out = write_env(tmp_path / "env.toml"), tmp_path / "out"
    roll_out(config(toy_run, env, out))
    complete = (out / JOURNAL).read_bytes()
    roll_out(config(toy_run, env, out))
    assert (out / JOURNAL).read_bytes() != complete  # times of its own

    for change, arguments in (({"max_steps": 5}, {}), ({}, {"speed": 0.2})):
        (out / JOURNAL).write_bytes(complete)
        (out / "result.json").unlink()
        write_env(tmp_path / "env.toml", **arguments)
        result = roll_out(config(toy_run, env, out, **change))
        assert "resumes" not in caplog.text
        assert len(result.episodes) == len((out / JOURNAL).read_text().splitlines()) - 1 == 3
