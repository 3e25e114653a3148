"""One dataset embedded by several independent commands, each with its own part of the units.

For job arrays, where nobody coordinates. Parts share a store: the whole of each runs under a shared
lock, which keeps commands without a part out, and takes turns with the others where it creates or
opens the store and where it marks it complete. The locks are flock's: parts on several machines
need a file system that carries them (NFS and Lustre do, where mounted so). In object storage there
are none: let one part create the store before the others begin.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError, StoreError
from pipeline.features.encode.target import Target, finish_growth
from pipeline.features.identity.source import SourceNote, read_source, write_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import missing_units
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder


@dataclass(frozen=True)
class Part:
    """One of so many parts of a store's units."""

    number: int
    """From 1."""
    total: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `i/n`, as in `--units 3/8`.

        Raises:
            ConfigError: it is anything else, or i is not in 1..n.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--units {text!r}: want i/n with i from 1 to n, as in --units 3/8 for the third "
                f"of eight parts"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def units(self, num_units: int) -> range:
        """Return the part's own units: consecutive, and as many as others have but for one."""
        return range(
            (self.number - 1) * num_units // self.total, self.number * num_units // self.total
        )

    def say_missing(self, units: Iterable[int], num_units: int) -> str:
        """Say how many of the units that are missing belong to which part."""
        parts = [Part(number, self.total) for number in range(1, self.total + 1)]
        missing = set(units)
        counts = {part: len(missing.intersection(part.units(num_units))) for part in parts}
        return ", ".join(f"{count} of part {part}" for part, count in counts.items() if count)


@contextmanager
def hold_store(place: Location, part: Part | None) -> Iterator[None]:
    """Keep other commands out of a local store; a part lets other parts in.

    Who holds it alone finishes what a crash has cut off; a part does so in its turn.

    Raises:
        StoreError: a command that does not go together with this one is writing there.
    """
    folder = open_folder(place)
    if part is not None:
        with folder.shared_lock(StoreError):
            yield
        return
    with folder.lock(StoreError):
        finish_growth(place)
        yield


@contextmanager
def take_turn(place: Location, part: Part | None) -> Iterator[None]:
    """Wait until no other part opens or completes the store; who holds it alone need not wait."""
    if part is None:
        yield
        return
    with open_folder(place).turn(StoreError):
        finish_growth(place)
        yield


def require_same_files(store: FeatureStore, note: SourceNote) -> None:
    """Refuse a part where units were committed from files that were touched since.

    A part compares its own units at most; another one might never look at its own again.

    Raises:
        StoreError: files were touched since, or the store's note is damaged.
    """
    held = read_source(store.folder)
    if held is not None and held.stamp == note.stamp:
        return
    if len(missing_units(store.folder, store.num_units)) < store.num_units:
        raise StoreError(
            f"{store.path}: files of the dataset were touched, or are read by other libraries, "
            f"since units were committed; one vla-embed without --units compares every frame"
        )
    write_source(store.folder, note)


def finish_store(
    target: Target, part: Part | None, read_start_frames: Callable[[], np.ndarray]
) -> tuple[FeatureStore, str]:
    """Mark a store complete, if no part is missing; arguments as in `Target.finish`.

    Returns:
        The store in its place, and in words what is still missing.

    Raises:
        StoreError: a unit that was committed is damaged.
    """
    store = target.store
    missing = set() if part is None else missing_units(store.folder, store.num_units)
    if part is None or not missing:
        return target.finish(read_start_frames), ""
    return store, (
        f"part {part} is done; {len(missing)} of {store.num_units} units are missing: "
        f"{part.say_missing(missing, store.num_units)}; who ends last completes the store"
    )
