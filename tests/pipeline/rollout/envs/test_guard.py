"""What other people's simulators raise or show reaches the caller as one line with a place."""

import numpy as np
import pytest

from pipeline.errors import EnvError, EpisodeError
from pipeline.rollout.envs.registry import make_env
from tests.pipeline.rollout.toy_run import VIEWS, write_env

STILL = np.zeros(2, np.float32)

pytestmark = pytest.mark.usefixtures("toy_package")


def step_and_look(env):
    env.step(STILL)
    env.state()
    env.render()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "step 2: step raised FloatingPointError: the solver diverged; "),
        ("nan", "step 3: state is [nan nan 0.1], not finite; "),
        ("reward", "step 3: reward is inf, not finite; "),
        ("render", "step 3: render raised RuntimeError: OpenGL context lost; "),
    ],
)
def test_a_failure_in_an_episode_is_one_line_and_the_next_episode_begins(tmp_path, fault, reason):
    env = make_env(write_env(tmp_path / "env.toml", fault=fault, at=3), VIEWS)
    for seed in (7, 8):
        env.reset(seed)
        step_and_look(env)
        step_and_look(env)
        with pytest.raises(EpisodeError) as caught:
            step_and_look(env)
        assert str(caught.value).startswith(f"{env.name}: seed {seed}, {reason}")
        assert "\n" not in str(caught.value)
    env.close()


def test_a_failing_reset_is_named_too(tmp_path):
    env = make_env(write_env(tmp_path / "env.toml", fault="reset"), VIEWS)
    with pytest.raises(EpisodeError, match="seed 7, step 0: reset raised OSError: no such robot"):
        env.reset(7)
    env.close()


def test_a_simulator_that_fails_while_it_is_built_is_an_error_of_the_environment(tmp_path):
    name = write_env(tmp_path / "env.toml", fault="render", at=0)
    with pytest.raises(EnvError, match="be built and reset, found RuntimeError: OpenGL context"):
        make_env(name, VIEWS)


def test_a_wrong_use_is_not_called_a_failure_of_the_simulator(tmp_path):
    env = make_env(write_env(tmp_path / "env.toml"), VIEWS)
    env.reset(0)
    with pytest.raises(EnvError, match="2 finite numbers as the action") as caught:
        env.step(np.full(2, np.nan, np.float32))
    assert not isinstance(caught.value, EpisodeError)
    env.close()
