"""One dataset embedded by several independent commands, each with its own part of the units.

For job arrays, where no process coordinates. Each part runs under a shared lock, which excludes
commands without a part, and waits for its turn to create, open or complete the store. The locks are
flock's: parts on several machines need a file system that supports them (NFS and Lustre do, if
mounted so). Object storage has no locks: let one part create the store before the others begin.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import ConfigError, StoreError
from pipeline.features.encode.target import Target, finish_growth
from pipeline.features.identity.source import SourceNote, read_source, write_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import missing_units
from pipeline.storage.local import sibling
from pipeline.storage.location import Location, on_disk
from pipeline.storage.locks import shared_writer, sole_writer


@dataclass(frozen=True)
class Part:
    """One of so many parts of a store's units."""

    number: int
    """From 1."""
    total: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parse `i/n`, as in `--units 3/8` (ConfigError: another text, or i is not in 1..n)."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--units: expected i/n with i from 1 to n, such as 3/8 for the third of eight "
                f"parts, found {text!r}"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def units(self, num_units: int) -> range:
        """Return the part's own units: consecutive, and as many as others have but for one."""
        return range(
            (self.number - 1) * num_units // self.total, self.number * num_units // self.total
        )

    def describe_missing(self, units: Iterable[int], num_units: int) -> str:
        """Return how many of the missing units belong to which part."""
        parts = [Part(number, self.total) for number in range(1, self.total + 1)]
        missing = set(units)
        counts = {part: len(missing.intersection(part.units(num_units))) for part in parts}
        return ", ".join(f"{count} of part {part}" for part, count in counts.items() if count)


@contextmanager
def hold_store(store: Location, part: Part | None) -> Iterator[None]:
    """Exclude other commands from a local store (StoreError); parts exclude only whole commands."""
    path = on_disk(store)
    if path is None:
        yield
    elif part is not None:
        with shared_writer(path, StoreError, lock=sibling(path, "lock")):
            yield
    else:
        with sole_writer(path, StoreError, lock=sibling(path, "lock")):
            finish_growth(path)
            yield


@contextmanager
def take_turn(store: Location, part: Part | None) -> Iterator[None]:
    """Wait until no other part opens or completes the store."""
    path = on_disk(store)
    if path is None or part is None:
        yield
        return
    with sole_writer(path, StoreError, lock=sibling(path, "turn"), wait=True):
        finish_growth(path)
        yield


def require_same_files(store: FeatureStore, note: SourceNote) -> None:
    """Refuse a part (StoreError) if units were committed from files that were touched since.

    A part compares at most its own units with the files; another part may never run again.
    """
    held = read_source(store.folder)
    if held is not None and held.stamp == note.stamp:
        return
    if len(missing_units(store.folder, store.num_units)) < store.num_units:
        raise StoreError(
            f"{store.path}: files of the dataset, or the libraries that read them, have changed "
            f"since units were committed; run vla-embed without --units to compare all frames"
        )
    write_source(store.folder, note)


def finish_store(
    target: Target, part: Part | None, write_rest: Callable[[FeatureStore], None]
) -> tuple[FeatureStore, str]:
    """Complete a store if no part is missing; return it, and in words what is missing."""
    store = target.store
    missing = set() if part is None else missing_units(store.folder, store.num_units)
    if part is None or not missing:
        return target.finish(write_rest), ""
    return store, (
        f"part {part} is done; {len(missing)} of {store.num_units} units are missing: "
        f"{part.describe_missing(missing, store.num_units)}; the last part completes the store"
    )
