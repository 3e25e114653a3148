"""Tiny files in the layouts of robomimic and LIBERO, written with h5py as those projects do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.hdf5.robomimic import RobomimicHdf5Reader
from tests.pipeline.datasets.format_contract import (
    TINY_FPS,
    TINY_LENGTHS,
    tiny_action,
    tiny_frames,
    tiny_state,
)

FRONT, WRIST = "obs/agentview_image", "obs/robot0_eye_in_hand_image"
STATE, ACTION = "obs/robot0_eef_pos", "actions"
LIBERO_FRONT, LIBERO_WRIST = "obs/agentview_rgb", "obs/eye_in_hand_rgb"
LIBERO_STATE = "obs/ee_states"


def write_robomimic(
    path: Path,
    demos: Mapping[int, int],
    *,
    masks: Mapping[str, tuple[int, ...]] | None = None,
    compress: bool = False,
) -> Path:
    """Write tiny episodes as robomimic's dataset_states_to_obs.py does.

    Args:
        path: a new `.hdf5` file.
        demos: tiny episode by number of the demonstration, written in this order.
        masks: numbers of demonstrations by name of a subset.
        compress: as with `--compress`.
    """
    gzip = {"compression": "gzip"} if compress else {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, episode in demos.items():
            num_steps = TINY_LENGTHS[episode]
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = tiny_action(episode)
            demo["states"] = np.zeros((num_steps, 45))
            demo["rewards"] = np.zeros(num_steps)
            demo["dones"] = np.zeros(num_steps, np.int64)
            for group in ("obs", "next_obs"):
                shift = int(group == "next_obs")  # other numbers, which nobody should read
                front, wrist = tiny_frames(episode, "front"), tiny_frames(episode, "wrist")
                for key, values in {
                    "agentview_image": np.roll(front, shift, 0),
                    "robot0_eye_in_hand_image": np.roll(wrist, shift, 0),
                    "agentview_depth": np.zeros((num_steps, 6, 8, 1), np.float32),
                    "robot0_eef_pos": tiny_state(episode) + shift,
                    "robot0_gripper_qpos": np.zeros((num_steps, 2)),
                }.items():
                    demo.create_dataset(f"{group}/{key}", data=values, **gzip)
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["num_samples"] = num_steps
        for name, numbers in (masks or {}).items():
            file[f"mask/{name}"] = np.array([f"demo_{n}" for n in numbers], dtype="S")
        data.attrs["total"] = sum(TINY_LENGTHS[episode] for episode in demos.values())
        kwargs = {"control_freq": int(TINY_FPS), "camera_names": ["agentview"]}
        args = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
        data.attrs["env_args"] = json.dumps(args, indent=4)
    return path


def write_libero(
    path: Path, episodes: tuple[int, ...], *, convention: str | None = "opengl"
) -> Path:
    """Write tiny episodes as LIBERO's create_dataset.py does: no `next_obs`, no `mask`.

    Frames are stored as given, bottom row first if `convention` says so.
    """
    rows = slice(None, None, -1 if convention == "opengl" else 1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Spatial"
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick up the bowl"})
        if convention is not None:
            data.attrs["macros_image_convention"] = convention
        data.attrs["bddl_file_name"] = "pick_up_the_bowl.bddl"
        args = {"env_name": "Libero_Spatial", "env_kwargs": {"control_freq": int(TINY_FPS)}}
        data.attrs["env_args"] = json.dumps(args)
        for number, episode in enumerate(episodes):
            num_steps = TINY_LENGTHS[episode]
            demo = data.create_group(f"demo_{number}")
            demo["obs/gripper_states"] = np.zeros((num_steps, 2))
            demo["obs/joint_states"] = np.zeros((num_steps, 7))
            demo[LIBERO_STATE] = tiny_state(episode)
            demo[LIBERO_FRONT] = tiny_frames(episode, "front")[:, rows]
            demo[LIBERO_WRIST] = tiny_frames(episode, "wrist")[:, rows]
            demo["actions"] = tiny_action(episode)
            demo["states"] = np.zeros((num_steps, 92))
            demo["robot_states"] = np.zeros((num_steps, 9))
            demo["rewards"] = demo["dones"] = np.zeros(num_steps, np.uint8)
            demo.attrs["num_samples"] = num_steps
            demo.attrs["init_state"] = np.zeros(92)
        data.attrs["num_demos"] = len(episodes)
        data.attrs["total"] = sum(TINY_LENGTHS[episode] for episode in episodes)
    return path


def open_tiny(root: Path, **place: Any) -> RobomimicHdf5Reader:
    return RobomimicHdf5Reader(DatasetConfig(root, (FRONT, WRIST), (STATE, ACTION), **place))


def edit(path: Path, key: str, value: object) -> None:
    """Put other content in a place of the last demonstration; None removes it."""
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_12"]
        del demo[key]
        if value is not None:
            demo[key] = value
