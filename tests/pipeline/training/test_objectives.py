"""Every objective through the trainer, by the setting that chooses it."""

import math

import pytest

from pipeline.training.config import with_settings
from pipeline.training.presets import debug
from pipeline.training.run.folder import read_run
from pipeline.training.session import train
from tests.pipeline.tiny import complete_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("objectives") / "s.zarr")


@pytest.mark.parametrize(
    "settings",
    [
        ["kind=improved_meanflow", "tangent=velocity_head"],
        ["kind=improved_meanflow_jump"],
        ["kind=meanflow"],
        ["kind=flow_matching"],
        ["kind=diffusion", "sampler=ddpm"],
        ["kind=regression"],
        ["kind=mip"],
    ],
    ids=" ".join,
)
def test_every_objective_trains_and_measures_its_validation_error(store, tmp_path, settings):
    config = with_settings(debug(), [f"agent.objective.{setting}" for setting in settings])
    report = train([store.path], tmp_path / "run", config, resume=False)
    assert report.val_error is not None
    assert math.isfinite(report.val_error)
    assert read_run(tmp_path / "run").config == config
    assert train([store.path], tmp_path / "run", config, resume=True).resumed_from == report.steps
