"""Training on small real stores: exact resume, honest statistics, refusal of what changed."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import IncompleteStoreError, RunError, StoreError
from pipeline.storage.locks import sole_writer
from pipeline.training import session as session_module
from pipeline.training.config import OptimizerConfig, with_settings
from pipeline.training.data.windows import WindowData
from pipeline.training.optimization import learning_rate
from pipeline.training.presets import debug
from pipeline.training.run.checkpoint import checkpoint_steps, read_average, read_checkpoint
from pipeline.training.run.folder import PROBE_FILE, START_FRAMES_FILE, read_probe, read_run
from pipeline.training.session import train
from pipeline.training.trainer import Trainer
from policy.errors import DeviceError, NonFiniteLossError
from tests.pipeline.tiny import complete_store, create_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return complete_store(tmp_path_factory.mktemp("trainer") / "s.zarr")


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train([store.path], run, debug(), resume=False)
    return run


def test_a_run_that_died_resumes_to_the_same_bits(store, uninterrupted, tmp_path):
    """Stopped between checkpoints, at step 6 of 8: the resumed run starts from 4 and must agree."""
    run = tmp_path / "run"
    config = debug()
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "checkpoints")
    (run / "log.jsonl").unlink()
    data = WindowData(store, features=("pooled",), validation_share=0.05)
    dying = Trainer(run, read_run(run), data, torch.device("cpu"))
    for _ in range(4):
        dying.advance()
    dying.save({})
    for _ in range(2):
        dying.advance()
    with (run / "log.jsonl").open("w") as log:
        log.write('{"step": 3}\n{"step": 5}\n{"step": 6, "lo')

    report = train([store.path], run, config, resume=True)

    assert report.resumed_from == 4
    ours, expected = (read_checkpoint(path, 8) for path in (run, uninterrupted))
    for part in ("agent", "average", "optimizer"):
        for name, tensor in getattr(expected, part).items():
            assert torch.equal(getattr(ours, part)[name], tensor), f"{part}: {name}"
    logged = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert logged == [3, 5, 6, 7, 8]


def test_the_log_says_what_training_did(uninterrupted):
    entries = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, 9))
    assert all(math.isfinite(entry["raw_mse"]) for entry in entries)
    assert [entry["step"] for entry in entries if "val_error" in entry] == [4, 8]


def test_checkpoints_beyond_the_latest_two_go(store, tmp_path):
    config = with_settings(debug(), ["checkpoint_every=2"])
    train([store.path], tmp_path / "run", config, resume=False)
    assert checkpoint_steps(tmp_path / "run") == [6, 8]


@pytest.mark.parametrize("width", [64, 256])
def test_a_wide_head_is_trained_in_bfloat16_where_the_cpu_multiplies_it(
    store, uninterrupted, width, tmp_path
):
    flags = Path("/proc/cpuinfo").read_text().split()
    is_mixed = width == 256 and ("avx512_bf16" in flags or "amx_bf16" in flags)
    data = WindowData(store, features=("pooled",), validation_share=0.05)

    def trained(*settings):
        config = with_settings(debug(), [f"agent.head.n_emb={width}", *settings])
        description = read_run(uninterrupted).model_copy(update={"config": config})
        trainer = Trainer(tmp_path, description, data, torch.device("cpu"))
        losses = [float(trainer.advance()["loss"]) for _ in range(3)]
        return losses, trainer.agent.head.predict.weight.tolist()

    exact, mixed = (trained(f"compute_dtype={name}") for name in ("float32", "bfloat16"))
    assert trained() == (mixed if is_mixed else exact)
    assert mixed[1] != exact[1]
    np.testing.assert_allclose(mixed[0], exact[0], rtol=0.01)


def test_training_lowers_the_error_on_data_it_can_learn(tmp_path):
    """Actions of the tiny store hold the row number in their first column; the state does too."""
    store = complete_store(tmp_path / "s.zarr", (40, 40))
    config = with_settings(
        debug(),
        [
            "steps=60",
            "optimizer.learning_rate=0.003",
            "batch_size=32",
            "validation_share=0.0",
            "checkpoint_every=60",
        ],
    )
    train([store.path], tmp_path / "run", config, resume=False)
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    errors = [json.loads(line)["raw_mse"] for line in lines]
    assert sum(errors[-10:]) < 0.8 * sum(errors[:10])


def test_a_finished_run_resumes_to_nothing(store, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    report = train([store.path], tmp_path / "run", debug(), resume=True)
    assert report.resumed_from == report.steps == 8


def test_the_run_describes_itself(store, uninterrupted):
    run = read_run(uninterrupted)
    assert run.config == debug()
    assert run.data.store_digest == run.data.stores[0].digest == store.digest()
    assert run.data.encoder == store.attributes.encoder
    assert run.spec.view_names == ("front", "top", "r_vis")


def test_the_averaged_weights_carry_the_scales_of_the_data(store, uninterrupted):
    _, weights = read_average(uninterrupted)
    statistics = WindowData(store, features=("pooled",), validation_share=0.05).statistics
    mean = weights["readers.pooled.standardizer.mean"]
    assert torch.equal(mean, statistics.feature_mean["pooled"])


def test_every_checkpoint_has_a_model_card(uninterrupted):
    card = (uninterrupted / "checkpoints/step_00000008/README.md").read_text()
    weights = read_checkpoint(uninterrupted, 8).agent
    trainable = [name for name in weights if "normalizer" not in name and "standard" not in name]
    total = sum(weights[name].numel() for name in trainable)
    assert f"| parameters: all | {total:,} |" in card
    assert "| encoder | tiny |\n| encoder_revision | none |\n| encoder_pretrained | False |" in card
    assert "| encoder_dtype | float32 |" in card
    assert "| raw_mse |" in card
    assert "| val_error |" in card


def test_a_folder_with_a_run_needs_resume(store, uninterrupted):
    with pytest.raises(RunError, match="--resume"):
        train([store.path], uninterrupted, debug(), resume=False)


def test_resume_refuses_another_configuration(store, uninterrupted):
    changed = with_settings(debug(), ["seed=1"])
    with pytest.raises(RunError, match=r"config\.seed=0, now it is 1"):
        train([store.path], uninterrupted, changed, resume=True)


def test_resume_refuses_another_store(uninterrupted, tmp_path):
    other = complete_store(tmp_path / "other.zarr", (15, 16))
    with pytest.raises(RunError, match=r"data\.stores\.1\.digest=.*, now it is"):
        train([other.path], uninterrupted, debug(), resume=True)


def test_an_incomplete_store_is_not_trained_on(tmp_path):
    create_store(tmp_path / "s.zarr", (4, 4))
    with pytest.raises(IncompleteStoreError, match="vla-embed"):
        train([tmp_path / "s.zarr"], tmp_path / "run", debug(), resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lengths", [(10, 11, 10), (40,)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_is_replaced_while_it_loads_is_not_trained_on(
    tmp_path, monkeypatch, lengths, when
):
    store, grown = complete_store(tmp_path / "s.zarr"), complete_store(tmp_path / "b.zarr", lengths)

    def replace():
        store.path.rename(tmp_path / "old.zarr")
        grown.path.rename(store.path)

    def load(opened, **settings):
        if when == "before":
            replace()
        data = WindowData(opened, **settings)
        if when == "after":
            replace()
        return data

    monkeypatch.setattr(session_module, "WindowData", load)
    with pytest.raises(StoreError, match=r"the store was replaced.*run the same command"):
        train([store.path], tmp_path / "run", debug(), resume=False)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_episodes(store, uninterrupted, tmp_path):
    data = WindowData(store, features=("pooled",), validation_share=0.0)
    trainer = Trainer(tmp_path, read_run(uninterrupted), data, torch.device("cpu"))
    with torch.no_grad():
        trainer.agent.cond_projector.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 0, episodes \[0, 1, 2\]"):
        trainer.advance()


def test_a_gradient_that_is_not_finite_changes_no_weight(store, uninterrupted, tmp_path):
    data = WindowData(store, features=("pooled",), validation_share=0.0)
    trainer = Trainer(tmp_path, read_run(uninterrupted), data, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in trainer.agent.state_dict().items()}
    trainer.agent.cond_projector.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLossError, match=r"gradient is (nan|inf) at step 0, episodes"):
        trainer.advance()
    for name, tensor in trainer.agent.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_that_a_gpu_need_not_wait_for_are_checked_before_a_checkpoint(
    store, uninterrupted, tmp_path
):
    data = WindowData(store, features=("pooled",), validation_share=0.0)
    trainer = Trainer(tmp_path, read_run(uninterrupted), data, torch.device("cpu"))
    trainer.check_every = 3  # as on a GPU
    trainer.agent.cond_projector.bias.register_hook(lambda gradient: gradient * math.inf)
    trainer.advance()
    trainer.advance()
    with pytest.raises(NonFiniteLossError, match=r"at step 0, episodes"):
        trainer.save({})
    assert not checkpoint_steps(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"at step 0, episodes"):
        trainer.advance()


@pytest.mark.parametrize("damage", ["flip", "truncate", "other agent"])
def test_a_damaged_checkpoint_is_refused(store, uninterrupted, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    folder = run / "checkpoints/step_00000008"
    path = folder / "agent.safetensors"
    if damage == "other agent":
        tensors = load_file(path)
        tensors.pop("head.predict.weight")
        save_file(tensors, path)
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(RunError, match=r"agent\.safetensors: damaged"):
        train([store.path], run, debug(), resume=True)


def test_a_new_run_takes_no_weights_that_lie_around(store, uninterrupted, tmp_path):
    """run.json is lost: another seed must not adopt the old checkpoints as its own."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / "run.json").unlink()
    changed = with_settings(debug(), ["seed=7"])
    for resume in (False, True):
        with pytest.raises(RunError, match="expected a training run or nothing"):
            train([store.path], run, changed, resume=resume)


