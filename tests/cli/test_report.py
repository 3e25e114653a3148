"""`vla-report` as a user types it."""

import typer.main
from typer.testing import CliRunner

import cli.report
from tests.pipeline.rollout.report.runs import make_result, trained_run, write_rollout


def invoke(*words):
    return CliRunner().invoke(cli.report.main, [str(word) for word in words])


def refusal(*words):
    """Run what must fail as a user's error, and return its one line of error."""
    result = invoke(*words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    return line


def test_flags_are_what_users_know():
    command = typer.main.get_command(cli.report.main)
    flags = {option for parameter in command.params for option in parameter.opts}
    assert flags == {"runs", "--out", "--media-mb", "--help"} - {"--help"}


def test_a_run_gets_its_page_and_mistakes_one_line(tmp_path):
    run = trained_run(tmp_path)
    write_rollout(run, "drawer", make_result(run, [True, False]), images=2)
    result = invoke(run)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"wrote {run / 'report.html'} (0.0 MB)")
    assert "solved 1 of 2 episodes" in (run / "report.html").read_text()

    result = invoke(run, "--media-mb", 0, "--out", tmp_path / "small.html")
    assert "2 images and videos left out" in result.stdout

    assert "expected a training run, found none" in refusal(tmp_path / "absent")
    assert "expected each run once" in refusal(run, run)
    assert "found a folder" in refusal(run, "--out", tmp_path)
    assert "No such file or directory" in refusal(run, "--out", tmp_path / "absent" / "page.html")
    (run / "rollouts" / "drawer" / "result.json").write_text("{}")
    line = refusal(run)
    assert "result.json: damaged: env" in line
    assert "run vla-rollout again" in line
