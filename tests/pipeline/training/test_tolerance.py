"""The benchmark of environments: its table, in features and in a trained policy's actions."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.features.identity.probe import make_probe
from pipeline.training.presets import debug
from pipeline.training.session import train
from tests.bench.tolerance import ToleranceReport, measure_tolerance
from tests.pipeline.tiny import VIEWS, complete_store
from tests.tower import load, tiny_tower


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tolerance")
    encoder = load(tiny_tower(), compute_dtype="bfloat16", features=("pooled",))
    coarse = np.random.default_rng(0).integers(0, 256, (2, len(VIEWS), 8, 8, 3), np.uint8)
    probe = make_probe(encoder, coarse.repeat(32, axis=2).repeat(32, axis=3))
    store = complete_store(folder / "s.zarr", identity=encoder.identity, probe=probe)
    train([store.path], folder / "run", debug().model_copy(update={"steps": 4}), resume=False)
    return folder


@pytest.fixture(scope="module")
def report(folder) -> ToleranceReport:
    return measure_tolerance(folder / "s.zarr", folder / "run", encoder=tiny_tower())


def test_equal_features_lead_to_equal_actions_and_others_to_others(report):
    rows = {row.name: row for row in report.rows}
    same, other = rows["the environment that made the store"], rows["float32 products"]
    assert same.features.equal_share == 1
    assert (same.actions.max_abs, same.actions.share_of_spread) == (0, 0)
    assert other.features.max_abs > 0
    assert other.actions.max_abs > 0
    # Actions of the tiny store are uniform in [-1, 1] but for the first, a row number: their
    # standard deviations are near 0.58 and 9, so that the share lies between those quotients.
    assert 0.1 < other.actions.share_of_spread / other.actions.max_abs < 1.9


def test_the_table_is_markdown_and_says_what_was_measured(report):
    text, *_ = sentence, blank, head, rule, *rows = report.table().splitlines()
    assert text.startswith(f"{Path(tiny_tower()).name}, bfloat16 on cpu")
    assert "feature `pooled`; the worst of 6 real images" in sentence
    assert "2e-02" in sentence  # the tolerance of bfloat16
    assert blank == ""
    assert {line.count("|") for line in (head, rule, *rows)} == {7}
    assert len(rows) == 6
    assert rows[0].startswith("| the environment that made the store | 0.0e+00 | 0.0e+00 | 100")
