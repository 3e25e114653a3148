"""Findings about values of a column: a few outliers, jumps of a full turn, other units.

Training scales the range of every column to [-1, 1]: a single outlier squeezes all other values.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64

from pipeline.datasets.check.report import Findings
from policy.network.normalizer import CONSTANT_RANGE

_MAX_FEW: Final = 63  # values at an end of a column that can be outliers
_FEW_SHARE: Final = 0.01  # of a column's values
_FAR: Final = 3.0  # times the range of the others; tails of usual motion reach 2
_TURNS: Final = ((2 * np.pi, "2 pi"), (360.0, "360 degrees"))
_FLIP_COSINE: Final = -0.9  # of two steps; rotations of a robot turn by less between them
_TURN_TOLERANCE: Final = 0.1  # of a turn, which a joint may move within the step of a jump
_UNITS: Final = (
    (180 / np.pi, "degrees against radians"),
    (100.0, "percent or centimeters against parts of 1 or meters"),
    (255.0, "bytes against parts of 1"),
    (1000.0, "millimeters against meters"),
)
_UNIT_TOLERANCE: Final = 0.3  # of a factor between units; motion differs between episodes
_APART: Final = 5.0  # factor between the magnitudes of two groups of episodes
_MIN_EPISODES: Final = 3


class ColumnOddities:
    """Checks every value of state or action."""

    def __init__(self, role: str) -> None:
        """Start with no episode; `role` is `state` or `action`."""
        self._role = role
        self._names: list[str] = []
        self._episodes: list[Float32[np.ndarray, "t d"]] = []
        self._num_jumps: dict[tuple[int, str], int] = {}
        self._first_jump: dict[tuple[int, str], str] = {}
        self._flips: dict[tuple[int, int], list[str]] = {}  # by first column and number of columns

    def add(self, values: Float32[np.ndarray, "t d"], episode: str) -> None:
        """Add one episode; `episode` names it in messages."""
        self._names.append(episode)
        self._episodes.append(values)
        self._count_jumps(values, episode)
        self._find_flips(values.astype(np.float64), episode)

    def report(self, findings: Findings) -> None:
        """Add findings of columns with outliers, jumps of a full turn, or two units."""
        for column, values in enumerate(np.concatenate(self._episodes).T if self._names else ()):
            name = f"{self._role}[{column}]"
            self._report_few(values, name, findings)
            self._report_units(column, name, findings)
        for (column, turn), count in self._num_jumps.items():
            findings.add(
                "warning",
                "wrap",
                f"{self._role}[{column}]",
                f"{count} jumps of {turn} from one step to the next, the first in "
                f"{self._first_jump[column, turn]}",
                "unwrap the angle, or store its sine and cosine",
            )

        for (column, width), places in self._flips.items():
            findings.add(
                "warning",
                "wrap",
                f"{self._role}[{column}..{column + width - 1}]",
                f"{len(places)} jumps of a {'quaternion' if width == 4 else 'rotation vector'} to "
                f"its opposite, which is the same rotation, the first in {places[0]}",
                "store two columns of the rotation matrix, or turn signs so that steps follow each "
                "other, here and on the robot: to a policy both ends of the range are far apart",
            )

    def _find_flips(self, values: Float64[np.ndarray, "t d"], episode: str) -> None:
        """Find q and -q, or angles on both sides of half a turn, from one step to the next."""
        for width, low, high in ((4, 0.99, 1.01), (3, np.pi - 0.5, np.pi + 0.01)):
            for column in range(values.shape[1] - width + 1):
                part = values[:, column : column + width]
                sizes = np.linalg.norm(part, axis=1)
                fits = (low < sizes) & (sizes < high)
                if width == 4 and not fits.all():
                    continue
                cosines = (part[1:] * part[:-1]).sum(axis=1) / np.maximum(sizes[1:] * sizes[:-1], 1)
                for step in np.flatnonzero(fits[1:] & fits[:-1] & (cosines < _FLIP_COSINE)):
                    places = self._flips.setdefault((column, width), [])
                    places.append(f"{episode}, step {step + 1}")

    def _report_few(self, values: Float32[np.ndarray, " n"], name: str, findings: Findings) -> None:
        few = int(np.clip(np.ceil(_FEW_SHARE * len(values)), 1, _MAX_FEW))
        if len(values) <= 2 * few + 2:
            return
        order = np.argsort(values, kind="stable")
        low_at, high_at = order[: few + 1], order[: -few - 2 : -1]
        low, high = values[low_at], values[high_at]
        core = float(high[few] - low[few])
        if float(high[0] - low[0]) <= _FAR * core or float(high[0] - low[0]) <= CONSTANT_RANGE:
            return
        reach = core if core > CONSTANT_RANGE else CONSTANT_RANGE
        far_low, far_high = low[few] - low > reach / 2, high - high[few] > reach / 2
        count = int(far_low.sum() + far_high.sum())
        # A column that hardly ever changes may be a switch, with few distant values by design.
        if core <= CONSTANT_RANGE and count > 1:
            return
        is_high = bool(far_high.any()) and high[0] - high[few] >= low[few] - low[0]
        value, row = (high[0], high_at[0]) if is_high else (low[0], low_at[0])
        ends = np.cumsum([len(episode) for episode in self._episodes])
        episode = int(np.searchsorted(ends, row, side="right"))
        step = row - ends[episode] + len(self._episodes[episode])
        findings.add(
            "warning",
            "outlier",
            name,
            f"{count} of {len(values)} values make most of the range: {value:.6g} in "
            f"{self._names[episode]}, step {step}, the others are within {low[few]:.4g} to "
            f"{high[few]:.4g}; training scales the whole range to [-1, 1]",
            "correct the values, or leave their episodes out with `episodes = {except = [...]}`",
        )

    def _count_jumps(self, values: Float32[np.ndarray, "t d"], episode: str) -> None:
        steps = np.abs(np.diff(values.astype(np.float64), axis=0))
        if not len(steps):
            return
        for turn, word in _TURNS:
            is_turn: Bool[np.ndarray, "t d"] = np.abs(steps - turn) < _TURN_TOLERANCE * turn
            others = np.where(is_turn, 0, steps).max(axis=0)
            is_angle = is_turn.any(axis=0) & (others < turn / 4)
            for column in np.flatnonzero(is_angle).tolist():
                step = int(np.argmax(is_turn[:, column])) + 1
                self._first_jump.setdefault((column, word), f"{episode}, step {step}")
                count = int(is_turn[:, column].sum())
                self._num_jumps[column, word] = self._num_jumps.get((column, word), 0) + count

    def _report_units(self, column: int, name: str, findings: Findings) -> None:
        sizes: Float64[np.ndarray, " e"] = np.array(
            [np.abs(values[:, column]).max() for values in self._episodes], float
        )
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] > CONSTANT_RANGE]
        if len(order) < _MIN_EPISODES:
            return
        sizes = sizes[order]
        gaps = sizes[1:] / sizes[:-1]
        cut = int(np.argmax(gaps)) + 1
        low, high = sizes[:cut], sizes[cut:]
        if gaps[cut - 1] < _APART or max(low[-1] / low[0], high[-1] / high[0]) > _APART:
            return
        factor = float(np.median(high) / np.median(low))
        word = next((w for unit, w in _UNITS if abs(factor / unit - 1) < _UNIT_TOLERANCE), None)
        if word is None:
            return
        rare = order[:cut] if len(low) < len(high) else order[cut:]
        findings.add(
            "warning",
            "units",
            name,
            f"the largest values are {low[0]:.4g} to {low[-1]:.4g} in {len(low)} episodes and "
            f"{high[0]:.4g} to {high[-1]:.4g} in {len(high)}: a factor of {factor:.3g}, as of "
            f"{word}; the first of the fewer is {self._names[int(rare.min())]}",
            "bring them to one unit, or leave the fewer out with `episodes = {except = [...]}`",
        )
