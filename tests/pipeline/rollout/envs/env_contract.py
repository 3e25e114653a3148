"""What every RobotEnv must do, and what one with an expert must do in addition.

Subclasses say how to build one with three views, and what its actions may be.
"""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import EnvError
from pipeline.rollout.envs.base import ExpertEnv, RobotEnv

ROOT = Path(__file__).parents[4]


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with other variables in its environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class EnvContract:
    @pytest.fixture(scope="class")
    @classmethod
    def env(cls):
        env = cls.build()
        yield env
        env.close()

    VIEWS: tuple[str, ...]
    """Three views that show clearly different things."""

    @classmethod
    def build(cls) -> RobotEnv:
        return cls.build_with(cls.VIEWS)

    @classmethod
    def build_with(cls, views: tuple[str, ...]) -> RobotEnv:
        """Build the environment, with frames of the encoder's size."""
        raise NotImplementedError

    @classmethod
    def action_range(cls, env: RobotEnv) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest action that the robot takes."""
        return np.full(env.action_dim, -1.0), np.full(env.action_dim, 1.0)

    def next_action(self, env: RobotEnv, step: int) -> np.ndarray:
        """Return an action that moves the robot: somewhere in the range."""
        low, high = self.action_range(env)
        share = np.random.default_rng(step).random(env.action_dim)
        return (low + share * (high - low)).astype(np.float32)

    def play(self, env: RobotEnv, seed: int, steps: int) -> tuple[list[np.ndarray], list[float]]:
        """Return the first and last frames and all states, and the rewards."""
        env.reset(seed)
        arrays, rewards = [env.render(), env.state()], []
        for step in range(steps):
            rewards.append(env.step(self.next_action(env, step)).reward)
            arrays.append(env.state())
        return [*arrays, env.render()], rewards

    def test_it_renders_three_views_that_differ(self, env):
        env.reset(0)
        frames = env.render()
        assert frames.dtype == np.uint8
        assert frames.shape == (3, 256, 256, 3)
        assert env.view_names == self.VIEWS
        assert frames.flags["C_CONTIGUOUS"]
        for one, other in combinations(frames.astype(int), 2):
            # 10 of 255 on average: a camera rendered twice gives 0.
            assert np.abs(one - other).mean() > 10

    def test_views_that_are_absent_are_refused(self):
        with pytest.raises(EnvError, match="expected distinct views from"):
            self.build_with((self.VIEWS[0], "no-such-view"))

    def test_a_seed_gives_the_same_episode_whatever_ran_before(self, env):
        before = self.play(env, seed=3, steps=15)
        self.play(env, seed=4, steps=40)
        after = self.play(env, seed=3, steps=15)
        for one, other in zip(before[0], after[0], strict=True):
            np.testing.assert_array_equal(one, other)
        assert before[1] == after[1]

    def test_another_in_turns_with_it_does_the_same_and_ends_alone(self, env, request):
        """Its views in the opposite order; neither changes what the other does, or its pictures."""
        frames, *states, last_frames = self.play(env, 5, 10)[0]
        other = self.build_with(self.VIEWS[::-1])
        request.addfinalizer(other.close)
        still = np.zeros(other.action_dim, np.float32)
        for use in (other.state, other.render, lambda: other.step(still)):
            with pytest.raises(EnvError, match="expected an episode, found none"):
                use()
        env.reset(5)
        other.reset(6)
        found = [env.state()]
        for step in range(10):
            action = self.next_action(env, step)
            env.step(action)
            other.step(action)
            found.append(env.state())
        np.testing.assert_array_equal(found, states)
        others_frames, *others_states, others_last_frames = self.play(other, 5, 10)[0]
        np.testing.assert_array_equal(others_frames[::-1], frames)
        np.testing.assert_array_equal(others_states, states)
        np.testing.assert_array_equal(others_last_frames[::-1], last_frames)
        other.close()
        other.close()
        np.testing.assert_array_equal(env.render(), last_frames)
        for use in (other.state, other.render, lambda: other.step(still), lambda: other.reset(0)):
            with pytest.raises(EnvError, match="found a closed one"):
                use()

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
        for step in range(5):
            env.step(self.next_action(env, step))
        assert (env.state() != before).any()

    def test_an_action_beyond_the_range_is_clipped(self, env):
        states = []
        for excess in (0, 5):
            env.reset(0)
            for _ in range(5):
                env.step((self.action_range(env)[1] + excess).astype(np.float32))
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
        with pytest.raises(EnvError, match="has ended"):
            env.step(still)

    @pytest.mark.parametrize("seed", [-1, 2**32])
    def test_a_seed_out_of_range_is_an_error(self, env, seed):
        with pytest.raises(EnvError, match=str(seed)):
            env.reset(seed)


class ExpertContract(EnvContract):
    """For environments whose simulator renders in any size and that ship an expert."""

    EXPERT_SEEDS = (0, 1)

    @classmethod
    def build_with(cls, views: tuple[str, ...], render_size: int = 256) -> ExpertEnv:
        raise NotImplementedError

    def next_action(self, env: ExpertEnv, step: int) -> np.ndarray:
        return env.expert_action()

    def test_a_larger_picture_shows_the_same(self, env):
        larger = self.build_with(self.VIEWS, render_size=480)
        for one in (env, larger):
            one.reset(5)
        frames = larger.render()
        larger.close()
        assert frames.shape == (3, 480, 480, 3)
        # Means of sixteenths of the picture know little of how a resolution samples an edge.
        for small, large in zip(env.render(), frames, strict=True):
            means = [
                picture.reshape(4, size // 4, 4, size // 4, 3).mean(axis=(1, 3))
                for picture, size in ((large, 480), (small, 256))
            ]
            np.testing.assert_allclose(*means, atol=1.5)  # of 255; a wrong camera is 20 off

    def test_it_says_what_its_numbers_mean(self, env):
        assert env.state_units
        assert env.action_units
        assert env.control_hz > 0

    def solve(self, env: ExpertEnv, seed: int) -> list[np.ndarray]:
        """Return the expert's actions, all of them in range, to the step that solves the task."""
        low, high = self.action_range(env)
        actions = []
        env.reset(seed)
        for _ in range(env.max_steps):
            actions.append(action := env.expert_action())
            assert action.dtype == np.float32
            assert action.shape == (env.action_dim,)
            # 1e-6: the rounding of float32, which `step` clips.
            assert (action >= low - 1e-6).all()
            assert (action <= high + 1e-6).all()
            if env.step(action).success:
                return actions
        pytest.fail(f"seed {seed} not solved")

    def test_the_expert_stays_in_range_and_succeeds(self, env):
        for seed in self.EXPERT_SEEDS:
            self.solve(env, seed)

    @pytest.mark.parametrize("size", [63, 2049])
    def test_a_size_that_cannot_be_meant_is_refused(self, env, size):
        with pytest.raises(EnvError, match=f"render size {size}"):
            self.build_with(env.view_names, render_size=size)
