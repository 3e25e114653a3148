"""The `DATASET` argument of commands: a manifest, or data, of which a manifest is drafted."""

import logging
import tomllib
from pathlib import Path
from typing import Final

from pipeline.datasets.hub import HUB, download_dataset
from pipeline.datasets.manifest.draft import Draft, draft_manifest
from pipeline.datasets.manifest.model import LoadedManifest, load_manifest, parse_manifest
from pipeline.errors import ConfigError, ManifestError
from pipeline.storage.local import write_atomically
from pipeline.storage.location import Location, on_disk, parse_location

MANIFEST_SUFFIX: Final = ".toml"

logger = logging.getLogger(__name__)


def describe_data(dataset: str) -> LoadedManifest:
    """Load a manifest, or draft one of data; writes nothing.

    Args:
        dataset: a manifest (`.toml`); or data: a folder, a file, an address, `hf://owner/name`.

    Raises:
        ManifestError: the manifest is wrong, or cannot be completed from the files.
        DatasetError: there is no data, not of a known format, or it does not read.
    """
    if dataset.endswith(MANIFEST_SUFFIX):
        return load_manifest(dataset)
    draft = _complete_draft(dataset)
    logger.info("%s: no manifest was passed, using:\n%s", dataset, draft.assumed)
    return parse_manifest(draft.text, Path(dataset))


def manifest_next_to(store: Location, dataset: str, episodes: str | None = None) -> Path:
    """Return the manifest to embed: `dataset` itself, or one that is drafted next to the store.

    Args:
        store: `s.zarr` gets `s.toml`; a store in object storage gets it in the working directory.
        dataset: as `describe_data`.
        episodes: argument of `choose_episodes`; None uses all.

    Raises:
        ManifestError, DatasetError: as `describe_data`.
        ConfigError: there are no such episodes, or a different manifest is next to the store.
    """
    if dataset.endswith(MANIFEST_SUFFIX):
        if episodes is not None:
            raise ConfigError(
                f"--episodes: cannot be combined with a manifest; write `episodes = "
                f"{{only = [..]}}` into {dataset}"
            )
        return Path(dataset)
    place = on_disk(store)
    folder = Path() if place is None else place.parent
    path = folder / f"{store.name.removesuffix('.zarr')}{MANIFEST_SUFFIX}"
    draft = _complete_draft(dataset, episodes, path)
    advice = f"vla-embed {path} --store"
    if path.exists() and _content(path) != tomllib.loads(draft.text):
        raise ConfigError(
            f"{path}: expected the manifest drafted from {dataset}, found a different one; to use "
            f"it, run `{advice} {store}`, else move it away or use another --store"
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, draft.text.encode())
    logger.info(
        "%s: no manifest was passed, using:\n%s\nTo change this, edit %s, then run `%s NEW_STORE`",
        dataset,
        draft.assumed,
        path,
        advice,
    )
    return path


def draft_of(dataset: str, episodes: str | None = None) -> Draft:
    """Draft a manifest of data, downloading it for `hf://`; see `draft_manifest`.

    Raises:
        DatasetError, ConfigError: as `draft_manifest`.
        ObjectStorageError: the hub refuses, or does not answer.
    """
    if dataset.startswith(HUB):
        return draft_manifest(*download_dataset(dataset, episodes), episodes)
    return draft_manifest(parse_location(dataset), episodes=episodes)


def _complete_draft(
    dataset: str, episodes: str | None = None, path: Path = Path("my.toml")
) -> Draft:
    draft = draft_of(dataset, episodes)
    if draft.missing:
        raise ManifestError(
            f"{dataset}: the files do not contain {'; '.join(draft.missing)}; run `vla-data init "
            f"{dataset} --out {path}`, complete that file, and pass it instead of the data"
        )
    return draft


def _content(path: Path) -> object:
    try:
        return tomllib.loads(path.read_text())
    except ValueError:
        return None
