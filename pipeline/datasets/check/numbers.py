"""Statistics of states, actions and clocks over a whole dataset, and what is odd about them."""

from typing import Final

import numpy as np
from jaxtyping import Float32, Float64

from pipeline.datasets.causes import clock_unit
from pipeline.datasets.check.report import DimSummary, Findings
from policy.network.normalizer import CONSTANT_RANGE

# In the units of the column. Training scales each column's range to [-1, 1]; of a range as small
# as this, a tenth of a millimeter or of a milliradian of noise would become a tenth of full scale.
TINY_RANGE: Final = 1e-3
FPS_TOLERANCE: Final = 0.02  # of a control step; clocks of computers are a hundred times better
_COARSE_S: Final = 128  # seconds; the spacing of float32 at 1.7e9, which is the year 2023
_LONG_STEP: Final = 1.5  # control steps; more means that something was not recorded
_MANY: Final = 0.1  # of an episode's steps; more long ones are the rate, or jitter, and no gaps


class ColumnStatistics:
    """Minimum, maximum, mean and standard deviation of every column, episode after episode."""

    def __init__(self, role: str) -> None:
        """Begin with no episode; `role` is `state` or `action`."""
        self.role = role
        self._count = 0

    def add(self, values: Float32[np.ndarray, "t d"]) -> None:
        """Take in one episode.

        Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing
        sample variances, 1979, eq. 2.1.
        """
        wide = values.astype(np.float64)
        count, mean = len(wide), wide.mean(axis=0)
        squares = ((wide - mean) ** 2).sum(axis=0)
        low, high = wide.min(axis=0), wide.max(axis=0)
        if not self._count:
            self._count, self._mean, self._squares = count, mean, squares
            self._min, self._max = low, high
            return
        total = self._count + count
        shift = mean - self._mean
        self._squares += squares + shift**2 * (self._count * count / total)
        self._mean += shift * (count / total)
        self._count = total
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)

    @property
    def std(self) -> Float64[np.ndarray, " d"]:
        """Standard deviation of every column; of width 0 before the first episode."""
        if not self._count:
            return np.zeros(0)
        return np.asarray(np.sqrt(self._squares / self._count))

    def summaries(self) -> list[DimSummary]:
        """Describe every column; none before the first episode."""
        if not self._count:
            return []
        columns = zip(self._min, self._max, self._mean, self.std, strict=True)
        return [
            DimSummary(f"{self.role}[{dim}]", *map(float, column))
            for dim, column in enumerate(columns)
        ]

    def report(self, findings: Findings) -> None:
        """Tell the columns that never change, or hardly."""
        for dim in self.summaries():
            spread = dim.maximum - dim.minimum
            if spread <= CONSTANT_RANGE:
                findings.add(
                    "warning",
                    "constant",
                    dim.name,
                    f"always {dim.mean:.6g}, to within {spread:.1g}",
                    f"check the key and `{self.role}.columns`; leave the column out if the robot "
                    "does not use it",
                )
            elif spread <= TINY_RANGE:
                findings.add(
                    "warning",
                    "tiny_spread",
                    dim.name,
                    f"all values within {spread:.2g}, between {dim.minimum:.6g} and "
                    f"{dim.maximum:.6g}; training scales this range, noise included, to [-1, 1]",
                    f"check its unit, or leave the column out with `{self.role}.columns`",
                )


def check_clock(
    seconds: Float64[np.ndarray, " t"], fps: float, place: str, findings: Findings
) -> None:
    """Compare an episode's clock with the manifest's rate.

    Args:
        seconds: since the episode's first step; finite.
        fps: control steps a second.
        place: the episode, for messages.
        findings: what is odd is added here.
    """
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        steps = np.diff(seconds) * fps  # in control steps
    if not len(steps):
        return
    is_step = np.isfinite(steps) & (steps > 0)
    unit = clock_unit(float(seconds[-1]), len(steps) / fps)
    if unit is not None or _are_float32_since_1970(seconds):
        found = unit or f"whole multiples of {_COARSE_S} s, as float32 keeps times since 1970"
        findings.add(
            "error",
            "clock",
            place,
            f"times are {found}",
            "write them in seconds as float64, or remove the clock, which makes the steps even",
        )
        return
    if not is_step.all():
        wrong = int(np.flatnonzero(~is_step)[0])
        findings.add(
            "error",
            "clock",
            place,
            f"time goes from {seconds[wrong]:.6g} s to {seconds[wrong + 1]:.6g} s at step "
            f"{wrong + 1}",
            "correct the clock if it was set while recording, else leave the episode out",
        )
        return
    is_long = steps > _LONG_STEP
    # Clocks that are rounded, or run unevenly, are right on average and in no single step. A few
    # gaps change the average, and not the rate between them.
    rates = [steps] if is_long.mean() > _MANY else [steps, steps[~is_long]]
    tolerance = FPS_TOLERANCE + np.ptp(rates[-1]) / len(steps)
    if all(abs(of.mean() - 1) > tolerance for of in rates):
        findings.add(
            "error",
            "fps",
            place,
            f"{fps / rates[-1].mean():.4g} steps a second from the first to the last, the manifest "
            f"says {fps:g}",
            "correct `fps` in the manifest; where the files state that rate too, as "
            "meta/info.json of LeRobot does, correct it there as well",
        )
        return
    is_uneven = is_long | (steps < 2 - _LONG_STEP)
    if is_uneven.mean() > _MANY:
        findings.add(
            "warning",
            "jitter",
            place,
            f"steps between {steps.min() / fps:.3g} and {steps.max() / fps:.3g} s for a mean of "
            f"{steps.mean() / fps:.3g} s: {int(is_uneven.sum())} of {len(steps)} differ from it "
            "by half a step or more",
            "the policy sees even steps: record with a steady clock, or bring the recording to one",
        )
    elif is_long.any():
        findings.add(
            "warning",
            "clock",
            place,
            f"{int(is_long.sum())} gaps of up to {steps.max() / fps:.3g} s, the first "
            f"before step {int(np.argmax(is_long)) + 1}",
            "look at what was not recorded there; leave the episode out if the robot moved",
        )


def _are_float32_since_1970(seconds: Float64[np.ndarray, " t"]) -> bool:
    with np.errstate(over="ignore"):
        ways = np.diff(seconds)
    return bool(np.isin(ways, (-_COARSE_S, 0, _COARSE_S)).all())


def check_shift(shift: int, num_steps: int, place: str, findings: Findings) -> None:
    """Compare the manifest's shift of actions with an episode's length.

    Args:
        shift: `action_shift`, in control steps.
        num_steps: of the episode.
        place: the episode, for messages.
        findings: a shift that leaves a single action is added here.
    """
    if shift and abs(shift) >= max(num_steps - 1, 1):
        findings.add(
            "error",
            "shift",
            place,
            f"`action_shift` of {shift} gives all {num_steps} steps the same action",
            "correct `action_shift` in the manifest, or leave the episode out",
        )
