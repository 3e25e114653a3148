"""Whether a policy listens: figures against numpy, and what a report says in red."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.rollout.play.result import RolloutResult
from pipeline.rollout.report.instructions import measure_effect
from pipeline.rollout.report.page import write_report
from tests.pipeline.rollout.report.runs import copy_run, make_result, write_rollout


def told(run: Path, which: str, outcomes: list[bool], actions: np.ndarray) -> RolloutResult:
    result = make_result(run, outcomes)
    episodes = tuple(
        episode.model_copy(update={"first_actions": tuple(map(tuple, first.tolist()))})
        for episode, first in zip(result.episodes, actions, strict=True)
    )
    return result.model_copy(update={"instruction_source": which, "episodes": episodes})


NUMBERS = np.random.default_rng(0)
OWN = NUMBERS.normal(size=(20, 8, 4))
CHANGES = NUMBERS.normal(size=OWN.shape)


def test_figures_are_those_of_numpy_and_of_the_paired_seeds(trained):
    own = told(trained, "own", [True] * 16 + [False] * 4, OWN)
    one = measure_effect(own, told(trained, "other", [True] * 2 + [False] * 18, OWN + CHANGES))
    per_episode = np.sqrt((CHANGES**2).mean(axis=(1, 2)))
    assert one.change == pytest.approx(per_episode.mean())
    margin = NormalDist().inv_cdf(0.975) * per_episode.std(ddof=1) / np.sqrt(20)
    assert one.change_interval == pytest.approx(
        (per_episode.mean() - margin, per_episode.mean() + margin)
    )
    assert (one.outcome.solved, one.outcome.difference) == ((16, 2), pytest.approx(0.7))
    assert one.outcome.interval[0] > 0.4
    assert one.alarm is None


def test_a_policy_that_ignores_its_instruction_is_said_to(trained):
    own = told(trained, "own", [True] * 20, OWN)
    same = measure_effect(own, told(trained, "other", [True] * 20, OWN + 0.001))
    assert (
        "ignores its instruction: with another task's instruction its first actions change by 0.001"
        in same.alarm
    )
    nothing = measure_effect(own, told(trained, "empty", [True] * 20, OWN + CHANGES))
    assert nothing.alarm is None  # what it does told nothing is its own affair
    fails = measure_effect(own, told(trained, "other", [True] * 19 + [False], OWN + CHANGES))
    assert "not shown to follow its instruction: it solves 20 of 20" in fails.alarm


def test_a_report_compares_what_was_told_and_warns_in_red(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    outcomes = {"own": [True] * 20, "other": [True] * 19 + [False], "empty": [False] * 20}
    for which, successes in outcomes.items():
        actions = OWN if which == "own" else OWN + CHANGES
        name = "x" if which == "own" else f"x-{which}-instruction"
        write_rollout(run, name, told(run, which, successes, actions))
    elsewhere = told(run, "own", [True], OWN[:1])
    moved = (elsewhere.episodes[0].model_copy(update={"seed": 5}),)
    write_rollout(run, "other-seeds", elsewhere.model_copy(update={"episodes": moved}))
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Effect of the instruction" in page
    assert (
        page.count(
            "run: the policy is not shown to follow its instruction: it solves 20 of 20 episodes"
        )
        == 1
    )
    assert "<td>empty</td>" in page
