"""The camera check: every planted mistake gets its name, and nothing else gets one."""

import json
import logging

import numpy as np
import pytest

from pipeline.errors import CameraMismatchError, RunError
from pipeline.features.store.start_frames import StartFrames, shrink_frames
from pipeline.rollout.gate.camera_check import CameraCheck, CameraCheckResult, StartFinding
from pipeline.training.presets import debug
from pipeline.training.run.folder import (
    FORMAT_VERSION,
    START_FRAMES_FILE,
    read_run,
    read_start_frames,
)
from pipeline.training.session import train
from policy.images import resize_images
from tests.pipeline.tiny import complete_store, tiny_start_frames

VIEWS = ("left", "top", "hand")
EPISODES = 30
MISTAKES = {
    "flipped left to right": lambda frame: frame[:, ::-1],
    "flipped upside down": lambda frame: frame[::-1],
    "rotated by 180 degrees": lambda frame: frame[::-1, ::-1],
    "red and blue exchanged": lambda frame: frame[..., ::-1],
}


def scene(view: int, *, mirrored: bool = False) -> np.ndarray:
    """Soft random patches, of other colors and places in every view."""
    patches = np.random.default_rng(view).integers(0, 256, (1, 8, 8, 3), np.uint8)
    picture = np.array(resize_images(patches)[0])
    return np.maximum(picture, picture[:, ::-1]) if mirrored else picture


def first_frames(episode: int, *, mirrored: bool = False) -> np.ndarray:
    """Every view's scene, with an object where this episode has it."""
    row, column = np.random.default_rng([episode, 5]).integers(20, 200, 2)
    frames = np.stack([scene(view, mirrored=mirrored) for view in range(len(VIEWS))])
    frames[:, row : row + 40, column : column + 40] = 255
    return frames


def check_of(*, episodes: int = EPISODES, mirrored: bool = False, views: int = 3) -> CameraCheck:
    frames = np.stack([first_frames(e, mirrored=mirrored)[:views] for e in range(episodes)])
    return CameraCheck(StartFrames(shrink_frames(frames), np.arange(episodes)), VIEWS[:views])


@pytest.fixture(scope="module")
def check():
    return check_of()


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_a_mistake_in_one_view_is_named(check, mistake, view):
    for episode in range(100, 103):
        frames = first_frames(episode)
        frames[view] = MISTAKES[mistake](frames[view])
        verdict = check.examine_start(frames)
        assert [found.mistake for found in verdict.views] == [
            mistake if other == view else None for other in range(len(VIEWS))
        ]
        assert verdict.views[view].alternatives == ()
        assert verdict.views[view].undone_distance < verdict.views[view].distance
        assert f"view `{VIEWS[view]}`: {mistake} (distance " in verdict.line()


def test_one_view_is_enough():
    alone = check_of(views=1)
    frames = first_frames(100)[:1]
    assert alone.examine_start(frames).matches
    assert ": red and blue exchanged (" in alone.examine_start(frames[..., ::-1]).line()
    assert "does not look like" in alone.examine_start(first_frames(100)[1:2]).line()


@pytest.mark.parametrize("pair", [(0, 1), (1, 2)])
def test_swapped_views_are_named(check, pair):
    first, second = pair
    order = list(range(len(VIEWS)))
    order[first], order[second] = second, first
    verdict = check.examine_start(first_frames(100)[order])
    assert verdict.line() == f"views `{VIEWS[first]}` and `{VIEWS[second]}` are swapped"


def test_views_in_a_circle_are_named_one_by_one(check):
    line = check.examine_start(first_frames(100)[[1, 2, 0]]).line()
    for view, shows in (("left", "top"), ("top", "hand"), ("hand", "left")):
        assert f"view `{view}`: shows what training saw as `{shows}`" in line


def test_what_training_never_showed_is_unknown(check):
    for strange in (scene(7), np.zeros((256, 256, 3), np.uint8)):
        frames = first_frames(100)
        frames[1] = strange
        verdict = check.examine_start(frames)
        assert [found.mistake for found in verdict.views] == [None, "unknown", None]
        assert "view `top`: does not look like training (distance " in verdict.line()


