"""The one line about how long a command will take."""

import logging
import re

from pipeline.progress import Estimate


def test_the_first_units_say_how_long_the_others_take_once(caplog):
    caplog.set_level(logging.INFO)
    estimate = Estimate(1000, "step")
    estimate._started -= 10  # as if the first 20 had taken 10 s
    estimate.advance(20)
    estimate.advance(20)
    [line] = caplog.messages
    assert re.fullmatch(r"(2|1\.99|1\.9\d) steps/s; about (8) min for the rest", line)


def test_what_is_done_at_once_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    Estimate(3, "episode").advance(3)
    assert not caplog.messages
