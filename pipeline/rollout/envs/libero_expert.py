"""A scripted pick and place for LIBERO: above, down, close, up, over the target, down, open.

Closed-loop: each action is decided from where hand, object and target are now, so a bump or a slip
is met by a correction or by another try. Speed, height and grasp vary with the seed.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

GRIPPER_OPENING_M: Final = 0.072  # what fits between the open fingers, with 2 mm to each side
FINGERTIP_M: Final = 0.014  # the fingers' tips end this far below the point between the pads
PALM_M: Final = 0.022  # an object may reach this far above the point between the pads
HALF_HAND_M: Final = 0.1  # the hand's half width, in the direction in which its fingers close
HALF_FIST_M: Final = 0.035  # the same across that direction, with 5 mm to spare
KNUCKLES_M: Final = 0.03  # from the point between the pads up to where the hand is that wide
HALF_PAD_M: Final = 0.015  # of a finger's pad, across that direction; it stays on the object
SLIDES_M: Final = (0.0, -0.01, 0.01, -0.02, 0.02)  # along the object, where to take it: first best
RIM_M: Final = 0.004  # from the outer edge of a bowl to the middle of its wall
TOUCH_M: Final = 0.01  # above the target, where an object is let go
CLEARANCE_M: Final = 0.05  # between a carried object and what it is carried over
_TRANSLATION_M: Final = 0.05  # what an action of 1 means: LiberoEnv.action_units
_ROTATION_RAD: Final = 0.5


@dataclass(frozen=True)
class Box:
    """An object's or a target's bounds, along its own axes."""

    center: Float64[np.ndarray, " 3"]
    """World frame, meters."""
    axes: Float64[np.ndarray, "3 3"]
    """Columns: its axes in the world frame."""
    size: Float64[np.ndarray, " 3"]
    """Full lengths along its axes, in meters."""

    def distance(self, point: np.ndarray) -> float:
        """Return how far a point is beyond its faces, in meters; below 0 inside."""
        return float((np.abs(self.axes.T @ (point - self.center)) - self.size / 2).max())

    @property
    def half_height(self) -> float:
        """Half of its vertical extent, in meters."""
        return float(np.abs(self.axes[2]) @ self.size / 2)

    @property
    def top(self) -> float:
        """Height of its highest point, in meters."""
        return float(self.center[2]) + self.half_height

    @property
    def bottom(self) -> float:
        """Height of its lowest point, in meters."""
        return float(self.center[2]) - self.half_height


@dataclass(frozen=True)
class Sight:
    """What the expert sees at one step; world frame, meters."""

    hand: Float64[np.ndarray, " 3"]
    axes: Float64[np.ndarray, "3 3"]
    """Columns: the hand's axes; fingers close along the first, the third points out of the hand."""
    thing: Box
    target: Box
    """Where it belongs: on top of this box, or into it from above."""
    others: tuple[Box, ...]
    """Everything else that stands in the scene."""


Phase = IntEnum("Phase", "ABOVE DOWN CLOSE UP OVER LOWER OPEN AWAY", start=0)


