"""Every manifest in data_manifests opens a tiny dataset of exactly the layout that it names."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from pipeline.datasets.check.dataset import check_dataset
from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from tests.pipeline.datasets.lerobot.lerobot_files import (
    TinyEpisode,
    counter_frame,
    info_content,
    read_counters,
    rows_table,
    write_json,
    write_parquet,
    write_video,
)
from tests.pipeline.datasets.replay_buffer.zarr_files import write_replay_buffer

FOLDER = Path(__file__).parents[4] / "data_manifests"
LENGTHS = (6, 7)  # control steps of the two tiny episodes


def noise(episode: int, seed: int, *shape: int) -> np.ndarray:
    """Frames of bytes; every episode and seed another one."""
    numbers = np.random.default_rng((episode, seed))
    return numbers.integers(0, 256, (LENGTHS[episode], *shape), np.uint8)


def columns(episode: int, seed: int, width: int) -> np.ndarray:
    """Numbers that float32 holds exactly, all of them different."""
    start = 1000 * episode + 100 * seed
    return start + np.arange(LENGTHS[episode] * width).reshape(-1, width) / 2


def open_shipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ManifestReader:
    """Open the manifest, whose `path` begins with DATA_ROOT, and check that nothing is odd."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    path = FOLDER / f"{name}.toml"
    report = check_dataset(str(path))
    assert [f for f in report.findings if f.severity == "error"] == []
    return ManifestReader(load_manifest(path))


def write_lerobot(
    root: Path, cameras: list[str], size: tuple[int, int], fps: int, widths: dict[str, int]
) -> None:
    """Write a v3.0 dataset: all episodes in one table and in one video a camera.

    Args:
        root: a folder to create.
        cameras: their keys; each frame shows 1000 camera + 100 episode + step + 1 as a counter.
        size: height and width of the frames.
        fps: control steps and frames a second.
        widths: of every number array.
    """
    episodes = [
        TinyEpisode({}, columns(e, 1, widths["observation.state"]), columns(e, 2, widths["action"]))
        for e in range(2)
    ]
    for e, episode in enumerate(episodes):
        others = set(widths) - {"observation.state", "action"}
        episode.extra = {key: columns(e, 3, widths[key]).tolist() for key in others}
    firsts = (0, LENGTHS[0], sum(LENGTHS))
    rows = [(e, firsts[e], episodes[e]) for e in range(2)]
    table = rows_table(rows, lists="variable", fps=fps)
    write_parquet(root / "data/chunk-000/file-000.parquet", table)
    index = [
        {
            "episode_index": e,
            "tasks": ["tidy"],
            "length": LENGTHS[e],
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": firsts[e],
            "dataset_to_index": firsts[e + 1],
        }
        for e in range(2)
    ]
    for number, camera in enumerate(cameras):
        shown = [1000 * number + 100 * e + step + 1 for e in range(2) for step in range(LENGTHS[e])]
        path = root / f"videos/{camera}/chunk-000/file-000.mp4"
        write_video(path, [counter_frame(n, size) for n in shown], fps=fps, codec="av1")
        for e, row in enumerate(index):
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
            row |= {
                f"videos/{camera}/from_timestamp": firsts[e] / fps,
                f"videos/{camera}/to_timestamp": firsts[e + 1] / fps,
            }
    write_parquet(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(index))
    content = info_content("v3.0", episodes)
    for key, width in widths.items():
        content["features"][key] = {"dtype": "float32", "shape": [width], "names": None}
    for camera in cameras:
        names = ["height", "width", "channels"]
        content["features"][camera] = {"dtype": "video", "shape": [*size, 3], "names": names}
    write_json(root / "meta/info.json", content | {"fps": fps})


def check_lerobot(reader: ManifestReader, written: list[str], size: tuple[int, int]) -> None:
    """Every view shows the camera of its own name, every episode its own steps."""
    for view, frames in zip(reader.view_names, reader.frames(1, 0, 7), strict=True):
        first = 1000 * written.index(f"observation.images.{view}") + 101
        assert frames.shape[1:3] == size
        assert read_counters(frames) == list(range(first, first + 7))


