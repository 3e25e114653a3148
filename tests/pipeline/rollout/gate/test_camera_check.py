"""The camera check: every planted mistake gets its name, and nothing else gets one."""

import json
import logging

import numpy as np
import pytest
import torch

from pipeline.errors import CameraMismatchError, RunError
from pipeline.rollout.gate.camera_check import ALARM_QUANTILE, CameraCheck
from pipeline.rollout.gate.camera_verdict import CameraCheckResult, CameraVerdict, StartFinding
from pipeline.training.presets import debug
from pipeline.training.run.camera_reference import CameraReference
from pipeline.training.run.folder import REFERENCE_FILE, read_reference, read_run
from pipeline.training.session import train
from policy.images import resize_images
from tests.pipeline.tiny import complete_store, tiny_features

VIEWS = ("left", "top", "hand")
EPISODES, STEPS = 30, 4
UNDO = {
    "flipped left to right": lambda frame: frame[:, ::-1],
    "flipped upside down": lambda frame: frame[::-1],
    "rotated by 180 degrees": lambda frame: frame[::-1, ::-1],
    "red and blue exchanged": lambda frame: frame[..., ::-1],
}


def scene(view: int, *, mirrored: bool = False) -> np.ndarray:
    """Soft random patches, of other colours and places in every view."""
    patches = np.random.default_rng(view).integers(0, 256, (1, 8, 8, 3), np.uint8)
    picture = resize_images(torch.from_numpy(patches))[0].numpy()
    return np.maximum(picture, picture[:, ::-1]) if mirrored else picture


def frames_of(episode: int, step: int = 0, *, mirrored: bool = False) -> np.ndarray:
    """Every view's scene, with an object where this episode and step have it."""
    numbers = np.random.default_rng([episode, 5])
    row, column = numbers.integers(60, 180, 2) + 3 * step
    frames = np.stack([scene(view, mirrored=mirrored) for view in range(len(VIEWS))])
    frames[:, row : row + 20, column : column + 20] = 255
    if mirrored:
        frames[:, row : row + 20, 256 - column - 20 : 256 - column] = 255
    return frames


class MixingEncoder:
    """Averages 16 by 16 cells and mixes them: 768 features, each of the whole picture."""

    def __init__(self):
        self.mixing = np.random.default_rng(9).normal(size=(768, 768)).astype(np.float32) / 28

    def encode_views(self, frames: torch.Tensor) -> torch.Tensor:
        cells = frames.float().unflatten(3, (16, 16)).unflatten(2, (16, 16)).mean(dim=(3, 5))
        return (cells.flatten(2) / 255 @ torch.from_numpy(self.mixing)).half()


@pytest.fixture(scope="module")
def encoder():
    return MixingEncoder()


def reference_of(encoder, *, episodes: int = EPISODES, mirrored: bool = False) -> CameraReference:
    frames = [
        frames_of(episode, step, mirrored=mirrored)
        for episode in range(episodes)
        for step in range(STEPS)
    ]
    rows = encoder.encode_views(torch.from_numpy(np.stack(frames))).numpy()
    return CameraReference(rows[::STEPS], rows, np.repeat(np.arange(episodes), STEPS))


@pytest.fixture(scope="module")
def reference(encoder):
    return reference_of(encoder)


@pytest.fixture(scope="module")
def check(reference):
    return CameraCheck(reference, VIEWS)


@pytest.mark.parametrize("mistake", UNDO)
@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_a_mistake_in_one_view_is_named(check, encoder, mistake, view):
    for episode in range(100, 103):
        frames = frames_of(episode)
        frames[view] = UNDO[mistake](frames[view])
        verdict = check.examine_start(frames, encoder)
        assert [found.mistake for found in verdict.views] == [
            mistake if other == view else None for other in range(len(VIEWS))
        ]
        assert verdict.views[view].undone_distance < verdict.views[view].distance
        assert not verdict.matches
        assert f"view `{VIEWS[view]}` matches training when" in verdict.line()


