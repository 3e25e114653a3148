"""Selects the episodes of a dataset; the others need not exist or be readable."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from pipeline.datasets.base import DatasetConfig
from pipeline.errors import ConfigError, DatasetError

LEAVE_OUT: Final = (
    "leave the episode out with `episodes = {except = [..]}` in the manifest (for a new store)"
)
"""What to do about an unusable episode, for the ends of messages."""


def wanted_numbers(config: DatasetConfig, numbers: Iterable[int]) -> frozenset[int]:
    """Return the episode numbers that `config.keeps` keeps (DatasetError: it keeps none)."""
    found = list(numbers)
    wanted = frozenset(number for number in found if config.keeps(number))
    if not wanted:
        raise DatasetError(
            f"{config.root}: expected at least one episode selected by `episodes`, "
            f"found none of {len(found)}; correct `episodes` in the manifest"
        )
    return wanted


def choose_episodes(text: str, numbers: Sequence[int]) -> list[int]:
    """Return the episode numbers of the option `--episodes`.

    Args:
        text: `10` for the first ten, or a list of numbers and ranges: `0-9,12`.
        numbers: of the dataset's episodes, ascending.

    Raises:
        ConfigError: the text is invalid, or names an episode that does not exist.
    """
    if text.isdecimal() and int(text) > 0:
        return list(numbers[: int(text)])
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    spans = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if len(spans) < len(parts) or not all(spans):
        raise ConfigError(
            f"--episodes: expected 10 for the first ten, or a list such as 0-9,12, found {text}"
        )
    chosen = {number for span in spans for number in span}
    if unknown := sorted(chosen.difference(numbers)):
        raise ConfigError(
            f"--episodes: expected episodes from {min(numbers, default=0)} to "
            f"{max(numbers, default=0)}, found {unknown[0]} ({len(unknown)} such in all)"
        )
    return sorted(chosen)
