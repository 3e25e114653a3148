import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.datasets.hdf5.recording import RecordedEpisode, read_label, write_episode
from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import ConfigError, DatasetError, EnvError
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE
from pipeline.rollout.envs.registry import make_env, make_expert_env
from pipeline.rollout.play.episode import EpisodePlayer
from pipeline.rollout.play.record import RecordConfig, manifest_of, record_dataset, record_seed
from pipeline.storage.locks import sole_writer
from policy.spec import FRAME_SIZE

ROOT = Path(__file__).parents[4]
ENV = "metaworld/handle-press-v3"  # solved in 35 to 41 steps
VIEWS = ("corner", "gripperPOV")


def config_for(out: Path, **changes: object) -> RecordConfig:
    fields = {"env": ENV, "views": VIEWS, "episodes": 2, "out": out, "workers": 2}
    return RecordConfig.model_validate(fields | changes)


def write_recording(folder: Path, seed: int, *, success: bool = True):
    folder.mkdir(exist_ok=True)
    episode = RecordedEpisode(
        frames={view: np.zeros((1, 2, 2, 3), np.uint8) for view in VIEWS},
        state=np.zeros((1, 4), np.float32),
        action=np.zeros((1, 4), np.float32),
        env=ENV,
        seed=seed,
        fps=80.0,
        success=success,
    )
    write_episode(folder / f"episode_{seed}.hdf5", episode)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"env": "metaworld/reach-v3"}, r"episode_1\.hdf5: .* found one of metaworld/handle-press"),
        ({"views": ("gripperPOV", "corner")}, r"gripperPOV, corner rendered .* of .*with corner"),
        ({"episodes": 1}, r"expected only seeds .* found also \[1\]"),
        ({"first_seed": 2}, r"from seed 2, found also \[1\]"),
        ({"render_size": 480}, r"rendered at 480 pixels, found one of .* at 256"),
    ],
)
def test_a_folder_of_other_recordings_is_refused_and_left_as_it_is(tmp_path, changes, pattern):
    write_recording(tmp_path, seed=1)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=pattern):
        record_dataset(config_for(tmp_path, **changes))
    assert contents(tmp_path) == before


def test_a_damaged_or_renamed_recording_is_named(tmp_path):
    write_recording(tmp_path, seed=1)
    (tmp_path / "episode_1.hdf5").rename(tmp_path / "episode_0.hdf5")
    with pytest.raises(ConfigError, match=r"episode_0\.hdf5: expected episode_1\.hdf5"):
        record_dataset(config_for(tmp_path))
    (tmp_path / "episode_0.hdf5").write_bytes(b"\x89HDF")
    with pytest.raises(DatasetError, match=r"episode_0\.hdf5: .*an unreadable one"):
        record_dataset(config_for(tmp_path))


def test_failures_of_another_environment_or_other_content_are_refused(tmp_path):
    failures = tmp_path / "failed_seeds.json"
    failures.write_text(json.dumps({"env": "metaworld/reach-v3", "seeds": [0]}))
    with pytest.raises(DatasetError, match="of metaworld/handle-press-v3 fails, found those of"):
        record_dataset(config_for(tmp_path))
    for content in ("[]", "{", '{"env": "x", "seeds": ["a"]}'):
        failures.write_text(content)
        with pytest.raises(DatasetError, match=r"failed_seeds\.json: expected"):
            record_dataset(config_for(tmp_path))


def test_seeds_of_rollouts_are_never_recorded(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="below 100000"):
        record_dataset(config_for(out, first_seed=99_995))
    assert not out.exists()


@pytest.mark.sim
def test_a_second_recording_into_the_folder_is_refused(tmp_path):
    write_recording(tmp_path, seed=0)
    before = contents(tmp_path)
    with (
        sole_writer(tmp_path, ConfigError),
        pytest.raises(ConfigError, match="another process is writing here"),
    ):
        record_dataset(config_for(tmp_path))
    assert contents(tmp_path) == before