def test_the_same_mistake_everywhere_is_named_everywhere(check, encoder):
    verdict = check.examine_start(frames_of(100)[..., ::-1], encoder)
    assert {found.mistake for found in verdict.views} == {"red and blue exchanged"}
    assert verdict.line().count("matches training when red and blue are exchanged") == 3


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_swapped_views_are_named(check, encoder, pair):
    first, second = pair
    order = list(range(len(VIEWS)))
    order[first], order[second] = second, first
    verdict = check.examine_start(frames_of(100)[order], encoder)
    assert verdict.line() == f"views `{VIEWS[first]}` and `{VIEWS[second]}` are swapped"


def test_views_in_a_circle_are_named_one_by_one(check, encoder):
    line = check.examine_start(frames_of(100)[[1, 2, 0]], encoder).line()
    for view, shows in (("left", "top"), ("top", "hand"), ("hand", "left")):
        assert f"view `{view}` shows what training saw as `{shows}`" in line


def test_what_training_never_showed_is_unknown(check, encoder):
    frames = frames_of(100)
    frames[1] = np.random.default_rng(0).integers(0, 256, frames[1].shape, np.uint8)
    verdict = check.examine_start(frames, encoder)
    assert [found.mistake for found in verdict.views] == [None, "unknown", None]
    assert "view `top` matches nothing seen in training (distance " in verdict.line()


def test_unseen_starts_and_later_steps_match(check, encoder):
    for episode in range(100, 160):
        assert check.examine_start(frames_of(episode), encoder).line() == "all views match training"
    assert check.examine_start(frames_of(3, STEPS - 1), encoder).matches


def test_a_view_that_is_its_own_mirror_image_is_never_called_flipped(encoder):
    """Not where it is flipped, and not where nothing is wrong but an object in a new place."""
    mirrored = CameraCheck(reference_of(encoder, mirrored=True), VIEWS)
    for episode in range(100, 106):
        frames = frames_of(episode, mirrored=True)
        np.testing.assert_array_equal(frames, frames[:, :, ::-1])
        frames[:, 10:30, 50:200] += np.uint8(episode)  # further off than any start
        found = mirrored.examine_start(frames, encoder).views
        assert "flipped left to right" not in {finding.mistake for finding in found}


def test_distances_are_those_of_a_brute_force_search(check, reference, encoder):
    rows = reference.rows.astype(np.float64)
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    scaled = (rows - mean) / std

    def nearest(point: np.ndarray, view: int, among: np.ndarray) -> float:
        apart = (scaled[among, view] - point) ** 2
        return float(np.sqrt(apart.mean(axis=-1)).min())

    starts = np.arange(0, len(rows), STEPS)
    verdict = check.examine_start(frames_of(100), encoder)
    for view, found in enumerate(verdict.views):
        spread = max(nearest(scaled[s, view], view, starts[starts != s]) for s in starts)
        assert found.spread == pytest.approx(max(spread, 0.1), rel=1e-3)

    episodes = reference.row_episodes
    apart = np.array(
        [
            [nearest(scaled[row, view], view, episodes != episodes[row]) for view in range(3)]
            for row in range(len(rows))
        ]
    )
    limit = np.quantile(apart, ALARM_QUANTILE, axis=0)
    threshold = np.quantile((apart / limit).max(axis=1), ALARM_QUANTILE)
    assert check.threshold == pytest.approx(threshold, rel=1e-3)

    live = encoder.encode_views(torch.from_numpy(frames_of(100))[None])[0]
    scaled_live = (live.double().numpy() - mean) / std
    everywhere = np.ones(len(rows), bool)
    expected = max(nearest(scaled_live[v], v, everywhere) / limit[v] for v in range(3))
    assert check.distance(live) == pytest.approx(expected, rel=1e-3)
    assert check.distance(torch.from_numpy(reference.rows[7])) == pytest.approx(0, abs=1e-6)


