"""Cameras that stood still or are there twice, found by a check in clean data."""

import numpy as np
import pytest

from tests.pipeline.datasets.check.clean_files import ENDS, LENGTHS, SIZES, check, only, step


def reach(arrays: dict[str, np.ndarray], share: float = 1.0) -> None:
    """Let the robot move by little at each step, as at a high rate; by much over an episode."""
    for episode, length in enumerate(LENGTHS):
        way = np.linspace(0, share, length)[:, None] * np.array([1.0, -0.7, 0.5, 0.3])
        arrays["state"][step(episode, 0) : step(episode + 1, 0)] = way + 1000 * episode


def test_a_dead_camera_is_found_however_slowly_the_robot_moves(tmp_path):
    """Episodes lie far apart, so that no step and no episode moves by 5 % of the spread."""

    def plant(arrays):
        reach(arrays)
        arrays["top"][:] = arrays["top"][0]

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind, finding.place) == ("warning", "repeated", "view top")
    assert "all frames are equal though the robot moved, in 5 of" in finding.found
    assert finding.found.endswith("episode 0")


def test_a_camera_that_is_dead_in_one_episode_is_found(tmp_path):
    def plant(arrays):
        arrays["front"][step(3, 0) : step(4, 0)] = arrays["front"][step(3, 0)]

    finding = only(check(tmp_path, plant))
    assert (finding.kind, finding.place) == ("repeated", "view front")
    assert "in 1 of the episodes" in finding.found
    assert finding.found.endswith("episode 3")


def test_a_camera_may_show_one_picture_while_the_robot_only_trembles(tmp_path):
    def plant(arrays):
        rows = slice(step(3, 0), step(4, 0))
        arrays["front"][rows] = arrays["front"][step(3, 0)]
        noise = np.random.default_rng(1).uniform(-4e-5, 4e-5, (LENGTHS[3], 4))
        arrays["state"][rows] = arrays["state"][step(3, 0)] + noise

    assert check(tmp_path, plant).is_clean


def test_a_camera_that_stops_during_a_slow_motion_is_found(tmp_path):
    """Each step moves by 3 % of the spread: none alone is a motion, three together are one."""

    def plant(arrays):
        arrays["state"][:] = (0.03 * np.arange(ENDS[-1]) % 2.1)[:, None]
        arrays["state"] /= arrays["state"].std()
        arrays["state"] += np.random.default_rng(2).uniform(0, 1e-3, arrays["state"].shape)
        rows = slice(step(3, 2), step(3, 20))
        arrays["wrist"][rows] = arrays["wrist"][step(3, 2)]

    finding = only(check(tmp_path, plant))
    assert (finding.kind, finding.place) == ("repeated", "view wrist")
    assert "frames in a row up to" in finding.found


def test_a_picture_may_stay_while_the_robot_waits_after_a_motion(tmp_path):
    """One motion that the camera does not see, and then a long rest."""

    def plant(arrays):
        rows = slice(step(3, 5), step(4, 0))
        arrays["wrist"][rows] = arrays["wrist"][step(3, 5)]
        arrays["state"][step(3, 6) : step(4, 0)] = arrays["state"][step(3, 6)]

    assert check(tmp_path, plant).is_clean


MIRRORS = {
    "": lambda frames: frames,
    ", mirrored left to right": lambda frames: frames[:, :, ::-1],
    ", upside down": lambda frames: frames[:, ::-1],
    ", turned by 180 degrees": lambda frames: frames[:, ::-1, ::-1],
}


@pytest.mark.parametrize("how", MIRRORS)
def test_the_same_camera_in_some_episodes_is_found_also_mirrored(tmp_path, how):
    def plant(arrays):
        for episode in (2, 4):
            rows = slice(step(episode, 0), step(episode + 1, 0))
            arrays["wrist"][rows] = MIRRORS[how](arrays["front"][rows])

    assert SIZES["wrist"] == SIZES["front"]
    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("error", "same_view")
    assert finding.place == "views front and wrist"
    assert f"the same frames{how} in 2 of the episodes" in finding.found
    assert finding.found.endswith("episode 2")


def test_one_step_that_looks_the_same_is_no_finding(tmp_path):
    def plant(arrays):
        arrays["wrist"][step(2, 0)] = arrays["front"][step(2, 0)]

    assert check(tmp_path, plant).is_clean


@pytest.mark.parametrize(("value", "at"), [(np.nan, 0), (np.inf, 19), (-np.inf, 7), (1e308, 7)])
def test_a_clock_that_is_not_finite_is_found(tmp_path, value, at):
    def plant(arrays):
        arrays["timestamp"][step(2, at)] = value
        if value == 1e308:  # the way there is finite as a number, and back it is not
            arrays["timestamp"][step(2, 18)] = -value

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("error", "clock")
    assert finding.place.endswith("episode 2")
