"""Writes demonstrations as HDF5, one file per episode, in the layout of ACT or of LIBERO.

ACT and ALOHA: `/observations/images/<camera>` (t, h, w, 3) uint8 RGB, `/observations/qpos` (t, s),
`/observations/qvel` (t, s) and `/action` (t, a). LIBERO: `/data/demo_0` with `obs/<camera>_rgb`,
upside down, `obs/ee_states` (t, 6), `obs/gripper_states` (t, 2) and `actions` (t, 7), each frame
and state seen after the action of its step.
Source: tonyzhaozh/act@42a5e2f, utils.py (the loader needs `sim`, `qpos`, `qvel` and `action`);
Lifelong-Robot-Learning/LIBERO@1952000, scripts/create_dataset.py.
Differs from the source: frames are losslessly compressed; LIBERO's are as large as here, and its
files also have the simulator's states and the arm's joints.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.datasets.hdf5.files import open_hdf5
from pipeline.errors import DatasetError
from pipeline.storage.local import sync_file


@dataclass(frozen=True)
class RecordingLayout:
    """Where the files of a format have what is recorded."""

    format: str
    """Its name in manifests."""
    group: str
    """Of the demonstration."""
    image: str
    """Key of a view's frames in the group, `{}` for its name."""
    state: tuple[str, ...]
    """Keys of the parts of the state in the group."""
    state_splits: tuple[int, ...]
    """Column at which each part but the first begins."""
    action: str
    action_shift: int
    """0: a frame was seen before the action of its step; -1: after it."""
    left_out: str = ""
    """What a camera's name begins with, and its key does not."""
    file: str = "episode_{}.hdf5"
    """Name of the file of a seed."""

    def image_key(self, view: str) -> str:
        """Return the key of a view's frames."""
        return self.image.format(view.removeprefix(self.left_out))


ACT: Final = RecordingLayout(
    "aloha_hdf5", "/", "observations/images/{}", ("observations/qpos",), (), "action", 0
)
LIBERO: Final = RecordingLayout(
    "robomimic_hdf5",
    "/data/demo_0",
    "obs/{}_rgb",
    ("obs/ee_states", "obs/gripper_states"),
    (6,),
    "actions",
    -1,
    "robot0_",
    "episode_{:05}.hdf5",  # episodes count in the order of their names, also when more are recorded
)
# Measured on three 256x256 Meta-World views: 7.6 ms and 205 kB per step; 11 ms and 189 kB at
# level 4 and 590 kB uncompressed; rendering the step takes 36 ms. Every HDF5 tool reads gzip.
_GZIP_LEVEL: Final = 1
_USUAL_RENDER_SIZE: Final = 256  # pixels: what the encoder takes


@dataclass(frozen=True)
class RecordedEpisode:
    """One demonstration."""

    frames: Mapping[str, UInt8[np.ndarray, "t h w 3"]]
    """RGB frames of each view, in view order, values in [0, 255], upright; seen before the action
    of the step, or after it with `layout.action_shift` -1."""
    state: Float32[np.ndarray, "t s"]
    action: Float32[np.ndarray, "t a"]
    """Action of each step, as the robot applied it."""
    env: str
    """Argument of `make_env`: `metaworld/drawer-open-v3`."""
    seed: int
    fps: float
    """Control steps per second of simulated time."""
    render_size: int = _USUAL_RENDER_SIZE
    """Pixels per side of the rendered images, before they were resized to `frames`."""
    success: bool = True
    """Whether the last step solved the task."""
    instruction: str = ""
    """The task in words, which readers report as the episode's task; empty where there are none."""
    layout: RecordingLayout = ACT


@dataclass(frozen=True)
class RecordingLabel:
    """Attributes of a recording."""

    env: str
    seed: int
    views: tuple[str, ...]
    render_size: int
    success: bool


def write_episode(path: Path, episode: RecordedEpisode) -> None:
    """Write one demonstration to `<folder>/episode_<i>.hdf5`; it appears whole or not at all.

    The bytes depend only on `episode`.
    """
    layout = episode.layout
    partial = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(partial, "w") as file:
            group = file.require_group(layout.group)
            for view, frames in episode.frames.items():
                group.create_dataset(
                    layout.image_key(view),
                    data=frames[:, ::-1] if layout is LIBERO else frames,
                    chunks=(1, *frames.shape[1:]),
                    compression="gzip",
                    compression_opts=_GZIP_LEVEL,
                )
            parts = np.split(episode.state, layout.state_splits, axis=1)
            for key, part in zip(layout.state, parts, strict=True):
                group[key] = part
            group[layout.action] = episode.action
            (_describe_libero if layout is LIBERO else _describe_act)(file, episode)
            file.attrs["env"] = episode.env
            file.attrs["seed"] = episode.seed
            file.attrs["fps"] = episode.fps
            file.attrs["views"] = list(episode.frames)
            file.attrs["render_size"] = episode.render_size
            file.attrs["success"] = episode.success
            file.attrs["instruction"] = episode.instruction
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _describe_act(file: h5py.File, episode: RecordedEpisode) -> None:
    # ACT's loader needs `qvel`, which is not measured: it is the change of the state since the
    # previous step, per second (zero at the first step).
    previous = np.concatenate([episode.state[:1], episode.state[:-1]])
    file["observations/qvel"] = (episode.state - previous) * np.float32(episode.fps)
    file.attrs["sim"] = True
    file.attrs["compress"] = False  # of JPEG, in the sense of the format


def _describe_libero(file: h5py.File, episode: RecordedEpisode) -> None:
    data, demo = file["data"], file[LIBERO.group]
    control = {"control_freq": episode.fps}
    data.attrs["env_args"] = json.dumps({"type": 1, "env_name": episode.env, "env_kwargs": control})
    data.attrs["problem_info"] = json.dumps({"language_instruction": episode.instruction})
    data.attrs["macros_image_convention"] = "opengl"
    demo.attrs["num_samples"] = len(episode.action)
    demo.attrs["success"] = episode.success


def read_label(path: Path) -> RecordingLabel:
    """Read the attributes that `write_episode` wrote (DatasetError: they are not there)."""
    with open_hdf5(path) as file:
        absent = [name for name in ("env", "seed", "views") if name not in file.attrs]
        if absent:
            raise DatasetError(
                f"{path}: expected a recording of `vla-data record`, found no attribute "
                f"{', '.join(absent)}; record into another folder"
            )
        attrs = file.attrs
        return RecordingLabel(
            env=str(attrs["env"]),
            seed=int(attrs["seed"]),
            views=tuple(map(str, attrs["views"])),
            # Recordings without these attributes were all rendered so, and all solved.
            render_size=int(attrs.get("render_size", _USUAL_RENDER_SIZE)),
            success=bool(attrs.get("success", True)),
        )