def test_droid(tmp_path, monkeypatch):
    """Keys, widths and sizes of huggingface/lerobot, examples/port_datasets/port_droid.py."""
    names = ("wrist_left", "exterior_1_left", "exterior_2_left")
    written = [f"observation.images.{name}" for name in names]
    widths = {
        "observation.state": 8,
        "observation.state.joint_position": 7,
        "observation.state.cartesian_position": 6,
        "action": 8,
        "action.joint_velocity": 7,
        "action.original": 7,
        "camera_extrinsics.wrist_left": 6,
    }
    write_lerobot(tmp_path / "droid_1.0.1", written, (180, 320), 15, widths)
    reader = open_shipped("droid-1.0.1", tmp_path, monkeypatch)
    check_lerobot(reader, written, (180, 320))
    np.testing.assert_array_equal(reader.state(1), columns(1, 1, 8))
    np.testing.assert_array_equal(reader.action(0), columns(0, 2, 8))


def test_aloha_static(tmp_path, monkeypatch):
    """Keys, widths and sizes of the dataset card of lerobot/aloha_static_coffee."""
    names = ("cam_high", "cam_left_wrist", "cam_low", "cam_right_wrist")
    written = [f"observation.images.{name}" for name in names]
    widths = {"observation.state": 14, "observation.effort": 14, "action": 14}
    write_lerobot(tmp_path / "aloha_static_coffee", written, (480, 640), 50, widths)
    reader = open_shipped("aloha-static-coffee", tmp_path, monkeypatch)
    check_lerobot(reader, written, (480, 640))
    np.testing.assert_array_equal(reader.state(1), columns(1, 1, 14))
    np.testing.assert_array_equal(reader.action(1), columns(1, 2, 14))


def test_pusht(tmp_path, monkeypatch):
    """As the public file: float32 frames, block and keypoints beside what is used."""
    episodes = range(2)
    arrays = {
        "img": [noise(e, 0, 96, 96, 3).astype("f4") for e in episodes],
        "state": [columns(e, 1, 5).astype("f4") for e in episodes],
        "action": [columns(e, 2, 2).astype("f4") for e in episodes],
        "keypoint": [np.zeros((LENGTHS[e], 9, 2), "f4") for e in episodes],
        "n_contacts": [np.zeros((LENGTHS[e], 1), "f4") for e in episodes],
    }
    joined = {key: np.concatenate(parts) for key, parts in arrays.items()}
    root = tmp_path / "pusht/pusht_cchi_v7_replay.zarr"
    write_replay_buffer(root, joined, tuple(np.cumsum(LENGTHS).tolist()))
    reader = open_shipped("pusht", tmp_path, monkeypatch)
    assert reader.view_names == ("image",)
    np.testing.assert_array_equal(reader.frames(1, 0, 7)[0], noise(1, 0, 96, 96, 3))
    np.testing.assert_array_equal(reader.state(1), columns(1, 1, 5)[:, :2])
    np.testing.assert_array_equal(reader.action(0), columns(0, 2, 2))


