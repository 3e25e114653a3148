"""Demonstrations in the HDF5 layout of robomimic, MimicGen and LIBERO, many to a file.

`/data/demo_<i>` holds `actions` (t, a) and `obs/<key>`: frames (t, h, w, 3) uint8 RGB, and numbers
(t, d); `/mask/<name>` lists demonstrations of a subset; `/data` keeps the environment's arguments
as JSON. Keys are those within a demonstration: `obs/agentview_image`, `actions`. The numbers of
demonstrations may have gaps.

LIBERO writes one such file a task, with OpenGL's convention noted: the lowest row of a frame first.
Its frames are turned upright here. Of its published files the frame of a step was seen after the
action of that step.
Source: ARISE-Initiative/robomimic@d309eae, docs/datasets/overview.md and
scripts/dataset_states_to_obs.py; Lifelong-Robot-Learning/LIBERO@1952000, scripts/create_dataset.py.
"""

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Final

import h5py
import numpy as np

from pipeline.datasets.base import DatasetFacts, DatasetPlace, EpisodeLabel, FormatSurvey
from pipeline.datasets.causes import one_line, why_unreadable
from pipeline.datasets.hdf5.episodes import (
    EpisodeFacts,
    EpisodePlace,
    Hdf5Layout,
    agreed_fps,
    describe_episode,
    positive_number,
    survey_episode,
    text,
    truth,
)
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    find_dataset,
    find_object,
    open_hdf5,
    require_readable,
    single_value,
)
from pipeline.datasets.hdf5.reader import Hdf5Reader
from pipeline.datasets.manifest.paths import file_in
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.pixels import alpha_remarks
from pipeline.errors import DatasetError
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder

LAYOUT: Final = Hdf5Layout(
    cameras="obs",
    folders=("obs", "action_dict", ""),
    jpeg=False,
    without_cameras=(
        "robomimic's `low_dim` and `demo` files keep no frames: render them with its "
        "dataset_states_to_obs.py and --camera_names, and name the new file in `path`"
    ),
)
_DEMO_NAME: Final = re.compile(r"demo_([0-9]{1,18})")  # 18 digits fit 64 bits
_ROBOSUITE: Final = 1  # `type` in the environment's arguments
_MAX_LOOKS: Final = 16  # files of a folder that are opened to recognize it
_SUFFIXES: Final = (".hdf5", ".h5")  # of the files of a folder, in letters of either case


