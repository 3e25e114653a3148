"""LeRobot v3.0: the contract, where frames lie among many episodes, and what is refused."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.base import DatasetPlace
from pipeline.datasets.lerobot_v2 import LeRobotV2Reader
from pipeline.datasets.lerobot_v3 import LeRobotV3Reader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.format_contract import (
    TINY_ACTION_NAMES,
    TINY_STATE_NAMES,
    FormatContract,
    tiny_frames,
)
from tests.pipeline.datasets.lerobot_files import (
    FRONT,
    VIDEO_SIZES,
    WRIST,
    VideoPlan,
    counted_episodes,
    counter_frame,
    counter_frames,
    edit_json,
    edit_parquet,
    info_content,
    png,
    read_counters,
    tiny_episodes,
    tiny_image_episodes,
    write_json,
    write_v3,
    write_video,
)

VIEWS = (FRONT, WRIST)
NUMBERS = ("observation.state", "action")
INDEX = "meta/episodes/chunk-000/file-000.parquet"
TABLE = "data/chunk-000/file-000.parquet"


def open_v3(root, views=VIEWS, numbers=NUMBERS, **place):
    return LeRobotV3Reader(DatasetPlace(root, views, numbers, **place))


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


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("codec", ["av1", "h264", "mpeg4"])
def test_every_step_gets_its_own_frame(tmp_path, plan, codec):
    """The other camera is spread over its files in another way than this one."""
    plans = {FRONT: plan, WRIST: VideoPlan(((1, 2), (0,)), gap=1)}
    lengths = (20, 7, 11)
    reader = open_v3(
        write_v3(tmp_path, counted_episodes(*lengths), plans=plans, codec=codec),
    )
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
    monkeypatch.setattr(
        video.VideoDecoder, "_seek", lambda self, dts: sought.append((self.path, dts))
    )
    for episode in range(3):
        for start in range(0, 9, 4):
            reader.frames(episode, start, min(9, start + 4))
    assert sorted(opened) == [FRONT, FRONT, WRIST, WRIST]  # once for the times, once to decode
    assert not sought
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
    info["features"][FRONT]["shape"] = [8, 6, 3]
    write_json(tmp_path / "meta/info.json", info)
    with pytest.raises(DatasetError, match=r"frame 0: expected frames of 8x6 .* found 6x8"):
        open_v3(tmp_path).frame_size(0, FRONT)


def test_it_is_recognised_and_surveyed(tmp_path):
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
    assert LeRobotV3Reader.recognises(tmp_path)
    assert not LeRobotV2Reader.recognises(tmp_path)
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
    assert survey.notes == {"licence": "cc-by-4.0"}
    edit_json(tmp_path / "meta/info.json", storage_format="lance")
    assert not LeRobotV3Reader.recognises(tmp_path)


def test_foreign_folders_are_not_recognised(tmp_path):
    assert not LeRobotV3Reader.recognises(tmp_path)
    assert not LeRobotV3Reader.recognises(tmp_path / "absent")
    for text in ("[]", "{", '{"codebase_version": ["v3.0"]}', "[" * 100_000):
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta/info.json").write_text(text)
        assert not LeRobotV3Reader.recognises(tmp_path)
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


def refused(root, match, views=VIEWS, numbers=NUMBERS):
    with pytest.raises(DatasetError, match=match) as caught:
        open_v3(root, views, numbers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"codebase_version": "v1.6"}, r"v3\.0, found v1\.6; convert"),
        ({"codebase_version": "v2.1"}, r"found v2\.1; write format = \"lerobot_v2\""),
        ({"codebase_version": None}, r"codebase_version: expected v3\.0, found None"),
        ({"storage_format": "lance"}, "found lance, which is not read"),
        ({"fps": 0}, r"info\.json: fps:"),
        ({"fps": "fast"}, r"info\.json: fps:"),
        ({"features": {"action": {"shape": [3]}}}, r"features\.action\.dtype"),
        ({"total_episodes": 3}, r"expected 3 episodes .* found 2"),
        ({"data_path": "../{chunk_index}/{file_index}"}, "allow_outside"),
        ({"video_path": "/etc/{video_key}"}, "allow_outside"),
        ({"data_path": "{chunk_index.__class__}"}, "data_path: expected a path with places"),
        ({"data_path": "{chunk_index:0999999999d}"}, "data_path: expected a path with places"),
        ({"data_path": "data/{episode_index}"}, "data_path: expected a path with places"),
    ],
)
def test_info_that_cannot_be_used_is_refused(tmp_path, changes, match):
    write_v3(tmp_path / "set", tiny_episodes())
    edit_json(tmp_path / "set/meta/info.json", **changes)
    refused(tmp_path / "set", match)


def test_templates_that_are_absent_are_the_published_ones(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    edit_json(tmp_path / "meta/info.json", data_path=None, video_path=None)
    assert open_v3(tmp_path).num_episodes == 2


@pytest.mark.parametrize(
    ("views", "numbers", "match"),
    [
        (("front",), NUMBERS, "at front, found no such key; name one of observation.images.front"),
        (("action",), NUMBERS, "at action, found dtype float32"),
        ((FRONT,), (FRONT,), "expected numbers at observation.images.front, found dtype video"),
    ],
)
def test_keys_of_nothing_are_refused(tmp_path, views, numbers, match):
    refused(write_v3(tmp_path, tiny_episodes()), match, views, numbers)


def test_missing_files_of_all_kinds_are_named_with_their_episodes(tmp_path):
    plans = {key: VideoPlan(((0,), (1,))) for key in VIEWS}
    write_v3(tmp_path, tiny_episodes(), plans=plans, tables=((0,), (1,)))
    (tmp_path / f"videos/{WRIST}/chunk-000/file-001.mp4").unlink()
    (tmp_path / "data/chunk-000/file-001.parquet").unlink()
    refused(
        tmp_path,
        r"expected 6 files for 2 episodes, found 2 of them missing: .*file-001\.parquet "
        r"\(episode 1\), .*wrist.*file-001\.mp4 \(episode 1\);",
    )


def test_an_index_that_skips_or_repeats_is_refused(tmp_path):
    write_v3(tmp_path, counted_episodes(2, 2, 2))
    original = (tmp_path / INDEX).read_bytes()

    edit_parquet(tmp_path / INDEX, lambda row: row if row["episode_index"] != 1 else None)
    refused(tmp_path, "found episode_index 2 where 1 belongs")
    (tmp_path / INDEX).write_bytes(original)
    edit_parquet(tmp_path / INDEX, lambda row: row | {"episode_index": row["episode_index"] // 2})
    refused(tmp_path, "found episode_index 0 where 1 belongs")
    (tmp_path / INDEX).write_bytes(original)
    edit_parquet(tmp_path / INDEX, lambda row: row if row["episode_index"] < 2 else None)
    refused(tmp_path, "expected 3 episodes .* found 2")
    (tmp_path / INDEX).unlink()
    refused(tmp_path, "expected the index of the episodes")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"length": 4}, r"episode 1: expected dataset_to_index 3 \+ length 4, found 8"),
        ({"length": None}, "length: expected a value in every row, found 1 empty"),
        ({f"videos/{FRONT}/from_timestamp": float("nan")}, "from_timestamp: expected seconds"),
        ({f"videos/{FRONT}/from_timestamp": 0.1}, "front: expected episode 1 to begin after"),
        ({f"videos/{FRONT}/from_timestamp": 0.5}, r"until 1\.0000 s for episode 1, found .*0\.8"),
        ({f"videos/{FRONT}/file_index": 7}, r"file-007\.mp4 \(episode 1\)"),
    ],
)
def test_an_index_that_does_not_fit_the_files_is_refused(tmp_path, change, match):
    write_v3(tmp_path, tiny_episodes())
    edit_parquet(tmp_path / INDEX, lambda row: row | change if row["episode_index"] else row)
    refused(tmp_path, match)


def test_an_index_without_a_column_is_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    column = f"videos/{WRIST}/from_timestamp"
    edit_parquet(tmp_path / INDEX, lambda row: {k: v for k, v in row.items() if k != column})
    refused(tmp_path, "expected one column videos/observation.images.wrist/from_timestamp")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"episode_index": 0}, "episode 1: expected 5 rows with its number in episode_index"),
        ({"index": 3}, "expected rows with index 3 to 7"),
        ({"timestamp": float("nan")}, "timestamp: expected finite seconds, found nan"),
    ],
)
def test_rows_that_are_not_the_episodes_are_refused_at_reading(tmp_path, change, match):
    write_v3(tmp_path, tiny_episodes())
    edit_parquet(tmp_path / TABLE, lambda row: row | change if row["episode_index"] else row)
    reader = open_v3(tmp_path)
    with pytest.raises(FrameReadError, match=match):
        reader.frames(1, 0, 2)
    with pytest.raises(DatasetError, match=match):
        reader.timestamp(1)


def test_tables_with_too_few_rows_or_columns_are_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    original = (tmp_path / TABLE).read_bytes()
    edit_parquet(tmp_path / TABLE, lambda row: row if row["index"] < 7 else None)
    refused(tmp_path, "expected 8 rows for episodes 0 to 1, found 7")
    (tmp_path / TABLE).write_bytes(original)
    edit_parquet(tmp_path / TABLE, lambda row: {k: v for k, v in row.items() if k != "action"})
    refused(tmp_path, "expected columns action")
    (tmp_path / TABLE).write_bytes(original[:-8])
    refused(tmp_path, r"file-000\.parquet: expected a parquet file.*was not finished")


def test_rows_of_another_width_are_refused(tmp_path):
    episodes = tiny_episodes()
    episodes[1].extra = {"action": [[1.0, 2.0]] * 5}
    root = write_v3(tmp_path, episodes, tables=((0,), (1,)), lists="variable")
    reader = open_v3(root)
    with pytest.raises(DatasetError, match=r"episode 1: action: expected width 3 .* found 2"):
        reader.numbers(1, "action")
    episodes[1].extra = {"action": [[1.0, 2.0, 3.0]] * 4 + [[1.0]]}
    reader = open_v3(write_v3(tmp_path, episodes, lists="variable"))
    with pytest.raises(DatasetError, match="action: expected rows of one width, found lists of 1"):
        reader.numbers(0, "action")
    episodes[1].extra = {"action": [[1.0, 2.0, 3.0]] * 4 + [None]}
    reader = open_v3(write_v3(tmp_path, episodes, lists="variable"))
    with pytest.raises(DatasetError, match="action: expected a value in every row, found 1 empty"):
        reader.numbers(0, "action")


def test_a_camera_that_stops_early_is_refused_at_opening(tmp_path):
    plans = {WRIST: VideoPlan(((0, 1),), missing=2)}
    write_v3(tmp_path, tiny_episodes(), plans=plans)
    refused(tmp_path, r"wrist.*: expected 8 frames for episodes 0 to 1, found 6; the camera")


def test_a_hole_in_a_video_is_named_by_frame(tmp_path):
    """As many frames as rows, but the camera paused: the header cannot tell."""
    write_v3(tmp_path, tiny_episodes())
    frames = [*counter_frames(0, FRONT), *counter_frames(1, FRONT)]
    ticks = [1000 * step for step in (0, 1, 2, 3, 4, 5, 8, 9)]
    write_video(tmp_path / f"videos/{FRONT}/chunk-000/file-000.mp4", frames, ticks=ticks)
    reader = open_v3(tmp_path)
    assert read_counters(reader.frames(0, 0, 3)[0]) == [0, 1, 2]
    match = r"file-000\.mp4: episode 1: observation\.images\.front: frame 3: expected a frame"
    with pytest.raises(FrameReadError, match=match):
        reader.frames(1, 0, 2)
    with pytest.raises(FrameReadError, match=match):
        reader.frame_drift(1, FRONT)


def test_videos_of_another_size_than_described_are_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    frames = [counter_frame(step, (80, 96)) for step in range(8)]
    write_video(tmp_path / f"videos/{FRONT}/chunk-000/file-000.mp4", frames)
    refused(tmp_path, r"front: expected frames of 64x96 as meta/info\.json says, found 80x96")


def test_a_depth_camera_is_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"][WRIST]["info"] = {"video.is_depth_map": True}
    write_json(tmp_path / "meta/info.json", info)
    refused(tmp_path, "found a depth camera; name one of observation.images.front")