@pytest.mark.sim
def test_no_camera_is_refused_in_one_line(tmp_path):
    with pytest.raises(EnvError, match=r"expected distinct views from .* found none") as caught:
        record_dataset(config_for(tmp_path / "out", views=()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_failures_that_earlier_versions_kept_never_pass_for_successes(tmp_path):
    """Nor does a file from before failures could be kept change its meaning: it was solved."""
    write_recording(tmp_path, seed=0)
    write_recording(tmp_path, seed=1, success=False)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"episode_1\.hdf5: .* that the expert fails; record"):
        record_dataset(config_for(tmp_path))
    assert contents(tmp_path) == before
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        del file.attrs["success"], file.attrs["render_size"]
    label = read_label(tmp_path / "episode_0.hdf5")
    assert (label.success, label.render_size) == (True, 256)
    assert not read_label(tmp_path / "episode_1.hdf5").success


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"workers": 0}, {"fps": 3}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValidationError):
        config_for(tmp_path, **wrong)


@pytest.mark.sim
def test_recordings_are_what_the_simulator_shows_and_resume_to_the_same_bytes(tmp_path):
    config = config_for(tmp_path, first_seed=1)
    report = record_dataset(config)
    assert (report.episodes, report.recorded, report.failed_seeds) == (2, 2, ())
    assert "vla-embed" in report.summary()
    before = contents(tmp_path)
    assert sorted(before) == ["episode_1.hdf5", "episode_2.hdf5", "manifest.toml"]

    (tmp_path / "episode_2.hdf5").unlink()
    assert record_dataset(config).recorded == 1
    assert contents(tmp_path) == before
    assert record_dataset(config).recorded == 0

    reader = ManifestReader(load_manifest(report.manifest))
    env = make_expert_env(ENV, VIEWS)
    env.reset(2)
    length, state, action = reader.episode_length(1), reader.state(1), reader.action(1)
    frames = reader.frames(1, 0, length)
    assert report.steps == reader.episode_length(0) + length
    for step in range(length):
        if step % 10 == 0 or step == length - 1:
            for recorded, live in zip(frames, env.render(), strict=True):
                np.testing.assert_array_equal(recorded[step], live)
        np.testing.assert_array_equal(state[step], env.state())
        np.testing.assert_array_equal(action[step], env.expert_action())
        # The first step that solves the task is the last of the episode.
        assert env.step(action[step]).success == (step == length - 1)
    env.close()


def test_the_usual_size_is_the_encoders():
    assert (DEFAULT_RENDER_SIZE, DEFAULT_RENDER_SIZE) == FRAME_SIZE
    assert RecordedEpisode.render_size == DEFAULT_RENDER_SIZE


@pytest.mark.sim
def test_larger_pictures_are_recorded_as_a_rollout_sees_them(tmp_path):
    """Bit for bit: the first recorded step against the live loop's own observation."""
    config = config_for(tmp_path, views=("corner",), episodes=1, render_size=300, workers=1)
    report = record_dataset(config)
    loaded = load_manifest(report.manifest)
    assert loaded.manifest.revision.endswith("rendered at 300x300 pixels")
    recorded = ManifestReader(loaded).frames(0, 0, 1)
    env = make_env(ENV, ("corner",), 300)
    env.reset(0)
    assert env.render().shape == (1, 300, 300, 3)
    player = EpisodePlayer(env, obs_horizon=1, max_steps=9, out=tmp_path)
    (observed,) = player.begin(0, "none").observations
    env.close()
    for one, live in zip(recorded, observed.frames, strict=True):
        np.testing.assert_array_equal(one[0], live)
    assert record_dataset(config).recorded == 0


@pytest.mark.sim
def test_nothing_is_written_where_the_expert_fails_until_the_time_limit(tmp_path):
    """Soccer's seed 0 is failed; Meta-World's own limit is shortened to keep the test short."""
    env = make_expert_env("metaworld/soccer-v3", ("topview",))
    env.unguarded._task.max_path_length = env.max_steps = 12
    assert record_seed(env, 0, tmp_path) == 0
    env.close()
    assert contents(tmp_path) == {}


