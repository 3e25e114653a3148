"""Episodes in the HDF5 format of ACT and ALOHA, one file per episode.

A folder of `episode_<i>.hdf5`. In a file, `/observations/images/<camera>` contains raw frames
(t, h, w, 3) uint8, or JPEG files (t, bytes) uint8, padded with zeros to the longest; `qpos`,
`qvel` and `effort` of `/observations`, `/action` and `/base_action` contain numbers (t, d). Numbers
of files may have gaps; the attributes `sim`, `compress` and `compress_len` are not needed.
Source: tonyzhaozh/act@42a5e2f, utils.py; MarkFzp/act-plus-plus@329a237, compress_data.py.
Differs from the source: a file whose arrays differ in length is refused.
"""

import re
from typing import Final

import h5py

from pipeline.datasets.arrays import alpha_remarks
from pipeline.datasets.base import DatasetConfig, DatasetFacts, EpisodeLabel, FormatSurvey
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    attribute,
    find_object,
    open_hdf5,
    positive_number,
    success_attribute,
    text_attribute,
)
from pipeline.datasets.hdf5.reader import Hdf5Reader, agreed_fps
from pipeline.datasets.manifest.paths import file_in
from pipeline.datasets.manifest.selection import wanted_numbers
from pipeline.errors import DatasetError
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder

_EPISODE_NAME: Final = re.compile(r"episode_([0-9]{1,18})\.hdf5")  # 18 digits fit 64 bits
_INSTRUCTION_NAMES: Final = ("task", "instruction", "language_instruction")  # attributes
# Files that users of ACT store next to episodes, and the notes of macOS: `._episode_0.hdf5`.
_COMPANIONS: Final = re.compile(r"features|mirror|\A\.")


class AlohaHdf5Reader(Hdf5Reader):
    """A folder of `episode_<i>.hdf5`, sorted by number."""

    cameras = "observations/images"
    folders = ("observations", "")
    without_cameras = "correct `key` in the manifest"

    def __init__(self, config: DatasetConfig) -> None:
        episodes, stated = [], []
        for number, path in _episode_files(config):
            with open_hdf5(path) as file:
                label = _label(file)
                episodes.append(self.read_header(file["/"], path, number, config, label=label))
                stated.append((path, _fps(file)))
        super().__init__(config, episodes)
        self.fps = agreed_fps(stated)
        self.facts = DatasetFacts(
            gripper="0 closed to 1 open, as ACT and ALOHA write it",
            remarks=alpha_remarks(episodes[0].layouts),
        )

    @classmethod
    def recognizes(cls, root: Location) -> bool:
        """Whether `root` is a folder of `episode_<i>.hdf5`, the first of which has observations.

        A first file that does not open counts, so that opening the dataset names it.
        """
        try:
            names = open_folder(root).children() or ()
        except OSError:
            return False
        matches = [match for name in names if (match := _EPISODE_NAME.fullmatch(name))]
        if not matches:
            return False
        first = min(matches, key=lambda match: (int(match[1]), match[0]))
        try:
            with open_hdf5(file_in(root, first[0], allow_outside=False)) as file:
                return isinstance(find_object(file, "observations"), h5py.Group)
        except HDF5_ERRORS:
            return True

    @classmethod
    def survey(cls, root: Location) -> FormatSurvey:
        """List the arrays of the first file; columns have no names in this format."""
        _, path = _episode_files(DatasetConfig(root, (), ()))[0]
        with open_hdf5(path) as file:
            return cls.survey_group(file["/"], path, _fps(file), {})


def _fps(file: h5py.File) -> float | None:
    """Return the attribute that our own recorder writes; ACT and ALOHA store no rate."""
    return positive_number(attribute(file, "fps"))


def _label(file: h5py.File) -> EpisodeLabel:
    """Return the attributes of recorders: ours `success` and `env`, others the task in words."""
    given = [text_attribute(file, name) for name in _INSTRUCTION_NAMES]
    instruction = next(filter(None, given), None)
    task = instruction or text_attribute(file, "env") or None
    return EpisodeLabel(success_attribute(file), task, instruction)


def _episode_files(config: DatasetConfig) -> list[tuple[int, Location]]:
    """Return the kept episodes' numbers and files, by number."""
    root, numbered = config.root, []
    for path in (root / name for name in open_folder(root).children() or ()):
        match = _EPISODE_NAME.fullmatch(path.name)
        if match:
            numbered.append((int(match[1]), path))
        elif path.suffix == ".hdf5" and not _COMPANIONS.search(path.name):
            raise DatasetError(
                f"{path}: expected the name episode_<i>.hdf5, found another .hdf5 file; rename it "
                "or move it out of the folder"
            )
    if not numbered:
        raise DatasetError(
            f"{root}: expected a folder with episode_<i>.hdf5, found none; correct the path to "
            "it, or record first"
        )
    wanted = wanted_numbers(config, (number for number, _ in numbered))
    kept = sorted(pair for pair in numbered if pair[0] in wanted)
    for _, path in kept:
        file_in(root, path.name, allow_outside=config.allow_outside)
    return kept
