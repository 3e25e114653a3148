import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from pipeline.errors import ConfigError, EnvError, EpisodeError
from pipeline.rollout.envs.gymnasium_env import GymnasiumConfig
from pipeline.rollout.envs.registry import make_env, make_expert_env
from policy.images import resize_images
from tests.pipeline.rollout import faulty_env, toy_env
from tests.pipeline.rollout.envs.env_contract import ROOT, EnvContract, run
from tests.pipeline.rollout.toy_run import ENV

TOY = f"max_steps = 50\n{ENV}".replace(faulty_env.ID, toy_env.ID)


def write(folder: Path, text: str) -> str:
    (folder / "env.toml").write_text(text)
    return f"gymnasium:{folder / 'env.toml'}"


@pytest.fixture(scope="class")
def toy_name(request, tmp_path_factory):
    request.cls.name = write(tmp_path_factory.mktemp("toy"), TOY)


@pytest.mark.usefixtures("toy_name")
class TestToy(EnvContract):
    VIEWS = ("front", "top", "side")

    @classmethod
    def build_with(cls, views):
        return make_env(cls.name, views)

    def test_it_says_what_it_is(self, env):
        assert env.name == self.name
        assert (env.state_dim, env.action_dim) == (3, 2)
        assert (env.control_hz, env.max_steps) == (10.0, 50)

    def test_its_numbers_and_pictures_are_the_environments_own(self, env):
        """The oracle steps the same environment by Gymnasium alone."""
        oracle = gymnasium.make(toy_env.ID, render_mode="rgb_array", disable_env_checker=True)
        expected, _ = oracle.reset(seed=8)
        env.reset(8)
        for step in range(5):
            pictures = [*expected["pixels"].values(), oracle.render()]
            resized = [resize_images(p[None])[0] for p in pictures]
            np.testing.assert_array_equal(env.render(), resized)
            numbers = [*expected["agent_pos"], 0.1]
            np.testing.assert_array_equal(env.state(), np.float32(numbers))
            action = self.next_action(env, step)
            expected, reward, _, _, _ = oracle.step(action)
            assert env.step(action).reward == reward
        oracle.close()

    def test_steering_to_the_target_is_success_as_its_info_says(self, env):
        env.reset(0)
        toy = env.unguarded._env.unwrapped
        outcomes = [env.step(np.float32((toy.target - toy.dot) / 0.1)) for _ in range(12)]
        assert [outcome.success for outcome in outcomes[:1]] == [False]
        assert outcomes[-1].success
        assert not outcomes[-1].truncated

    def test_nobody_knows_an_effector(self, env):
        env.reset(0)
        assert env.effector_pixels().shape == (3, 2)
        assert np.isnan(env.effector_pixels()).all()

    def test_closing_closes_the_environment(self):
        env = self.build()
        toy = env.unguarded._env.unwrapped
        env.close()
        assert not toy.is_open

    def test_another_size_is_refused_because_the_environment_decides_it(self):
        with pytest.raises(EnvError, match=r"found 480; .*\[kwargs\]"):
            make_env(self.name, self.VIEWS, 480)

    def test_it_cannot_be_recorded(self):
        with pytest.raises(EnvError, match="scripted expert, found none"):
            make_expert_env(self.name, self.VIEWS)


def test_an_episode_that_the_environment_ends_is_over(tmp_path):
    """`terminated` without success is a failed episode, as a time limit is."""
    env = make_env(write(tmp_path, TOY + "[kwargs]\nspeed = 2.0\n"), ("front",))
    env.reset(0)
    right = np.array([1, 0], np.float32)
    assert [env.step(right).truncated for _ in range(2)] == [False, True]
    with pytest.raises(EnvError, match="has ended"):
        env.step(right)
    env.close()


