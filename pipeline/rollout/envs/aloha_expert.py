"""A scripted handover of the cube for gym-aloha: the right arm lifts it, the left arm takes it.

A plan of absolute joint targets for a whole episode, made once from where the cube lies: way points
of both grippers in space, minimum-jerk in between, brought to joints by inverse kinematics. Knows
the scene's model; steps nothing, so a plan is a function of the cube's position alone.
Source: the damped least-squares step is Buss, "Introduction to Inverse Kinematics with Jacobian
Transpose, Pseudoinverse and Damped Least Squares methods", 2004, eq. 11.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import mujoco
import numpy as np
from jaxtyping import Float32, Float64

Side = Literal["left", "right"]

GRASP_OFFSET_M: Final = 0.14  # along the gripper's x axis to the cube's centre; tips end at 0.154
CUBE_HEIGHT_M: Final = 0.02  # the centre of the cube, at rest on the table
MEETING_POINT_M: Final = (0.0, 0.5, 0.25)  # halfway between the arms, clear of the table
PICK_PITCH: Final = np.radians(60)  # below the horizon; reaches every cube and clears the table
# Columns of an arm's joints and fingers in `qpos`: 6 joints, then two fingers.
_FIRST_COLUMN: Final[dict[Side, int]] = {"left": 0, "right": 8}
_HEADING: Final[dict[Side, float]] = {"left": 0.0, "right": np.pi}  # of the arm's x axis, radians
_DAMPING: Final = 1e-4  # against squared metres and radians
_MAX_ITERATIONS: Final = 100  # of inverse kinematics; 2 or 3 follow one control step's change
_TOLERANCE: Final = 1e-4  # metres and radians


@dataclass(frozen=True)
class WayPoint:
    """Where a gripper is at one control step, on the way to the next way point."""

    step: int
    """Control step, from the start of the episode."""
    position: tuple[float, float, float]
    """Of the point between the fingers where the cube's centre belongs; metres, world frame."""
    pitch: float
    """Of the gripper's axis below the horizon, in radians."""
    roll: float
    """About the gripper's axis, in radians; at 0 the fingers close horizontally."""
    opening: float
    """0 closed to 1 open."""


def plan_transfer(
    model: Any, start: Float64[np.ndarray, " q"], num_steps: int
) -> Float32[np.ndarray, "t 14"]:
    """Plan the handover for an episode that begins in `start`.

    Args:
        model: gym-aloha's transfer-cube scene, a `mujoco.MjModel`.
        start: its `qpos` at reset: left arm, right arm, cube.
        num_steps: control steps of an episode; a plan that has ended holds still.

    Returns:
        Targets of each step, columns as in the environment's action: left arm, gripper, right arm,
        gripper; radians, and 0 closed to 1 open.
    """
    x, y = start[16:18]
    left = _targets(model, start, "left", _left_way(), num_steps)
    right = _targets(model, start, "right", _right_way((x, y, CUBE_HEIGHT_M)), num_steps)
    return np.concatenate([left, right], axis=1).astype(np.float32)


def _right_way(cube: tuple[float, float, float]) -> list[WayPoint]:
    """Take the cube by its sides, lift it, hold it at the meeting point, let go and draw back."""
    above = _shifted(cube, 0.08, "right", PICK_PITCH)
    away = _shifted(MEETING_POINT_M, 0.12, "right", PICK_PITCH)
    return [
        WayPoint(50, above, PICK_PITCH, 0.0, 1.0),
        WayPoint(75, cube, PICK_PITCH, 0.0, 1.0),
        WayPoint(100, cube, PICK_PITCH, 0.0, 0.0),
        WayPoint(155, MEETING_POINT_M, PICK_PITCH, 0.0, 0.0),
        WayPoint(225, MEETING_POINT_M, PICK_PITCH, 0.0, 0.0),
        WayPoint(250, MEETING_POINT_M, PICK_PITCH, 0.0, 1.0),
        WayPoint(285, away, PICK_PITCH, 0.0, 1.0),
    ]


def _left_way() -> list[WayPoint]:
    """Wait aside with the fingers above each other, take the cube from above and below."""
    upright = np.pi / 2
    aside = _shifted(MEETING_POINT_M, 0.12, "left", 0.0)
    return [
        WayPoint(110, aside, 0.0, upright, 1.0),
        WayPoint(150, aside, 0.0, upright, 1.0),
        WayPoint(185, MEETING_POINT_M, 0.0, upright, 1.0),
        WayPoint(210, MEETING_POINT_M, 0.0, upright, 0.0),
        WayPoint(285, MEETING_POINT_M, 0.0, upright, 0.0),
        WayPoint(315, aside, 0.0, upright, 0.0),
    ]


