"""Who encodes the missing units of a store: this process, or workers that come and go.

Knows units and workers; nothing about frames, encoders or how a worker is started. A worker that is
lost costs the units in its hands, which go to another one; what it had committed stays. Losing this
process costs the units in all hands: workers end with it, and the next run goes on.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, Protocol, runtime_checkable

from pipeline.errors import WorkerLostError
from pipeline.features.encode.unit_encoder import EncodeCounts, UnitEncoder, UnitOutcome
from pipeline.features.encode.worker import UNITS_IN_FLIGHT

logger = logging.getLogger(__name__)

ExecutorName = Literal["in-process", "processes", "ray"]
LOSSES_ALLOWED: Final = 3  # of workers at one unit, or in a row in one worker's place


@dataclass(frozen=True)
class Ready:
    """A worker has opened everything and takes units."""

    worker: int


@dataclass(frozen=True)
class Encoded:
    """A worker is done with a unit."""

    worker: int
    outcome: UnitOutcome


@dataclass(frozen=True)
class Lost:
    """A worker has ended, and with it what it was doing."""

    worker: int
    reason: str


@runtime_checkable  # the test run checks types
class WorkerPool(Protocol):
    """Processes that run a `UnitWorker` each; leaving its `with` block ends them all."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def start(self, worker: int) -> None:
        """Start a worker, or another one in the place of one that was lost."""

    def send(self, worker: int, unit: int) -> None:
        """Hand a unit to a worker that is ready; one that was lost meanwhile is told by `wait`."""

    def wait(self) -> Sequence[Ready | Encoded | Lost]:
        """Wait until something happens.

        Raises:
            VlaError, OSError: what a worker could not do, and no other could.
        """


@dataclass
class _Place:
    """One worker, and those that were in its place before."""

    is_ready: bool = False
    units: list[int] = field(default_factory=list)
    """In its hands, in order."""
    losses: int = 0
    """Workers lost in this place since a unit was encoded here."""


def encode_here(
    encoder: UnitEncoder,
    units: Sequence[int],
    report: Callable[[UnitOutcome], None],
    encoded: Callable[[int], None],
) -> None:
    """Encode units in this process.

    Args:
        encoder: of their store.
        units: in the order in which they are encoded.
        report: told what became of each unit.
        encoded: told of steps as they are done.

    Raises:
        VlaError, OSError: see `UnitEncoder.encode_unit`.
    """
    coming = deque(units)
    written: deque[Future[UnitOutcome]] = deque()
    while coming:
        unit = coming.popleft()
        following = partial(_first, coming)
        written.append(encoder.encode_unit(unit, upcoming=following, encoded=encoded))
        while len(written) > 1:
            report(written.popleft().result())
    for outcome in written:
        report(outcome.result())


def encode_with_workers(
    pool: WorkerPool,
    num_workers: int,
    units: Sequence[int],
    report: Callable[[UnitOutcome], None],
    is_committed: Callable[[int], bool],
) -> None:
    """Encode units with workers: two in the hands of each, the next one goes to who is done first.

    Args:
        pool: not entered yet.
        num_workers: how many to start; no more than there are units.
        units: in the order in which they are handed out.
        report: told what became of each unit.
        is_committed: whether a unit that a lost worker held has valid rows nevertheless.

    Raises:
        WorkerLostError: three workers were lost at the same unit, or one after the other in one
            place, and nothing was encoded there between.
        VlaError, OSError: what a worker says that it cannot do.
    """
    if not units:  # no worker need load an encoder
        return
    waiting, unfinished = deque(units), set(units)
    lost_with: Counter[int] = Counter()
    places = [_Place() for _ in range(min(num_workers, len(units)))]
    with pool:
        for worker in range(len(places)):
            pool.start(worker)
        while unfinished:
            for event in pool.wait():
                place = places[event.worker]
                match event:
                    case Ready():
                        place.is_ready = True
                    case Encoded(outcome=outcome):
                        place.losses = 0
                        place.units.remove(outcome.unit)
                        unfinished.discard(outcome.unit)
                        report(outcome)
                    case Lost(worker=worker, reason=reason):
                        # It may have committed a unit and not have come to say so.
                        for unit in [unit for unit in place.units if is_committed(unit)]:
                            place.units.remove(unit)
                            unfinished.discard(unit)
                            report(UnitOutcome(unit, EncodeCounts(), {}))
                        waiting.extendleft(reversed(place.units))
                        lost_with.update(place.units[:1])  # the others were hardly begun
                        _refuse_to_go_on(place, lost_with, reason)
                        logger.warning("a worker was lost (%s); another takes its place", reason)
                        places[worker] = _Place(losses=place.losses + 1)
                        pool.start(worker)
            for worker, place in enumerate(places):
                while place.is_ready and waiting and len(place.units) < UNITS_IN_FLIGHT:
                    unit = waiting.popleft()
                    place.units.append(unit)
                    pool.send(worker, unit)


def _first(coming: deque[int]) -> int | None:
    return coming[0] if coming else None


def _refuse_to_go_on(place: _Place, lost_with: Counter[int], reason: str) -> None:
    what_to_do = "what is committed stays; look at the memory, then run the same command again"
    if any(lost_with[unit] >= LOSSES_ALLOWED for unit in place.units):
        raise WorkerLostError(
            f"unit {' or '.join(map(str, place.units))}: {LOSSES_ALLOWED} workers were lost in the "
            f"same place, the last one: {reason}; its files may bring a decoder down; {what_to_do}"
        )
    if place.losses + 1 >= LOSSES_ALLOWED:
        raise WorkerLostError(
            f"{LOSSES_ALLOWED} workers were lost one after the other before they encoded anything, "
            f"the last one: {reason}; {what_to_do}"
        )
