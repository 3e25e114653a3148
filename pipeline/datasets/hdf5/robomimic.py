"""Demonstrations in the HDF5 format of robomimic, MimicGen and LIBERO, many per file.

`/data/demo_<i>` contains `actions` (t, a) and `obs/<key>`: frames (t, h, w, 3) uint8 RGB, and
numbers (t, d); `/mask/<name>` lists the demonstrations of a subset; an attribute of `/data`
contains the environment's arguments as JSON. Keys are relative to a demonstration:
`obs/agentview_image`, `actions`. The numbers of demonstrations may have gaps.

LIBERO writes one such file per task, and an attribute for OpenGL's convention: the lowest row of a
frame first. Its frames are turned upright here. In its published files the frame of a step was seen
after the action of that step.
Source: ARISE-Initiative/robomimic@d309eae, docs/datasets/overview.md and
scripts/dataset_states_to_obs.py; Lifelong-Robot-Learning/LIBERO@1952000, scripts/create_dataset.py.
"""

import json
import re
from dataclasses import replace
from typing import Final

import h5py
import numpy as np

from pipeline.datasets.base import DatasetConfig, DatasetFacts, EpisodeLabel, FormatSurvey
from pipeline.datasets.hdf5.episodes import (
    EpisodeGroup,
    EpisodeHeader,
    Hdf5Layout,
    agreed_fps,
    positive_number,
    read_header,
    survey_episode,
    text,
    truth,
)
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    find_dataset,
    find_object,
    open_hdf5,
    require_written,
    single_value,
)
from pipeline.datasets.hdf5.reader import Hdf5Reader
from pipeline.datasets.manifest.paths import file_in
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.datasets.pixels import alpha_remarks
from pipeline.errors import DatasetError
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder
from policy.errors import one_line

LAYOUT: Final = Hdf5Layout(
    cameras="obs",
    folders=("obs", "action_dict", ""),
    jpeg=False,
    without_cameras=(
        "robomimic's `low_dim` and `demo` files contain no frames: render them with its "
        "dataset_states_to_obs.py and --camera_names, and name the new file in `path`"
    ),
)
_DEMO_NAME: Final = re.compile(r"demo_([0-9]{1,18})")  # 18 digits fit 64 bits
_ROBOSUITE: Final = 1  # `type` in the environment's arguments
_NO_DEMOS: Final = (
    "record again if the recorder was stopped before it kept one, correct the path to it, or move "
    "this file out of the folder"
)
_MAX_LOOKS: Final = 16  # files of a folder that are opened to recognize it
_SUFFIXES: Final = (".hdf5", ".h5")  # of the files of a folder, in letters of either case


class RobomimicHdf5Reader(Hdf5Reader):
    """One file of `/data/demo_<i>`, or a folder of them.

    An episode's number is its demonstration's. In a folder of several files, where those repeat,
    episodes are numbered 0, 1, ... in the order of (file name, demonstration's number).
    """

    def __init__(self, config: DatasetConfig) -> None:
        paths = _files(config.root, allow_outside=config.allow_outside)
        listed = _listed(paths)
        wanted = wanted_numbers(
            config, (demo.number for demos in listed.values() for demo in demos)
        )
        # Per file with a kept demonstration: episode numbers of all its demonstrations, by name.
        self._numbers: dict[Location, dict[str, int]] = {}
        episodes: list[EpisodeHeader] = []
        stated, upside_down, written = [], set(), []
        for path, demos in listed.items():
            kept = [demo for demo in demos if demo.number in wanted]
            if not kept:
                continue
            self._numbers[path] = {demo.group.rpartition("/")[2]: demo.number for demo in demos}
            with open_hdf5(path) as file:
                for demo in kept:
                    header = read_header(file, demo, config, LAYOUT)
                    _check_num_samples(file, header)
                    episodes.append(replace(header, label=_label(file, demo)))
                stated.append((path, _fps(file)))
                written.append(_facts(file))
                if _is_upside_down(file, path):
                    upside_down.add(path)
        super().__init__(config, episodes, upside_down=frozenset(upside_down))
        self.fps = agreed_fps(stated)
        self.facts = replace(written[0], remarks=alpha_remarks(episodes[0].layouts))
        if len({of_file.action_shift for of_file in written}) > 1:
            raise DatasetError(
                f"{config.root}: expected files of one kind, found files of both LIBERO and "
                "robomimic, whose actions are shifted against each other; move each kind to its "
                "own folder"
            )

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the numbers in `/mask`, also of episodes not kept, in files with a kept one."""
        found: set[int] = set()
        for path, numbers in self._numbers.items():
            with open_hdf5(path) as file:
                found |= {numbers[demo] for demo in _mask(file, path, name) if demo in numbers}
        return tuple(sorted(found))

    @classmethod
    def recognizes(cls, root: Location) -> bool:
        """Whether `root` is a file with `/data/demo_<i>`, or one of a folder's first files is."""
        try:
            paths = _hdf5_files_in(root)
        except OSError:
            return False
        if paths is None:
            return _has_demos(root, is_alone=True)
        return any(map(_has_demos, paths[:_MAX_LOOKS]))

    @classmethod
    def survey(cls, root: Location) -> FormatSurvey:
        """List the arrays of the first demonstration of the first file; columns have no names."""
        path = _files(root, allow_outside=False)[0]
        with open_hdf5(path) as file:
            number, group = _demos(file, path)[0]
            where = EpisodeGroup(path=path, group=group, number=number)
            env = _json(file, "env_args").get("env_name")
            notes = {"source": f"simulated environment {env}"} if isinstance(env, str) else {}
            return survey_episode(file, where, LAYOUT, fps=_fps(file), notes=notes)