class PickAndPlace:
    """The routine for one episode."""

    def __init__(self, seed: int, sight: Sight) -> None:
        """Draw how this episode is played, from what is seen at its start."""
        self._rng = np.random.default_rng(seed)
        self._speed = self._rng.uniform(0.6, 1.0)  # of the fastest action
        self._begin(sight)

    def _begin(self, sight: Sight) -> None:
        """Try, for the first time or again, with another grasp and another way to it."""
        self._phase, self._waited = Phase.ABOVE, 1
        self._along, self._offset = self._choose_grasp(sight)
        self._hover = self._rng.uniform(0.06, 0.12)  # meters above the grasp
        self._drift = np.append(self._rng.uniform(-0.02, 0.02, 2), 0.0)  # of the way point above
        self._hold = int(self._rng.integers(8, 12))  # steps for the fingers to close or to open

    def action(self, sight: Sight) -> Float32[np.ndarray, " 7"]:
        """Decide the next action, columns as in `LiberoEnv.action_units`; call it once per step."""
        if self._has_reached_end_of_phase(sight):
            self._phase, self._waited = Phase((self._phase + 1) % len(Phase)), 0
        away = sight.hand - (sight.thing.center + self._offset)
        has_slipped = self._phase in {Phase.UP, Phase.OVER} and np.linalg.norm(away) > 0.05
        if has_slipped or (self._phase is Phase.ABOVE and self._waited == 0):
            self._begin(sight)
        is_open = self._phase in {Phase.ABOVE, Phase.DOWN, Phase.OPEN, Phase.AWAY}
        move = (self._aim(sight) - sight.hand) / _TRANSLATION_M
        move *= min(1.0, self._speed / max(np.abs(move).max(), 1e-9))
        turn = np.clip(self._turn(sight) / _ROTATION_RAD, -self._speed, self._speed)
        return np.concatenate([move, turn, [-1.0 if is_open else 1.0]]).astype(np.float32)

    def _has_reached_end_of_phase(self, sight: Sight) -> bool:
        self._waited += 1
        error = np.abs(self._aim(sight) - sight.hand)
        match self._phase:
            case Phase.ABOVE:
                return bool(error.max() < 0.015 and np.abs(self._turn(sight)).max() < 0.1)
            case Phase.CLOSE | Phase.OPEN | Phase.AWAY:
                return self._waited > self._hold
            case Phase.DOWN | Phase.LOWER:  # an edge may keep the hand from getting there
                return bool(error.max() < 0.005 or self._waited > 40)
            case Phase.UP:
                return bool(error[2] < 0.02)
        return bool(error.max() < 0.01)

    def _aim(self, sight: Sight) -> Float64[np.ndarray, " 3"]:
        """Return where the hand is to be, in this phase."""
        aim = sight.hand.copy()
        if self._phase in {Phase.ABOVE, Phase.DOWN}:
            aim = sight.thing.center + self._offset
        if self._phase is Phase.ABOVE:
            aim += self._drift
        if self._phase is Phase.DOWN:  # a funnel: the lower, the closer to the vertical
            aside = float(np.linalg.norm((aim - sight.hand)[:2]))
            aim[2] += 4 * max(0.0, aside - 0.004)
        if self._phase in {Phase.ABOVE, Phase.AWAY}:
            aim[2] += self._hover
        # How the object hangs in the hand now, which is not how it was taken.
        if self._phase in {Phase.OVER, Phase.LOWER}:
            aim[:2] += (sight.target.center - sight.thing.center)[:2]
        if self._phase in {Phase.UP, Phase.OVER, Phase.LOWER}:
            above = TOUCH_M if self._phase is Phase.LOWER else CLEARANCE_M
            aim[2] += sight.target.top + above - sight.thing.bottom
        return aim

    def _turn(self, sight: Sight) -> Float64[np.ndarray, " 3"]:
        turn = _pointing_down(self._along, sight.axes) @ sight.axes.T
        return np.asarray(Rotation.from_matrix(turn).as_rotvec())

    def _choose_grasp(
        self, sight: Sight
    ) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
        """Take the object across its narrowest side, clear of others, or a bowl by its rim.

        Returns:
            Horizontal direction in which the fingers close; and the point between the fingers,
            from the object's center. World frame, meters.
        """
        thing = sight.thing
        upright = np.abs(thing.axes[2]).argmax()
        sides = [index for index in range(3) if index != upright]
        narrowest = min(thing.size[side] for side in sides)
        height = max(thing.bottom + FINGERTIP_M, thing.top - PALM_M) - thing.center[2]
        closing = _horizontal(sight.axes[:, 0])
        if narrowest > GRIPPER_OPENING_M:
            side = closing * self._rng.choice([-1.0, 1.0])
            if _room(sight, -side) > min(_room(sight, side), CLEARANCE_M):
                side = -side
            return side, np.append((side * (narrowest / 2 - RIM_M))[:2], height)
        directions = [
            _horizontal(thing.axes[:, side])
            for side in sides
            if thing.size[side] < 1.15 * narrowest
        ]
        along = max(directions, key=lambda direction: abs(direction @ closing))
        across = np.cross(along, [0.0, 0.0, 1.0])
        reach = np.abs(across @ thing.axes) @ thing.size / 2 - HALF_PAD_M
        slides = [slide for slide in SLIDES_M if abs(slide) <= max(reach, 0.0)]
        offsets = [np.append((across * slide)[:2], height) for slide in slides]
        rooms = [_hand_room(sight, offset, along) for offset in offsets]
        wanted = min(max(rooms), HALF_FIST_M)
        return along, next(o for o, room in zip(offsets, rooms, strict=True) if room >= wanted)


def _hand_room(sight: Sight, offset: np.ndarray, along: np.ndarray) -> float:
    """Return how far other things are from a hand that takes the object at an offset."""
    middle = sight.thing.center + offset + np.array([0.0, 0.0, KNUCKLES_M])
    room = np.inf
    for other in sight.others:
        for aside in (-HALF_HAND_M, -HALF_HAND_M / 2, HALF_HAND_M / 2, HALF_HAND_M):
            room = min(room, other.distance(middle + aside * along))
    return room


def _room(sight: Sight, side: np.ndarray) -> float:
    """Return how much room a hand on one side of the object has, here and at the target."""
    room = np.inf
    for spot in (sight.thing, sight.target):
        end = spot.center + side * (sight.thing.size.min() / 2 + HALF_HAND_M)
        for other in sight.others:
            if other.top > spot.top + CLEARANCE_M:
                room = min(room, other.distance(end))
    return room


def _horizontal(direction: np.ndarray) -> Float64[np.ndarray, " 3"]:
    flat = np.array([direction[0], direction[1], 0.0])
    return np.asarray(flat / np.linalg.norm(flat))


def _pointing_down(along: np.ndarray, axes: np.ndarray) -> Float64[np.ndarray, "3 3"]:
    """Return the hand's axes when it points down and closes along a direction, either way round."""
    first = along if along @ axes[:, 0] >= 0 else -along
    third = np.array([0.0, 0.0, -1.0])
    return np.stack([first, np.cross(third, first), third], axis=1)