class RobomimicHdf5Reader(Hdf5Reader):
    """One file of `/data/demo_<i>`, or a folder of them; implements `FormatReader`.

    An episode's number is its demonstration's. In a folder of several files, where those repeat,
    episodes are numbered 0, 1, ... in the order of (file name, demonstration's number).
    """

    def __init__(self, place: DatasetPlace) -> None:
        """Open the files and check every wanted demonstration by its headers; no frame is read.

        Raises:
            DatasetError: there is no demonstration, or none that is wanted; or a file is damaged,
                lacks a key, keeps no frames, links to another file, or does not agree with itself
                or the others.
        """
        paths = _files(place.root, allow_outside=place.allow_outside)
        listed = _listed(paths)
        self._keeps, self._is_one_file = place.keeps, len(paths) == 1
        wanted = wanted_numbers(place, (demo.number for demos in listed.values() for demo in demos))
        # Of each file with a wanted demonstration: those of all its demonstrations, by name.
        self._numbers: dict[Location, dict[str, int]] = {}
        episodes: list[EpisodeFacts] = []
        stated, upside_down, written = [], set(), []
        for path, demos in listed.items():
            kept = [demo for demo in demos if demo.number in wanted]
            if not kept:
                continue
            _refuse_twins(kept)
            self._numbers[path] = {demo.group.rpartition("/")[2]: demo.number for demo in demos}
            with open_hdf5(path) as file:
                for demo in kept:
                    facts = describe_episode(file, demo, place, LAYOUT)
                    _check_num_samples(file, facts)
                    episodes.append(replace(facts, label=_label(file, demo)))
                stated.append((path, _fps(file)))
                written.append(_facts(file))
                if _is_upside_down(file, path):
                    upside_down.add(path)
        super().__init__(place, episodes, upside_down=frozenset(upside_down))
        self.fps = agreed_fps(stated)
        self.facts = replace(written[0], remarks=alpha_remarks(episodes[0].layouts))
        if len({of_file.action_shift for of_file in written}) > 1:
            raise DatasetError(
                f"{place.root}: expected files of one kind, found some of LIBERO next to some of "
                "robomimic, whose actions are shifted against each other; put each kind into a "
                "folder of its own"
            )

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the episode numbers of a subset in `/mask`, ascending, unwanted ones too.

        Files without a wanted demonstration are not asked.

        Raises:
            DatasetError: a file names no such subset (says which it names), or lists something
                there that it does not hold.
        """
        found: list[int] = []
        for path, numbers in self._numbers.items():
            with open_hdf5(path) as file:
                for demo in _mask(file, path, name):
                    if demo not in numbers and self._is_left_out(demo):
                        continue
                    if demo not in numbers:
                        raise DatasetError(
                            f"{path}: mask/{name}: expected demonstrations of this file, found "
                            f"{demo!r}; correct the mask, or list episodes in the manifest"
                        )
                    found.append(numbers[demo])
        return tuple(sorted(set(found)))

    def _is_left_out(self, demo: str) -> bool:
        """Whether the manifest leaves out a demonstration that is not in its file."""
        match = _DEMO_NAME.fullmatch(demo)
        return bool(match and self._is_one_file and not self._keeps(int(match[1])))

    @staticmethod
    def recognizes(root: Location) -> bool:
        """Whether there is a file with `/data/demo_<i>`, or a folder with one among its first."""
        try:
            paths = _hdf5_files_in(root)
        except OSError:
            return False
        return any(map(_has_demos, paths[:_MAX_LOOKS] if paths is not None else [root]))

    @staticmethod
    def survey(root: Location) -> FormatSurvey:
        """List what the first demonstration of the first file holds; columns have no names.

        Raises:
            DatasetError: there is no demonstration, or the first is damaged or has no camera.
        """
        path = _files(root, allow_outside=False)[0]
        with open_hdf5(path) as file:
            number, group = _demos(file, path)[0]
            where = EpisodePlace(path=path, group=group, number=number)
            env = _env_args(file).get("env_name")
            notes = {"source": f"simulated environment {env}"} if isinstance(env, str) else {}
            return survey_episode(file, where, LAYOUT, fps=_fps(file), notes=notes)


def _files(root: Location, *, allow_outside: bool) -> list[Location]:
    paths = _hdf5_files_in(root)
    if paths is None:
        return [root]  # which says of itself when it is nothing
    if not paths:
        raise DatasetError(
            f"{root}: expected a robomimic .hdf5 file, or a folder of such, found a folder without "
            "any; correct the path to it"
        )
    for path in paths:
        file_in(root, path.name, allow_outside=allow_outside)
    return paths


def _hdf5_files_in(root: Location) -> list[Location] | None:
    """List the HDF5 files of a folder by name; None where there is no folder."""
    names = open_folder(root).children()
    if names is None:
        return None
    paths = [root / name for name in sorted(names)]
    # macOS leaves its notes beside files as `._image.hdf5`.
    return [path for path in paths if path.suffix.lower() in _SUFFIXES and path.name[:1] != "."]


def _listed(paths: list[Location]) -> dict[Location, list[EpisodePlace]]:
    """List the demonstrations of all files, with their episodes' numbers."""
    listed: dict[Location, list[EpisodePlace]] = {}
    num_before = 0
    for path in paths:
        with open_hdf5(path) as file:
            listed[path] = [
                EpisodePlace(path, group, demo if len(paths) == 1 else num_before + position)
                for position, (demo, group) in enumerate(_demos(file, path))
            ]
        num_before += len(listed[path])
    return listed


def _demos(file: h5py.File, path: Location) -> list[tuple[int, str]]:
    """List the demonstrations' numbers and groups, by number."""
    data = find_object(file, "data")
    if not isinstance(data, h5py.Group):
        raise DatasetError(
            f"{path}: expected a group `data` of demonstrations, found none; correct the path "
            "to it, or move this file out of the folder"
        )
    demos = []
    for name in data:
        match = _DEMO_NAME.fullmatch(name)
        if match is None:
            raise DatasetError(
                f"{path}: expected only demo_<i> in `data`, found {name!r}; rename or remove it"
            )
        demos.append((int(match[1]), f"data/{name}"))
    if not demos:
        raise DatasetError(
            f"{path}: expected at least one demonstration, found none; correct the path "
            "to it, or move this file out of the folder"
        )
    return sorted(demos)


