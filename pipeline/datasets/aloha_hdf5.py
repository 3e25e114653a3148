"""Episodes in the HDF5 layout of ACT and ALOHA, read and written.

One `episode_<i>.hdf5` an episode: `/observations/images/<camera>` (t, h, w, 3) uint8 RGB,
`/observations/qpos` (t, s), `/observations/qvel` (t, s) and `/action` (t, a). The reader takes its
places from the manifest; JPEG-compressed frames are not read. Knows no simulator and no encoder.
Source: tonyzhaozh/act@42a5e2f, utils.py (the loader needs `sim`, `qpos`, `qvel` and `action`).
Differs from the source: recordings hold frames losslessly compressed, and numbers may have gaps.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.datasets.hdf5_checks import find_dataset, require_written
from pipeline.datasets.manifest import Manifest
from pipeline.errors import DatasetError, FrameReadError
from pipeline.files import sync_file

IMAGES_GROUP: Final = "observations/images"
STATE_KEY: Final = "observations/qpos"
ACTION_KEY: Final = "action"
_EPISODE_NAME: Final = re.compile(r"episode_(\d+)\.hdf5")
_COMPANIONS: Final = ("features", "mirror")  # files that users of ACT leave beside the episodes
# Measured on three 256x256 Meta-World views: 7.6 ms and 205 kB a step, against 11 ms and 189 kB at
# level 4 and 590 kB uncompressed; rendering the step takes 36 ms. Every HDF5 tool reads gzip.
_GZIP_LEVEL: Final = 1


@dataclass(frozen=True)
class RecordedEpisode:
    """One demonstration, as `write_episode` keeps it."""

    frames: Mapping[str, UInt8[np.ndarray, "t h w 3"]]
    """RGB frames of each view, in view order, values in [0, 255], seen before the action."""
    state: Float32[np.ndarray, "t s"]
    """Robot state of each step."""
    action: Float32[np.ndarray, "t a"]
    """Action of each step, as the robot applied it."""
    env: str
    """What `make_env` was called with: `metaworld/drawer-open-v3`."""
    seed: int
    """What the environment was reset to."""
    fps: float
    """Control steps a second of simulated time."""


@dataclass(frozen=True)
class RecordingLabel:
    """What a recording says about itself."""

    env: str
    seed: int
    views: tuple[str, ...]


@dataclass(frozen=True)
class _EpisodeFile:
    path: Path
    length: int
    frame_sizes: Mapping[str, tuple[int, int]]
    widths: tuple[int, int]


class AlohaHdf5Reader:
    """A folder of `episode_<i>.hdf5`, sorted by number; implements `EpisodeReader`."""

    def __init__(self, manifest: Manifest) -> None:
        """Open the folder and check every file by its headers; no frame or number is read.

        Raises:
            DatasetError: the folder holds no episode, or a file is damaged, lacks a place that the
                manifest names, links to another file, was cut off while recording, or does not
                agree with itself or the others.
        """
        self.view_names: tuple[str, ...] = manifest.view_names
        self.fps: float = manifest.fps
        self._view_keys = {view.name: view.key for view in manifest.views}
        self._state_key = manifest.state.key
        self._action_key = manifest.action.key
        self._open: tuple[int, h5py.File] | None = None
        self._files = [self._describe(path) for path in _episode_paths(manifest.root)]
        self.num_episodes: int = len(self._files)
        first = self._files[0]
        for other in self._files:
            if other.widths != first.widths:
                raise DatasetError(
                    f"{other.path}: expected (state, action) widths {first.widths} as in "
                    f"{first.path.name}, found {other.widths}; keep one robot to a folder"
                )

    def episode_name(self, episode: int) -> str:
        """Return the path of an episode's file."""
        return str(self._file(episode).path)

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        return self._file(episode).length

    def frame_size(self, episode: int, view: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels."""
        return self._file(episode).frame_sizes[view]

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read RGB frames [start, stop) of one episode, values in [0, 255], one array a view.

        Raises:
            FrameReadError: the episode has no such steps, or a frame does not decompress.
        """
        facts = self._file(episode)
        if not 0 <= start <= stop <= facts.length:
            raise FrameReadError(
                f"{facts.path}: expected steps within 0..{facts.length}, found a request for "
                f"[{start}, {stop}); ask for steps that the episode has"
            )
        views = []
        for name, key in self._view_keys.items():
            try:
                views.append(self._handle(episode)[key][start:stop])
            except (OSError, KeyError, RuntimeError) as error:
                raise FrameReadError(
                    f"{facts.path}: expected frames [{start}, {stop}) of view {name}, found that "
                    f"they do not read ({_brief(error)}); copy or record this episode again"
                ) from error
        return tuple(views)

    def state(self, episode: int) -> Float32[np.ndarray, "t s"]:
        """Read the robot state of every step, in the units of the manifest.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """
        return self._finite(episode, self._state_key)

    def action(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """Read the action of every step, in the units of the manifest.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """
        return self._finite(episode, self._action_key)

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"]:
        """Return seconds since the episode's first step, from `fps`; the format keeps no clock."""
        return np.arange(self.episode_length(episode), dtype=np.float64) / self.fps

    def close(self) -> None:
        """Close the file that is open; reading again opens it again."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _file(self, episode: int) -> _EpisodeFile:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode}, want 0..{self.num_episodes - 1}")
        return self._files[episode]

    def _handle(self, episode: int) -> h5py.File:
        if self._open is None or self._open[0] != episode:
            self.close()
            self._open = (episode, h5py.File(self._file(episode).path, "r"))
        return self._open[1]

    def _finite(self, episode: int, key: str) -> Float32[np.ndarray, "t d"]:
        path = self._file(episode).path
        try:
            raw = self._handle(episode)[key][:]
        except (OSError, KeyError, RuntimeError) as error:
            raise DatasetError(
                f"{path}: expected numbers at {key}, found that they do not read "
                f"({_brief(error)}); copy or record this episode again"
            ) from error
        with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
            values = np.asarray(raw, dtype=np.float32)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            step, dim = (int(index) for index in wrong[0])
            raise DatasetError(
                f"{path}: {key}: expected finite float32 numbers, found {raw[step, dim]} at step "
                f"{step}, dim {dim} ({len(wrong)} in all); correct or remove this episode"
            )
        return values

    def _describe(self, path: Path) -> _EpisodeFile:
        with _opened(path) as file:
            views = {
                name: _frames_dataset(file, key, path, name)
                for name, key in self._view_keys.items()
            }
            state = _numbers_dataset(file, self._state_key, path, "state")
            action = _numbers_dataset(file, self._action_key, path, "action")
            keys = (*self._view_keys.values(), self._state_key, self._action_key)
            datasets = dict(zip(keys, (*views.values(), state, action), strict=True))
            _check_lengths(path, {key: dataset.shape[0] for key, dataset in datasets.items()})
            for key, dataset in datasets.items():
                require_written(dataset, key)
            return _EpisodeFile(
                path=path,
                length=state.shape[0],
                frame_sizes={name: (view.shape[1], view.shape[2]) for name, view in views.items()},
                widths=(state.shape[1], action.shape[1]),
            )


def write_episode(path: Path, episode: RecordedEpisode) -> None:
    """Write one demonstration; the file appears whole or not at all.

    The bytes depend on nothing but `episode`. `qvel`, which ACT's loader needs, is the change of
    the state since the step before, a second (zero at the first step): it is not measured.

    Args:
        path: `<folder>/episode_<i>.hdf5`; an existing file is replaced.
        episode: at least one step, all arrays of one length.
    """
    previous = np.concatenate([episode.state[:1], episode.state[:-1]])
    partial = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(partial, "w") as file:
            for view, frames in episode.frames.items():
                file.create_dataset(
                    f"{IMAGES_GROUP}/{view}",
                    data=frames,
                    chunks=(1, *frames.shape[1:]),
                    compression="gzip",
                    compression_opts=_GZIP_LEVEL,
                )
            file[STATE_KEY] = episode.state
            file["observations/qvel"] = (episode.state - previous) * np.float32(episode.fps)
            file[ACTION_KEY] = episode.action
            file.attrs["sim"] = True
            file.attrs["compress"] = False  # of JPEG, in the sense of the format
            file.attrs["env"] = episode.env
            file.attrs["seed"] = episode.seed
            file.attrs["fps"] = episode.fps
            file.attrs["views"] = list(episode.frames)
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_label(path: Path) -> RecordingLabel:
    """Read what `write_episode` noted beside the arrays.

    Raises:
        DatasetError: the file does not open, or was not written by `write_episode`.
    """
    with _opened(path) as file:
        absent = [name for name in ("env", "seed", "views") if name not in file.attrs]
        if absent:
            raise DatasetError(
                f"{path}: expected a recording of `vla-data record`, found no attribute "
                f"{', '.join(absent)}; record into another folder"
            )
        attrs = file.attrs
        views = tuple(str(view) for view in attrs["views"])
        return RecordingLabel(env=str(attrs["env"]), seed=int(attrs["seed"]), views=views)


def _episode_paths(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DatasetError(
            f"{root}: expected a folder of episode_<i>.hdf5, found "
            f"{'a file' if root.exists() else 'nothing'}; correct `path` in the manifest"
        )
    numbered = []
    for path in root.iterdir():
        match = _EPISODE_NAME.fullmatch(path.name)
        if match:
            numbered.append((int(match[1]), path))
        elif path.suffix == ".hdf5" and not any(word in path.name for word in _COMPANIONS):
            raise DatasetError(
                f"{path}: expected the name episode_<i>.hdf5, found another .hdf5 file; rename it "
                "or move it out of the folder"
            )
    if not numbered:
        raise DatasetError(
            f"{root}: expected at least one episode_<i>.hdf5, found none; correct `path` in the "
            "manifest, or record first"
        )
    return [path for _, path in sorted(numbered)]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise DatasetError(
            f"{path}: expected an HDF5 file, found one that does not open ({_brief(error)}); copy "
            "or record this episode again, or remove it"
        ) from error


def _check_lengths(path: Path, lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"{path}: expected the same number of steps everywhere, found {lengths}; an "
            "episode that was cut off while recording must be recorded again or removed"
        )
    if 0 in lengths.values():
        raise DatasetError(f"{path}: expected at least one step, found none; remove the file")


def _frames_dataset(file: h5py.File, key: str, path: Path, view: str) -> h5py.Dataset:
    dataset = _dataset(file, key, path, f"view {view}")
    if dataset.ndim != 4:
        raise DatasetError(
            f"{path}: {key}: expected raw frames (steps, height, width, 3), found shape "
            f"{dataset.shape}; JPEG-compressed frames are not read, decode them into the file first"
        )
    if dataset.dtype != np.uint8 or dataset.shape[3] != 3 or 0 in dataset.shape[1:3]:
        raise DatasetError(
            f"{path}: {key}: expected uint8 RGB frames (steps, height, width, 3), found "
            f"{dataset.dtype} {dataset.shape}; name a colour camera, or convert the frames"
        )
    return dataset


def _numbers_dataset(file: h5py.File, key: str, path: Path, role: str) -> h5py.Dataset:
    dataset = _dataset(file, key, path, role)
    if dataset.ndim != 2 or dataset.dtype not in (np.float32, np.float64):
        raise DatasetError(
            f"{path}: {key}: expected float32 or float64 of shape (steps, width), found "
            f"{dataset.dtype} {dataset.shape}; correct `{role}.key` in the manifest"
        )
    if dataset.shape[1] < 1:
        raise DatasetError(
            f"{path}: {key}: expected (steps, width) with a width of at least 1, found "
            f"{dataset.shape}; correct `{role}.key` in the manifest, or record this episode again"
        )
    return dataset


def _dataset(file: h5py.File, key: str, path: Path, role: str) -> h5py.Dataset:
    dataset = find_dataset(file, key)
    if dataset is None:
        raise _absent(file, key, path, role)
    return dataset


def _absent(file: h5py.File, key: str, path: Path, role: str) -> DatasetError:
    group = file.get(IMAGES_GROUP) if role.startswith("view") else file.get("observations")
    parent = IMAGES_GROUP if role.startswith("view") else "observations"
    found = sorted(f"{parent}/{name}" for name in group) if isinstance(group, h5py.Group) else []
    kind = "cameras" if role.startswith("view") else "arrays"
    return DatasetError(
        f"{path}: expected {role} at {key}, found none; the {kind} of this file are "
        f"{', '.join(found) or 'none'}: correct `key` in the manifest, or remove the file"
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
