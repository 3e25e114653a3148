"""Reading runs and their logs: what is there, what is damaged, what they are called."""

import json
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.rollout.report.contents import (
    Point,
    color_class,
    distinct_labels,
    read_contents,
    read_log,
)
from pipeline.training.run.checkpoint import read_average
from tests.pipeline.rollout.report.runs import copy_run, make_result, write_rollout


def test_a_run_without_rollouts_reads(trained):
    (run,) = read_contents([trained])
    assert run.label == "run"
    assert run.step == 8
    assert run.rollouts == run.final_rollouts == ()
    assert {"loss", "raw_mse", "val_error"} <= run.log.figures.keys()


def test_parameters_are_those_of_the_weights(trained):
    (run,) = read_contents([trained])
    _, weights = read_average(trained)
    buffers = ("normalizer", "mean", "std", "scale", "offset", "low", "high")
    trainable = [t for n, t in weights.items() if not any(word in n for word in buffers)]
    assert run.num_parameters == sum(tensor.numel() for tensor in trainable)


def test_validations_come_after_what_was_asked_for(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    for name in ("step_00000004", "step_00000008", "drawer", "a-second"):
        write_rollout(run, name, make_result(run, [True, False]))
    (read,) = read_contents([run])
    names = [rollout.name for rollout in read.rollouts]
    assert names == ["a-second", "drawer", "step_00000008", "step_00000004"]
    assert [rollout.name for rollout in read.final_rollouts] == ["a-second", "drawer"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content.pop("env"), "env"),
        (lambda content: content["episodes"][1].pop("seed"), r"episodes\.1\.seed"),
        (lambda content: content["episodes"].clear(), "episodes"),
        (lambda content: content["episodes"].append(content["episodes"][0]), "different seeds"),
    ],
)
def test_a_damaged_result_is_refused_by_name(trained, tmp_path, damage, said):
    run = copy_run(trained, tmp_path / "run")
    path = write_rollout(run, "drawer", make_result(run, [True, False])) / "result.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf"drawer/result\.json: .*{said}.*run vla-rollout again"):
        read_contents([run])


def test_success_is_counted_from_the_episodes(trained, tmp_path):
    """Whatever a file that was edited by hand claims."""
    run = copy_run(trained, tmp_path / "run")
    result = make_result(run, [True, False])
    claimed = result.model_copy(update={"success_rate": 0.9, "success_interval": (0.8, 1.0)})
    write_rollout(run, "drawer", claimed)
    (read,) = read_contents([run])
    assert read.rollouts[0].result == result


def test_a_result_that_is_no_json_is_refused(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    path = write_rollout(run, "drawer", make_result(run, [True])) / "result.json"
    path.write_bytes(b'{"env": "\xff')
    with pytest.raises(RunError, match=r"result\.json"):
        read_contents([run])


def test_the_same_run_twice_is_refused(trained):
    with pytest.raises(RunError, match="expected each run once"):
        read_contents([trained, trained / ".." / trained.name])


def test_runs_beyond_the_colors_are_dashed():
    classes = [color_class(index) for index in range(17)]
    assert classes[:2] == ["s0", "s1"]
    assert classes[7:10] == ["s7", "s0 dashed", "s1 dashed"]


def test_labels_are_as_short_as_they_can_be():
    paths = [Path("/a/demo/run"), Path("/a/long/run"), Path("/b/long/run")]
    assert distinct_labels(paths[:1]) == ["run"]
    assert distinct_labels(paths[:2]) == ["demo/run", "long/run"]
    assert distinct_labels(paths) == ["a/demo/run", "a/long/run", "b/long/run"]
    assert distinct_labels([Path("/run"), Path("/a/run")]) == ["run", "a/run"]


def test_a_run_without_a_log_has_no_figures(tmp_path):
    log = read_log(tmp_path / "log.jsonl")
    assert (log.figures, log.remarks) == ({}, [])


def test_figures_come_by_name_in_the_order_of_their_steps(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"step": 10, "loss": 2, "grad_norm": 0.5}\n'
        '{"step": 20, "loss": 1.5}\n'
        '{"step": 10, "rollout_success": 0.8, "rollout_episodes": 5}\n'
        '{"step": 15, "loss": 1.75}\n'
    )
    log = read_log(path)
    assert log.figures == {
        "loss": [Point(10, 2.0), Point(15, 1.75), Point(20, 1.5)],
        "grad_norm": [Point(10, 0.5)],
        "rollout_success": [Point(10, 0.8, trials=5)],
    }
    assert log.remarks == []


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10, "loss": 2}\n{"step": 20, "lo')
    log = read_log(path)
    assert log.figures == {"loss": [Point(10, 2.0)]}
    assert log.remarks == [
        "log.jsonl ends in the middle of a line: the run is writing it, or was killed"
    ]


def test_damage_in_the_middle_is_counted_by_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 2}\n\xff\xfe\n[1]\n{"loss": 3}\n{"step": 2, "loss": 1}\n'
    )
    log = read_log(path)
    assert [point.step for point in log.figures["loss"]] == [1, 2]
    assert log.remarks == ["log.jsonl: skipped unreadable lines: 2, 3, 4"]


def test_values_that_are_not_finite_are_not_drawn_and_said(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "grad_norm": Infinity}\n{"step": 2, "loss": 1}\n')
    log = read_log(path)
    assert log.figures == {"loss": [Point(2, 1.0)]}
    assert log.remarks == ["log.jsonl: 2 values are NaN or infinite and not drawn"]