def test_checkpoints_belong_to_their_run(store, uninterrupted, tmp_path):
    run = tmp_path / "run"
    train([store.path], run, with_settings(debug(), ["seed=7"]), resume=False)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(uninterrupted / "checkpoints", run / "checkpoints")
    with pytest.raises(RunError, match="belongs to another run"):
        read_average(run)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_died_as_it_began_begins_again(store, tmp_path, resume):
    run = tmp_path / "run"
    run.mkdir()
    for name in (PROBE_FILE, f".{START_FRAMES_FILE}.7.partial"):
        (run / name).write_bytes(b"cut off")
    train([store.path], run, debug(), resume=resume)
    read_probe(run, read_run(run))


def test_two_processes_never_train_one_run(store, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    with sole_writer(run, RunError), pytest.raises(RunError, match="another process"):
        train([store.path], run, debug(), resume=True)


def test_a_device_that_is_not_there_leaves_no_run(store, tmp_path):
    with pytest.raises(DeviceError, match="cpu, cuda"):
        train([store.path], tmp_path / "run", debug(), resume=False, device="bogus")
    assert not (tmp_path / "run").exists()


def test_folders_beside_the_checkpoints_are_not_taken_for_some(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    stray = tmp_path / "run/checkpoints/step_foo"
    stray.mkdir()
    (stray / "checkpoint.json").write_text("{}")
    assert checkpoint_steps(tmp_path / "run") == [4, 8]


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(RunError, match="expected a training run, found none"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(RunError, match="found 99"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_run(tmp_path)


def test_learning_rate_rises_then_falls_along_a_cosine():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert rates[109] < 0.001
    constant = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule="constant")
    assert learning_rate(constant, 109, 110) == 2.0