def test_unseen_starts_match_in_brighter_and_darker_light_too(check):
    for episode in range(100, 120):
        for light in (1.0, 1.05, 0.95, 1.2, 0.85):
            frames = np.clip(first_frames(episode) * light, 0, 255).astype(np.uint8)
            assert check.examine_start(frames).line() == "all views match training"


def test_a_mistake_is_named_in_brighter_and_darker_light_too(check):
    for light in (1.05, 0.95, 1.2, 0.85):
        frames = np.clip(first_frames(100) * light, 0, 255).astype(np.uint8)
        frames[2] = frames[2, :, ::-1]
        found = check.examine_start(frames).views
        assert [finding.mistake for finding in found] == [None, None, "flipped left to right"]


def test_a_scene_that_is_its_own_mirror_image_is_never_called_flipped():
    """Nothing tells its flip from the original, nor a flip upside down from a rotation."""
    symmetric = check_of(mirrored=True)
    for episode in range(100, 112):
        frames = first_frames(episode, mirrored=True)
        assert symmetric.examine_start(frames).matches
        assert symmetric.examine_start(frames[:, :, ::-1]).matches
    upside_down = symmetric.examine_start(first_frames(100, mirrored=True)[:, ::-1])
    for found in upside_down.views:
        names = {found.mistake, *found.alternatives}
        assert names == {"flipped upside down", "rotated by 180 degrees"}
    assert " or " in upside_down.line()


