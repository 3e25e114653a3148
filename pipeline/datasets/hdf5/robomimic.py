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

import itertools
import json
import re
from dataclasses import replace
from typing import Any, Final

import h5py
import numpy as np
from jaxtyping import UInt8

from pipeline.datasets.arrays import alpha_remarks
from pipeline.datasets.base import DatasetConfig, DatasetFacts, EpisodeLabel, FormatSurvey
from pipeline.datasets.hdf5.files import (
    HDF5_ERRORS,
    attribute,
    find_dataset,
    find_object,
    open_hdf5,
    positive_number,
    require_written,
    success_attribute,
    text_attribute,
)
from pipeline.datasets.hdf5.reader import Hdf5Episode, Hdf5Reader, agreed_fps
from pipeline.datasets.manifest.paths import file_in
from pipeline.datasets.manifest.selection import LEAVE_OUT, wanted_numbers
from pipeline.errors import DatasetError
from pipeline.storage.location import Location
from pipeline.storage.open import open_folder
from policy.errors import one_line

_DEMO_NAME: Final = re.compile(r"demo_([0-9]{1,18})")  # 18 digits fit 64 bits
_ROBOSUITE: Final = 1  # `type` in the environment's arguments
_MAX_LOOKS: Final = 16  # files of a folder that are opened to recognize it
_SUFFIXES: Final = (".hdf5", ".h5")  # of the files of a folder, in letters of either case


class RobomimicHdf5Reader(Hdf5Reader):
    """One file of `/data/demo_<i>`, or a folder of them.

    An episode's number is its demonstration's. In a folder of several files, where those repeat,
    episodes are numbered 0, 1, ... in the order of (file name, demonstration's number).
    """

    cameras = "obs"
    folders = ("obs", "action_dict", "")
    without_cameras = (
        "robomimic's `low_dim` and `demo` files contain no frames: render them with its "
        "dataset_states_to_obs.py and --camera_names, and name the new file in `path`"
    )

    def __init__(self, config: DatasetConfig) -> None:
        numbered = _numbered(_require_files(config.root, allow_outside=config.allow_outside))
        wanted = wanted_numbers(config, (n for demos in numbered.values() for n in demos.values()))
        # Per file with a kept demonstration: episode numbers of all its demonstrations, by name.
        self._numbers: dict[Location, dict[str, int]] = {}
        self._upside_down: set[Location] = set()
        episodes: list[Hdf5Episode] = []
        stated, written = [], []
        for path, demos in numbered.items():
            kept = {demo: number for demo, number in demos.items() if number in wanted}
            if not kept:
                continue
            self._numbers[path] = demos
            with open_hdf5(path) as file:
                for demo, number in kept.items():
                    group = _group(file, demo)
                    label = _label(file, group)
                    episodes.append(self.read_header(group, path, number, config, label=label))
                    stored, num_samples = episodes[-1].length, attribute(group, "num_samples")
                    if num_samples not in (None, stored):
                        raise DatasetError(
                            f"{episodes[-1].name}: expected {num_samples} steps by its attribute "
                            f"num_samples, found {stored}; correct it, or {LEAVE_OUT}"
                        )
                stated.append((path, _fps(file)))
                written.append(_facts(file))
                if _is_upside_down(file, path):
                    self._upside_down.add(path)
        super().__init__(config, episodes)
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

    def _frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        views = super()._frames(episode, start, stop)
        if self._episodes[episode].path not in self._upside_down:
            return views
        return tuple(np.ascontiguousarray(view[:, ::-1]) for view in views)

    @classmethod
    def recognizes(cls, root: Location) -> bool:
        """Whether `root` is a file with `/data/demo_<i>`, or one of a folder's first files is."""
        try:
            paths = _files(root)
        except OSError:
            return False
        return any(_has_demos(path, is_alone=path == root) for path in paths[:_MAX_LOOKS])

    @classmethod
    def survey(cls, root: Location) -> FormatSurvey:
        """List the arrays of the first demonstration of the first file; columns have no names."""
        path = _require_files(root, allow_outside=False)[0]
        with open_hdf5(path) as file:
            first = _group(file, _demos(file, path)[0])
            env = _json(file, "env_args").get("env_name")
            notes = {"source": f"simulated environment {env}"} if isinstance(env, str) else {}
            return cls.survey_group(first, path, _fps(file), notes)


