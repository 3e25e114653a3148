"""`vla-train` with several stores: a line for every wrong input, a run for a right one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cli.data
import cli.train
from pipeline.features.store.feature_store import FeatureStore
from tests.pipeline.tiny import complete_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[FeatureStore]:
    folder = tmp_path_factory.mktemp("stores")
    return [complete_store(folder / f"{n}.zarr", (9, 9 + n)) for n in range(2)]


def train(stores: list[FeatureStore], out: Path, *words: str) -> Result:
    paths = [str(store.path) for store in stores]
    words = (*paths, "--preset", "debug", "--set", "steps=3", "--out", str(out), *words)
    return CliRunner().invoke(cli.train.main, words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--set", "data.weights=2"),
            "data.weights: expected 2 positive numbers, one per store in their order, found 2",
        ),
        (
            ("--set", "data.weights=2,-1"),
            "data.weights: expected 2 positive numbers, one per store in their order, found 2, -1",
        ),
        (
            ("--set", "data.weights=2,inf"),
            "data.weights: expected 2 positive numbers, one per store in their order, found 2, inf",
        ),
        (("--set", "data.weights=2,one"), "--set data.weights=one: Input should be a valid number"),
        (
            ("--set", "data.weight=2"),
            "--set data.weight=2: expected field=value with one of data.weights, data.cache",
        ),
        (("--set", "rollout.every=7"), "--set rollout.every=7: expected --rollout-env"),
        (
            ("--seeds", "0,1", "--set", "rollout.every=7"),
            "--set rollout.every=7: expected --rollout-env",
        ),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_run(stores, tmp_path, words, said):
    result = train(stores, tmp_path / "run", *words)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert said in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_run_on_several_stores_shows_them_all(stores, tmp_path, caplog):
    result = train(stores, tmp_path / "run", "--set", "data.weights=2,0.5")
    assert result.exit_code == 0, result.output
    assert f"next: vla-rollout {tmp_path / 'run'} --env ENV" in result.stdout
    assert "training from step 0 to 3, batch size 8, on 37 steps of 4 episodes" in caplog.text
    shown = CliRunner().invoke(cli.data.main, ["info", str(tmp_path / "run")]).stdout
    assert "2, 0.5" in shown
    assert all(store.digest() in shown for store in stores)
    again = train(stores[::-1], tmp_path / "run", "--set", "data.weights=2,0.5", "--resume")
    assert again.exit_code == 2
    expected = f"data.stores.1.digest={stores[0].digest()}, now it is {stores[1].digest()};"
    assert expected in again.stderr
