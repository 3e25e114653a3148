"""The log, whole, torn, damaged, out of order."""

from pipeline.rollout.report.training_log import Point, read_log


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
