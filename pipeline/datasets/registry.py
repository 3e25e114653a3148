"""From a manifest to the reader of its format; formats import their libraries only when used."""

from pipeline.datasets.base import EpisodeReader
from pipeline.datasets.manifest import Manifest


def open_reader(manifest: Manifest) -> EpisodeReader:
    """Open the dataset that a manifest describes, and check that it holds what is said there.

    Raises:
        DatasetError: the data is absent, damaged, or not what the manifest says.
    """
    match manifest.format:
        case "aloha_hdf5":
            from pipeline.datasets.aloha_hdf5 import AlohaHdf5Reader  # noqa: PLC0415 - optional

            return AlohaHdf5Reader(manifest)
