import sys

import numpy as np
import pytest

from pipeline.errors import EnvError, EpisodeError
from pipeline.rollout.envs.registry import make_env, make_expert_env
from tests.pipeline.rollout.envs.env_contract import EnvContract, ExpertContract, run

pytestmark = pytest.mark.sim


def red_center(frame: np.ndarray) -> np.ndarray:
    """Return (column, row) of what is red: the cube."""
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    return np.argwhere((red > 150) & (green < 60) & (blue < 60)).mean(axis=0)[::-1]


def aloha_range(env):
    """The joint limits of vx300s_left.xml, and a gripper from closed to open."""
    low = [-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, 0]
    high = [3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1]
    return np.array(low * 2), np.array(high * 2)


class TestTransferCube(ExpertContract):
    VIEWS = ("top", "angle", "right_wrist")

    @classmethod
    def build_with(cls, views, render_size=256):
        return make_expert_env("aloha/transfer-cube", views, render_size)

    @classmethod
    def action_range(cls, env):
        return aloha_range(env)

    def test_it_says_what_it_is(self, env):
        assert env.name == "aloha/transfer-cube"
        assert (env.state_dim, env.action_dim, env.max_steps) == (14, 14, 400)
        assert env.control_hz == 50.0
        assert "gym-aloha 0.1.5" in env.revision

    def test_the_expert_hands_the_cube_over(self, env):
        """And then lets go: the left gripper alone holds the cube."""
        for seed in (0, 5, 10, 15, 19):
            env.reset(seed)
            is_solved = [env.step(env.expert_action()).success for _ in range(205)]
            assert any(is_solved), f"seed {seed}"
            for _ in range(125):
                env.step(env.expert_action())
            left = env.unguarded._data.site("cali_left_site1").xpos
            right = env.unguarded._data.site("cali_right_site1").xpos
            cube = env.unguarded._data.body("box").xpos
            assert np.linalg.norm(cube - left) < 0.03, f"seed {seed}"  # meters
            assert np.linalg.norm(cube - right) > 0.1, f"seed {seed}"
            assert cube[2] > 0.2, f"seed {seed}"

    def test_no_joint_of_the_expert_jumps_within_a_seed_or_between_seeds(self, env):
        """Seeds differ by where the cube lies, so their plans are alike: no wrist turns over."""
        plans = []
        for seed in range(10):
            env.reset(seed)
            plans.append(env.unguarded._plan)
        assert np.abs(np.diff(plans, axis=1)).max() < 0.12  # radians, or share of the opening
        assert np.ptp(plans, axis=0).max() < 1.0

    def test_the_cube_and_the_gripper_are_where_the_projection_says(self, env):
        """The oracle is the picture: the cube's red and, at the grasp, the gripper around it."""
        from pipeline.rollout.envs.rendering import project_point

        env.reset(0)
        cube = env.unguarded._data.body("box").xpos
        for view, frame in zip(("top", "angle"), env.render()[:2], strict=True):
            camera = env.unguarded._model.camera(view).id
            found = project_point(env.unguarded._model, env.unguarded._data, camera, cube, 256)
            assert np.abs(found - red_center(frame)).max() < 3  # pixels; the cube is 10 wide
        for _ in range(160):
            env.step(env.expert_action())
        pixels = env.effector_pixels()
        assert pixels.shape == (3, 2)
        for frame, found in zip(env.render()[:2], pixels[:2], strict=True):
            assert np.abs(found - red_center(frame)).max() < 12

    def test_what_is_behind_a_camera_has_no_pixel(self, env):
        from pipeline.rollout.envs.rendering import project_point

        env.reset(0)
        camera = env.unguarded._model.camera("top").id
        above = env.unguarded._data.cam_xpos[camera] + [0, 0, 0.1]
        assert np.isnan(
            project_point(env.unguarded._model, env.unguarded._data, camera, above, 256)
        ).all()

    def test_every_camera_of_the_scene_is_upright(self, env):
        """A camera's up axis points up, or, where it looks straight down, away from the arms."""
        env.reset(0)
        for camera in range(env.unguarded._model.ncam):
            up = env.unguarded._data.cam_xmat[camera].reshape(3, 3)[:, 1]
            assert up[2] > 0.4 or up[1] == 1, env.unguarded._model.camera(camera).name