def test_what_the_file_says_is_what_happens(tmp_path):
    text = (
        TOY.replace('key = "pixels/front"', 'key = "pixels/front"\nrotate_180 = true')
        .replace('["agent_pos", "speed"]', '["agent_pos", "target"]\ncolumns = [3, 0]')
        .replace("[action]", "[action]\nclip = false")
        .replace('info = "task/is_success"', "reward_at_least = -0.5")
    )
    changed = make_env(write(tmp_path, text), ("front",))
    plain = make_env(write(tmp_path, TOY), ("front",))
    for env in (changed, plain):
        env.reset(2)
    np.testing.assert_array_equal(changed.render(), plain.render()[:, ::-1, ::-1])
    toy = changed.unguarded._env.unwrapped
    np.testing.assert_array_equal(changed.state(), np.float32([toy.target[1], 0]))
    far = np.array([3, -3], np.float32)
    outcome = changed.step(far)
    assert outcome.success == (outcome.reward >= -0.5)
    plain.step(far)
    np.testing.assert_array_equal(toy.received, [far])
    np.testing.assert_array_equal(plain.unguarded._env.unwrapped.received, [[1, -1]])
    changed.close()
    plain.close()


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("max_steps", "max_step", r"env\.toml: max_steps?: "),
        ("control_hz = 10.0", "control_hz = 0", "control_hz: .*greater than 0, found 0"),
        ("control_hz = 10.0", "control_hz = 10.0\nspeed = 1", "speed: Extra inputs"),
        ('key = "pixels/top"', 'key = "pixels/top"\nturned = true', r"views\.1\.turned: Extra"),
        ('name = "top"', 'name = "front"', "different names, found front, front, side"),
        ("[action]", "action", r"expected a TOML file, found: .*line"),
        ('info = "task/is_success"', "", "either info or reward_at_least"),
    ],
)
def test_a_wrong_file_is_answered_in_one_line(tmp_path, old, new, pattern):
    assert old in TOY
    with pytest.raises(ConfigError, match=pattern) as caught:
        make_env(write(tmp_path, TOY.replace(old, new, 1)), ("front",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        (toy_env.ID, "NoSuchEnv-v3", "gymnasium.make to build NoSuchEnv-v3, found NameNotFound"),
        ("control_hz", 'module = "no_such"\ncontrol_hz', "found ModuleNotFoundError: .*no_such"),
        ("[action]", "[kwargs]\nspede = 1\n[action]", "found TypeError: .*spede"),
        ("[action]", "[kwargs]\nmax_episode_steps = 3\n[action]", "TypeError: .*max_episode_s"),
        ("pixels/front", "pixels/frnt", "view front: expected pixels/frnt, found front, top"),
        ("pixels/front", "agent_pos", r"view front: expected uint8 .* found float64 \(2,\)"),
        ("agent_pos", "agent", "state: expected agent, found pixels, agent_pos"),
        ('["agent_pos", "speed"]', '"."', "state: expected numbers at ., found object"),
        ('"speed"]', '"speed"]\ncolumns = [3]', "columns below 3, found 3"),
    ],
)
def test_what_the_environment_does_not_have_is_named_at_the_start(tmp_path, old, new, pattern):
    with pytest.raises(EnvError, match=pattern) as caught:
        make_env(write(tmp_path, TOY.replace(old, new, 1)), ("front",))
    assert "\n" not in str(caught.value)


def test_a_measure_of_success_that_is_not_there_is_an_error(tmp_path):
    env = make_env(write(tmp_path, TOY.replace("task/is_success", "solved")), ("front",))
    env.reset(0)
    with pytest.raises(EnvError, match=r"success\.info: expected solved, found task"):
        env.step(np.zeros(2, np.float32))
    env.close()


