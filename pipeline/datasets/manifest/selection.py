"""Which episodes of a dataset are opened; the others need not exist or be readable."""

from collections.abc import Iterable
from typing import Final

from pipeline.datasets.base import DatasetPlace
from pipeline.errors import DatasetError

LEAVE_OUT: Final = "leave the episode out with `episodes = {except = [..]}` in the manifest"
"""What to do about an episode that cannot be used, for the ends of messages."""


def wanted_numbers(place: DatasetPlace, numbers: Iterable[int]) -> frozenset[int]:
    """Return those of a dataset's episode numbers that are wanted.

    Raises:
        DatasetError: none of them is.
    """
    found = list(numbers)
    wanted = frozenset(number for number in found if place.keeps(number))
    if not wanted:
        raise DatasetError(
            f"{place.root}: expected at least one episode that `episodes` does not leave out, "
            f"found none among {len(found)}; correct `episodes` in the manifest"
        )
    return wanted