class TestInsertion(EnvContract):
    VIEWS = ("top", "angle", "right_wrist")

    @classmethod
    def build_with(cls, views):
        return make_env("aloha/insertion", views)

    @classmethod
    def action_range(cls, env):
        return aloha_range(env)

    def next_action(self, env, step):
        """Somewhere near the pose at reset; the range's ends would throw the arms about."""
        start = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.1] * 2, np.float32)
        return start + np.random.default_rng(step).uniform(-0.1, 0.1, 14).astype(np.float32)

    def test_targets_that_break_the_simulation_are_named_with_seed_and_step(self, env):
        env.reset(3)
        low, high = aloha_range(env)
        draw = np.random.default_rng(0)

        def throw():
            for _ in range(env.max_steps):
                env.step(draw.uniform(low, high).astype(np.float32))

        with pytest.raises(EpisodeError, match=r"aloha/insertion: seed 3, step .* PhysicsError"):
            throw()
        env.reset(3)
        assert np.isfinite(env.state()).all()

    def test_a_pin_that_is_touched_is_success(self, env):
        """Success by the simulator's own measure, from a peg laid into the socket by hand."""
        env.reset(0)
        assert not env.step(env.state()).success
        x, y, z = env.unguarded._data.body("socket").xpos
        env.unguarded._data.qpos[16:19] = x + 0.04, y, z + 0.1
        env.unguarded._data.qpos[23:26] = x, y, z + 0.1
        outcome = env.step(env.state())
        assert (outcome.reward, outcome.success) == (4.0, True)

    def test_it_ships_no_expert(self):
        with pytest.raises(EnvError, match="scripted expert, found none"):
            make_expert_env("aloha/insertion", ("top",))


@pytest.mark.parametrize("task", ["transfer-cube", "insertion"])
def test_it_steps_as_gym_aloha_does(task):
    """Bit for bit, upstream with its own pictures left out, which would take minutes."""
    from gym_aloha.env import AlohaEnv

    upstream = AlohaEnv(task.replace("-", "_"), obs_type="pixels_agent_pos")
    rules = upstream._env.task
    nothing = {"top": np.zeros((1, 1, 3), np.uint8)}
    rules.get_observation = lambda physics: {"qpos": rules.get_qpos(physics), "images": nothing}
    expert = make_expert_env("aloha/transfer-cube", ("top",))
    env = make_env(f"aloha/{task}", ("top",))
    observation, _ = upstream.reset(seed=3)
    env.reset(3)
    expert.reset(3)
    for _ in range(210):
        np.testing.assert_array_equal(env.state(), np.float32(observation["agent_pos"]))
        action = expert.expert_action()
        expert.step(action)
        observation, reward, done, _, _ = upstream.step(action)
        outcome = env.step(action)
        assert (outcome.reward, outcome.success) == (reward, done)
    env.close()
    expert.close()


def test_its_inverse_kinematics_agree_with_mujoco():
    from pipeline.rollout.envs.aloha_expert import LEFT, RIGHT, joints_at

    env = make_env("aloha/transfer-cube", ("top",))
    import mujoco

    draw = np.random.default_rng(0)
    for side, arm, column in (("left", LEFT, 0), ("right", RIGHT, 8)):
        gripper = env.unguarded._data.body(f"vx300s_{side}/gripper_link")
        for _ in range(20):
            point = draw.uniform([-0.1, 0.4, 0.02], [0.1, 0.6, 0.25])
            pitch, roll = draw.uniform([0, -1], [1.2, 1])
            env.unguarded._data.qpos[column : column + 6] = joints_at(
                arm, tuple(point), pitch, roll
            )
            mujoco.mj_kinematics(env.unguarded._model, env.unguarded._data)
            axes = gripper.xmat.reshape(3, 3)
            # 1e-4 m: the MJCF turns the right arm by 3.1416.
            np.testing.assert_allclose(gripper.xpos + 0.14 * axes[:, 0], point, atol=1e-4)
            assert axes[2, 0] == pytest.approx(-np.sin(pitch), abs=1e-6)
            # How far the axis along which the fingers close leaves the horizon.
            assert axes[2, 1] == pytest.approx(np.sin(roll) * np.cos(pitch), abs=1e-6)
    env.close()


BUILD = """
from pipeline.rollout.envs.registry import make_env
env = make_env("aloha/transfer-cube", ("top",))
env.reset(0)
env.render()
print("rendered")
"""


def test_nothing_is_printed_at_exit_even_if_close_was_forgotten():
    done = run(BUILD)
    assert (done.stdout, done.stderr, done.returncode) == ("rendered\n", "", 0)


def test_a_simulator_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "pipeline.rollout.envs.aloha", raising=False)
    monkeypatch.setitem(sys.modules, "dm_control.mujoco", None)
    with pytest.raises(EnvError, match=r"import of dm_control\.mujoco .*'\.\[aloha\]'"):
        make_env("aloha/transfer-cube", ("top",))
