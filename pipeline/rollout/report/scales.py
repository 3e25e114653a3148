"""Axes of a chart: which scale fits the values, where its ticks are, how a number reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LOG_SPAN: Final = 20.0  # largest over smallest value from which a logarithmic axis reads better
MAX_LOG_TICKS: Final = 7  # before only powers of ten are marked
SLACK: Final = 0.7  # share of the desired distance between ticks that a rounder one may have
ROUNDING: Final = 1e-9  # share of a tick's distance that floating point may miss it by


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def position(self, value: int | float) -> float:
        """Return where a value is: 0 at `low`, 1 at `high`, held in between."""
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


def fitting_scale(values: Sequence[float], *, may_be_log: bool) -> Scale:
    """Return an axis that holds all values, at least one; logarithmic where they span decades."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low >= LOG_SPAN:
        return _log_scale(low, high)
    return linear_scale(low, high)


def linear_scale(low: float, high: float, count: int = 4) -> Scale:
    """Return a linear axis whose ends are ticks, about `count` round steps long."""
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    if 0 < low < 0.3 * high:
        low = 0.0  # so near that leaving zero out would only mislead
    step = _round_step((high - low) / count)
    first = math.floor(low / step + ROUNDING)
    last = math.ceil(high / step - ROUNDING)
    ticks = tuple(step * index for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], is_log=False, ticks=ticks)


def step_scale(last: int) -> Scale:
    """Return the axis of optimizer steps from 0 to `last`; its end need not be a tick."""
    end = float(max(1, last))
    step = max(1.0, _round_step(end / 5))
    ticks = tuple(step * index for index in range(int(end / step + ROUNDING) + 1))
    return Scale(0.0, end, is_log=False, ticks=ticks)


def tick_texts(scale: Scale) -> list[str]:
    """Return the numbers next to an axis, with as many digits as distinguish its ticks."""
    return [_signed(f"{tick:,.12g}") for tick in scale.ticks]


def number_text(value: float) -> str:
    """Return a figure to read: four significant digits."""
    return _signed(f"{value:,.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.4g}")


def percent(share: float) -> str:
    """Return a share in [0, 1] to read."""
    return f"{100 * share:.0f} %"


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _round_step(length: float) -> float:
    """Return 1, 2 or 5 times a power of ten, near `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= SLACK * length)


def _log_scale(low: float, high: float) -> Scale:
    """Return a logarithmic axis that ends at 1, 2 or 5 times a power of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounds = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max(value for value in rounds if value <= low * (1 + ROUNDING))
    last = min(value for value in rounds if value >= high * (1 - ROUNDING))
    between = [value for value in rounds if first <= value <= last]
    if len(between) > MAX_LOG_TICKS:
        every = math.ceil(len(powers) / MAX_LOG_TICKS)
        between = [10.0**power for power in powers[::every] if first <= 10.0**power <= last]
    return Scale(first, last, is_log=True, ticks=tuple(between))
