"""Encoders that are one registry line away: odd shapes, and features that depend on the place.

Two make visible what kernels may do: the last bits of a feature depend on where in a pass its image
is, or on how many share it. Their offsets are large enough that float16 keeps them.
"""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from pipeline.features.encode.embed import EmbedConfig, EmbedReport, embed_dataset
from pipeline.features.identity.verify import verify_store
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import verify_checksums
from policy.encoders.base import EncoderSettings
from policy.encoders.registry import ENCODERS
from policy.errors import EncoderLoadError
from tests import toy_encoder
from tests.pipeline.features.still_life import write_still_life
from tests.pipeline.tiny import VIEWS, write_dataset
from tests.tower import load as load_by_name

PLACED, COUNTED = "placed", "counted"


class PlacedEncoder(toy_encoder.ToyEncoder):
    """Adds a thousandth per place in the pass to every value."""

    def _forward(self, images):
        offsets = 1e-3 * torch.arange(len(images), dtype=torch.float32)
        return {
            name: (values.movedim(0, -1) + offsets).movedim(-1, 0)
            for name, values in super()._forward(images).items()
        }


class CountedEncoder(toy_encoder.ToyEncoder):
    """Adds a thousandth per image of the pass, as kernels differ that are chosen by its shape."""

    def _forward(self, images):
        offset = 1e-3 * len(images)
        return {name: values + offset for name, values in super()._forward(images).items()}


def load(settings: EncoderSettings) -> toy_encoder.ToyEncoder:
    kind = {PLACED: PlacedEncoder, COUNTED: CountedEncoder}[settings.name]
    return kind(replace(settings, features=tuple(toy_encoder.FEATURES)))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(ENCODERS, toy_encoder.NAME, toy_encoder.MODULE)
    monkeypatch.setitem(ENCODERS, PLACED, __name__)
    monkeypatch.setitem(ENCODERS, COUNTED, __name__)


def embed(folder, encoder: str, **settings) -> EmbedReport:
    [manifest] = folder.glob("*.toml")
    store = folder / "s.zarr"
    return embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder=encoder, **settings))


def assert_cached_equals_live(folder, encoder: str, images_per_pass: int) -> None:
    """Every step alone, as a robot's control loop encodes it."""
    store = FeatureStore.open(folder / "s.zarr")
    live = load_by_name(encoder, images_per_pass)
    cached = {name: store.read_features(name)[:, : len(VIEWS)] for name in toy_encoder.FEATURES}
    row = 0
    for path in sorted((folder / "data").iterdir()):
        with h5py.File(path) as file:
            views = [file[f"observations/images/{view}"][:] for view in VIEWS]
        for frames in np.stack(views, axis=1):
            for name, features in live.encode_views(frames[None]).items():
                np.testing.assert_array_equal(cached[name][row], features[0])
            row += 1
    assert row == store.num_rows


def test_features_of_odd_shapes_are_embedded_and_verified(tmp_path):
    write_dataset(tmp_path, lengths=(3, 2))
    report = embed(tmp_path, toy_encoder.NAME)
    assert report.counts.encoded == 15
    assert "by toy, NOT pretrained" in report.summary()
    store = FeatureStore.open(tmp_path / "s.zarr")
    for name, shape in toy_encoder.FEATURES.items():
        assert store.read_features(name).shape == (5, 3, *shape)
    assert_cached_equals_live(tmp_path, toy_encoder.NAME, 3)
    assert not verify_checksums(store.path).damaged
    report = verify_store(store.path, None, sample=5, seed=0)
    assert report.is_within_tolerance
    assert report.num_exact_steps == 5
    with pytest.raises(
        EncoderLoadError, match="expected each of edges, colors at most once, found 'grid'"
    ):
        embed(tmp_path, toy_encoder.NAME, features=("grid",))


@pytest.mark.parametrize("images_per_pass", [3, 8])
def test_where_the_place_matters_both_sides_encode_a_view_at_its_own(tmp_path, images_per_pass):
    """Four pictures, each seen by every camera: none may be copied to another camera's view."""
    write_still_life(tmp_path, (5, 4))
    settings = {"images_per_pass": images_per_pass, "num_variants": 1}
    counts = embed(tmp_path, PLACED, **settings).counts
    assert counts.encoded == 4 * 3 + 2 * 4 * 3  # and each variant's pictures, per episode
    assert counts.repeated == 9 * 3 * 2 - counts.encoded
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.attributes.environment.place_matters
    assert_cached_equals_live(tmp_path, PLACED, images_per_pass)
    report = verify_store(store.path, None, sample=9, seed=0)
    assert report.is_within_tolerance
    assert report.num_exact_steps == 9

    (tmp_path / "data/episode_0.hdf5").unlink()  # what is left is copied, view by view
    counts = embed(tmp_path, PLACED, **settings).counts
    assert (counts.encoded, counts.copied) == (0, 4 * 3 * 2)
    assert_cached_equals_live(tmp_path, PLACED, images_per_pass)


def test_every_pass_has_as_many_images_at_both_sides(tmp_path):
    write_dataset(tmp_path, lengths=(3, 2))
    embed(tmp_path, COUNTED, images_per_pass=8)
    assert not FeatureStore.open(tmp_path / "s.zarr").attributes.environment.place_matters
    assert_cached_equals_live(tmp_path, COUNTED, 8)


def test_where_the_place_does_not_matter_a_picture_is_encoded_once(tmp_path):
    write_still_life(tmp_path, (5, 4))
    assert embed(tmp_path, toy_encoder.NAME).counts.encoded == 4
    assert not FeatureStore.open(tmp_path / "s.zarr").attributes.environment.place_matters
    assert_cached_equals_live(tmp_path, toy_encoder.NAME, 3)