def _files(root: Location, *, allow_outside: bool) -> list[Location]:
    paths = _hdf5_files_in(root)
    if paths is None:
        return [root]  # opening it raises if it does not exist
    if not paths:
        raise DatasetError(
            f"{root}: expected a robomimic .hdf5 file, or a folder of such files, found a folder "
            "without any; correct the path to it"
        )
    for path in paths:
        file_in(root, path.name, allow_outside=allow_outside)
    return paths


def _hdf5_files_in(root: Location) -> list[Location] | None:
    """List the HDF5 files of a folder by name; None if `root` is not a folder."""
    names = open_folder(root).children()
    if names is None:
        return None
    paths = [root / name for name in sorted(names)]
    # macOS stores metadata next to files as `._image.hdf5`.
    return [path for path in paths if path.suffix.lower() in _SUFFIXES and path.name[:1] != "."]


def _listed(paths: list[Location]) -> dict[Location, list[EpisodeGroup]]:
    """List the demonstrations of all files, with their episodes' numbers."""
    listed: dict[Location, list[EpisodeGroup]] = {}
    num_before = 0
    for path in paths:
        with open_hdf5(path) as file:
            listed[path] = [
                EpisodeGroup(path, group, demo if len(paths) == 1 else num_before + position)
                for position, (demo, group) in enumerate(_demos(file, path))
            ]
        num_before += len(listed[path])
    return listed


def _demos(file: h5py.File, path: Location) -> list[tuple[int, str]]:
    """List the demonstrations' numbers and groups, by number."""
    data = find_object(file, "data")
    if not isinstance(data, h5py.Group):
        raise DatasetError(
            f"{path}: expected a group `data` of demonstrations, found none; {_NO_DEMOS}"
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
        raise DatasetError(f"{path}: expected at least one demonstration, found none; {_NO_DEMOS}")
    return sorted(demos)


def _check_num_samples(file: h5py.File, header: EpisodeHeader) -> None:
    stated = single_value(file[header.at.group].attrs.get("num_samples"))
    if stated is not None and (np.ndim(stated) != 0 or stated != header.length):
        raise DatasetError(
            f"{header.at.name}: expected {stated} steps as its attribute `num_samples`, found "
            f"{header.length} in each of its arrays; correct the attribute, or {LEAVE_OUT}"
        )


def _json(file: h5py.File, name: str) -> dict[str, object]:
    """Return an attribute of `data` that contains a JSON object; empty if it does not."""
    try:
        value = json.loads(text(file["data"].attrs.get(name)) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _fps(file: h5py.File) -> float | None:
    kwargs = _json(file, "env_args").get("env_kwargs")
    return positive_number(kwargs.get("control_freq")) if isinstance(kwargs, dict) else None


def _facts(file: h5py.File) -> DatasetFacts:
    args, attrs = _json(file, "env_args"), file["data"].attrs
    is_libero = bool(_json(file, "problem_info")) or "bddl_file_name" in attrs
    is_isaac = str(args.get("env_name")).startswith("Isaac-")
    is_robosuite = is_libero or args.get("type") == _ROBOSUITE
    gripper = None
    if is_isaac or is_robosuite:
        gripper = "above 0 opens, below 0 closes" if is_isaac else "-1 opens, 1 closes"
    return DatasetFacts(
        gripper=gripper and f"{gripper}, as {'Isaac Lab' if is_isaac else 'robosuite'} defines it",
        action_shift=-1 if is_libero else 0,
    )


def _label(file: h5py.File, demo: EpisodeGroup) -> EpisodeLabel:
    args = _json(file, "env_args")
    problem = _json(file, "problem_info")  # of LIBERO
    given = (problem.get("language_instruction"), args.get("env_lang"))
    instruction, task = (
        next((one_line(word) for word in words if isinstance(word, str) and word), None)
        for words in (given, (*given, args.get("env_name")))
    )
    return EpisodeLabel(
        success=truth(file[demo.group].attrs.get("success")), task=task, instruction=instruction
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
    dataset = find_dataset(file, f"mask/{name}")
    if dataset is None or dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None:
        group = find_object(file, "mask")
        known = ", ".join(group) if isinstance(group, h5py.Group) else ""
        raise DatasetError(
            f"{path}: mask/{name}: expected names of demonstrations, found none; this file's "
            f"subsets are {known or 'none'}: correct the manifest, or list episode numbers in it"
        )
    require_written(dataset, f"{path}: mask/{name}")
    return [bytes(demo).decode() for demo in dataset[:]]


def _has_demos(path: Location, *, is_alone: bool = False) -> bool:
    try:
        with open_hdf5(path) as file:
            data = find_object(file, "data")
            if is_alone and not len(file if data is None else data):
                return True  # a recorder was stopped before it kept one; opening it raises
            return isinstance(data, h5py.Group) and any(map(_DEMO_NAME.fullmatch, data))
    except HDF5_ERRORS:
        return False
