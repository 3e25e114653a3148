"""What files say of themselves reaches `vla-data init` and `vla-data check`, in every layout."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.check.dataset import check_dataset
from pipeline.datasets.check.report import CheckReport
from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from pipeline.datasets.manifest.draft import draft_manifest
from tests.pipeline.datasets.check.clean_files import ENDS, clean_arrays
from tests.pipeline.datasets.lerobot.lerobot_files import (
    FRONT,
    TinyEpisode,
    counter_frame,
    edit_json,
    write_v2,
    write_v3,
)
from tests.pipeline.datasets.manifest.test_draft import complete
from tests.pipeline.datasets.replay_buffer.zarr_files import write_replay_buffer

LENGTHS = (20, 24, 20)
FPS = 10.0


def numbers(episode: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(episode)
    state = random.normal(size=(LENGTHS[episode], 2)).cumsum(axis=0).astype(np.float32)
    return state, random.uniform(-1, 1, (LENGTHS[episode], 3)).astype(np.float32)


def pictures(episode: int) -> np.ndarray:
    return np.random.default_rng(9 + episode).integers(
        0, 256, (LENGTHS[episode], 24, 32, 3), np.uint8
    )


def recordings(root: Path, success: tuple[bool, ...] = (True,) * 3) -> Path:
    root.mkdir()
    for episode, solved in enumerate(success):
        state, action = numbers(episode)
        recorded = RecordedEpisode(
            {"front": pictures(episode)},
            state,
            action,
            env="metaworld/drawer-open-v3",
            seed=episode,
            fps=FPS,
            success=solved,
        )
        write_episode(root / f"episode_{episode}.hdf5", recorded)
    return root


def demonstrations(
    path: Path, success: tuple[bool, ...] | None = None, data: dict[str, str] | None = None
) -> Path:
    """As Isaac Lab writes them, or with `data` as LIBERO does."""
    args = {"env_name": "Isaac-Lift-v0", "type": 2, "env_kwargs": {"control_freq": FPS}}
    with h5py.File(path, "w") as file:
        for demo in range(3):
            state, action = numbers(demo)
            group = file.create_group(f"data/demo_{demo}")
            group["obs/agentview_image"] = pictures(demo)
            group["obs/ee_states"], group["obs/gripper_states"] = state, state[:, :1]
            group["actions"] = action
            group.attrs["num_samples"] = LENGTHS[demo]
            if success is not None:
                group.attrs["success"] = success[demo]
        file["data"].attrs["env_args"] = json.dumps(args)
        file["data"].attrs.update(data or {})
    return path


def lerobot(
    write: Callable[..., Path],
    root: Path,
    success: tuple[bool, ...] | None = None,
    tasks: tuple[str, ...] = ("tidy",) * 3,
) -> Path:
    episodes = []
    for episode, length in enumerate(LENGTHS):
        # The counter 0 would be one flat color.
        frames = [counter_frame(100 * episode + step + 1, (64, 96)) for step in range(length)]
        extra = {}
        if success is not None:
            extra["next.success"] = [False] * (length - 1) + [success[episode]]
        episodes.append(TinyEpisode({FRONT: np.stack(frames)}, *numbers(episode), extra))
    write(root, episodes, tasks=tasks)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    if success is not None:
        features["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
        edit_json(root / "meta/info.json", features=features)
    return root


def buffer(root: Path) -> Path:
    return write_replay_buffer(root, clean_arrays(), ENDS)


def started(root: Path) -> str:
    """Start a manifest with `vla-data init` and complete it as its comments ask."""
    return complete(draft_manifest(root).text)


def check(root: Path, text: str) -> CheckReport:
    path = root.parent / "started.toml"
    path.write_text(text)
    return check_dataset(str(path))


CLEAN = {
    "aloha_hdf5": recordings,
    "robomimic_hdf5": demonstrations,
    "lerobot_v2": lambda root: lerobot(write_v2, root),
    "lerobot_v3": lambda root: lerobot(write_v3, root),
    "diffusion_policy_zarr": buffer,
}


@pytest.mark.parametrize("layout", CLEAN)
def test_a_manifest_of_init_finds_nothing_in_a_clean_set_of_any_layout(tmp_path, layout):
    root = CLEAN[layout](tmp_path / "set.hdf5" if layout == "robomimic_hdf5" else tmp_path / "set")
    text = started(root)
    assert tomllib.loads(text)["format"] == layout
    assert tomllib.loads(text)["fps"] == FPS  # of the replay buffer as its clock runs
    assert check(root, text).findings == ()


FAILED = {
    "aloha_hdf5": recordings,
    "robomimic_hdf5": demonstrations,
    "lerobot_v2": lambda root, success: lerobot(write_v2, root, success),
    "lerobot_v3": lambda root, success: lerobot(write_v3, root, success),
}


@pytest.mark.parametrize("layout", FAILED)
def test_episodes_that_the_files_mark_as_failed_are_left_out_or_told(tmp_path, layout):
    root = tmp_path / ("set.hdf5" if layout == "robomimic_hdf5" else "set")
    FAILED[layout](root, (True, False, True))
    text = started(root)
    assert tomllib.loads(text)["episodes"] == {"except": [1]}
    report = check(root, text)
    assert report.is_clean
    assert report.num_episodes == 2
    report = check(root, "\n".join(line for line in text.split("\n") if "except" not in line))
    [finding] = report.findings
    assert (finding.severity, finding.kind) == ("warning", "failed")
    assert finding.found.startswith("1 of 3 episodes are marked as failed")
    assert "episodes = {except = [1]}" in finding.to_do
    assert any("2 of 3 episodes marked as successful" in said for said in report.statements)


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_several_tasks_in_one_dataset_are_told(tmp_path, write):
    root = lerobot(write, tmp_path / "set", tasks=("tidy", "pour tea", "tidy"))
    text = started(root)
    assert "#   tidy: [0, 2]" in text
    [finding] = check(root, text).findings
    assert (finding.severity, finding.kind) == ("warning", "tasks")
    assert "'tidy' (2 episodes), 'pour tea' (1 episodes)" in finding.found


def test_the_shift_that_files_of_libero_need_is_written_and_told(tmp_path):
    problem = json.dumps({"language_instruction": "pick up the bowl"})
    data = {"problem_info": problem, "bddl_file_name": "a.bddl"}
    root = demonstrations(tmp_path / "a_demo.hdf5", data=data)
    text = started(root)
    assert tomllib.loads(text)["action_shift"] == -1
    assert check(root, text).is_clean
    [finding] = check(root, text.replace("action_shift = -1", "")).findings
    assert finding.kind == "shift"
    assert "action_shift = -1" in finding.to_do


def test_what_the_files_say_is_shown(tmp_path):
    root = recordings(tmp_path / "set")
    assert "# The files state: 1 task: metaworld/drawer-open-v3" in draft_manifest(root).text
    report = check(root, started(root))
    assert "1 task: metaworld/drawer-open-v3" in report.statements
    assert "according to the files: 1 task" in report.table()
    isaac = demonstrations(tmp_path / "lift.hdf5")
    assert "gripper: above 0 opens, below 0 closes, as Isaac Lab defines it" in (
        draft_manifest(isaac).text
    )
