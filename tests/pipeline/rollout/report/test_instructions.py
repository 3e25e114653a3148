"""Whether a policy listens: figures against numpy, and what a report says in red."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.rollout.play.result import RolloutResult
from pipeline.rollout.report.instructions import compare_tellings
from pipeline.rollout.report.page import write_report
from tests.pipeline.rollout.report.runs import copy_run, make_result, write_rollout


def told(run: Path, which: str, outcomes: list[bool], actions: np.ndarray) -> RolloutResult:
    result = make_result(run, outcomes)
    episodes = tuple(
        episode.model_copy(update={"first_actions": tuple(map(tuple, first.tolist()))})
        for episode, first in zip(result.episodes, actions, strict=True)
    )
    return result.model_copy(update={"told": which, "episodes": episodes})


NUMBERS = np.random.default_rng(0)
OWN = NUMBERS.normal(size=(20, 8, 4))
CHANGES = NUMBERS.normal(size=OWN.shape)


def test_figures_are_those_of_numpy_and_of_the_paired_seeds(trained):
    own = told(trained, "own", [True] * 16 + [False] * 4, OWN)
    one = compare_tellings(own, told(trained, "another", [True] * 2 + [False] * 18, OWN + CHANGES))
    per_episode = np.sqrt((CHANGES**2).mean(axis=(1, 2)))
    assert one.change == pytest.approx(per_episode.mean())
    margin = 1.96 * per_episode.std(ddof=1) / np.sqrt(20)
    assert one.change_interval == pytest.approx(
        (per_episode.mean() - margin, per_episode.mean() + margin)
    )
    assert (one.solved, one.own_solved, one.difference) == (2, 16, pytest.approx(0.7))
    assert one.difference_interval[0] > 0.4
    assert one.alarm is None


def test_a_policy_that_ignores_its_instruction_is_said_to(trained):
    own = told(trained, "own", [True] * 20, OWN)
    same = compare_tellings(own, told(trained, "another", [True] * 20, OWN + 0.001))
    assert "ignores its instruction: told another, its first actions change by 0.001" in same.alarm
    nothing = compare_tellings(own, told(trained, "nothing", [True] * 20, OWN + CHANGES))
    assert nothing.alarm is None  # what it does told nothing is its own affair
    fails = compare_tellings(own, told(trained, "another", [True] * 19 + [False], OWN + CHANGES))
    assert "not shown to listen: it solves 20 of 20" in fails.alarm


def test_a_report_compares_what_was_told_and_warns_in_red(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    outcomes = {"own": [True] * 20, "another": [True] * 19 + [False], "nothing": [False] * 20}
    for which, successes in outcomes.items():
        actions = OWN if which == "own" else OWN + CHANGES
        name = "x" if which == "own" else f"x-told-{which}"
        write_rollout(run, name, told(run, which, successes, actions))
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Does it listen?" in page
    assert page.count("run: the policy is not shown to listen: it solves 20 of 20 episodes") == 1
    assert "<td>nothing</td>" in page
