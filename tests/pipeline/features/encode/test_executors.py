"""How units are handed out, with workers that only say what became of them."""

from collections import deque

import pytest

from pipeline.errors import WorkerLostError
from pipeline.features.encode.executors import Encoded, Lost, Ready, WorkerPool, encode_with_workers
from pipeline.features.encode.unit_encoder import EncodeCounts, UnitOutcome


class Workers:
    """A pool without processes: units are done in the order in which they were handed over."""

    def __init__(self, deadly: dict[int, int], stillborn: int = 0):
        self.deadly = deadly  # how many workers each unit brings down
        self.stillborn = stillborn  # how many workers end before they are ready
        self.events: deque[tuple[int, int | None]] = deque()
        self.sent: list[tuple[int, int]] = []
        self.in_hands: dict[int, int] = {}
        self.most_in_hands = 0
        self.started: list[int] = []
        self.is_open = self.was_open = False

    def __enter__(self) -> object:
        self.is_open = self.was_open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.is_open = False

    def start(self, worker: int) -> None:
        self.started.append(worker)
        self.in_hands[worker] = 0
        self.events.append((worker, None))

    def send(self, worker: int, unit: int) -> None:
        self.events.append((worker, unit))
        self.sent.append((worker, unit))
        self.in_hands[worker] += 1
        self.most_in_hands = max(self.most_in_hands, self.in_hands[worker])

    def wait(self) -> list[Ready | Encoded | Lost]:
        worker, unit = self.events.popleft()
        if unit is None and not self.stillborn:
            return [Ready(worker)]
        if unit is None or self.deadly.get(unit):
            self.stillborn -= unit is None
            self.deadly[unit] = self.deadly.get(unit, 0) - 1
            self.events = deque(event for event in self.events if event[0] != worker)
            return [Lost(worker, "killed")]
        self.in_hands[worker] -= 1
        return [Encoded(worker, UnitOutcome(unit, EncodeCounts(), {}))]


def encode(
    pool: Workers, num_workers: int, num_units: int, committed: frozenset[int] = frozenset()
) -> list[int]:
    done: list[int] = []
    assert isinstance(pool, WorkerPool)
    encode_with_workers(
        pool,
        num_workers,
        range(num_units),
        lambda outcome: done.append(outcome.unit),
        committed.__contains__,
    )
    assert not pool.is_open
    return done


def test_every_unit_is_encoded_once_and_two_are_in_a_workers_hands():
    pool = Workers({})
    assert sorted(encode(pool, 3, 20)) == list(range(20))
    assert (pool.most_in_hands, sorted(pool.started)) == (2, [0, 1, 2])


def test_without_units_no_pool_is_opened():
    pool = Workers({})
    assert encode(pool, 3, 0) == []
    assert not pool.was_open


def test_no_worker_is_started_without_a_unit():
    pool = Workers({})
    assert encode(pool, 8, 2) == [0, 1]
    assert len(pool.started) == 2
    assert encode(Workers({}), 8, 0) == []


def test_what_a_lost_worker_held_goes_to_another():
    pool = Workers({4: 2, 9: 1})
    assert sorted(encode(pool, 2, 20)) == list(range(20))
    assert len(pool.started) == 2 + 3


def test_what_a_lost_worker_had_committed_is_not_encoded_again():
    pool = Workers({4: 1})
    assert sorted(encode(pool, 2, 20, committed=frozenset({4}))) == list(range(20))
    assert [unit for _, unit in pool.sent].count(4) == 1


def test_a_unit_that_brings_three_workers_down_ends_the_job():
    pool = Workers({4: 99})
    with pytest.raises(
        WorkerLostError, match=r"unit 4\b.* 3 workers were lost in the same place.* killed"
    ):
        encode(pool, 2, 20)
    assert not pool.is_open


def test_three_workers_that_never_become_ready_end_the_job():
    pool = Workers({}, stillborn=3)
    with pytest.raises(WorkerLostError, match="3 workers were lost one after the other"):
        encode(pool, 1, 20)
    assert sorted(encode(Workers({}, stillborn=2), 1, 20)) == list(range(20))
