"""Counts and times of an embedding, with a progress bar, and its report."""

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
    """The result of a finished embedding."""

    store: Location
    encoder: str
    """Its name, and a warning if its weights are random."""
    features: tuple[str, ...]
    """Names of the features in the store."""
    has_instructions: bool
    """Whether it has vectors of several instructions."""
    num_episodes: int
    num_steps: int
    num_views: int
    counts: EncodeCounts
    seconds: dict[Stage, float]
    """Time in each stage, of all workers; reading and writing overlap with encoding."""
    elapsed_s: float
    workers: int
    """How many encoded: 1 in this process, 0 if nothing was missing."""
    remainder: str = ""
    """After a part that was not the last one: which units are missing."""

    def summary(self) -> str:
        """Return a line with counts, one with times, and what is missing or comes next."""
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
    """Counts and times of all workers, with a progress bar."""

    def __init__(self, store: FeatureStore):
        self.counts = EncodeCounts()
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._store = store
        self._bar, self._estimate = tqdm(disable=True), Estimate(0, "step")

    @contextmanager
    def progress(self, units: Collection[int]) -> Iterator[None]:
        """Show how many steps of these units are done."""
        total = sum(map(self._store.num_unit_rows, units))
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

    def refuse_failures(self) -> None:
        """Raise an error if frames do not read (FailedUnitsError: all other units are written)."""
        failed = self.counts.failed_units
        if not failed:
            return
        reasons = [f"unit {unit}: {' '.join(failed[unit].split())}" for unit in sorted(failed)]
        raise FailedUnitsError(
            f"{self._store.path}: {len(failed)} of {self._store.num_units} units failed, the "
            "others are committed; correct these files and run the same command again; the first "
            f"is {reasons[0]}",
            reasons,
        )
