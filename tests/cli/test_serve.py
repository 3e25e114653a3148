"""`vla-serve` as a robot meets it: the public client acts in the real simulator."""

import os
import re
import signal
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import typer.main
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed, InvalidStatus

import cli.serve
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.envs.registry import make_env
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from tests.forked import start
from tests.pipeline.rollout.envs.meta_world_run import SHAPES, TASK, VIEWS, write_run
from tests.pipeline.training.test_interrupt import wait_for
from tests.tower import tiny_tower

TOKEN = "0123456789abcdef"
CHUNK = 16  # control steps
DECISIONS = 3


def refusal(*words: object) -> str:
    result = CliRunner().invoke(cli.serve.main, [*map(str, words)])
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Train four steps, with longer chunks than the preset's 8."""
    return write_run(
        tmp_path_factory.mktemp("serve"),
        "steps=4",
        "checkpoint_every=2",
        f"agent.head.pred_horizon={CHUNK}",
        f"agent.num_action_steps={CHUNK}",
    )


@pytest.fixture(scope="module")
def server(trained):
    """Serve in a process of its own; its port, the process, and the file of what it says."""
    token_file = trained.parent / "token"
    token_file.write_text(f"{TOKEN}\n")
    words = [trained, "--port", "0", "--token-file", token_file, "--encoder", tiny_tower()]
    words += ["--checkpoint", "2", "--set", "camera_check=off"]  # it was trained on noise
    output = trained.parent / "said.txt"
    quiet = "import transformers; transformers.logging.disable_progress_bar(); "
    process = start(f"{quiet}from cli.serve import main; main()", *words, output=output)
    try:
        wait_for(output, "\n", process, output)
        line, *_ = output.read_text().splitlines()
        assert "serving" in line, output.read_text()
        assert "views corner, topview, gripperPOV; encoder " in line
        yield int(line.rpartition(":")[2]), process, output
    finally:
        process.kill()
        process.join()


@pytest.mark.sim
def test_the_public_client_acts_as_the_rollout_does(trained, server):
    """The wire is invisible: same seed, same rewards, bit for bit."""
    port, process, output = server
    with pytest.raises(InvalidStatus, match="401"):
        WebsocketClientPolicy("127.0.0.1", port)
    client = WebsocketClientPolicy("127.0.0.1", port, api_key=TOKEN)
    told = client.get_server_metadata()
    assert (tuple(told["views"]), told["num_action_steps"]) == (VIEWS, CHUNK)
    assert told["checkpoint_step"] == 2
    assert (told["state_units"], told["dataset"]) == ("none", "noise")

    with closing(make_env(TASK, VIEWS)) as env:
        rewards = play(env, client)

    config = RolloutConfig(
        run=trained,
        envs=(TASK,),
        out=trained.parent / "out",
        checkpoint="2",
        encoder=tiny_tower(),
        episodes=1,
        max_steps=DECISIONS * CHUNK,
    )
    [episode] = roll_out(config).episodes
    assert episode.reward == sum(rewards)
    assert episode.steps == DECISIONS * CHUNK

    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    assert process.exitcode == 0
    said = output.read_text().partition("\n")[2]
    assert re.fullmatch(r"latest \d+ answers: .* per second, latency p50 .*\nstopped\n", said)
    with pytest.raises(ConnectionClosed, match="1001"):
        client.infer({})


def play(env, client: WebsocketClientPolicy) -> list[float]:
    """Play a few decisions; each brings the step before it, too."""
    env.reset(FIRST_ROLLOUT_SEED)
    latest = observe(env)
    rewards, history = [], [latest, latest]
    for _ in range(DECISIONS):
        frames, states = zip(*history, strict=True)
        views = dict(zip(VIEWS, np.stack(frames, axis=1), strict=True))
        fields = {f"observation/{view}": stack for view, stack in views.items()}
        answer = client.infer(fields | {"observation/state": np.stack(states)})
        assert answer["history"] == "exact"
        assert answer["actions"].shape == (CHUNK, SHAPES[2])
        for index, action in enumerate(answer["actions"]):
            if index == CHUNK - 1:
                before = observe(env)
            rewards.append(env.step(action).reward)
        history = [before, observe(env)]
    return rewards


def observe(env) -> tuple[np.ndarray, np.ndarray]:
    return env.render(), env.state()


def test_what_cannot_be_served_is_refused_in_one_line(tmp_path):
    assert "expected a training run, found none" in refusal(tmp_path)
    assert "expected a token" in refusal(tmp_path, "--host", "0.0.0.0")
    (tmp_path / "token").write_text("short")
    assert "16 or more" in refusal(tmp_path, "--token-file", tmp_path / "token")
    assert "no-file" in refusal(tmp_path, "--token-file", tmp_path / "no-file")


def test_without_its_extra_the_command_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)  # as if it were not installed
    for part in ("sockets", "session", "request", "wire"):
        monkeypatch.delitem(sys.modules, f"pipeline.rollout.serve.{part}", raising=False)
    message = refusal(tmp_path)
    assert "the module msgpack is not installed" in message
    assert "'.[serve]'" in message


def test_flags_are_what_users_know():
    command = typer.main.get_command(cli.serve.main)
    assert {option for parameter in command.params for option in parameter.opts} == {
        "run",
        "--host",
        "--port",
        "--token-file",
        "--checkpoint",
        "--encoder",
        "--device",
        "--set",
    }
