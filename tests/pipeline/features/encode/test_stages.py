"""Doing things ahead, in order, with errors where they belong."""

import threading
import time

import pytest

from pipeline.features.encode.frames import ahead


def test_results_come_in_order_and_at_most_so_many_ahead():
    started: list[int] = []
    taken: list[int] = []
    lead: list[int] = []

    def double(number: int) -> int:
        started.append(number)
        lead.append(len(started) - len(taken))
        return 2 * number

    for result in ahead(double, range(20), depth=3):
        taken.append(result)
    assert taken == list(range(0, 40, 2))
    assert 2 <= max(lead) <= 3 + 2  # waiting, the one at work, and the one just taken


def test_an_error_comes_after_the_results_before_it():
    def refuse_two(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    results = ahead(refuse_two, range(4), depth=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_leaving_early_stops_the_thread():
    before = threading.active_count()
    for number, _ in enumerate(ahead(lambda number: time.sleep(0.001), range(10_000), depth=2)):
        if number == 1:
            break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