def test_robomimic_square(tmp_path, monkeypatch):
    root = tmp_path / "robomimic/square/ph"
    root.mkdir(parents=True)
    with h5py.File(root / "image_v15.hdf5", "w") as file:
        for e, demo in enumerate((0, 11)):
            group = file.create_group(f"data/demo_{demo}")
            group.attrs["num_samples"] = LENGTHS[e]
            group["actions"] = columns(e, 3, 7)
            group["states"] = columns(e, 9, 45)
            for obs in ("obs", "next_obs"):
                group[f"{obs}/agentview_image"] = noise(e, 0, 84, 84, 3)
                group[f"{obs}/robot0_eye_in_hand_image"] = noise(e, 1, 84, 84, 3)
                group[f"{obs}/robot0_eef_pos"] = columns(e, 4, 3)
                group[f"{obs}/robot0_eef_quat"] = columns(e, 5, 4)
                group[f"{obs}/robot0_gripper_qpos"] = columns(e, 6, 2)
                group[f"{obs}/object"] = columns(e, 7, 14)
        file["mask/train"] = np.array([b"demo_0"])
        file["mask/valid"] = np.array([b"demo_11"])
        args = {"env_name": "NutAssemblySquare", "type": 1, "env_kwargs": {"control_freq": 20}}
        file["data"].attrs["env_args"] = json.dumps(args)
        file["data"].attrs["total"] = sum(LENGTHS)
    reader = open_shipped("robomimic-square-ph", tmp_path, monkeypatch)
    assert reader.view_names == ("agentview", "robot0_eye_in_hand")
    for view, frames in enumerate(reader.frames(1, 0, 7)):
        np.testing.assert_array_equal(frames, noise(1, view, 84, 84, 3))
    parts = [columns(1, seed, width) for seed, width in ((4, 3), (5, 4), (6, 2))]
    np.testing.assert_array_equal(reader.state(1), np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(reader.action(0), columns(0, 3, 7))
    assert reader.validation == (1,)


def test_libero_spatial(tmp_path, monkeypatch):
    """Two files of one demonstration each, upside down as LIBERO writes them."""
    root = tmp_path / "libero_spatial"
    root.mkdir()
    for e, task in enumerate(("pick_up_a", "pick_up_b")):
        with h5py.File(root / f"{task}_demo.hdf5", "w") as file:
            demo = file.create_group("data/demo_0")
            demo.attrs["num_samples"] = LENGTHS[e]
            demo["actions"] = columns(e, 3, 7)
            demo["dones"] = np.zeros(LENGTHS[e], np.uint8)
            demo["robot_states"] = columns(e, 9, 9)
            demo["obs/agentview_rgb"] = noise(e, 0, 128, 128, 3)[:, ::-1]
            demo["obs/eye_in_hand_rgb"] = noise(e, 1, 128, 128, 3)[:, ::-1]
            demo["obs/ee_states"] = columns(e, 4, 6)
            demo["obs/ee_pos"] = columns(e, 4, 6)[:, :3]
            demo["obs/ee_ori"] = columns(e, 4, 6)[:, 3:]
            demo["obs/gripper_states"] = columns(e, 5, 2)
            demo["obs/joint_states"] = columns(e, 6, 7)
            data = file["data"]
            data.attrs["num_demos"], data.attrs["total"] = 1, LENGTHS[e]
            data.attrs["macros_image_convention"] = "opengl"
            data.attrs["bddl_file_name"] = f"{task}.bddl"
            data.attrs["problem_info"] = json.dumps({"language_instruction": task})
            args = {"env_name": "Libero", "env_kwargs": {"control_freq": 20}}
            data.attrs["env_args"] = json.dumps(args)
    reader = open_shipped("libero-spatial", tmp_path, monkeypatch)
    assert reader.num_episodes == 2
    for view, frames in enumerate(reader.frames(1, 0, 7)):
        np.testing.assert_array_equal(frames, noise(1, view, 128, 128, 3))
    wanted = np.concatenate([columns(1, 4, 6), columns(1, 5, 2)], axis=1)
    np.testing.assert_array_equal(reader.state(1), wanted)
    stored = columns(1, 3, 7)  # each with the frame that was seen after it
    np.testing.assert_array_equal(reader.action(1), np.concatenate([stored[1:], stored[-1:]]))


def test_roboimi_sim(tmp_path, monkeypatch):
    root = tmp_path / "roboimi_sim"
    root.mkdir()
    for e in range(2):
        with h5py.File(root / f"episode_{e}.hdf5", "w") as file:
            file.attrs["sim"] = True
            for seed, view in enumerate(("r_vis", "top", "front")):
                file[f"observations/images/{view}"] = noise(e, seed, 256, 256, 3)
            file["observations/qpos"] = columns(e, 3, 16)
            file["observations/qvel"] = columns(e, 4, 16)
            file["action"] = columns(e, 5, 16)
    reader = open_shipped("roboimi-sim", tmp_path, monkeypatch)
    assert reader.view_names == ("front", "top", "r_vis")  # the order of the original experiments
    for seed, frames in zip((2, 1, 0), reader.frames(1, 0, 7), strict=True):
        np.testing.assert_array_equal(frames, noise(1, seed, 256, 256, 3))
    np.testing.assert_array_equal(reader.state(1), columns(1, 3, 16))
    np.testing.assert_array_equal(reader.action(1), columns(1, 5, 16))


def test_every_shipped_manifest_loads_and_is_tested_here(monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    names = {path.stem for path in FOLDER.glob("*.toml")}
    for name in names:
        manifest = load_manifest(FOLDER / f"{name}.toml").manifest
        assert manifest.name.startswith(name)
        assert len(manifest.source) > 10
    tested = set(re.findall(r'open_shipped\("([\w.-]+)"', Path(__file__).read_text()))
    # The demonstration is recorded, not downloaded: tests of the recorder and the demo have it.
    assert names - {"metaworld-pick-place"} == tested
