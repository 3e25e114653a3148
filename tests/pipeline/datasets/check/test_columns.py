"""Odd values of a column: both ends of its range count, because training scales all of it."""

import numpy as np
import pytest

from pipeline.datasets.check.columns import check_columns
from pipeline.datasets.check.report import Finding, Findings
from tests.pipeline.datasets.check.clean_files import ENDS, check, only, step

RANDOM = np.random.default_rng(0)


def odd(*episodes: np.ndarray) -> tuple[Finding, ...]:
    findings = Findings()
    named = {i: (f"episode {i}", np.asarray(e, np.float32)) for i, e in enumerate(episodes)}
    check_columns("state", named, findings)
    return tuple(finding for finding in findings.all() if finding.kind != "constant")


@pytest.mark.parametrize(
    ("key", "value"), [("state", 4096.0), ("action", -4096.0), ("state", 40.0)]
)
def test_one_value_that_makes_most_of_a_columns_range_is_found(tmp_path, key, value):
    def plant(arrays):
        arrays[key][:, 1] = np.sin(np.arange(ENDS[-1]) / 5)
        arrays[key][step(5, 7), 1] = value

    finding = only(check(tmp_path, plant, episodes=1))
    assert (finding.severity, finding.kind, finding.place) == ("warning", "outlier", f"{key}[1]")
    assert finding.found.startswith(f"1 of {ENDS[-1]} values make most of the range: {value:g} in ")
    assert "episode 5, step 7" in finding.found


def test_angles_that_jump_by_a_turn_are_found(tmp_path):
    def plant(arrays):
        angle = np.cumsum(np.full(ENDS[-1], 0.2))
        arrays["state"][:, 2] = (angle + np.pi) % (2 * np.pi) - np.pi

    finding = only(check(tmp_path, plant))
    assert (finding.kind, finding.place) == ("wrap", "state[2]")
    assert "jumps of 2 pi" in finding.found
    degrees = np.degrees(np.cumsum(np.full(100, 0.2))) % 360
    assert [found.kind for found in odd(degrees[:, None])] == ["wrap"]


def test_a_rotation_that_jumps_to_its_opposite_is_found(tmp_path):
    """A gripper that points down: half a turn about x, whose sign any noise decides."""
    time = np.arange(ENDS[-1])
    wobble = np.sin(time / 3) / 20
    axis = np.stack([1 + 0 * time, np.sin(time / 7) / 9, np.cos(time / 5) / 9], axis=1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)

    def plant(arrays):
        half = (np.pi + wobble)[:, None] / 2
        quaternion = np.hstack([np.sin(half) * axis, np.cos(half)])
        arrays["state"] = quaternion * np.where(np.cos(half) < 0, -1, 1)

    finding = only(check(tmp_path, plant))
    assert (finding.kind, finding.place) == ("wrap", "state[0..3]")
    crossings = np.flatnonzero(np.diff(wobble > 0)) + 1
    inside = np.setdiff1d(crossings, ENDS)
    assert finding.found.startswith(f"{len(inside)} jumps of a quaternion")
    assert finding.found.endswith(f"episode 0, step {inside[0]}")
    angle = (np.pi + wobble)[:, None]
    vector = np.where(angle > np.pi, angle - 2 * np.pi, angle) * [0.6, 0.0, 0.8]
    [finding] = odd(np.hstack([time[:, None], vector]))
    assert (finding.kind, finding.place) == ("wrap", "state[1..3]")
    gripper = np.where(np.arange(60) // 10 % 2, 1.0, -1.0)[:, None]
    assert odd(np.hstack([RANDOM.normal(size=(60, 3)), gripper, -gripper])) == ()


@pytest.mark.parametrize("factor", [180 / np.pi, 1000.0])
def test_a_unit_that_changes_between_episodes_is_found(tmp_path, factor):
    def plant(arrays):
        arrays["action"][step(2, 0) : step(4, 0), 0] *= factor

    finding = only(check(tmp_path, plant))
    assert (finding.kind, finding.place) == ("units", "action[0]")
    assert "in 5 episodes" in finding.found
    assert finding.found.endswith("episode 2")


def test_nothing_is_odd_about_usual_motion():
    """Tails, switches that are seldom closed, columns that stand still in some episodes."""
    for values in (
        RANDOM.normal(size=(5000, 3)),
        RANDOM.laplace(size=(500, 3)),
        (np.arange(5000) // 20 == 7).astype(float)[:, None],
        np.repeat([0.0, 1.0], 200)[:, None],
        np.cumsum(RANDOM.normal(size=(300, 2)), axis=0),
        np.zeros((50, 1)),
    ):
        assert odd(values) == ()
    walks = [np.cumsum(RANDOM.normal(size=(50, 3)), axis=0) for _ in range(20)]
    assert odd(*walks, np.zeros((50, 3))) == ()
    assert odd(*(scale * np.sin(np.arange(50) / 9)[:, None] for scale in (0.1, 0.5, 2, 8))) == ()
