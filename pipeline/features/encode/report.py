"""What an embedding has done so far, with a progress bar, and what it reports at its end."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tqdm import tqdm

from pipeline.errors import FailedUnitsError
from pipeline.features.encode.unit_encoder import EncodeCounts, Stage, UnitOutcome
from pipeline.features.store.feature_store import FeatureStore
from pipeline.progress import Estimate
from pipeline.storage.location import Location

STAGES: Final[tuple[Stage, ...]] = ("compare", "read", "encode", "write")


@dataclass(frozen=True)
class EmbedReport:
    """What a finished embedding did."""

    store: Location
    encoder: str
    """Its name, and a word of caution where its weights are random."""
    features: tuple[str, ...]
    """Names of the features in the store."""
    num_episodes: int
    num_steps: int
    num_views: int
    counts: EncodeCounts
    """What became of the frames that this run read."""
    seconds: dict[Stage, float]
    """Time in each stage, of all workers; reading and writing overlap with encoding."""
    elapsed_s: float
    workers: int
    """How many encoded: 1 in this process, 0 where nothing was missing."""
    remainder: str = ""
    """After a part that was not the last one: which units the store lacks still."""

    def summary(self) -> str:
        """Return a line on what was done, one on the time and, after a part, what is left."""
        counts = self.counts
        rate = counts.encoded / self.elapsed_s if self.elapsed_s else 0.0
        reused = "".join(
            f", {number} {what}"
            for number, what in ((counts.copied, "kept"), (counts.repeated, "repeated"))
            if number
        )
        total = sum(self.seconds.values())
        shares = ", ".join(
            f"{stage} {100 * spent / total:.0f} %" for stage, spent in self.seconds.items() if spent
        )
        workers = f"time, {total:.0f} s of {self.workers} workers" if self.workers > 1 else "time"
        lines = [
            f"{self.store}: {self.num_episodes} episodes, {self.num_steps} steps x "
            f"{self.num_views} views by {self.encoder}; {counts.encoded} images encoded"
            f"{reused}, {rate:.1f} images/s",
            f"{workers}: {shares or 'none'}",
            self.remainder,
        ]
        return "\n".join(filter(None, lines))


class Tally:
    """Counts and times of all who encode, with a progress bar."""

    def __init__(self, store: FeatureStore):
        self.counts = EncodeCounts()
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._store = store
        self._bar, self._estimate = tqdm(disable=True), Estimate(0, "step")

    @contextmanager
    def progress(self, units: Collection[int]) -> Iterator[None]:
        """Show how many steps of these units are done."""
        rows = (self._store.unit_rows(unit) for unit in units)
        total = sum(stop - start for start, stop in rows)
        self._estimate = Estimate(total, "step")
        with tqdm(total=total, desc="embed", unit="step", disable=None) as self._bar:
            yield

    def advance(self, steps: int) -> None:
        """Show that so many more steps are encoded."""
        self._bar.update(steps)
        self._estimate.advance(steps)

    def add(self, outcome: UnitOutcome) -> None:
        """Add the outcome of a unit."""
        self.counts.add(outcome.counts)
        for stage, spent in outcome.seconds.items():
            self.seconds[stage] += spent

    def add_whole(self, outcome: UnitOutcome) -> None:
        """Add the outcome of a unit, none of whose steps were shown before."""
        start, stop = self._store.unit_rows(outcome.unit)
        self.advance(stop - start)
        self.add(outcome)

    def refuse_failures(self) -> None:
        """Raise an error if frames do not read.

        Raises:
            FailedUnitsError: units have no rows; all others are committed.
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
