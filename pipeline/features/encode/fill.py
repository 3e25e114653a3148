"""Which units of a store are to be encoded, and what became of them.

Knows units and their records; nothing about who encodes them.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pipeline.errors import FailedUnitsError
from pipeline.features.encode.known_frames import FrameIndex, StoredUnits
from pipeline.features.encode.stages import STAGES, Stage
from pipeline.features.encode.target import Target
from pipeline.features.encode.unit_encoder import EncodeCounts, FrameSource, UnitOutcome
from pipeline.features.identity.source import SourceNote, read_source, write_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.records import discard_units


class Tally:
    """What has been done so far by all who encode, with a progress bar."""

    def __init__(self, store: FeatureStore):
        self.counts = EncodeCounts()
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._store = store
        self._bar = tqdm(disable=True)
        self._shown: dict[int, int] = {}

    @contextmanager
    def progress(self, units: Collection[int]) -> Iterator[None]:
        """Show how many steps of these units are done."""
        rows = (self._store.unit_rows(unit) for unit in units)
        total = sum(stop - start for start, stop in rows)
        with tqdm(total=total, desc="embed", unit="step", disable=None) as self._bar:
            yield

    def advance(self, steps: int) -> None:
        """Show that so many more steps are encoded."""
        self._bar.update(steps)

    def add(self, outcome: UnitOutcome) -> None:
        """Add what became of a unit."""
        self.counts.add(outcome.counts)
        self.add_seconds(outcome.seconds)

    def add_whole(self, outcome: UnitOutcome) -> None:
        """Add what became of a unit, none of whose steps were shown before."""
        start, stop = self._store.unit_rows(outcome.unit)
        self.advance(stop - start)
        self.add(outcome)

    def add_seconds(self, seconds: dict[Stage, float]) -> None:
        """Add time spent in each stage."""
        for stage, spent in seconds.items():
            self.seconds[stage] += spent

    def refuse_failures(self) -> None:
        """End with an error if frames do not read.

        Raises:
            FailedUnitsError: units stay without rows; every other one is committed.
        """
        failed = self.counts.failed_units
        if not failed:
            return
        reasons = [f"unit {unit}: {' '.join(failed[unit].split())}" for unit in sorted(failed)]
        raise FailedUnitsError(
            f"{self._store.path}: {len(failed)} of {self._store.num_units} units failed and hold "
            f"no rows, the others are committed; correct these places and run the same command "
            f"again; first {reasons[0]}",
            reasons,
        )


def units_to_encode(
    target: Target, own: range, source: FrameSource, note: SourceNote
) -> tuple[list[int], FrameIndex]:
    """Find the units that hold no valid rows of these files, and take their records back.

    Args:
        target: open for writing.
        own: the units that may be looked at and written.
        source: of the dataset; its frames are compared with the store's where files were touched.
        note: of the dataset as it is now; left beside the store.

    Returns:
        The units to encode, and the frames that need no encoding.

    Raises:
        StoreError: a unit is damaged while it is read, or the store's note is.
    """
    store = target.store
    valid, held = store.valid_units(own), read_source(store.folder)
    # Files were touched: compare every frame.
    if valid and (held is None or held.stamp != note.stamp):
        valid = valid - source.changed_units(store, sorted(valid))
    # A damaged unit may come back from a backup: its record must not make it valid again.
    invalid = set(own) - valid
    if invalid:
        discard_units(store.folder, invalid)
    # Written before the first unit: from here on, what is committed comes from these files.
    if held != note:
        write_source(store.folder, note)
    return sorted(invalid), FrameIndex.of([StoredUnits(store, frozenset(valid)), *target.stored])