def _files(root: Location) -> list[Location]:
    """List the HDF5 files of a folder by name; `root` if it is none, and opening it may fail."""
    names = open_folder(root).children()
    if names is None:
        return [root]
    paths = [root / name for name in sorted(names)]
    # macOS stores metadata next to files as `._image.hdf5`.
    return [path for path in paths if path.suffix.lower() in _SUFFIXES and path.name[:1] != "."]


def _require_files(root: Location, *, allow_outside: bool) -> list[Location]:
    paths = _files(root)
    if not paths:
        raise DatasetError(
            f"{root}: expected a robomimic .hdf5 file, or a folder of such files, found a folder "
            "without any; correct the path to it"
        )
    for path in paths if paths != [root] else ():
        file_in(root, path.name, allow_outside=allow_outside)
    return paths


def _numbered(paths: list[Location]) -> dict[Location, dict[str, int]]:
    """Number the demonstrations of all files: episode number by name, by file."""
    numbered: dict[Location, dict[str, int]] = {}
    running, is_alone = itertools.count(), len(paths) == 1
    for path in paths:
        with open_hdf5(path) as file:
            numbered[path] = {
                demo: _demo_number(demo) if is_alone else next(running)
                for demo in _demos(file, path)
            }
    return numbered


def _demos(file: h5py.File, path: Location) -> list[str]:
    """List the names of the demonstrations, by number."""
    data = find_object(file, "data")
    names = list(data) if isinstance(data, h5py.Group) else []
    if not names:
        raise DatasetError(
            f"{path}: expected a group `data` of at least one demonstration, found none; "
            "record again if the recorder was stopped before it kept one, correct the path to it, "
            "or move this file out of the folder"
        )
    for name in names:
        if not _DEMO_NAME.fullmatch(name):
            raise DatasetError(
                f"{path}: expected only demo_<i> in `data`, found {name!r}; rename or remove it"
            )
    return sorted(names, key=_demo_number)


def _demo_number(demo: str) -> int:
    return int(demo.removeprefix("demo_"))


def _group(file: h5py.File, demo: str) -> h5py.Group:
    group = find_object(file, f"data/{demo}")
    if not isinstance(group, h5py.Group):
        raise KeyError(f"data/{demo} is no group")  # `open_hdf5` names the file
    return group


def _json(file: h5py.File, name: str) -> dict[str, Any]:
    """Return an attribute of `data` that contains a JSON object; empty if it does not."""
    try:
        value = json.loads(text_attribute(file["data"], name) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _fps(file: h5py.File) -> float | None:
    kwargs = _json(file, "env_args").get("env_kwargs")
    return positive_number(kwargs.get("control_freq")) if isinstance(kwargs, dict) else None


def _facts(file: h5py.File) -> DatasetFacts:
    args, attrs = _json(file, "env_args"), file["data"].attrs
    is_libero = bool(_json(file, "problem_info")) or "bddl_file_name" in attrs
    gripper = None
    if str(args.get("env_name")).startswith("Isaac-"):
        gripper = "above 0 opens, below 0 closes, as Isaac Lab defines it"
    elif is_libero or args.get("type") == _ROBOSUITE:
        gripper = "-1 opens, 1 closes, as robosuite defines it"
    return DatasetFacts(gripper, action_shift=-1 if is_libero else 0)


def _label(file: h5py.File, demo: h5py.Group) -> EpisodeLabel:
    args = _json(file, "env_args")
    problem = _json(file, "problem_info")  # of LIBERO
    words = (problem.get("language_instruction"), args.get("env_lang"), args.get("env_name"))
    *given, env = (one_line(word) if isinstance(word, str) else "" for word in words)
    instruction = given[0] or given[1] or None
    return EpisodeLabel(success_attribute(demo), instruction or env or None, instruction)


def _is_upside_down(file: h5py.File, path: Location) -> bool:
    stated = attribute(file["data"], "macros_image_convention")
    convention = str(stated).casefold()
    if stated is not None and convention not in ("opengl", "opencv"):
        raise DatasetError(
            f"{path}: data: macros_image_convention: expected opengl (the lowest row of a frame "
            f"first) or opencv, found {convention[:40]!r}; correct the attribute"
        )
    return convention == "opengl"


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


def _has_demos(path: Location, *, is_alone: bool) -> bool:
    try:
        with open_hdf5(path) as file:
            data = find_object(file, "data")
            if is_alone and not len(file if data is None else data):
                return True  # a recorder was stopped before it kept one; opening it raises
            return isinstance(data, h5py.Group) and any(map(_DEMO_NAME.fullmatch, data))
    except HDF5_ERRORS:
        return False
