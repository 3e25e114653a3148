"""LeRobot v3.0: the contract, and where frames and rows lie among those of many episodes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.v2 import LeRobotV2Reader
from pipeline.datasets.lerobot.v3 import LeRobotV3Reader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.format_contract import (
    TINY_ACTION_NAMES,
    TINY_STATE_NAMES,
    FormatContract,
    tiny_frames,
)
from tests.pipeline.datasets.lerobot.lerobot_files import (
    FRONT,
    VIDEO_SIZES,
    WRIST,
    VideoPlan,
    counted_episodes,
    counter_frames,
    edit_json,
    info_content,
    png,
    read_counters,
    tiny_episodes,
    tiny_image_episodes,
    write_json,
    write_v3,
)

VIEWS = (FRONT, WRIST)
NUMBERS = ("observation.state", "action")
INDEX = "meta/episodes/chunk-000/file-000.parquet"


def open_v3(root, views=VIEWS, numbers=NUMBERS, **place):
    return LeRobotV3Reader(DatasetConfig(root, views, numbers, **place))


class VideoContract(FormatContract):
    lossless = False
    tolerance = 6.0  # levels, what the coarse settings of the fixtures cost at block borders
    view_keys = VIEWS
    state_key, action_key = NUMBERS

    def frames(self, episode, view):
        return counter_frames(episode, f"observation.images.{view}")


class TestLeRobotV3Av1(VideoContract):
    def make_reader(self, root):
        return open_v3(write_v3(root, tiny_episodes(), codec="av1"))


class TestLeRobotV3H264InSeveralFiles(VideoContract):
    def make_reader(self, root):
        plans = {FRONT: VideoPlan(((0,), (1,))), WRIST: VideoPlan(((0, 1),), gap=2)}
        return open_v3(
            write_v3(
                root,
                tiny_episodes(),
                plans=plans,
                codec="h264",
                lists="variable",
                tables=((0,), (1,)),
            )
        )


class TestLeRobotV3Images(FormatContract):
    view_keys = VIEWS
    state_key, action_key = NUMBERS

    def make_reader(self, root):
        return open_v3(write_v3(root, tiny_image_episodes(), image_keys=VIEWS, rows_per_group=2))


PLANS = {
    "one file": VideoPlan(((0, 1, 2),)),
    "a file each": VideoPlan(((0,), (1,), (2,))),
    "another order": VideoPlan(((2, 0, 1),)),
    "gaps between": VideoPlan(((0, 1), (2,)), gap=5),
    "late index": VideoPlan(((0, 1, 2),), drift_s=0.04),
    "early index": VideoPlan(((0, 1, 2),), drift_s=-0.04),
}


@pytest.mark.parametrize(
    ("codec", "name"),
    [*(("h264", name) for name in PLANS), ("av1", "gaps between"), ("mpeg4", "another order")],
)
def test_every_step_gets_its_own_frame(tmp_path, codec, name):
    """The other camera is spread over its files in another way than this one."""
    plan = PLANS[name]
    plans = {FRONT: plan, WRIST: VideoPlan(((1, 2), (0,)), gap=1)}
    lengths = (20, 7, 11)
    reader = open_v3(write_v3(tmp_path, counted_episodes(*lengths), plans=plans, codec=codec))
    for episode, length in [*enumerate(lengths), (1, 7), (0, 20)]:
        for start, stop in [(0, length), (length - 3, length), (2, 5)]:
            front, wrist = reader.frames(episode, start, stop)
            want = [100 * episode + step for step in range(start, stop)]
            assert read_counters(front) == want
            assert read_counters(wrist) == [1000 + number for number in want]
    # half of 1e-4 s: the clock of the file is finer than that
    assert reader.frame_drift(0, WRIST) == pytest.approx(0, abs=5e-5)
    want = abs(plan.drift_s) if plan.files[0][0] != 2 else 0
    assert reader.frame_drift(2, FRONT) == pytest.approx(want, abs=5e-5)
    reader.close()


def test_reading_in_order_opens_each_file_once_across_episodes(tmp_path, monkeypatch):
    from pipeline.datasets import video

    opened = []
    real = video._open
    monkeypatch.setattr(video, "_open", lambda path: opened.append(path.parts[-3]) or real(path))
    reader = open_v3(write_v3(tmp_path, counted_episodes(9, 9, 9), codec="h264"))
    opened.clear()  # the look at the headers
    sought = []
    begin = video.VideoDecoder._begin

    def noted(self, dts=None):
        sought.append(dts)
        begin(self, dts)

    monkeypatch.setattr(video.VideoDecoder, "_begin", noted)
    for episode in range(3):
        for start in range(0, 9, 4):
            reader.frames(episode, start, min(9, start + 4))
    assert sorted(opened) == [FRONT, FRONT, WRIST, WRIST]  # once for the times, once to decode
    assert sought == [None, None]  # no seeking
    reader.close()


def test_steps_are_found_by_measured_times_where_the_clock_was_not_even(tmp_path):
    """The camera ran at 10 Hz, and the loop skipped some of its frames."""
    taken = [0, 1, 3, 4, 7, 9]
    (episode,) = counted_episodes(6)
    episode.frames = {FRONT: counter_frames(0, FRONT, 10)}
    episode.extra = {"timestamp": [0.1 * step for step in taken]}
    reader = open_v3(write_v3(tmp_path, [episode]), (FRONT,))
    (front,) = reader.frames(0, 0, 6)
    assert read_counters(front) == taken
    np.testing.assert_allclose(reader.timestamp(0), 0.1 * np.array(taken), atol=1e-6)
    reader.close()


def test_times_within_a_millisecond_of_the_frame_number_are_made_exact(tmp_path):
    (episode,) = counted_episodes(5)
    episode.extra = {"timestamp": [step / 10 + 0.0009 for step in range(5)]}
    reader = open_v3(write_v3(tmp_path, [episode]))
    np.testing.assert_array_equal(reader.timestamp(0), np.arange(5) / 10)


def test_the_index_may_be_in_any_order_and_in_several_files(tmp_path):
    write_v3(tmp_path, counted_episodes(4, 5, 6), index_order=(2, 0, 1))
    path = tmp_path / INDEX
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    # another order of columns, as files in the wild have it
    rest = table.slice(1).select(table.column_names[::-1])
    pq.write_table(rest, path.with_name("file-001.parquet"))
    reader = open_v3(tmp_path)
    assert [reader.episode_length(episode) for episode in range(3)] == [4, 5, 6]
    assert read_counters(reader.frames(2, 0, 6)[0]) == list(range(200, 206))
    reader.close()


@pytest.mark.parametrize("lists", ["fixed", "variable"])
def test_numbers_of_every_kind_become_rows(tmp_path, lists):
    """Lists in lists, single values, whole numbers and booleans beside the usual lists."""
    episodes = counted_episodes(2, 3)
    for number, episode in enumerate(episodes):
        n = episode.length
        episode.extra = {
            "pose": [[[number, step], [0.5, -1]] for step in range(n)],
            "next.reward": [0.25 * step for step in range(n)],
            "next.done": [step == n - 1 for step in range(n)],
            "count": [2**40 + step for step in range(n)],
        }
    write_v3(tmp_path, episodes, lists=lists)
    info = info_content("v3.0", episodes)
    info["features"] |= {
        "pose": {"dtype": "float64", "shape": [2, 2], "names": None},
        "next.reward": {"dtype": "float64", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": [1]},
        "count": {"dtype": "int64", "shape": [1]},
    }
    write_json(tmp_path / "meta/info.json", info)
    keys = (*NUMBERS, "pose", "next.reward", "next.done", "count")
    reader = open_v3(tmp_path, VIEWS, keys)
    np.testing.assert_array_equal(
        reader.numbers(1, "pose"), [[1, s, 0.5, -1] for s in range(3)], strict=False
    )
    assert reader.numbers(1, "next.reward").tolist() == [[0.0], [0.25], [0.5]]
    assert reader.numbers(1, "next.done").tolist() == [[0.0], [0.0], [1.0]]
    assert reader.numbers(1, "count").tolist() == [[2.0**40], [2.0**40 + 1], [2.0**40 + 2]]
    want = np.float32 if lists == "fixed" else np.float64
    assert reader.numbers(1, "action").dtype == want


def test_images_may_lie_in_files_of_their_own_inside_the_root(tmp_path):
    episodes = tiny_image_episodes()
    root = tmp_path / "set"
    for number, episode in enumerate(episodes):
        rows = []
        for step, frame in enumerate(episode.frames[FRONT]):
            path = root / f"images/{number}_{step}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(frame))
            rows.append({"bytes": None, "path": f"images/{number}_{step}.png"})
        episode.extra = {FRONT: rows}
    reader = open_v3(write_v3(root, episodes, image_keys=VIEWS))
    np.testing.assert_array_equal(reader.frames(1, 0, 5)[0], tiny_frames(1, "front"))
    (root / "images/1_3.png").unlink()
    with pytest.raises(FrameReadError, match=r"episode 1: .*front: frame 3: .*1_3\.png"):
        reader.frames(1, 0, 5)
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(tiny_frames(1, "front")[3]))
    (root / "images/1_3.png").symlink_to(outside)
    with pytest.raises(FrameReadError, match="allow_outside"):
        reader.frames(1, 0, 5)
    trusting = open_v3(root, allow_outside=True)
    np.testing.assert_array_equal(trusting.frames(1, 0, 5)[0], tiny_frames(1, "front"))


def test_a_damaged_picture_is_named(tmp_path):
    episodes = tiny_image_episodes()
    rows = [{"bytes": png(frame), "path": None} for frame in episodes[1].frames[WRIST]]
    rows[2]["bytes"] = rows[2]["bytes"][:-20]
    episodes[1].extra = {WRIST: rows}
    reader = open_v3(write_v3(tmp_path, episodes, image_keys=VIEWS))
    with pytest.raises(FrameReadError, match=r"episode 1: .*wrist: frame 2: .*cut off"):
        reader.frames(1, 0, 5)


def test_a_picture_of_another_size_is_named(tmp_path):
    episodes = tiny_image_episodes()
    rows = [{"bytes": png(frame), "path": None} for frame in episodes[1].frames[WRIST]]
    rows[2]["bytes"] = png(tiny_frames(1, "front")[2])
    episodes[1].extra = {WRIST: rows}
    reader = open_v3(write_v3(tmp_path, episodes, image_keys=VIEWS))
    with pytest.raises(FrameReadError, match=r"wrist: frame 2: expected 4x5 pixels .* found 6x8"):
        reader.frames(1, 0, 5)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"][FRONT]["shape"] = [8, 6, 3]  # a hint, and a wrong one
    write_json(tmp_path / "meta/info.json", info)
    assert open_v3(tmp_path).frame_size(0, FRONT) == (6, 8)


def test_it_is_recognized_and_surveyed(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    info = info_content("v3.0", tiny_episodes())
    info["fps"] = 29.97
    info["features"]["depth"] = {
        "dtype": "video",
        "shape": [4, 4, 1],
        "info": {"is_depth_map": True},
    }
    info["features"]["cf"] = {
        "dtype": "image",
        "shape": [3, 8, 9],
        "names": ["channels", "height", "width"],
    }
    nested = [["a"], ["b", "c"]]
    info["features"]["nested"] = {"dtype": "float32", "shape": [3], "names": nested}
    info["features"]["unnamed"] = {"dtype": "float32", "shape": [2], "names": ["x"]}
    info["features"]["numbered"] = {"dtype": "float32", "shape": [2], "names": {"b": 1, "a": 0}}
    info["features"]["words"] = {"dtype": "string", "shape": [1]}
    write_json(tmp_path / "meta/info.json", info)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [x]\n---\n# Tiny\n")
    assert LeRobotV3Reader.recognizes(tmp_path)
    assert not LeRobotV2Reader.recognizes(tmp_path)
    survey = LeRobotV3Reader.survey(tmp_path)
    assert survey.fps == 29.97
    assert survey.views == {**VIDEO_SIZES, "cf": (8, 9)}
    assert survey.numbers == {
        "observation.state": TINY_STATE_NAMES,
        "action": TINY_ACTION_NAMES,
        "nested": ("a", "b", "c"),
        "unnamed": ("0", "1"),
        "numbered": ("a", "b"),
    }
    assert survey.notes == {"license": "cc-by-4.0"}


def test_foreign_folders_are_not_recognized(tmp_path):
    assert not LeRobotV3Reader.recognizes(tmp_path)
    assert not LeRobotV3Reader.recognizes(tmp_path / "absent")
    for text in ("[]", "{"):
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta/info.json").write_text(text)
        assert not LeRobotV3Reader.recognizes(tmp_path)
        with pytest.raises(DatasetError, match=r"info\.json"):
            open_v3(tmp_path)


def test_splits_are_ranges_of_episodes(tmp_path):
    write_v3(tmp_path, counted_episodes(2, 2, 2))
    edit_json(
        tmp_path / "meta/info.json",
        splits={"train": "0:2", "val": "2:3", "far": "0:4", "odd": "0-2", "none": "1:1"},
    )
    reader = open_v3(tmp_path)
    assert reader.subset("train") == (0, 1)
    assert reader.subset("val") == (2,)
    assert reader.subset("none") == ()
    for name in ("far", "odd", "test"):
        with pytest.raises(DatasetError, match=f"{name}.*train|splits.{name}"):
            reader.subset(name)
