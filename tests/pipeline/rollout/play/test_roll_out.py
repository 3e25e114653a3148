"""Whole rollouts on the real simulator: equal results in any number of processes, and refusals."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import av
import mujoco
import numpy as np
import pytest
from PIL import Image

from pipeline import processes
from pipeline.errors import EncoderMismatchError, RunError, WorkerLostError
from pipeline.rollout.envs.metaworld import MetaWorldEnv
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import RolloutResult
from tests.pipeline.rollout.envs.meta_world_run import TASK, VIEWS, write_run
from tests.tower import tiny_tower

SCHEMA = Path(__file__).parents[4] / "pipeline/rollout/play/result.schema.json"

SIZE = 128
"""Of pictures in pixels: rendering is most of the work, and grows with their area."""

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("rolled"))


def config(run, out, **settings):
    asked = {"episodes": 3, "max_steps": 10, "encoder": tiny_tower(), "videos": "none"}
    asked["render_size"] = SIZE
    return RolloutConfig(run=run, out=out, **({"envs": (TASK,)} | asked | settings))


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return roll_out(config(run, out, videos=1)), out


def test_results_do_not_depend_on_how_many_environments_run_or_on_videos(run, alone, tmp_path):
    result, _ = alone
    together = roll_out(config(run, tmp_path / "together", num_envs=2))
    again = roll_out(config(run, tmp_path / "again", videos="failed"))
    assert together.episodes == again.episodes == result.episodes
    assert [episode.seed for episode in result.episodes] == [100_000, 100_001, 100_002]
    assert len({episode.reward for episode in result.episodes}) == 3
    assert [episode.decisions for episode in result.episodes] == [2, 2, 2]
    paths = [path.name for path in sorted((tmp_path / "together/paths").iterdir())]
    assert paths == [f"seed_{seed}.png" for seed in (100_000, 100_001, 100_002)]
    for name in paths:
        pixels = [
            np.asarray(Image.open(tmp_path / out / "paths" / name)) for out in ("together", "again")
        ]
        assert np.array_equal(*pixels)


def test_a_video_shows_every_step_of_all_views(alone):
    _, out = alone
    (path,) = (out / "videos").iterdir()
    assert path.name == "seed_100000.mp4"
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 80
    assert len(frames) == 11  # the first look, and one after each of 10 steps
    assert frames[0].shape == (SIZE, 3 * SIZE, 3)
    env = MetaWorldEnv("drawer-open-v3", VIEWS, SIZE)
    env.reset(100_000)
    expected = np.concatenate(list(env.render()), axis=1)
    env.close()
    assert np.abs(frames[0].astype(int) - expected).mean() < 8
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is loaded whole


def test_the_published_schema_is_the_models_and_holds_for_a_real_result(alone):
    import jsonschema

    result, out = alone
    published = json.loads(SCHEMA.read_text())
    assert published == RolloutResult.model_json_schema()
    written = json.loads((out / "result.json").read_text())
    jsonschema.validate(written, published)
    written["episodes"][0]["success"] = "yes"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, published)
    assert RolloutResult.model_validate_json((out / "result.json").read_bytes()) == result


def test_eval_info_says_the_same_in_other_words(alone):
    result, out = alone
    found = json.loads((out / "eval_info.json").read_text())
    assert found["overall"]["pc_success"] == 100 * result.success_rate
    assert found["overall"]["n_episodes"] == 3
    (task,) = found["per_task"]
    assert task["task_group"] == "metaworld"
    largest = [episode.max_reward for episode in result.episodes]
    assert found["overall"]["avg_max_reward"] == pytest.approx(np.mean(largest))
    assert task["metrics"]["sum_rewards"] == [episode.reward for episode in result.episodes]
    assert found["overall"]["video_paths"] == [str(out / "videos/seed_100000.mp4")]


def test_a_simulator_that_dies_is_an_error_and_leaves_no_result(run, tmp_path, monkeypatch):
    def kill_one(self, *call):
        os.kill(self.process.pid, signal.SIGKILL)
        time.sleep(0.2)

    monkeypatch.setattr(processes.Worker, "send", kill_one)
    with pytest.raises(WorkerLostError, match="exited with code -9"):
        roll_out(config(run, tmp_path / "dead", num_envs=2))
    assert not (tmp_path / "dead/result.json").exists()


def test_another_encoder_is_refused_by_its_name(run, tmp_path):
    other = tiny_tower(seed=1)
    found = f"found {Path(other).name} .* with different weights"
    with pytest.raises(EncoderMismatchError, match=found):
        roll_out(config(run, tmp_path / "no", encoder=other))


def test_a_refusal_leaves_the_earlier_result(run, alone, tmp_path):
    shutil.copytree(alone[1], tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="expected latest, best"):
        roll_out(config(run, tmp_path / "out", checkpoint="newest"))
    with pytest.raises(EncoderMismatchError):
        roll_out(config(run, tmp_path / "out", encoder="stand-in"))
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before


def test_larger_pictures_are_resized(run, alone, tmp_path):
    result = roll_out(config(run, tmp_path, render_size=300, episodes=1, videos=1))
    assert result.render_size == 300
    assert np.asarray(Image.open(tmp_path / "paths/seed_100000.png")).shape == (300, 300, 3)
    assert result.episodes[0] != alone[0].episodes[0]


def test_an_earlier_rollout_in_the_folder_goes(run, tmp_path):
    for name in ("videos/seed_7.mp4", "paths/seed_7.png", "result.json", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    roll_out(config(run, tmp_path, episodes=1, max_steps=1))
    assert not list(tmp_path.glob("*/seed_7.*"))
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("steps", [0, 30])
def test_the_effector_is_where_its_fingertips_are_seen(steps):
    """Segmentation is the oracle: the middle between the two tips' own pixels."""
    env = MetaWorldEnv("drawer-open-v3", VIEWS, 256)
    env.reset(100_001)
    for _ in range(steps):
        env.step(env.expert_action())
    pixels = dict(zip(VIEWS, env.effector_pixels(), strict=True))
    model, renderer = env._task.model, env.renderer
    tips = [model.site(name).id for name in ("rightEndEffector", "leftEndEffector")]
    cameras = zip(env.cameras, env._is_upside_down, VIEWS, strict=True)
    for camera, is_upside_down, view in cameras:
        renderer.update_scene(env._task.data, camera=camera)
        renderer.enable_segmentation_rendering()
        seen = renderer.render()[::-1, ::-1] if is_upside_down else renderer.render()
        renderer.disable_segmentation_rendering()
        centers = []
        for tip in tips:
            is_tip = (seen[..., 0] == tip) & (seen[..., 1] == mujoco.mjtObj.mjOBJ_SITE)
            rows, columns = np.nonzero(is_tip)
            centers.append((columns.mean() + 0.5, rows.mean() + 0.5) if len(rows) else None)
        if view == "topview":  # the arm is in the way
            assert np.linalg.norm(pixels[view] - (122, 93)) < 25
            continue
        assert None not in centers, view
        assert np.linalg.norm(pixels[view] - np.mean(centers, axis=0)) < 6, (view, centers)
    env.close()
