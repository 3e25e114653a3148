"""What the robot was told: each distinct instruction once in the store, with its vector."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import ConfigError, EncoderMismatchError
from pipeline.features.encode.embed import EmbedConfig, EmbedReport, embed_dataset
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import verify_checksums
from policy.encoders.registry import load_text_encoder
from policy.encoders.text import TextSettings
from tests.pipeline.features.still_life import write_still_episode, write_still_life
from tests.text_checkpoint import text_checkpoint
from tests.tower import tiny_tower

LENGTHS = (4, 3, 5)
TOLD = ("open the drawer", "pick up the soup", "open the drawer")
MINILM = "all-minilm-l6-v2"


def tell(folder: Path, number: int, words: str) -> None:
    with h5py.File(folder / f"data/episode_{number}.hdf5", "r+") as file:
        file.attrs["instruction"] = words


@pytest.fixture
def manifest(tmp_path) -> Path:
    path = write_still_life(tmp_path, LENGTHS)
    for number, words in enumerate(TOLD):
        tell(tmp_path, number, words)
    return path


def embed(manifest: Path, **settings) -> EmbedReport:
    store = manifest.with_name("s.zarr")
    config = EmbedConfig(manifest=manifest, store=store, encoder=tiny_tower(), **settings)
    return embed_dataset(config)


def held(manifest: Path) -> FeatureStore:
    return FeatureStore.open(manifest.with_name("s.zarr"))


def told(manifest: Path) -> list[str]:
    """What a store says of each episode."""
    attributes = held(manifest).attributes
    return [attributes.instructions[position] for position in attributes.instruction_of]


def vectors(words: tuple[str, ...], name: str = MINILM) -> np.ndarray:
    return load_text_encoder(TextSettings(name=name)).encode(words)


def test_each_distinct_instruction_is_stored_once_with_its_vector(manifest):
    embed(manifest, text_encoder=MINILM)
    assert told(manifest) == list(TOLD)
    assert held(manifest).attributes.instructions == ("open the drawer", "pick up the soup")
    np.testing.assert_array_equal(
        held(manifest).read_instructions(), vectors(("open the drawer", "pick up the soup"))
    )
    assert not verify_checksums(manifest.with_name("s.zarr")).damaged


def test_words_and_vectors_come_and_change_without_encoding_an_image_again(manifest, tmp_path):
    embed(manifest)
    assert held(manifest).attributes.text_encoder is None
    assert embed(manifest, text_encoder=MINILM).counts.encoded == 0
    tell(tmp_path, 1, "close the door")
    assert embed(manifest).counts.encoded == 0  # with the store's own text encoder
    assert told(manifest) == ["open the drawer", "close the door", "open the drawer"]
    np.testing.assert_array_equal(
        held(manifest).read_instructions(), vectors(("close the door", "open the drawer"))
    )
    text = str(text_checkpoint())
    assert embed(manifest, text_encoder=text).counts.encoded == 0
    np.testing.assert_array_equal(
        held(manifest).read_instructions(), vectors(("close the door", "open the drawer"), text)
    )
    with pytest.raises(EncoderMismatchError, match="pass its path with --text-encoder"):
        embed(manifest)


def test_a_store_grows_by_an_episode_with_a_new_instruction(manifest, tmp_path):
    embed(manifest, text_encoder=MINILM)
    write_still_episode(tmp_path / "data", 3, 4)
    tell(tmp_path, 3, "a new one")
    embed(manifest)
    assert told(manifest) == [*TOLD, "a new one"]
    assert len(held(manifest).read_instructions()) == 3


def test_the_manifest_says_it_where_files_do_not(tmp_path):
    manifest = write_still_life(tmp_path, LENGTHS)
    with pytest.raises(ConfigError, match="found none in its files; write `instruction`"):
        embed(manifest, text_encoder=MINILM)
    manifest.write_text(f'instruction = "stir the soup"\n{manifest.read_text()}')
    embed(manifest)
    assert told(manifest) == ["stir the soup"] * 3


def test_one_source_of_several_is_told_by_the_manifest_and_one_by_its_files(manifest, tmp_path):
    text = (
        manifest.read_text().replace('format = "aloha_hdf5"\n', "").replace('path = "data"\n', "")
    )
    only = "episodes = {only = [0, 1]}"
    sources = f'[[sources]]\npath = "data"\n{only}\n[[sources]]\npath = "data"\n{only}\n'
    manifest.write_text(f'{text}\n{sources}instruction = "both again"\n')
    embed(manifest)
    assert told(manifest) == [*TOLD[:2], "both again", "both again"]


def test_a_flipped_bit_in_a_vector_is_reported(manifest):
    embed(manifest, text_encoder=MINILM)
    [chunk] = (path for path in manifest.with_name("s.zarr").glob("instructions/c/*/*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(content)
    [damage] = verify_checksums(manifest.with_name("s.zarr")).damaged
    assert damage.startswith("instructions: ")
