"""Several stores as one run's data: windows, weights, statistics, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import SourceShare
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.steps import StepArrays
from pipeline.training.data.sampling import BatchSampler
from pipeline.training.data.stores import warn_of_leaks
from pipeline.training.data.windows import WindowData
from pipeline.training.presets import debug
from pipeline.training.run.describe import describe
from pipeline.training.run.folder import read_run
from pipeline.training.session import train
from tests.pipeline.tiny import (
    complete_store,
    create_store,
    tiny_environment,
    tiny_identity,
    tiny_probe,
    tiny_start_frames,
    tiny_steps,
)

LENGTHS_A, LENGTHS_B = (12, 9, 10), (7, 5)
ROWS_A, ROWS_B = sum(LENGTHS_A), sum(LENGTHS_B)
OBS, PRED = 3, 8


def make_store(
    path: Path,
    lengths: tuple[int, ...] = LENGTHS_B,
    *,
    steps: StepArrays | None = None,
    probe: Probe | None = None,
    **attributes: Any,
) -> FeatureStore:
    """A complete store with other attributes than the tiny one's, and features of its own."""
    plain = create_store(path.with_suffix(".plain"), lengths, probe=probe)
    store = FeatureStore.create(
        path,
        plain.attributes.model_copy(update=attributes),
        steps or plain.read_steps(),
        plain.read_probe(),
    )
    numbers = np.random.default_rng(len(lengths))
    for unit in range(store.num_units):
        start, stop = store.unit_rows(unit)
        shape = (stop - start, store.attributes.num_slots)
        features = {"pooled": numbers.normal(2, 3, (*shape, 768)).astype(np.float16)}
        hashes = np.arange(1, 1 + np.prod(shape), dtype=np.uint64).reshape(shape)
        store.write_unit(unit, features, hashes, {tiny_environment().digest()})
    store.write_start_frames(tiny_start_frames(len(lengths)))
    mark_complete(store)
    return store


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> FeatureStore:
    return complete_store(tmp_path_factory.mktemp("first") / "a.zarr", LENGTHS_A)


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("second") / "b.zarr")


