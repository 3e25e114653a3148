"""A scripted handover of the cube for gym-aloha: the right arm lifts it, the left arm takes it.

A plan of absolute joint targets for a whole episode, made once from the cube's position: way points
of both grippers in space, converted to joints in closed form, with minimum jerk in between.
Source of the geometry: huggingface/gym-aloha 0.1.5, assets/vx300s_left.xml and vx300s_right.xml;
a test compares it with MuJoCo's own kinematics.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

CUBE_HEIGHT_M: Final = 0.02  # the center of the cube, at rest on the table
MEETING_POINT_M: Final = (0.0, 0.5, 0.25)  # halfway between the arms, clear of the table
PICK_PITCH: Final = np.radians(60)  # below the horizon: reaches every cube and clears the table
UPRIGHT: Final = np.radians(90)  # roll at which the fingers close vertically

_SHOULDER_HEIGHT_M: Final = 0.079 + 0.04805
_UPPER_ARM_M: Final = (0.05955, 0.3)  # forward and up, from shoulder to elbow, at joint angle 0
_FOREARM_M: Final = 0.2 + 0.1  # from elbow to wrist
# From the wrist to the target of the cube's center: the fingers' tips end 0.014 m behind it.
_GRASP_M: Final = 0.069744 + 0.14


Point = tuple[float, float, float]  # target of the cube's center between the fingers; world frame
Way = list[tuple[int, Point, float]]  # control step, where the arm rests, opening: 0 closed, 1 open


class Arm(NamedTuple):
    """One of the two arms."""

    base: tuple[float, float]  # x, y in meters
    heading: float  # direction of the arm at waist angle 0, in radians about z
    pitch: float  # of the gripper below the horizon, in radians
    roll: float  # about its own axis, in radians; at 0 the fingers close horizontally


LEFT: Final = Arm(base=(-0.469, 0.5), heading=0.0, pitch=0.0, roll=UPRIGHT)
RIGHT: Final = Arm(base=(0.469, 0.5), heading=np.pi, pitch=PICK_PITCH, roll=0.0)


def plan_transfer(
    start: Float64[np.ndarray, " 14"], cube: tuple[float, float], num_steps: int
) -> Float32[np.ndarray, "t 14"]:
    """Plan the handover.

    Args:
        start: the robot at reset, columns as in the environment's action: left arm, gripper, right
            arm, gripper; radians, and 0 closed to 1 open.
        cube: x, y of the cube's center, in meters.
        num_steps: control steps of an episode; a plan that has ended holds still.

    Returns:
        The targets of each step, columns as in `start`.
    """
    steps = np.arange(1, num_steps + 1)  # a target is where the robot is to be after the step
    left = _follow(LEFT, _left_way(), start[:7], steps)
    right = _follow(RIGHT, _right_way((*cube, CUBE_HEIGHT_M)), start[7:], steps)
    return np.concatenate([left, right], axis=1).astype(np.float32)


def joints_at(arm: Arm, point: Point, pitch: float, roll: float) -> Float64[np.ndarray, " 6"]:
    """Return the joints, elbow up, that move an arm's gripper to a point; inverse kinematics.

    The gripper stays in the vertical plane through the arm's base and the point, which is within
    the arm's reach; `pitch` and `roll` as in `Arm`.

    Returns:
        Waist, shoulder, elbow, forearm roll, wrist angle, wrist rotation, in radians.
    """
    across, along = np.array(point[:2]) - arm.base
    forward = np.array([np.cos(arm.heading), np.sin(arm.heading)])
    ahead, aside = forward @ (across, along), forward @ (along, -across)
    # In the arm's plane: horizontal and vertical, from the shoulder to the wrist.
    wrist = np.array([np.hypot(ahead, aside), point[2] - _SHOULDER_HEIGHT_M])
    wrist -= _GRASP_M * np.array([np.cos(pitch), -np.sin(pitch)])
    distance, upper_arm = np.hypot(*wrist), np.hypot(*_UPPER_ARM_M)
    # The law of cosines gives the angle at the shoulder between the upper arm and the wrist.
    cosine = (upper_arm**2 + distance**2 - _FOREARM_M**2) / (2 * upper_arm * distance)
    assert abs(cosine) <= 1, "the way points are within reach, wherever gym-aloha puts the cube"
    elevation = np.arctan2(wrist[1], wrist[0]) + np.arccos(cosine)
    elbow = upper_arm * np.array([np.cos(elevation), np.sin(elevation)])
    shoulder = np.arctan2(_UPPER_ARM_M[1], _UPPER_ARM_M[0]) - elevation
    forearm_pitch = -np.arctan2(wrist[1] - elbow[1], wrist[0] - elbow[0])
    waist, elbow_angle = np.arctan2(aside, ahead), forearm_pitch - shoulder
    return np.array([waist, shoulder, elbow_angle, 0.0, pitch - forearm_pitch, roll])


def _right_way(cube: Point) -> Way:
    """Take the cube by its sides, lift it, hold it at the meeting point, let go and draw back."""
    above = (cube[0], cube[1], cube[2] + 0.08)
    away = (0.12, MEETING_POINT_M[1], MEETING_POINT_M[2] + 0.05)
    return [
        (50, above, 1.0),
        (75, cube, 1.0),
        (100, cube, 0.0),
        (155, MEETING_POINT_M, 0.0),
        (225, MEETING_POINT_M, 0.0),
        (250, MEETING_POINT_M, 1.0),
        (285, away, 1.0),
    ]


def _left_way() -> Way:
    """Wait aside with one finger above the other, take the cube from above and below, draw back."""
    aside = (-0.12, MEETING_POINT_M[1], MEETING_POINT_M[2])
    return [
        (110, aside, 1.0),
        (150, aside, 1.0),
        (185, MEETING_POINT_M, 1.0),
        (210, MEETING_POINT_M, 0.0),
        (285, MEETING_POINT_M, 0.0),
        (315, aside, 0.0),
    ]


def _follow(arm: Arm, way: Way, start: np.ndarray, steps: np.ndarray) -> Float64[np.ndarray, "t 7"]:
    """Go from rest to rest with minimum jerk, joint by joint; return joints and opening."""
    stations = [start] + [
        np.append(joints_at(arm, point, arm.pitch, arm.roll), opening) for _, point, opening in way
    ]
    times = np.array([0] + [step for step, *_ in way])
    progress = np.interp(steps, times, np.arange(len(times)))  # 1.5: halfway from first to second
    before = np.minimum(progress.astype(int), len(way) - 1)
    share = (progress - before)[:, None]
    smooth = share**3 * (10 - 15 * share + 6 * share**2)
    table = np.stack(stations)
    return np.asarray(table[before] + (table[before + 1] - table[before]) * smooth)
