"""The instructions of a dataset's episodes, and the text encoder of a store."""

from dataclasses import dataclass

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import ConfigError
from pipeline.features.identity.encoder import load_text_like
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import ROOT
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder
from policy.encoders.registry import load_text_encoder
from policy.encoders.text import TextEncoder, TextSettings


@dataclass(frozen=True)
class Instructions:
    """The instructions of a dataset."""

    words: tuple[str, ...] = ()
    """Each distinct one once, sorted; empty if there are none."""
    of_episode: tuple[int, ...] = ()
    """The position of each episode's; empty if there are none."""
    encoder: TextEncoder | None = None
    """What makes their vectors; None makes none."""

    @classmethod
    def read(cls, reader: ManifestReader, encoder: str | None, store: Location) -> "Instructions":
        """Collect the instructions of a dataset, and load the text encoder.

        `encoder` None is that of the store, which may not exist, or none.

        Raises:
            ConfigError: a text encoder is named, and there is nothing to encode.
            EncoderLoadError, EncoderMismatchError: see `load_text_like`.
        """
        found = [reader.instruction(episode) for episode in range(reader.num_episodes)]
        if any(found):
            words = {word: number for number, word in enumerate(sorted(set(found)))}
            of_episode = tuple(words[word] for word in found)
            return cls(tuple(words), of_episode, _load(encoder, store))
        if encoder is not None:
            raise ConfigError(
                "--text-encoder: expected a dataset with instructions, found none in its files; "
                "write `instruction` into the manifest, or leave the option out"
            )
        return cls()

    def attributes(self) -> dict[str, object]:
        """Return the fields of `StoreAttributes` about them."""
        return {
            "instructions": self.words,
            "instruction_of": self.of_episode,
            "text_encoder": None if self.encoder is None else self.encoder.identity,
        }


def _load(name: str | None, store: Location) -> TextEncoder | None:
    if name is not None:
        return load_text_encoder(TextSettings(name=name))
    if not open_folder(store).exists(ROOT):
        return None
    held = FeatureStore.open(store, allow_incomplete=True).attributes.text_encoder
    return None if held is None else load_text_like(held, name=None, where=str(store))
