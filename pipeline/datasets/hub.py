"""Datasets of the Hugging Face hub, `hf://owner/name@revision`, downloaded as far as needed.

Each commit has a folder in the user's cache, with real files: the hub's own cache consists of links
to outside, which readers refuse.
"""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from huggingface_hub import HfApi, snapshot_download

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.info import INFO_PATH
from pipeline.datasets.manifest.selection import choose_episodes
from pipeline.datasets.registry import detect_format, episode_numbers, format_class
from pipeline.errors import ConfigError, ObjectStorageError
from pipeline.storage.local import user_cache
from policy.errors import VlaError, first_line

if TYPE_CHECKING:  # its libraries are an extra
    from pipeline.datasets.lerobot.reader import LeRobotReader

HUB: Final = "hf://"
_ADDRESS: Final = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?")


def download_dataset(address: str, episodes: str | None) -> tuple[Path, dict[str, str]]:
    """Download a dataset, or the files of some episodes, without those already downloaded.

    Args:
        address: `hf://owner/name`, or `hf://owner/name@revision`.
        episodes: argument of `choose_episodes`; None is all. Formats other than LeRobot's, whose
            index names the files of an episode, are downloaded completely.

    Returns:
        Its folder; and its `name`, `source` and `revision`, the resolved commit.

    Raises:
        ConfigError: the address is invalid, or there are no such episodes.
        ObjectStorageError: the hub refuses, or does not answer.
        DatasetError: the index of the episodes does not read.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address}: expected hf://owner/name or hf://owner/name@revision")
    name, revision = match[1], match[2]
    try:
        commit = str(HfApi().dataset_info(name, revision=revision).sha)
        folder = user_cache("datasets") / f"{name.replace('/', '--')}@{commit[:12]}"
        snapshot = partial(
            snapshot_download, name, repo_type="dataset", revision=commit, local_dir=folder
        )
        snapshot(allow_patterns=["meta/*", "README.md"])
        if not (folder / INFO_PATH).exists():
            snapshot()
        elif episodes is None:
            snapshot(allow_patterns=["data/*", "videos/*", "images/*"])
        else:
            snapshot(allow_patterns=_files_of(folder, episodes))
    except VlaError:
        raise
    # The hub's client raises errors of various libraries; each means that the download failed.
    except Exception as error:
        raise ObjectStorageError(
            f"{address}: cannot be downloaded from the Hugging Face hub ({first_line(error)}); "
            "check the name, network and login (`hf auth login`) and run the same command again, "
            "or pass the folder of a local copy; the manifest next to a store has the path of its "
            "data"
        ) from error
    source = f"{HUB}{name}"
    return folder, {"name": name.replace("/", "-"), "source": source, "revision": commit}


def _files_of(root: Path, episodes: str) -> list[str]:
    """List the files of some episodes of a LeRobot dataset, of all of its cameras."""
    name = detect_format(root)
    reader = cast("LeRobotReader", format_class(name))
    chosen = choose_episodes(episodes, episode_numbers(name, root))
    views = tuple(reader.survey(root).views)
    return sorted(reader.files(DatasetConfig(root, views, (), keeps=set(chosen).__contains__)))
