"""One small trained run for all tests of the report."""

from pathlib import Path

import pytest

from tests.pipeline.rollout.report.runs import trained_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run of the debug preset without rollouts; copy it before changing it."""
    return trained_run(tmp_path_factory.mktemp("report"))
