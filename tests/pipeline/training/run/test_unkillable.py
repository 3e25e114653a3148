"""SIGKILL at random steps: the losses and every checkpoint are those of an uninterrupted run."""

import json
from pathlib import Path

import pytest

from tests.forked import start
from tests.pipeline.tiny import complete_store

PROGRAM = """
import runpy
runpy.run_module("tests.pipeline.training.run.kill_training", run_name="__main__")
"""
KILLS = 6


def checkpoints(run: Path) -> dict[str, bytes]:
    """Weights, their average, optimizer state and mark (so the best one) of every checkpoint."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.glob("checkpoints/*/*"))
        if path.name != "README.md"  # tells how long the training took
    }


def figures(run: Path) -> list[dict[str, float]]:
    """Every line of the log, without what the clock says."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines]


@pytest.mark.parametrize("num_stores", [1, 2])
def test_kills_at_random_steps_change_no_bit(tmp_path, num_stores):
    lengths = [(12, 9, 10), (7, 11, 8, 9)][:num_stores]
    stores = [complete_store(tmp_path / f"{n}.zarr", held).path for n, held in enumerate(lengths)]
    output = tmp_path / "seen.json"
    words = [tmp_path, KILLS, 0, *stores]
    process = start(PROGRAM, *words, output=output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    seen = json.loads(output.read_text().splitlines()[-1])
    assert seen["killed"] == KILLS
    assert seen["resumed"] >= KILLS // 4  # else the kills came before any checkpoint
    reference = tmp_path / "reference"
    assert [line["step"] for line in figures(reference) if "loss" in line] == list(range(1, 41))
    for number in range(seen["runs"]):
        run = tmp_path / f"killed-{number}"
        assert checkpoints(run) == checkpoints(reference)
        assert figures(run) == figures(reference)
        assert not list(run.glob("checkpoints/.*"))  # what a kill left was tidied up