def test_planted_decisions_are_further_than_the_threshold(check, encoder):
    for undo in UNDO.values():
        frames = frames_of(100)
        frames[2] = undo(frames[2])
        features = encoder.encode_views(torch.from_numpy(frames)[None])[0]
        assert check.distance(features) > check.threshold


def test_too_few_episodes_are_said_and_judge_nothing(encoder):
    check = CameraCheck(reference_of(encoder, episodes=7), VIEWS)
    assert check.threshold is None
    verdict = check.examine_start(frames_of(100)[..., ::-1], encoder)
    assert (
        verdict.line() == "cameras are not checked: 7 training episodes, want 8 or more to judge by"
    )
    assert verdict.matches
    assert check.distance(torch.full((3, 768), 9.0)) == 0


def test_a_mismatch_is_refused_or_said(check, encoder, caplog):
    swapped = frames_of(100)[[1, 0, 2]]
    with pytest.raises(CameraMismatchError, match="`left` and `top` are swapped; correct"):
        check.admit(swapped, encoder, "refuse")
    with caplog.at_level(logging.WARNING):
        assert check.admit(frames_of(100), encoder, "warn").matches
        assert not caplog.records
        assert not check.admit(swapped, encoder, "warn").matches
    assert caplog.messages == ["views `left` and `top` are swapped"]


def test_the_result_sums_up_what_was_compared():
    start = StartFinding(seed=7, verdict=CameraVerdict(views=()))
    distances = [0.5, 1.5, 0.7, 2.0]
    result = CameraCheckResult.of("warn", [start], distances, 1.2)
    assert (result.decisions, result.alarms) == (4, 2)
    assert (result.distance_p50, result.distance_max) == pytest.approx((1.1, 2.0))
    assert result.distance_p95 == pytest.approx(1.925)
    assert CameraCheckResult.model_validate_json(result.model_dump_json()) == result
    nothing = CameraCheckResult.of("off", [], [], None)
    assert (nothing.decisions, nothing.alarms, nothing.distance_max) == (0, 0, None)


@pytest.fixture
def run(tmp_path):
    """A run on four episodes, of which the last but one is held out."""
    store = complete_store(tmp_path / "s.zarr", (12, 9, 10, 5), heldout=(2,))
    train([store.path], tmp_path / "run", debug().model_copy(update={"steps": 4}), resume=False)
    return tmp_path / "run"


def test_a_run_carries_the_features_of_its_training_episodes_alone(run):
    features = tiny_features(36)
    held = read_reference(run, read_run(run))
    np.testing.assert_array_equal(held.starts, features[[0, 12, 31]])
    np.testing.assert_array_equal(held.rows, features[[*range(21), *range(31, 36)]])
    np.testing.assert_array_equal(held.row_episodes, [0] * 12 + [1] * 9 + [3] * 5)


def test_a_reference_that_was_damaged_swapped_or_removed_is_refused(run, caplog):
    path, description = run / REFERENCE_FILE, read_run(run)
    with caplog.at_level(logging.WARNING):
        assert CameraCheck.from_run(run, description).threshold is None
    assert "3 training episodes" in caplog.text
    ours = path.read_bytes()
    flipped = bytearray(ours)
    flipped[-1] ^= 1
    for damage, pattern in (
        (bytes(flipped), "not the camera reference that run.json names"),
        (ours[: len(ours) // 2], "cannot be read"),
        ((run / "probe.safetensors").read_bytes(), "cannot be read"),
    ):
        path.write_bytes(damage)
        with pytest.raises(RunError, match=rf"{path}: .*{pattern}"):
            CameraCheck.from_run(run, description)
    path.unlink()
    with pytest.raises(RunError, match=str(path)):
        CameraCheck.from_run(run, description)


def test_a_run_from_before_the_camera_check_is_refused_in_one_line(run):
    path = run / "run.json"
    content = json.loads(path.read_text())
    content["format_version"] = 3
    del content["data"]["reference_digest"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="format version 3, this program reads 6") as caught:
        read_run(run)
    assert "\n" not in str(caught.value)
