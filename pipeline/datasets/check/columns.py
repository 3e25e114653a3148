"""Findings about the columns of state and action: constant, outliers, full turns, other units.

Training scales the range of every column to [-1, 1]: the noise of a constant one becomes large, and
a single outlier squeezes all other values.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64

from pipeline.datasets.check.report import DimSummary, Findings
from policy.network.normalizer import CONSTANT_RANGE

_TINY_RANGE: Final = 1e-3  # in the column's unit; noise of 0.1 mm is a tenth of it
_MAX_FEW: Final = 63  # values at an end of a column that can be outliers
_FEW_SHARE: Final = 0.01  # of a column's values
_FAR: Final = 3.0  # times the range of the others; tails of usual motion reach 2
_TURNS: Final = ((2 * np.pi, "2 pi"), (360.0, "360 degrees"))
_TURN_TOLERANCE: Final = 0.1  # of a turn, which a joint may move within the step of a jump
_ROTATIONS: Final = (  # number of columns, smallest and largest norm
    ("quaternion", 4, 0.99, 1.01),
    ("rotation vector", 3, np.pi - 0.5, np.pi + 0.01),
)
_FLIP_COSINE: Final = -0.9  # of two steps; rotations of a robot turn by less between them
_UNITS: Final = (
    (180 / np.pi, "degrees against radians"),
    (100.0, "percent or centimeters against parts of 1 or meters"),
    (255.0, "bytes against parts of 1"),
    (1000.0, "millimeters against meters"),
)
_UNIT_TOLERANCE: Final = 0.3  # of a factor between units; motion differs between episodes
_APART: Final = 5.0  # factor between the magnitudes of two groups of episodes
_MIN_EPISODES: Final = 3
_LEAVE_OUT: Final = "leave their episodes out with `episodes = {except = [...]}`"

_Episode = tuple[str, Float32[np.ndarray, "_ _"]]
Episodes = dict[int, _Episode]
"""Name, for messages, and values [t, d] of the episodes that read, by their positions."""


def check_columns(role: str, read: Episodes, findings: Findings) -> list[DimSummary]:
    """Check and describe every column over all episodes; none if there are no episodes.

    `role` is `state` or `action`.
    """
    episodes, dims = list(read.values()), []
    if not episodes:
        return []
    for index, column in enumerate(np.concatenate([values for _, values in episodes]).T):
        wide = column.astype(np.float64)
        figures = wide.min(), wide.max(), wide.mean(), wide.std()
        dims.append(DimSummary(f"{role}[{index}]", *map(float, figures)))
        _check_spread(dims[-1], role, findings)
        _check_outliers(dims[-1].name, column, episodes, findings)
        sizes = np.array([np.abs(values[:, index]).max() for _, values in episodes], np.float64)
        _check_units(dims[-1].name, sizes, episodes, findings)
    _check_jumps(role, episodes, findings)
    return dims


def _check_spread(dim: DimSummary, role: str, findings: Findings) -> None:
    spread = dim.maximum - dim.minimum
    to_do = f"check key and unit, or leave the column out with `{role}.columns`"
    if spread <= CONSTANT_RANGE:
        found = f"always {dim.mean:.6g}, to within {spread:.1g}"
        findings.add("warning", "constant", dim.name, found, to_do)
    elif spread <= _TINY_RANGE:
        found = f"all values, noise included, are within {dim.minimum:.6g} to {dim.maximum:.6g}"
        findings.add("warning", "tiny_spread", dim.name, found, to_do)


def _check_outliers(
    name: str, values: Float32[np.ndarray, " n"], episodes: Sequence[_Episode], findings: Findings
) -> None:
    few = int(np.clip(np.ceil(_FEW_SHARE * len(values)), 1, _MAX_FEW))
    if len(values) <= 2 * few + 2:
        return
    ordered = np.sort(values)
    low, high = ordered[few], ordered[-few - 1]  # of the others
    core = float(high - low)
    if float(ordered[-1] - ordered[0]) <= max(_FAR * core, CONSTANT_RANGE):
        return
    distance = np.maximum(low - values, values - high)
    count = int((distance > max(core, CONSTANT_RANGE) / 2).sum())
    # A column that hardly ever changes may be a switch, with few distant values by design.
    if core <= CONSTANT_RANGE and count != 1:
        return
    row = int(np.argmax(distance))
    ends = np.cumsum([len(of_episode) for _, of_episode in episodes])
    episode = int(np.searchsorted(ends, row, side="right"))
    step = row - ends[episode] + len(episodes[episode][1])
    found = (
        f"{count} of {len(values)} values make most of the range: {values[row]:.6g} in "
        f"{episodes[episode][0]}, step {step}, the others are within {low:.4g} to {high:.4g}"
    )
    findings.add("warning", "outlier", name, found, f"correct the values, or {_LEAVE_OUT}")


def _check_units(
    name: str, sizes: Float64[np.ndarray, " e"], episodes: Sequence[_Episode], findings: Findings
) -> None:
    """Find two groups of episodes; `sizes` are the largest magnitudes of each."""
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
    found = (
        f"the largest values are {low[0]:.4g} to {low[-1]:.4g} in {len(low)} episodes and "
        f"{high[0]:.4g} to {high[-1]:.4g} in {len(high)}: a factor of {factor:.3g}, as of "
        f"{word}; the first of the fewer is {episodes[int(rare.min())][0]}"
    )
    findings.add("warning", "units", name, found, f"bring them to one unit, or {_LEAVE_OUT}")


def _check_jumps(role: str, episodes: Sequence[_Episode], findings: Findings) -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, values in episodes:
        wide = values.astype(np.float64)
        for columns, what, step in (*_turns(wide), *_flips(wide)):
            places[columns, what].append(f"{name}, step {step + 1}")
    for (columns, what), found in places.items():
        jumps = f"{len(found)} jumps of {what}, the first in {found[0]}"
        to_do = "unwrap the angle, or store its sine and cosine; of a rotation, two matrix columns"
        findings.add("warning", "wrap", f"{role}[{columns}]", jumps, to_do)


def _turns(values: Float64[np.ndarray, "t d"]) -> Iterator[tuple[str, str, int]]:
    """Yield column, words and step of each jump of an angle by a full turn."""
    ways = np.abs(np.diff(values, axis=0))
    for turn, word in _TURNS:
        is_turn = np.abs(ways - turn) < _TURN_TOLERANCE * turn
        is_angle = np.where(is_turn, 0, ways).max(axis=0, initial=0) < turn / 4
        for step, column in np.argwhere(is_turn & is_angle).tolist():
            yield str(column), f"{word} from one step to the next", step


def _flips(values: Float64[np.ndarray, "t d"]) -> Iterator[tuple[str, str, int]]:
    """Yield columns, words and step of each jump from q to -q, or across half a turn."""
    for what, width, low, high in _ROTATIONS:
        for column in range(values.shape[1] - width + 1):
            part = values[:, column : column + width]
            sizes = np.linalg.norm(part, axis=1)
            fits = (low < sizes) & (sizes < high)
            if what == "quaternion" and not fits.all():
                continue
            cosines = (part[1:] * part[:-1]).sum(axis=1) / np.maximum(sizes[1:] * sizes[:-1], 1)
            for step in np.flatnonzero(fits[1:] & fits[:-1] & (cosines < _FLIP_COSINE)).tolist():
                yield f"{column}..{column + width - 1}", f"a {what} to its opposite", step