@pytest.mark.parametrize("value", [0.4, np.float32([0.4]), "False", [True, False], np.nan])
def test_a_share_or_a_word_is_no_success(tmp_path, value):
    """As the covered area of Push-T, which any truth test would count as solved."""
    env = make_env(write(tmp_path, TOY), ("front",))
    env.reset(0)
    toy = env.unguarded._env.unwrapped
    step = toy.step
    toy.step = lambda action: (*step(action)[:-1], {"task": {"is_success": value}})
    with pytest.raises(EnvError, match=r"success\.info: expected true or false, .* found "):
        env.step(np.zeros(2, np.float32))
    env.close()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: expected a TOML file"):
        make_env(f"gymnasium:{tmp_path}/absent.toml", ("front",))


REACHER = """
id = "Reacher-v5"
control_hz = 50.0
max_steps = 50
kwargs = {width = 320, height = 240}

[[views]]
name = "camera"
key = "render()"

[state]
key = "."
columns = [0, 1, 2, 3, 6, 7]
units = "cosine, then sine of both joints; their speed in radians a second"

[action]
units = "torque of both joints, 1 N m"

[success]
reward_at_least = -0.02
"""
REACH = """
import numpy as np
from pipeline.rollout.envs.registry import make_env
env = make_env("gymnasium:{}", ("camera",))
episodes = []
for seed in (3, 4, 3):
    env.reset(seed)
    shots = [env.render(), env.state()]
    for _ in range(10):
        env.step(np.array([0.4, -0.2], np.float32))
    episodes.append([*shots, env.render(), env.state()])
one, other, again = episodes
assert all((a == b).all() for a, b in zip(one, again))
assert (one[0] != other[0]).any() and (one[0] != one[2]).any()
print(one[0].shape, one[1].shape, one[0].std() > 20)
"""


@pytest.mark.sim
def test_an_environment_of_gymnasium_itself_renders_repeats_and_leaves_quietly(tmp_path):
    """Reacher on MuJoCo: 320x240 pictures by render(), a state without its target."""
    (tmp_path / "reacher.toml").write_text(REACHER)
    done = run(REACH.replace("{}", str(tmp_path / "reacher.toml")))
    assert (done.stdout, done.stderr) == ("(1, 256, 256, 3) (6,) True\n", "")


@pytest.mark.sim
def test_the_example_of_the_manual_reaches_gym_aloha_itself(tmp_path):
    """The way to 640x480 pictures as the public recordings have them."""
    manual = (ROOT / "data_manifests" / "README.md").read_text()
    (text,) = re.findall(r"```toml\n(id = .*?)```", manual, re.DOTALL)
    ours = make_env("aloha/transfer-cube", ("top",))
    env = make_env(write(tmp_path, text), ("top",))
    for one in (ours, env):
        one.reset(4)
    np.testing.assert_array_equal(env.state(), ours.state())
    assert env.render().shape == (1, 256, 256, 3)
    assert not env.step(env.state()).success
    env.close()
    ours.close()


@pytest.mark.sim
def test_a_simulation_that_diverges_is_named_with_seed_and_step(tmp_path):
    """Random targets throw gym-aloha's arms about until MuJoCo gives up."""
    manual = (ROOT / "data_manifests" / "README.md").read_text()
    (text,) = re.findall(r"```toml\n(id = .*?)```", manual, re.DOTALL)
    env = make_env(write(tmp_path, text), ("top",))
    env.reset(4)
    draw = np.random.default_rng(1)

    def throw():
        for _ in range(env.max_steps):
            env.step(draw.uniform(-3000, 3000, env.action_dim).astype(np.float32))

    with pytest.raises(EpisodeError, match=r"seed 4, step \d+: step raised PhysicsError"):
        throw()
    env.reset(4)
    assert np.isfinite(env.state()).all()
    env.close()


def test_the_manual_explains_every_field():
    manual = (ROOT / "data_manifests" / "README.md").read_text().partition("## Environments")[2]
    for name, field in GymnasiumConfig.model_fields.items():
        assert f"`{name}" in manual, field
    for name in ("rotate_180", "columns", "clip", "info", "reward_at_least"):
        assert f"{name}`" in manual
