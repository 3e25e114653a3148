"""The live loop against a robot that counts: what a decision sees, and what is executed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.processes import LocalWorker
from pipeline.rollout.envs.base import StepResult
from pipeline.rollout.play.episode import EpisodePlayer
from pipeline.rollout.play.loop import RolloutConfig, play_episodes
from pipeline.rollout.play.tasks import OneAtATime, Queue
from pipeline.training.data.windows import WindowData
from policy.agent import AgentConfig, VLAAgent
from policy.network.head import HeadConfig
from policy.network.readers import ReaderConfig
from policy.spec import AgentSpec
from tests.pipeline.rollout.pixel_encoder import PixelEncoder
from tests.pipeline.tiny import ACTION_DIM, POOLED, STATE_DIM, VIEWS, complete_store


class CountingEnv:
    """A robot whose pictures and state show the number of steps taken since its reset."""

    name = "counting"
    instruction = ""
    view_names = VIEWS
    state_dim = STATE_DIM
    action_dim = ACTION_DIM
    action_bounds = None
    control_hz = 50.0

    def __init__(self, max_steps: int = 100, solved_at: int | None = None):
        self.max_steps = max_steps
        self.solved_at = solved_at
        self.step_index = -1
        self.executed: list[float] = []

    def reset(self, seed: int) -> None:
        self.step_index = 0
        self.executed = []

    def render(self) -> np.ndarray:
        return np.full((3, 256, 256, 3), self.step_index, np.uint8)

    def effector_pixels(self) -> np.ndarray:
        return np.full((3, 2), np.nan)

    def state(self) -> np.ndarray:
        return np.full(STATE_DIM, self.step_index, np.float32)

    def step(self, action: np.ndarray) -> StepResult:
        self.executed.append(float(action[0]))
        self.step_index += 1
        is_solved = self.step_index == self.solved_at
        return StepResult(1.0, is_solved, self.step_index >= self.max_steps)

    def close(self) -> None:
        pass


class RecordingAgent(VLAAgent):
    """Notes what it sees and answers the numbers of the steps it plans for."""

    seen: list[tuple[list[float], list[float]]]

    def predict(self, features, state, noise, nfe=1):
        self.seen.append((features["pooled"][0, :, 0, 0].tolist(), state[0, :, 0].tolist()))
        horizon = self.config.head.pred_horizon
        steps = state[0, -1, 0] + torch.arange(horizon, dtype=torch.float32)
        return steps[None, :, None].expand(1, horizon, ACTION_DIM).clone()


def counting_agent(obs_horizon: int, num_action_steps: int) -> RecordingAgent:
    config = AgentConfig(
        readers={"pooled": ReaderConfig(projection_dim=4)},
        cond_dim=8,
        obs_horizon=obs_horizon,
        num_action_steps=num_action_steps,
        head=HeadConfig(n_emb=64, n_layer=1, pred_horizon=8),
    )
    spec = AgentSpec(
        view_names=VIEWS, feature_shapes=POOLED, state_dim=STATE_DIM, action_dim=ACTION_DIM
    )
    agent = RecordingAgent(config, spec, PixelEncoder())
    agent.seen = []
    return agent


def play(agent: RecordingAgent, env: CountingEnv, max_steps: int = 100):
    horizon = agent.config.obs_horizon
    player = EpisodePlayer(env, obs_horizon=horizon, max_steps=max_steps, out=Path("out"))
    config = RolloutConfig(run=Path("run"), envs=("counting",), out=Path("out"), videos="none")
    players = [LocalWorker(OneAtATime(lambda env: player))]
    (episode,) = play_episodes(agent, players, Queue({"counting": [0]}), config, nfe=1)
    assert episode.result.decisions == len(episode.head_s) == len(agent.seen)
    return episode.result


@pytest.mark.parametrize(
    ("obs_horizon", "num_action_steps"), [(1, 8), (2, 8), (2, 1), (3, 1), (3, 4)]
)
def test_a_decision_sees_the_windows_of_training(tmp_path, obs_horizon, num_action_steps):
    """Row numbers stand in the store's state: the rollout must see the same rows as a window."""
    data = WindowData(
        complete_store(tmp_path / "s.zarr", (30,)), features=("pooled",), validation_share=0.0
    )
    agent, env = counting_agent(obs_horizon, num_action_steps), CountingEnv(max_steps=24)

    play(agent, env)

    decisions = torch.arange(0, 24, num_action_steps)
    windows = data.gather(decisions, obs_horizon=obs_horizon, pred_horizon=8)
    for (features, state), expected, planned in zip(
        agent.seen, windows.state[..., 0].tolist(), windows.actions[..., 0].tolist(), strict=True
    ):
        assert state == expected
        assert features == expected
        assert planned[0] == expected[-1]  # training's chunk starts at the current step as well


def test_actions_are_executed_at_the_steps_they_were_planned_for():
    env = CountingEnv(max_steps=20)
    result = play(counting_agent(2, 8), env)
    assert env.executed == list(range(20))
    assert (result.steps, result.success, result.reward) == (20, False, 20.0)


def test_an_episode_ends_with_its_success():
    result = play(counting_agent(2, 8), CountingEnv(solved_at=11))
    assert (result.steps, result.success) == (11, True)


def test_an_episode_ends_at_the_limit_of_the_request():
    result = play(counting_agent(2, 8), CountingEnv(), max_steps=13)
    assert (result.steps, result.success) == (13, False)