@pytest.fixture(scope="module")
def run(first, second, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train([first.path, second.path], folder, debug(), resume=False, weights=(2.0, 1.0))
    return folder


def test_no_window_leaves_its_episode_or_its_store(first, second):
    """Rows are numbered, in each store from 0, in the first column of state and action."""
    data = WindowData(first, second, features=("pooled",), validation_share=0.0)
    rows = torch.arange(ROWS_A + ROWS_B)
    windows = data.gather(rows, obs_horizon=OBS, pred_horizon=PRED)
    features = [store.read_features("pooled").astype(np.float32) for store in (first, second)]
    row = 0
    for store, lengths in enumerate((LENGTHS_A, LENGTHS_B)):
        stop = 0
        for length in lengths:
            start, stop = stop, stop + length
            for current in range(start, stop):
                seen = [max(start, current + i) for i in range(1 - OBS, 1)]
                acted = [min(stop - 1, current + i) for i in range(PRED)]
                assert windows.state[row, :, 0].tolist() == seen
                assert windows.actions[row, :, 0].tolist() == acted
                assert windows.valid[row].tolist() == [current + i < stop for i in range(PRED)]
                np.testing.assert_array_equal(
                    windows.features["pooled"][row], features[store][seen]
                )
                row += 1
    assert row == len(rows)


def test_each_store_holds_out_its_own_episodes_and_the_rest_makes_the_statistics(first, second):
    data = WindowData(first, second, features=("pooled",), validation_share=0.34)
    validation = data.episode_of[data.validation_rows].unique().tolist()
    assert validation == [1, 4]  # the middle one of three; the later one of two
    train_rows = np.r_[0:12, 21:31], np.r_[0:7]
    features, state, action = [], [], []
    for store, rows in zip((first, second), train_rows, strict=True):
        steps = store.read_steps()
        features.append(store.read_features("pooled")[rows].astype(np.float64))
        state.append(steps.state[rows])
        action.append(steps.action[rows])
    all_features = np.concatenate(features)
    found = data.statistics
    np.testing.assert_allclose(found.feature_mean["pooled"], all_features.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.feature_std["pooled"], all_features.std(0), atol=1e-6)
    np.testing.assert_array_equal(found.state.maximum, np.concatenate(state).max(0))
    np.testing.assert_array_equal(found.action.minimum, np.concatenate(action).min(0))


def test_a_store_is_drawn_by_its_rows_its_weight_and_those_of_its_sources(first, tmp_path):
    sources = (SourceShare(num_episodes=1, weight=1.0), SourceShare(num_episodes=1, weight=3.0))
    mixed = make_store(tmp_path / "b.zarr", sources=sources)
    data = WindowData(first, mixed, features=("pooled",), validation_share=0.0, weights=(1.0, 4.0))
    num_rows, num_epochs = ROWS_A + ROWS_B, 60
    sampler = BatchSampler(data.train_rows, num_rows, 0, draws=data.draws)
    rows = torch.cat([sampler.batch(step) for step in range(num_epochs)])
    drawn = [int(count) for count in torch.bincount(data.episode_of[rows])]
    shares = np.array([31 * 1, 7 * 4 * 1, 5 * 4 * 3])
    found = np.array([sum(drawn[:3]), drawn[3], drawn[4]]) / num_epochs
    np.testing.assert_allclose(found, shares * num_rows / shares.sum(), atol=1)


def test_one_store_gives_the_batches_it_always_gave(tmp_path):
    """Rows of the first and eleventh batch as they were at ae87622, before there were weights."""
    sources = tuple(SourceShare(num_episodes=1, weight=weight) for weight in (1.0, 4.0, 0.5))
    store = complete_store(tmp_path / "s.zarr", LENGTHS_A, sources=sources)
    for weights in ((), (1.0,)):
        data = WindowData(store, features=("pooled",), validation_share=0.0, weights=weights)
        sampler = BatchSampler(data.train_rows, 8, 0, draws=data.draws)
        assert sampler.batch(0).tolist() == [12, 27, 13, 23, 20, 12, 17, 18]
        assert sampler.batch(10).tolist() == [21, 15, 18, 22, 15, 12, 19, 10]


@pytest.mark.parametrize("num_actions_changed", [0, 1])
def test_held_out_episodes_that_another_store_trains_on_are_found_and_told(
    tmp_path, caplog, num_actions_changed
):
    steps = tiny_steps(LENGTHS_A)
    steps.action[: LENGTHS_A[0]][:num_actions_changed] += 1
    stores = [
        make_store(tmp_path / "a.zarr", LENGTHS_A, validation=(0,)),
        make_store(tmp_path / "b.zarr", LENGTHS_A, validation=(2,), steps=steps),
    ]
    leaks = WindowData(*stores, features=("pooled",), validation_share=0.5).leaks
    a, b = (store.path for store in stores)
    expected = [(f"episode 2 of {b}", f"episode 2 of {a}")]
    if not num_actions_changed:
        expected.insert(0, (f"episode 0 of {a}", f"episode 0 of {b}"))
    assert list(leaks) == expected
    assert WindowData(*stores, features=("pooled",), validation_share=0.0).leaks == ()
    warn_of_leaks(leaks)
    assert (
        f"{len(leaks)} validation episodes are also in the training data ({leaks[0][0]}"
        in caplog.text
    )


def wider(lengths: tuple[int, ...], name: str) -> StepArrays:
    steps = tiny_steps(lengths)
    return dataclasses.replace(steps, **{name: np.repeat(getattr(steps, name), 2, axis=1)})


OTHER_ENCODER = tiny_identity("e" * 64)
OTHER_PROBE = dataclasses.replace(tiny_probe(), frames=255 - tiny_probe().frames)
REFUSED = {
    "views: .*found top, front, r_vis": {"view_names": ("top", "front", "r_vis")},
    "variants: .*found 1": {"num_variants": 1},
    "state width: .*found 10": {"steps": wider(LENGTHS_B, "state")},
    "action width: .*found 8": {"steps": wider(LENGTHS_B, "action")},
    "control rate in Hz: .*found 25": {"fps": 25.0},
    rf"encoder: .*found tiny, float32 \({OTHER_ENCODER.fingerprint[:12]}\)": {
        "encoder": OTHER_ENCODER
    },
    "probe frames are": {"probe": OTHER_PROBE},
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_store_that_disagrees_is_refused_by_the_field(first, tmp_path, pattern):
    other = make_store(tmp_path / "b.zarr", **REFUSED[pattern])
    with pytest.raises(StoreError, match=pattern) as refusal:
        train([first.path, other.path], tmp_path / "run", debug(), resume=False)
    assert str(first.path) in str(refusal.value)
    assert str(other.path) in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_one_bit_of_the_probe_tells_an_encoder_unless_the_environment_is_another(first, tmp_path):
    pooled = tiny_probe().features["pooled"].copy()
    pooled.view(np.uint16)[0, 1, 7] ^= 1
    probe = dataclasses.replace(tiny_probe(), features={"pooled": pooled})
    other = make_store(tmp_path / "same.zarr", probe=probe)
    with pytest.raises(
        StoreError, match=r"`pooled` of the probe .* expected at most 0 in the same environment"
    ):
        WindowData(first, other, features=("pooled",), validation_share=0.0)

    probe = dataclasses.replace(probe, environment=tiny_environment(threads=2))
    WindowData(
        first,
        make_store(tmp_path / "other.zarr", probe=probe),
        features=("pooled",),
        validation_share=0.0,
    )

    probe = dataclasses.replace(probe, features={"pooled": -pooled})
    other = make_store(tmp_path / "far.zarr", probe=probe)
    with pytest.raises(
        StoreError, match=r"is 2 .* at most 0\.001 in another environment \(threads"
    ):
        WindowData(first, other, features=("pooled",), validation_share=0.0)


def test_the_same_content_twice_is_refused(first, tmp_path):
    twin = complete_store(tmp_path / "twin.zarr", LENGTHS_A)
    with pytest.raises(
        StoreError, match=f"{twin.path}: has the same content as {first.path}.*weight"
    ):
        WindowData(first, twin, features=("pooled",), validation_share=0.0)


def test_a_store_without_a_step_to_train_on_is_refused(first, tmp_path):
    other = make_store(tmp_path / "b.zarr", validation=(0, 1))
    with pytest.raises(
        StoreError, match=f"{other.path}: expected episodes to train on, found all 2"
    ):
        WindowData(first, other, features=("pooled",), validation_share=0.1)
    assert (
        len(WindowData(first, other, features=("pooled",), validation_share=0.0).train_rows)
        == ROWS_A + ROWS_B
    )


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (1.0, float("nan"))])
def test_weights_that_do_not_fit_the_stores_are_refused(first, second, tmp_path, weights):
    with pytest.raises(ConfigError, match="expected 2 positive numbers, one per store"):
        train([first.path, second.path], tmp_path / "run", debug(), resume=False, weights=weights)