def test_distance_and_spread_are_those_of_a_brute_force_search(check):
    starts = np.stack([first_frames(episode) for episode in range(EPISODES)]).astype(float)
    blocks = np.floor(starts.reshape(EPISODES, 3, 32, 8, 32, 8, 3).mean(axis=(3, 5)) + 0.5)
    shown = first_frames(100).astype(float).reshape(3, 32, 8, 32, 8, 3).mean(axis=(2, 4))
    shown = np.floor(shown + 0.5)
    for view, found in enumerate(check.examine_start(first_frames(100)).views):
        means = blocks[:, view].mean(axis=(1, 2, 3))
        level = np.sort(means)[(EPISODES - 1) // 2]
        even = blocks[:, view] * (level / means)[:, None, None, None]
        apart = np.abs(even[:, None] - even[None]).mean(axis=(2, 3, 4))
        np.fill_diagonal(apart, np.inf)
        assert found.spread == pytest.approx(apart.min(axis=1).max(), rel=1e-4)
        live = shown[view] * (level / shown[view].mean())
        assert found.distance == pytest.approx(
            np.abs(even - live).mean(axis=(1, 2, 3)).min(), rel=1e-4
        )


def test_too_few_episodes_are_said_and_judge_nothing():
    verdict = check_of(episodes=3).examine_start(first_frames(100)[..., ::-1])
    assert (
        verdict.line() == "the cameras are not checked: expected 4 or more training episodes, "
        "found 3"
    )
    assert verdict.matches


def test_a_mismatch_is_refused_or_said(check, caplog):
    swapped = first_frames(100)[[1, 0, 2]]
    with pytest.raises(CameraMismatchError, match="`left` and `top` are swapped; correct"):
        check.admit(swapped, "refuse")
    with caplog.at_level(logging.WARNING):
        assert check.admit(first_frames(100), "warn").matches
        assert not caplog.records
        verdict = check.admit(swapped, "warn")
    assert caplog.messages == ["views `left` and `top` are swapped"]
    result = CameraCheckResult(mode="warn", starts=(StartFinding(seed=7, verdict=verdict),))
    assert CameraCheckResult.model_validate_json(result.model_dump_json()) == result


def test_another_scene_is_a_warning_where_scenes_differ_and_a_mistake_is_refused(check, caplog):
    frames = first_frames(100)
    other = frames.copy()
    other[1] = np.random.default_rng(0).integers(0, 256, other[1].shape, np.uint8)
    assert not check.admit(other, "refuse", scenes_differ=True).matches
    assert "does not look like training" in caplog.text
    with pytest.raises(CameraMismatchError):
        check.admit(other, "refuse")
    with pytest.raises(CameraMismatchError):
        check.admit(frames[[1, 0, 2]], "refuse", scenes_differ=True)


@pytest.mark.sim
def test_mistakes_on_a_real_simulator_are_named_and_clean_starts_are_not():
    from pipeline.rollout.envs.metaworld import MetaWorldEnv

    views = ("corner", "topview", "gripperPOV")
    env = MetaWorldEnv("peg-insert-side-v3", views, 256)

    def start(seed: int) -> np.ndarray:
        env.reset(seed)
        return env.render()

    frames = np.stack([start(seed) for seed in range(6)])
    check = CameraCheck(StartFrames(shrink_frames(frames), np.arange(6)), views)
    for seed in (100_000, 100_001):
        clean = start(seed)
        assert check.examine_start(clean).matches
        for view in range(3):
            for mistake, plant in MISTAKES.items():
                planted = clean.copy()
                planted[view] = plant(planted[view])
                found = check.examine_start(planted).views
                assert [finding.mistake for finding in found] == [
                    mistake if other == view else None for other in range(3)
                ]
    assert check.examine_start(clean[[0, 2, 1]]).line().endswith("are swapped")
    env.close()


LENGTHS = (2, 3, 2, 2, 2, 3, 2, 2, 2, 2)


@pytest.fixture
def run(tmp_path):
    """A run on ten episodes, of which the third is held out."""
    store = complete_store(tmp_path / "s.zarr", LENGTHS, validation=(2,))
    train([store.path], tmp_path / "run", debug().model_copy(update={"steps": 4}), resume=False)
    return tmp_path / "run"


def test_a_run_carries_the_first_frames_of_its_training_episodes(run):
    held, stored = read_start_frames(run, read_run(run)), tiny_start_frames(len(LENGTHS))
    np.testing.assert_array_equal(held.episodes, [0, 1, 3, 4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(held.frames, stored[held.episodes])


def test_two_stores_are_joined_and_validation_episodes_help_where_few_are_trained_on(tmp_path):
    stores = [
        complete_store(tmp_path / f"{sum(lengths)}.zarr", lengths, validation=(1,)).path
        for lengths in ((4, 3, 2), (4, 3, 3))
    ]
    config = debug().model_copy(update={"steps": 4})
    train(stores, tmp_path / "run", config, resume=False)
    held = read_start_frames(tmp_path / "run", read_run(tmp_path / "run"))
    np.testing.assert_array_equal(held.episodes, range(6))
    np.testing.assert_array_equal(held.frames, np.concatenate([tiny_start_frames(3)] * 2))


def test_start_frames_that_were_damaged_swapped_or_removed_are_refused(run):
    path, description = run / START_FRAMES_FILE, read_run(run)
    assert CameraCheck.from_run(run, description).unchecked is None
    ours = path.read_bytes()
    flipped = bytearray(ours)
    flipped[-1] ^= 1
    for damage, pattern in (
        (bytes(flipped), "expected the start frames listed in run.json"),
        (ours[: len(ours) // 2], "cannot be read"),
        ((run / "probe.safetensors").read_bytes(), "cannot be read"),
    ):
        path.write_bytes(damage)
        with pytest.raises(RunError, match=rf"{path}: .*{pattern}"):
            CameraCheck.from_run(run, description)
    path.unlink()
    with pytest.raises(RunError, match=str(path)):
        CameraCheck.from_run(run, description)


def test_a_run_that_knows_cameras_by_features_is_refused_in_one_line(run):
    path = run / "run.json"
    content = json.loads(path.read_text())
    content["format_version"] = 6
    content["data"]["reference_digest"] = content["data"].pop("start_frames_digest")
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=f"format version {FORMAT_VERSION}, found 6; use") as caught:
        read_run(run)
    assert "\n" not in str(caught.value)
