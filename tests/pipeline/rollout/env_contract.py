"""What every RobotEnv with an expert must do; subclasses say how to build one with three views."""

from itertools import combinations

import numpy as np
import pytest

from pipeline.errors import EnvError
from pipeline.rollout.envs.registry import ExpertEnv


def play(env: ExpertEnv, seed: int, steps: int) -> tuple[list[np.ndarray], list[float]]:
    """Follow the expert; return the frames and states of the first and last step, and rewards."""
    env.reset(seed)
    arrays, rewards = [env.render(), env.state()], []
    for _ in range(steps):
        rewards.append(env.step(env.expert_action()).reward)
        arrays.append(env.state())
    return [*arrays, env.render()], rewards


class EnvContract:
    @pytest.fixture(scope="class")
    @classmethod
    def env(cls):
        env = cls.make_env()
        yield env
        env.close()

    @classmethod
    def make_env(cls) -> ExpertEnv:
        raise NotImplementedError

    def test_it_renders_three_views_that_differ(self, env):
        env.reset(0)
        frames = env.render()
        assert frames.dtype == np.uint8
        assert frames.shape[0] == len(env.view_names) == 3
        assert frames.shape[3] == 3
        assert frames.flags["C_CONTIGUOUS"]
        for one, other in combinations(frames.astype(int), 2):
            # 10 of 255 on average: a camera rendered twice gives 0.
            assert np.abs(one - other).mean() > 10

    def test_a_seed_gives_the_same_episode_whatever_ran_before(self, env):
        before = play(env, seed=3, steps=15)
        play(env, seed=4, steps=40)
        after = play(env, seed=3, steps=15)
        for one, other in zip(before[0], after[0], strict=True):
            np.testing.assert_array_equal(one, other)
        assert before[1] == after[1]

    def test_another_environment_gives_the_same_episode(self, env):
        other = self.make_env()
        try:
            for one, another in zip(play(env, 5, 10)[0], play(other, 5, 10)[0], strict=True):
                np.testing.assert_array_equal(one, another)
        finally:
            other.close()
        env.reset(5)  # and closing one leaves the other alone
        np.testing.assert_array_equal(env.render(), play(env, 5, 0)[0][0])

    def test_seeds_differ(self, env):
        env.reset(0)
        one = env.render()
        env.reset(1)
        assert (one != env.render()).any()

    def test_state_has_its_width_and_moves_with_the_robot(self, env):
        env.reset(0)
        before = env.state()
        assert before.dtype == np.float32
        assert before.shape == (env.state_dim,)
        for _ in range(5):
            env.step(env.expert_action())
        assert (env.state() != before).any()

    def test_the_expert_stays_in_range_and_succeeds(self, env):
        for seed in (0, 1):
            env.reset(seed)
            for _ in range(env.max_steps):
                action = env.expert_action()
                assert action.dtype == np.float32
                assert action.shape == (env.action_dim,)
                assert np.abs(action).max() <= 1
                if env.step(action).success:
                    break
            else:
                pytest.fail(f"seed {seed} not solved")

    def test_an_action_beyond_the_range_is_clipped(self, env):
        states = []
        for scale in (1, 7):
            env.reset(0)
            for _ in range(5):
                env.step(np.array([1, -1, 1, -1], np.float32)[: env.action_dim] * scale)
            states.append(env.state())
        np.testing.assert_array_equal(*states)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_an_action_that_is_not_finite_is_an_error(self, env, bad):
        env.reset(0)
        with pytest.raises(EnvError, match="finite"):
            env.step(np.full(env.action_dim, bad, np.float32))
        with pytest.raises(EnvError, match="finite"):
            env.step(np.zeros(env.action_dim + 1, np.float32))

    def test_only_the_last_step_is_truncated_and_no_step_follows(self, env):
        env.reset(0)
        still = np.zeros(env.action_dim, np.float32)
        truncated = [env.step(still).truncated for _ in range(env.max_steps)]
        assert truncated == [False] * (env.max_steps - 1) + [True]
        with pytest.raises(EnvError, match="reset first"):
            env.step(still)

    def test_a_negative_seed_is_an_error(self, env):
        with pytest.raises(EnvError, match="-1"):
            env.reset(-1)