def _refuse_twins(demos: list[EpisodePlace]) -> None:
    for demo, twin in pairwise(demos):
        if demo.number == twin.number:
            raise DatasetError(
                f"{demo.path}: expected one demonstration of number {demo.number}, found "
                f"{demo.group} and {twin.group}; remove or rename one, or {LEAVE_OUT}"
            )


def _check_num_samples(file: h5py.File, facts: EpisodeFacts) -> None:
    group = find_object(file, facts.place.group)
    stated = None if group is None else single_value(group.attrs.get("num_samples"))
    if stated is not None and (np.ndim(stated) != 0 or stated != facts.length):
        raise DatasetError(
            f"{facts.place.name}: expected {stated} steps as its attribute `num_samples` says, "
            f"found {facts.length} in each of its arrays; set `num_samples` to {facts.length}, or "
            f"{LEAVE_OUT}"
        )


def _env_args(file: h5py.File) -> dict[str, object]:
    """Return the environment's arguments; empty where the file has none that can be understood."""
    try:
        args = json.loads(text(file["data"].attrs.get("env_args")) or "{}")
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}


def _fps(file: h5py.File) -> float | None:
    kwargs = _env_args(file).get("env_kwargs")
    return positive_number(kwargs.get("control_freq")) if isinstance(kwargs, dict) else None


def _problem(file: h5py.File) -> dict[str, object]:
    """Return what LIBERO says of a file's task; empty for other files."""
    try:
        info = json.loads(text(file["data"].attrs.get("problem_info")) or "{}")
    except (ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def _facts(file: h5py.File) -> DatasetFacts:
    args, attrs = _env_args(file), file["data"].attrs
    is_libero = bool(_problem(file)) or "bddl_file_name" in attrs
    is_isaac = str(args.get("env_name")).startswith("Isaac-")
    is_robosuite = is_libero or args.get("type") == _ROBOSUITE
    gripper = None
    if is_isaac or is_robosuite:
        gripper = "above 0 opens, below 0 closes" if is_isaac else "-1 opens, 1 closes"
    return DatasetFacts(
        is_simulated=True if is_isaac or is_libero or "type" in args else None,
        gripper=gripper and f"{gripper}, as {'Isaac Lab' if is_isaac else 'robosuite'} defines it",
        action_shift=-1 if is_libero else 0,
    )


def _label(file: h5py.File, demo: EpisodePlace) -> EpisodeLabel:
    args = _env_args(file)
    words = (_problem(file).get("language_instruction"), args.get("env_lang"), args.get("env_name"))
    success = find_object(file, demo.group)
    return EpisodeLabel(
        success=None if success is None else truth(success.attrs.get("success")),
        task=next((one_line(word) for word in words if isinstance(word, str) and word), None),
    )


def _is_upside_down(file: h5py.File, path: Location) -> bool:
    stated = file["data"].attrs.get("macros_image_convention")
    convention = text(stated)
    if stated is None or (convention or "").casefold() == "opencv":
        return False
    if (convention or "").casefold() == "opengl":
        return True
    raise DatasetError(
        f"{path}: data: macros_image_convention: expected opengl (the lowest row of a frame first) "
        f"or opencv, found {str(stated)[:40]!r}; correct the attribute"
    )


def _mask(file: h5py.File, path: Location, name: str) -> list[str]:
    """Read the names of a subset's demonstrations."""
    where = f"{path}: mask/{name}"
    dataset = find_dataset(file, f"mask/{name}")
    if dataset is None:
        group = find_object(file, "mask")
        known = ", ".join(group) if isinstance(group, h5py.Group) else ""
        raise DatasetError(
            f"{where}: expected a subset {name!r}, found none; this file names "
            f"{known or 'no subsets'}: correct the manifest, or list episodes there"
        )
    if dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None:
        raise DatasetError(
            f"{where}: expected names of demonstrations, found {dataset.dtype} {dataset.shape}; "
            "correct the mask, or list episodes in the manifest"
        )
    require_readable(dataset, where)
    try:
        return [bytes(demo).decode(errors="replace") for demo in dataset[:]]
    except HDF5_ERRORS as error:
        raise DatasetError(
            f"{where}: expected names of demonstrations, "
            + why_unreadable(path, error, "copy the file again, or list episodes in the manifest")
        ) from error


def _has_demos(path: Location) -> bool:
    try:
        with open_hdf5(path) as file:
            data = find_object(file, "data")
            return isinstance(data, h5py.Group) and any(map(_DEMO_NAME.fullmatch, data))
    except HDF5_ERRORS:  # our own errors are among them
        return False