def _shifted(
    point: tuple[float, float, float], metres: float, side: Side, pitch: float
) -> tuple[float, float, float]:
    """Draw a point back along the axis of an arm's gripper."""
    x, y, z = np.array(point) - metres * _orientation(side, pitch, 0.0)[:, 0]
    return (x, y, z)


def _targets(
    model: Any, start: np.ndarray, side: Side, way: list[WayPoint], num_steps: int
) -> Float64[np.ndarray, "t 7"]:
    """Follow the way of one arm, from where it starts; 6 joints and the gripper's opening."""
    data = mujoco.MjData(model)
    data.qpos[:] = start
    mujoco.mj_kinematics(model, data)
    position, rotation = _grasp_pose(model, data, side)
    first = WayPoint(0, position, -np.arcsin(rotation[2, 0]), 0.0, 0.0)
    stations = np.array(
        [[*point.position, point.pitch, point.roll, point.opening] for point in [first, *way]]
    )
    times = np.array([point.step for point in [first, *way]])
    targets = np.empty((num_steps, 7))
    for step in range(num_steps):
        # The target of a step is where the arm is to be at its end.
        x, y, z, pitch, roll, opening = _between(times, stations, step + 1)
        joints = _solve_joints(model, data, side, np.array([x, y, z]), (pitch, roll))
        targets[step] = [*joints, opening]
    return targets


def _between(times: np.ndarray, stations: np.ndarray, time: int) -> np.ndarray:
    """Interpolate with minimum jerk: at rest at every station."""
    index = int(np.searchsorted(times, time, side="right"))
    if index == len(times):
        return np.asarray(stations[-1])
    share = (time - times[index - 1]) / (times[index] - times[index - 1])
    smooth = share**3 * (10 - 15 * share + 6 * share**2)
    return np.asarray(stations[index - 1] * (1 - smooth) + stations[index] * smooth)


def _solve_joints(
    model: Any, data: Any, side: Side, position: np.ndarray, angles: tuple[float, float]
) -> np.ndarray:
    """Return the six joints that bring a gripper there, starting from those in `data`."""
    columns = slice(_FIRST_COLUMN[side], _FIRST_COLUMN[side] + 6)
    low, high = model.jnt_range[columns].T
    body = model.body(f"vx300s_{side}/gripper_link").id
    wanted = _orientation(side, *angles)
    jacobian = np.empty((6, model.nv))
    for _ in range(_MAX_ITERATIONS):
        found, rotation = _grasp_pose(model, data, side)
        # The mean of the axes' cross products is the rotation that is left, in the world's frame.
        turn = np.cross(rotation.T, wanted.T).sum(axis=0) / 2
        error = np.concatenate([position - found, turn])
        if np.abs(error).max() < _TOLERANCE:
            break
        mujoco.mj_comPos(model, data)
        mujoco.mj_jac(model, data, jacobian[:3], jacobian[3:], np.array(found), body)
        arm = jacobian[:, columns]
        change = arm.T @ np.linalg.solve(arm @ arm.T + _DAMPING * np.eye(6), error)
        data.qpos[columns] = np.clip(data.qpos[columns] + change, low, high)
        mujoco.mj_kinematics(model, data)
    return np.array(data.qpos[columns])


def _grasp_pose(
    model: Any, data: Any, side: Side
) -> tuple[tuple[float, float, float], Float64[np.ndarray, "3 3"]]:
    """Return the point between the fingers and the gripper's axes, as columns."""
    gripper = data.body(f"vx300s_{side}/gripper_link")
    rotation = gripper.xmat.reshape(3, 3)
    x, y, z = gripper.xpos + GRASP_OFFSET_M * rotation[:, 0]
    return (x, y, z), rotation


def _orientation(side: Side, pitch: float, roll: float) -> Float64[np.ndarray, "3 3"]:
    """Return the axes of a gripper, as columns: heading, then pitch, then roll."""
    turns = []
    for axis, angle in ((2, _HEADING[side]), (1, pitch), (0, roll)):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[other, one], turn[one, other] = np.sin(angle), -np.sin(angle)
        turns.append(turn)
    return np.asarray(turns[0] @ turns[1] @ turns[2])