@pytest.mark.sim
def test_a_seed_at_which_the_simulator_fails_counts_as_failed(tmp_path, monkeypatch, caplog):
    env = make_expert_env(ENV, ("topview",))
    monkeypatch.setattr(env.unguarded, "expert_action", lambda: np.full(4, np.nan))
    assert record_seed(env, 0, tmp_path) == 0
    env.close()
    assert contents(tmp_path) == {}
    assert "the seed counts as failed" in caplog.text


@pytest.mark.sim
def test_recordings_under_another_manifest_are_refused(tmp_path):
    """As of another version of the simulator, whose recordings would be mixed with these."""
    write_recording(tmp_path, seed=0)
    write_recording(tmp_path, seed=1)
    report = record_dataset(config_for(tmp_path))
    assert (report.episodes, report.recorded, report.failed_seeds) == (2, 0, ())
    text = report.manifest.read_text()
    report.manifest.write_text(text.replace('revision = "', 'revision = "earlier '))
    with pytest.raises(ConfigError, match=r"manifest\.toml: expected the manifest of .* another"):
        record_dataset(config_for(tmp_path))


@pytest.mark.sim
def test_a_seed_that_the_expert_fails_is_replaced_by_the_next_and_remembered(tmp_path):
    fields = {"env": "metaworld/soccer-v3", "views": ("corner",), "render_size": 64}
    config = config_for(tmp_path, episodes=1, **fields)
    assert record_dataset(config).failed_seeds == (0,)
    assert sorted(contents(tmp_path)) == ["episode_1.hdf5", "failed_seeds.json", "manifest.toml"]
    content = json.loads((tmp_path / "failed_seeds.json").read_text())
    assert content == {"env": "metaworld/soccer-v3", "seeds": [0]}


@pytest.mark.sim
def test_an_expert_that_fails_on_too_many_seeds_is_an_error_and_no_dataset(tmp_path):
    (tmp_path / "failed_seeds.json").write_text(json.dumps({"env": ENV, "seeds": [0, 1, 2]}))
    with pytest.raises(EnvError, match="1 of at most 3 seeds, found 0 solved and 3 failed"):
        record_dataset(config_for(tmp_path, episodes=1))
    assert sorted(contents(tmp_path)) == ["failed_seeds.json"]


@pytest.mark.sim
def test_ctrl_c_ends_every_process_and_keeps_what_is_whole(tmp_path):
    """Ctrl-C reaches the whole process group, as from a terminal."""
    out = tmp_path / "out"
    code = (
        "import signal\n"
        "from pathlib import Path\n"
        "from pipeline.rollout.play.record import RecordConfig, record_dataset\n"
        f"config = RecordConfig(env={ENV!r}, views=('corner',), render_size=64,"
        f" episodes=50, workers=2, out=Path({str(out)!r}))\n"
        # What runs in a shell's background, as this test may, ignores it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    record_dataset(config)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(written := list(out.glob("episode_*.hdf5"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    # The pipes close only when the last worker is gone.
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == "interrupted\n", stderr
    assert "Traceback" not in stderr
    names = sorted(path.name for path in out.iterdir())
    assert len(written) <= len(names) <= len(written) + 2  # one of each worker, in the meantime
    assert all(name.startswith("episode_") for name in names)


@pytest.mark.sim
def test_the_shipped_manifest_is_the_one_that_the_recorder_writes():
    loaded = load_manifest(ROOT / "data_manifests" / "metaworld-pick-place.toml")
    shipped = loaded.manifest
    env = make_expert_env("metaworld/pick-place-v3", ("corner", "topview", "gripperPOV"))
    recorded = manifest_of(env)
    env.close()
    assert shipped.to_dict() | {"path": "."} == recorded.to_dict()
    assert shipped.digest() == recorded.digest()
    assert loaded.roots == (ROOT / "demo" / "recordings",)
