"""Instructions of several stores as one run's: tables, draws, the error of each, checkpoints."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.attributes import SourceShare
from pipeline.training.config import TrainConfig
from pipeline.training.data.sampling import BatchSampler
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import debug, multitask, preset_for
from pipeline.training.run.folder import read_instructions, read_run
from pipeline.training.session import train
from pipeline.training.trainer import Trainer
from policy.network.readers import InstructionReaderConfig
from tests.pipeline.tiny import complete_store, tiny_vector

LENGTHS = (30, 9, 10)
TOLD = ("open", "close", "open")
FURTHER = ("lift", "close", "close")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    lengths = (11, 12, 13)
    return (
        complete_store(folder / "a.zarr", LENGTHS, told=TOLD),
        complete_store(folder / "b.zarr", lengths, told=FURTHER),
        complete_store(folder / "untold.zarr", lengths[::-1]),
        complete_store(folder / "other.zarr", (5, 6), told=TOLD[:2], text_weights="o" * 64),
    )


def told_config() -> TrainConfig:
    base = debug()
    agent = base.agent.model_copy(update={"language": InstructionReaderConfig()})
    return base.model_copy(update={"agent": agent})


def data_of(*stores, **settings) -> WindowData:
    return WindowData(*stores, features=("pooled",), validation_share=0.34, **settings)


def test_every_window_has_the_vector_of_its_episode(stores):
    data = data_of(*stores[:2], has_language=True)
    rows = torch.arange(sum(LENGTHS) + 36)
    windows = data.gather(rows, obs_horizon=2, pred_horizon=4)
    for row, vector in enumerate(windows.features["instruction"].numpy()):
        words = (*TOLD, *FURTHER)[int(data.episode_of[row])]
        np.testing.assert_array_equal(vector, tiny_vector(words))
    assert windows.features.keys() == {"pooled", "instruction"}
    assert data.spec.instruction_dim == 6


def test_the_mean_is_of_what_training_episodes_were_told(stores):
    data = data_of(*stores[:2], has_language=True)
    episodes = np.unique(data.episode_of[data.train_rows])
    trained = {(*TOLD, *FURTHER)[episode] for episode in episodes}
    expected = np.stack([tiny_vector(words) for words in trained]).mean(axis=0)
    np.testing.assert_allclose(data.statistics.instructions.mean(dim=0), expected, atol=1e-6)


def test_a_policy_that_is_not_told_sees_no_instruction(stores):
    data = data_of(*stores[:3])
    windows = data.gather(data.train_rows, obs_horizon=2, pred_horizon=4)
    assert windows.features.keys() == {"pooled"}
    assert (data.spec.instruction_dim, data.statistics.instructions) == (0, None)


def test_balanced_draws_give_every_instruction_as_many_windows(stores):
    data = data_of(*stores[:2], is_balanced=True)
    sampler = BatchSampler(data.train_rows, len(data.train_rows), 0, draws=data.draws)
    drawn = torch.cat([sampler.batch(step) for step in range(30)])
    words = [(*TOLD, *FURTHER)[episode] for episode in data.episode_of[drawn].tolist()]
    counts = [words.count(name) for name in sorted(set(words))]
    assert max(counts) - min(counts) <= 30  # one draw an epoch
    plain = [(*TOLD, *FURTHER)[e] for e in data.episode_of[data.train_rows].tolist()]
    assert plain.count("open") > 2 * plain.count("lift")


def test_what_does_not_fit_together_is_refused(stores):
    told, _, untold, other = stores
    with pytest.raises(ConfigError, match=r"untold.zarr: expected vectors .* --text-encoder"):
        data_of(told, untold, has_language=True)
    with pytest.raises(StoreError, match=r"other.zarr: text encoder: expected tiny, .* as in"):
        data_of(told, other, has_language=True)
    with pytest.raises(ConfigError, match=r"weights: expected equal ones.*balance_instructions"):
        data_of(told, untold, is_balanced=True, weights=(1.0, 2.0))


def test_balanced_draws_and_weights_of_the_manifests_sources_exclude_each_other(tmp_path):
    sources = tuple(SourceShare(num_episodes=n, weight=w) for n, w in ((1, 3.0), (2, 1.0)))
    store = complete_store(tmp_path / "s.zarr", LENGTHS, told=TOLD, sources=sources)
    with pytest.raises(ConfigError, match=r"weights: expected equal ones.*balance_instructions"):
        data_of(store, is_balanced=True)
    assert len(data_of(store).draws) == 2


def test_a_run_keeps_its_instructions_and_the_error_of_each(stores, tmp_path, caplog):
    paths = [store.path for store in stores[:2]]
    train(paths, tmp_path / "run", told_config(), resume=False)
    description = read_run(tmp_path / "run")
    held = read_instructions(tmp_path / "run", description)
    assert description.data.text_encoder == stores[0].attributes.text_encoder
    assert held.keys() == {"open", "close", "lift"}
    for words, vector in held.items():
        np.testing.assert_array_equal(vector, tiny_vector(words))
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert "policy takes none" not in caplog.text

    data = data_of(*stores[:2], has_language=True)
    data_validation = np.unique(data.episode_of[data.validation_rows])
    told = {(*TOLD, *FURTHER)[episode] for episode in data_validation}
    named = {key.removeprefix("val_error/") for key in last if key.startswith("val_error/")}
    assert named == told


def test_the_errors_of_the_instructions_make_up_the_whole_error(stores):
    data = data_of(*stores[:2], has_language=True)
    config = told_config().model_copy(update={"validation_share": 0.34})
    trainer = Trainer(Path("run"), _description(config, data), data, torch.device("cpu"))
    torch.nn.init.normal_(trainer.averaged_agent.head.predict.weight, std=0.1)
    figures = trainer.validate()
    rows = data.validation_rows
    windows = data.gather(rows, obs_horizon=2, pred_horizon=8)
    weights, squares = 0, 0.0
    for number, words in enumerate(data.instructions.words):
        own = data.instruction_of(rows) == number
        if own.any():
            count = int(windows.valid[own].sum())
            weights, squares = weights + count, squares + count * figures[f"val_error/{words}"] ** 2
    assert math.isclose(math.sqrt(squares / weights), figures["val_error"], rel_tol=1e-5)


def _description(config: TrainConfig, data: WindowData):
    from tests.pipeline.rollout.gate.test_checks import description

    return description().model_copy(update={"config": config, "spec": data.spec})


def test_several_instructions_and_a_policy_without_language_are_a_warning(stores, tmp_path, caplog):
    train([stores[0].path], tmp_path / "run", debug(), resume=False)
    assert "2 instructions ('close', ...), and the policy takes none" in caplog.text


def test_the_preset_of_several_tasks_has_language_and_balanced():
    config = multitask()
    assert config.agent.language == InstructionReaderConfig()
    assert config.balance_instructions
    assert preset_for(("grid",), has_instructions=True) == "multitask"
    assert preset_for(("grid",)) == "demo"
