"""A policy that is told what to do: in rollouts, served, and in Python."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pipeline.errors import ConfigError, EncoderMismatchError, RequestError, RunError
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.rollout.play.loop import RolloutConfig, check_instructions, roll_out
from pipeline.rollout.policy import Policy
from pipeline.rollout.report.instructions import measure_effect
from pipeline.training.presets import debug
from pipeline.training.run.folder import PROBE_FILE
from pipeline.training.session import train
from policy.encoders.text import another_instruction
from policy.errors import AgentMismatchError
from policy.network.readers import InstructionReaderConfig
from tests.pipeline.rollout.test_policy import Robot
from tests.pipeline.rollout.toy_run import record, write_env
from tests.text_checkpoint import text_checkpoint
from tests.tower import tiny_tower

TOLD = ("go left", "go right", "go left", "go right", "go left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run that was told TOLD, by a text encoder from a local folder."""
    folder = tmp_path_factory.mktemp("told")
    store = folder / "s.zarr"
    text = str(text_checkpoint())
    config = EmbedConfig(
        manifest=record(folder, TOLD), store=store, encoder=tiny_tower(), text_encoder=text
    )
    embed_dataset(config)
    base = debug()
    agent = base.agent.model_copy(update={"language": InstructionReaderConfig()})
    optimizer = base.optimizer.model_copy(update={"learning_rate": 1e-2})
    settings = base.model_copy(update={"agent": agent, "optimizer": optimizer})
    train([store], folder / "run", settings, resume=False)
    return folder


def load(folder: Path, **settings) -> Policy:
    return Policy.load(folder / "run", encoder=tiny_tower(), camera_check="off", **settings)


def act(policy: Policy, folder: Path, prompt: str | None) -> np.ndarray:
    policy.reset()
    return policy.act(*Robot(folder / "data/episode_0.hdf5").observe(), prompt=prompt)


def test_the_prompt_decides_and_a_known_one_needs_no_text_encoder(folder):
    left = act(load(folder), folder, "go left")
    np.testing.assert_array_equal(act(load(folder), folder, "  GO   left"), left)
    assert not np.array_equal(act(load(folder), folder, "go right"), left)
    assert not np.array_equal(act(load(folder), folder, ""), left)


def test_damaged_vectors_of_instructions_are_refused(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    held = load_file(run / PROBE_FILE)
    with safe_open(run / PROBE_FILE, framework="numpy") as file:
        notes = file.metadata()
    held["instructions"][0, 1] += 1
    save_file(held, run / PROBE_FILE, notes)
    with pytest.raises(RunError, match=r"expected the instructions listed in run\.json"):
        load(tmp_path)


def test_an_unseen_prompt_is_encoded_live_by_the_text_encoder_of_the_training(folder):
    policy = load(folder, text_encoder=str(text_checkpoint()))
    unseen = act(policy, folder, "fly up")
    assert not np.array_equal(unseen, act(load(folder), folder, "go left"))
    with pytest.raises(EncoderMismatchError, match="pass its path with --set text_encoder=PATH"):
        act(load(folder), folder, "fly up")
    other = str(text_checkpoint(seed=1))
    with pytest.raises(EncoderMismatchError, match=r"expected the text encoder .* found"):
        act(load(folder, text_encoder=other), folder, "fly up")
    with pytest.raises(RequestError, match="prompt: expected what to do in words, such as 'go l"):
        act(policy, folder, None)


def test_a_rollout_takes_the_instruction_of_the_environment_or_another(folder, tmp_path):
    env = write_env(tmp_path / "toy.toml", package=None)
    file = Path(env.removeprefix("gymnasium:"))
    file.write_text(f'instruction = "go right"\n{file.read_text()}')

    silent = write_env(tmp_path / "silent.toml", package=None)

    def first(name: str, **settings) -> tuple[str, np.ndarray]:
        config = RolloutConfig(
            run=folder / "run",
            envs=(settings.pop("env", env),),
            out=tmp_path / name,
            episodes=1,
            max_steps=2,
            videos="none",
            camera_check="off",
            encoder=tiny_tower(),
            **settings,
        )
        [episode] = roll_out(config).episodes
        [saved] = json.loads((tmp_path / name / "result.json").read_text())["episodes"]
        assert saved["instruction"] == episode.instruction
        return episode.instruction, np.array(episode.first_actions)

    words, right = first("own")
    assert (words, right.shape) == ("go right", (8, 2))
    words, left = first("other", instruction="go left")
    assert words == "go left"
    assert not np.array_equal(left, right)
    np.testing.assert_array_equal(first("again", instruction="Go Right")[1], right)
    np.testing.assert_array_equal(first("it", instruction="go right", env=silent)[1], right)
    with pytest.raises(ConfigError, match=r"silent.toml: expected an instruction .* found none"):
        first("none", env=silent)


def test_the_check_tells_each_episode_its_own_task_another_and_nothing(
    folder, tmp_path, monkeypatch
):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    env = write_env(tmp_path / "toy.toml", package=None)
    file = Path(env.removeprefix("gymnasium:"))
    file.write_text(f'instruction = "Go  right"\n{file.read_text()}')
    config = RolloutConfig(
        run=folder / "run",
        envs=(env,),
        out=Path(),
        episodes=2,
        max_steps=2,
        videos="none",
        camera_check="off",
        encoder=tiny_tower(),
    )
    for change in ({"instruction": "go left"}, {"instruction_source": "other"}):
        with pytest.raises(ConfigError, match="--instruction-check: expected no instruction"):
            check_instructions(config.model_copy(update=change))
    results = check_instructions(config)
    assert [result.instruction_source for result in results] == ["own", "other", "empty"]
    words = [[episode.instruction for episode in result.episodes] for result in results]
    assert words == [["Go  right"] * 2, ["go left"] * 2, [""] * 2]
    assert {path.name for path in tmp_path.glob("out*")} == {
        "out",
        "out-other-instruction",
        "out-empty-instruction",
    }
    for other in results[1:]:
        assert measure_effect(results[0], other).change > 0


def test_another_instruction_is_the_next_one_that_training_had():
    known = ("go left", "go right", "stop")
    assert another_instruction(known, "GO right") == "stop"
    assert another_instruction(known, "stop") == "go left"
    assert another_instruction(known, "unseen") == "go left"
    with pytest.raises(AgentMismatchError, match="other instructions than 'stop', found 1"):
        another_instruction(("stop",), "stop")
    with pytest.raises(AgentMismatchError, match="found 0 in its training"):
        another_instruction((), "stop")
