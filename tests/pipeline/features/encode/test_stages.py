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

    for number, result in ahead(double, range(20), depth=3):
        assert result.result() == 2 * number
        taken.append(number)
    assert taken == list(range(20))
    assert 2 <= max(lead) <= 3 + 2  # waiting, the one at work, and the one just taken


def test_an_error_comes_with_its_own_task_and_the_others_go_on():
    def refuse_two(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    results = []
    for number, result in ahead(refuse_two, range(4), depth=2):
        if number == 2:
            with pytest.raises(ValueError, match="two"):
                result.result()
        else:
            results.append(result.result())
    assert results == [0, 1, 3]


def test_leaving_early_stops_the_thread():
    before = threading.active_count()
    for number, _ in ahead(lambda number: time.sleep(0.001), range(10_000), depth=2):
        if number == 1:
            break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
