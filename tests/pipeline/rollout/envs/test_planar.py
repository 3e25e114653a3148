import numpy as np
import pytest

from pipeline.errors import EnvError
from pipeline.rollout.envs.registry import make_env, make_expert_env
from tests.pipeline.rollout.envs.env_contract import ExpertContract

pytestmark = pytest.mark.sim


class TestTwoWays(ExpertContract):
    VIEWS = ("top", "front", "side")

    @classmethod
    def build_with(cls, views, render_size=256):
        return make_expert_env("planar/two-ways", views, render_size)

    def path(self, env, seed):
        env.reset(seed)
        points = [env.state()]
        while not env.step(env.expert_action()).success:
            points.append(env.state())
        return np.array(points)

    def test_the_expert_takes_both_ways_whatever_it_sees(self, env):
        starts = []
        for seed in range(20):
            path = self.path(env, seed)
            crossing = path[np.abs(path[:, 1]).argmin(), 0]
            assert abs(crossing) > 0.11  # meters: the end of the wall and the disc's radius
            assert (crossing > 0) == (seed % 2 == 1)
            starts.append((path[0, 0] > 0, seed % 2))
        assert len({*starts}) == 4  # both ways from either side

    def test_the_mean_of_both_ways_touches_the_wall_and_solves_nothing(self, env):
        """A chunk of the mean of two experts' first actions; then around the wall to the goal."""
        env.reset(1)
        step = env.expert_action()
        for _ in range(8):
            env.step(np.array([0.0, step[1]], np.float32))
        disc_and_wall = 0.03 + 0.015  # meters
        assert env.state()[1] == pytest.approx(-disc_and_wall, abs=0.005)
        for action in ([1.0, -0.3],) * 8:
            env.step(np.array(action, np.float32))
        results = [env.step(env.expert_action()) for _ in range(40)]
        assert -results[-1].reward < 0.03  # meters from the goal
        assert not any(result.success for result in results)

    def test_an_unknown_task_is_refused(self):
        with pytest.raises(EnvError, match="two-ways"):
            make_env("planar/three-ways", self.VIEWS)
