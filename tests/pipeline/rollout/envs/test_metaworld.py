import numpy as np
import pytest

from pipeline.errors import EnvError, RenderingError
from pipeline.rollout.envs.registry import make_env, make_expert_env
from tests.pipeline.rollout.envs.env_contract import ExpertContract, run

VIEWS = ("corner", "topview", "gripperPOV")

pytestmark = pytest.mark.sim


def red_center(frame: np.ndarray) -> np.ndarray:
    """Return (row, column) of the arm's red; nothing else in the scene is so red."""
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    return np.argwhere((red > 90) & (green < 40) & (blue < 40)).mean(axis=0)


def cyan_center(frame: np.ndarray) -> np.ndarray:
    """Return (row, column) of the one cyan finger."""
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    return np.argwhere((red < 60) & (green > 120) & (blue > 120)).mean(axis=0)


class TestMetaWorld(ExpertContract):
    VIEWS = VIEWS

    @classmethod
    def build_with(cls, views, render_size=256):
        return make_expert_env("metaworld/drawer-open-v3", views, render_size)

    def test_it_says_what_it_is(self, env):
        assert env.name == "metaworld/drawer-open-v3"
        assert env.view_names == VIEWS
        assert (env.state_dim, env.action_dim, env.max_steps) == (4, 4, 500)
        assert env.control_hz == 80.0
        assert env.render().shape == (3, 256, 256, 3)

    def test_the_state_knows_nothing_of_the_drawer(self, env):
        states, drawers = [], []
        for seed in (0, 1, 2):
            env.reset(seed)
            states.append(env.state())
            drawers.append(env.unguarded._task.data.body("drawer").xpos.copy())
        assert np.ptp(drawers, axis=0).max() > 0.02  # meters
        # 1e-6 m: the hand settles against nothing, up to the solver's rounding.
        assert np.ptp(states, axis=0).max() < 1e-6

    def test_the_first_picture_shows_the_drawer_where_it_is(self, env):
        """Meta-World moves the drawer in the model and leaves the old position on show."""
        import mujoco  # not above: the environment must be the first to import it

        env.reset(0)
        shown = env.unguarded._task.data.body("drawer").xpos.copy()
        mujoco.mj_forward(env.unguarded._task.model, env.unguarded._task.data)
        np.testing.assert_array_equal(shown, env.unguarded._task.data.body("drawer").xpos)
        np.testing.assert_array_equal(shown, env.unguarded._task._target_pos - [0, -0.36, 0.09])


def test_up_is_up_in_every_side_view():
    """A raised hand must move up in the picture; four of these cameras are upside-down."""
    env = make_env("metaworld/reach-v3", ("corner", "corner2", "corner3", "corner4"))
    env.reset(0)
    low = [cyan_center(frame) for frame in env.render()]
    for _ in range(15):
        env.step(np.array([0, 0, 1, 0], np.float32))
    high = [cyan_center(frame) for frame in env.render()]
    env.close()
    for (low_row, _), (high_row, _) in zip(low, high, strict=True):
        assert high_row < low_row - 5  # pixels


def test_the_other_views_are_shown_as_mujoco_renders_them():
    """Seen from above, the robot's base is at the lower end and the hand ahead of it."""
    env = make_env("metaworld/reach-v3", ("topview", "behindGripper", "gripperPOV"))
    env.reset(0)
    for _ in range(15):
        env.step(np.array([0, 1, 0, 0], np.float32))
    top, behind, _ = env.render()
    env.close()
    assert red_center(top)[0] > 128  # the arm comes in from below
    assert red_center(behind)[0] < 100  # and hangs down from above


@pytest.mark.parametrize("task", ["reach-v3", "push-v3", "peg-insert-side-v3"])
def test_experts_that_need_the_goal_succeed(task):
    """Meta-World hides the goal from observations by default; these experts then fail."""
    env = make_expert_env(f"metaworld/{task}", ("corner",))
    env.reset(1)
    assert any(env.step(env.expert_action()).success for _ in range(200))
    env.close()


@pytest.mark.parametrize(
    ("name", "views", "pattern"),
    [
        ("metawrld/reach-v3", ("corner",), r"metaworld, aloha, libero, planar, as metaworld/"),
        ("reach-v3", ("corner",), r"expected <simulator>/<task> .*, as metaworld/reach-v3"),
        ("metaworld/draw-open", ("corner",), r"did you mean metaworld/drawer-open-v3"),
        ("metaworld/reach-v3", ("front",), r"distinct views from topview, corner, .*found front"),
        ("metaworld/reach-v3", ("corner", "corner"), r"distinct views.*found corner, corner"),
        ("metaworld/reach-v3", (), r"found none"),
        ("aloha/transfer", ("top",), r"did you mean aloha/transfer-cube\?"),
        ("aloha/insertion", ("front",), r"distinct views from left_pillar, .*found front"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name, views, pattern):
    with pytest.raises(EnvError, match=pattern):
        make_env(name, views)


BUILD = """
from pipeline.rollout.envs.registry import make_env
from policy.errors import VlaError
try:
    env = make_env("metaworld/reach-v3", ("corner",))
except VlaError as error:
    print(type(error).__name__, error)
else:
    env.reset(0)
    env.render()
    print("rendered")
"""


def test_nothing_is_printed_at_exit_even_if_close_was_forgotten():
    done = run(BUILD)
    assert (done.stdout, done.stderr, done.returncode) == ("rendered\n", "", 0)


@pytest.mark.parametrize(
    "variables",
    [
        {"MUJOCO_GL": "bogus"},  # fails while mujoco is imported
        {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},  # the same, elsewhere
        {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/absent"},  # while a renderer is
    ],
)
def test_no_way_to_render_is_one_line_that_says_what_to_install(variables):
    done = run(BUILD, **variables)
    assert done.stdout.startswith(RenderingError.__name__)
    assert done.stdout.count("\n") == 1
    assert "apt-get install libegl1 libgl1-mesa-dri" in done.stdout
    assert "MUJOCO_GL=osmesa" in done.stdout
    assert "libosmesa6" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_simulator_that_is_not_installed_names_the_extra():
    done = run("import sys\nsys.modules['mujoco'] = None\n" + BUILD)
    assert done.stdout.startswith("EnvError metaworld/reach-v3: ")
    assert "`pip install -c constraints.txt '.[metaworld]'`" in done.stdout