def test_damage_in_the_second_store_is_found(first, tmp_path):
    other = make_store(tmp_path / "b.zarr")
    path = other.path / "features/pooled/c/0/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=str(other.path)):
        train([first.path, other.path], tmp_path / "run", debug(), resume=False)


def test_the_run_names_every_store_in_order(first, second, run):
    identities = read_run(run).data.stores
    assert [store.digest for store in identities] == [first.digest(), second.digest()]
    assert [store.weight for store in identities] == [2, 1]
    fields = describe(str(run))
    assert fields["dataset"] == "tiny + tiny"
    assert fields["store_digests"] == f"{first.digest()}, {second.digest()}"
    assert fields["store_weights"] == "2, 1"
    card = (run / "checkpoints/step_00000008/README.md").read_text()
    assert f"| store_digests | {first.digest()}, {second.digest()} |" in card
    assert "| store_weights | 2, 1 |" in card


def test_resume_refuses_other_stores_and_says_what_changed(first, second, run, tmp_path):
    third = make_store(tmp_path / "c.zarr", (4, 4, 4))
    a, b, c = first.path, second.path, third.path
    for stores, weights, pattern in (
        ([a], (), r"with 2 data\.stores, now there are 1;"),
        (
            [b, a],
            (2.0, 1.0),
            rf"data\.stores\.1\.digest={first.digest()}, now it is {second.digest()};",
        ),
        ([a, c], (2.0, 1.0), rf"data\.stores\.2\.digest={second.digest()}, now it is"),
        ([a, b], (), r"data\.stores\.1\.weight=2\.0, now it is 1\.0;"),
    ):
        with pytest.raises(RunError, match=pattern):
            train(stores, run, debug(), resume=True, weights=weights)
    assert train([a, b], run, debug(), resume=True, weights=(2.0, 1.0)).resumed_from == 8


def test_one_digest_stands_for_stores_and_weights(first, second, run, tmp_path):
    data = read_run(run).data
    unlike = [
        data.model_copy(update={"stores": data.stores[::-1]}),
        data.model_copy(update={"stores": data.stores[:1]}),
        data.model_copy(
            update={"stores": tuple(s.model_copy(update={"weight": 1.0}) for s in data.stores)}
        ),
    ]
    assert len({data.store_digest, *(other.store_digest for other in unlike)}) == 4
    assert unlike[1].store_digest == first.digest()
