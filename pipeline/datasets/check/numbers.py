"""Statistics of states, actions and clocks over a whole dataset, and findings about them."""

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
_MANY: Final = 0.1  # of an episode's steps; more long ones are the rate or jitter, not gaps


class ColumnStatistics:
    """Minimum, maximum, mean and standard deviation of every column over all episodes."""

    def __init__(self, role: str) -> None:
        """Start with no episode; `role` is `state` or `action`."""
        self.role = role
        self._episodes: list[Float32[np.ndarray, "t d"]] = []

    def add(self, values: Float32[np.ndarray, "t d"]) -> None:
        """Add one episode."""
        self._episodes.append(values)

    @property
    def std(self) -> Float64[np.ndarray, " d"]:
        """Standard deviation of every column; of width 0 before the first episode."""
        return np.array([dim.std for dim in self.summaries()])

    def summaries(self) -> list[DimSummary]:
        """Describe every column; none before the first episode."""
        columns = np.concatenate(self._episodes).T if self._episodes else ()
        summaries = []
        for dim, column in enumerate(columns):
            values = column.astype(np.float64)
            figures = values.min(), values.max(), values.mean(), values.std()
            summaries.append(DimSummary(f"{self.role}[{dim}]", *map(float, figures)))
        return summaries

    def report(self, findings: Findings) -> None:
        """Add a finding per column that never or hardly changes."""
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
    """Compare an episode's clock, finite seconds since its first step, with the manifest's rate."""
    with np.errstate(over="ignore"):  # infinite values are reported below
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
            f"{fps / rates[-1].mean():.4g} steps per second from the first to the last, the "
            f"manifest states {fps:g}",
            "correct `fps` in the manifest, and in meta/info.json of LeRobot",
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
    """Compare the manifest's shift of actions, in control steps, with an episode's length."""
    if shift and abs(shift) >= max(num_steps - 1, 1):
        findings.add(
            "error",
            "shift",
            place,
            f"`action_shift` of {shift} gives all {num_steps} steps the same action",
            "correct `action_shift` in the manifest, or leave the episode out",
        )
