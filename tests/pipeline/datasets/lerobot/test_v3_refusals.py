"""LeRobot v3.0: what is refused, with the file, the episode and what to do."""

import json
from contextlib import closing

import numpy as np
import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.v3 import LeRobotV3Reader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.lerobot.lerobot_files import (
    FRONT,
    WRIST,
    VideoPlan,
    counted_episodes,
    counter_frame,
    counter_frames,
    edit_json,
    edit_parquet,
    read_counters,
    tiny_episodes,
    write_json,
    write_v3,
    write_video,
)

VIEWS = (FRONT, WRIST)
NUMBERS = ("observation.state", "action")
INDEX = "meta/episodes/chunk-000/file-000.parquet"
TABLE = "data/chunk-000/file-000.parquet"


def open_v3(root, views=VIEWS, numbers=NUMBERS, **place):
    return LeRobotV3Reader(DatasetConfig(root, views, numbers, **place))


def open_v3_without(root, *numbers):
    return closing(open_v3(root, keeps=lambda number: number not in numbers))


def refused(root, match, views=VIEWS, numbers=NUMBERS):
    with pytest.raises(DatasetError, match=match) as caught:
        open_v3(root, views, numbers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"codebase_version": "v1.6"}, r"v3\.0, found v1\.6; correct `format` .* or convert"),
        ({"codebase_version": "v2.1"}, r"v3\.0, found v2\.1; correct `format` in the manifest"),
        ({"storage_format": "lance"}, r"info\.json: storage_format: Input should be 'parquet'"),
        ({"fps": 0}, r"info\.json: fps:"),
        ({"features": []}, r"info\.json: features:"),
        ({"total_episodes": 3}, "expected one row for episode 2 of 3, found 0"),
        ({"data_path": "../{chunk_index}/{file_index}"}, "allow_outside"),
        ({"video_path": "/etc/{video_key}"}, "allow_outside"),
        ({"data_path": "data/{episode_index}"}, "expected a path with fields"),
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
        (("front",), NUMBERS, "at front, found no such key; use one of observation.images.front"),
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


def test_an_index_that_lacks_or_repeats_a_wanted_episode_is_refused(tmp_path):
    write_v3(tmp_path, counted_episodes(2, 2, 2))
    original = (tmp_path / INDEX).read_bytes()
    edit_parquet(tmp_path / INDEX, lambda row: row if row["episode_index"] != 1 else None)
    refused(tmp_path, "expected one row for episode 1 of 3, found 0")
    (tmp_path / INDEX).write_bytes(original)
    edit_parquet(tmp_path / INDEX, lambda row: row | {"episode_index": row["episode_index"] % 2})
    edit_json(tmp_path / "meta/info.json", total_episodes=2)
    refused(tmp_path, "expected one row for episode 0 of 2, found 2")
    (tmp_path / INDEX).unlink()
    refused(tmp_path, "expected the index of the episodes .* found none; finalize the recording")


def test_an_index_that_names_the_file_before_is_not_taken_for_a_damaged_file(tmp_path):
    """As LeRobot's converter wrote it for the episode at which a file had become full."""
    write_v3(tmp_path, counted_episodes(2, 2, 2), tables=[[0], [1, 2]])
    first = {"data/file_index": 0}
    edit_parquet(tmp_path / INDEX, lambda row: row | (first if row["episode_index"] == 1 else {}))
    refused(tmp_path, "file-000.*expected 4 rows .* found 2; .*convert the dataset again if its")


DAMAGED_ROWS = {
    "a length of 0": {"length": 0, "dataset_to_index": 5},
    "no length": {"length": None},
    "a camera missing": dict.fromkeys(
        [f"videos/{FRONT}/{name}" for name in ("file_index", "from_timestamp", "to_timestamp")],
        float("nan"),
    ),
    "another end than its length": {"dataset_to_index": 7},
    "an endless clip": {f"videos/{FRONT}/to_timestamp": float("inf")},
}


@pytest.mark.parametrize("damage", DAMAGED_ROWS.values(), ids=DAMAGED_ROWS)
def test_a_damaged_row_of_the_index_matters_only_if_its_episode_is_wanted(tmp_path, damage):
    root = write_v3(tmp_path, counted_episodes(2, 3, 4))
    edit_parquet(root / INDEX, lambda row: row | damage if row["episode_index"] == 1 else row)
    refused(root, "episode 1: ")
    with open_v3_without(root, 1) as reader:
        assert [reader.episode_number(episode) for episode in range(2)] == [0, 2]
        assert read_counters(reader.frames(1, 0, 4)[0]) == [200, 201, 202, 203]


def test_a_row_that_was_removed_or_a_wrong_total_matters_only_if_it_is_wanted(tmp_path):
    root = write_v3(tmp_path, counted_episodes(2, 3, 4))
    edit_parquet(root / INDEX, lambda row: row if row["episode_index"] != 1 else None)
    for total in (3, 2, None):
        edit_json(root / "meta/info.json", total_episodes=total)
        refused(root, "expected one row for episode 1")
        with open_v3_without(root, 1) as reader:
            assert read_counters(reader.frames(1, 0, 4)[0]) == [200, 201, 202, 203]
    edit_json(root / "meta/info.json", total_episodes=5)
    refused(root, "expected one row for episode 1 of 5")
    with open_v3_without(root, 1, 3, 4) as reader:
        assert reader.num_episodes == 2


@pytest.mark.parametrize("left_out", [(), (0,), (1,)])
def test_clips_that_overlap_are_refused_whichever_of_them_is_wanted(tmp_path, left_out):
    """One has the other's frames, and nothing shows which."""
    root = write_v3(tmp_path, counted_episodes(6, 6, 6))
    shift = {f"videos/{FRONT}/from_timestamp": 0.0, f"videos/{FRONT}/to_timestamp": 0.6}
    edit_parquet(root / INDEX, lambda row: row | shift if row["episode_index"] == 1 else row)
    with pytest.raises(DatasetError, match=r"front: expected episode 1 to begin after episode 0"):
        open_v3_without(root, *left_out)
    with open_v3_without(root, 0, 1) as reader:
        assert read_counters(reader.frames(0, 0, 6)[0]) == [*range(200, 206)]


def test_a_step_past_its_clips_end_does_not_get_the_next_episodes_frame(tmp_path):
    """Rows at 29.5 Hz by their clock, frames at 30 Hz, as many as rows."""
    episodes = counted_episodes(40, 40)
    for episode in episodes:
        episode.extra = {"timestamp": [step / (29.5 / 3) for step in range(40)]}
    root = write_v3(tmp_path, episodes)
    reader = open_v3(root)
    with pytest.raises(FrameReadError, match=r"episode 0: .*front: frame 39: expected a frame"):
        reader.frames(0, 0, 40)
    reader.close()


@pytest.mark.parametrize("left_out", [(), (0,), (2,), (0, 2)])
def test_a_file_that_is_too_short_for_all_its_episodes_is_refused_for_each(tmp_path, left_out):
    """Frames that a camera lost shift those of every later episode of the file."""
    root = write_v3(tmp_path, counted_episodes(6, 6, 6))
    frames = [*counter_frames(0, FRONT, 6)[2:], *counter_frames(1, FRONT, 6)]
    write_video(
        root / f"videos/{FRONT}/chunk-000/file-000.mp4", [*frames, *counter_frames(2, FRONT, 6)]
    )
    with pytest.raises(DatasetError, match=r"expected 18 frames .* found 16 .* leave out all"):
        open_v3_without(root, *left_out)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"length": 4}, r"episode 1: .*expected dataset_to_index .* 3 \+ length 4, found 8"),
        ({"length": None}, "episode 1: length: Input should be a valid integer"),
        (
            {f"videos/{FRONT}/from_timestamp": float("nan")},
            r"episode 1: videos\.observation\.images\.front\.from_timestamp: .* finite number",
        ),
        ({f"videos/{FRONT}/from_timestamp": 0.1}, "front: expected episode 1 to begin after"),
        ({f"videos/{FRONT}/from_timestamp": 0.5}, r"until 1\.0000 s, found .*0\.8"),
        ({f"videos/{FRONT}/file_index": 7}, r"file-007\.mp4 \(episode 1\)"),
    ],
)
def test_an_index_that_does_not_fit_the_files_is_refused(tmp_path, change, match):
    write_v3(tmp_path, tiny_episodes())
    edit_parquet(tmp_path / INDEX, lambda row: row | change if row["episode_index"] else row)
    refused(tmp_path, match)


def test_a_clip_that_ends_before_the_rows_of_its_episode_is_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    change = {f"videos/{FRONT}/to_timestamp": 0.7}
    edit_parquet(tmp_path / INDEX, lambda row: row | change if row["episode_index"] else row)
    refused(tmp_path, r"front: expected episode 1 to end at 0.8000 s, found 0.7000 s")


def test_an_index_without_a_column_is_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    column = f"videos/{WRIST}/from_timestamp"
    edit_parquet(tmp_path / INDEX, lambda row: {k: v for k, v in row.items() if k != column})
    refused(tmp_path, "expected a column videos/observation.images.wrist/from_timestamp")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"episode_index": 0}, "episode 1: expected 5 rows with its number in episode_index"),
        ({"index": 3}, "with index counting from 3"),
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


def test_tables_with_too_few_rows_are_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    original = (tmp_path / TABLE).read_bytes()
    edit_parquet(tmp_path / TABLE, lambda row: row if row["index"] < 7 else None)
    refused(tmp_path, "expected 8 rows .* found 7")
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
    with pytest.raises(
        DatasetError, match="action: expected the same number of values in each row"
    ):
        reader.numbers(0, "action")
    episodes[1].extra = {"action": [[1.0, 2.0, 3.0]] * 4 + [None]}
    reader = open_v3(write_v3(tmp_path, episodes, lists="variable"))
    with pytest.raises(
        DatasetError, match="action: expected the same number of values in each row"
    ):
        reader.numbers(0, "action")


def test_a_camera_that_stops_early_is_refused_at_opening(tmp_path):
    plans = {WRIST: VideoPlan(((0, 1),), missing=2)}
    write_v3(tmp_path, tiny_episodes(), plans=plans)
    refused(tmp_path, r"wrist.*: expected 8 frames .* found 6 frames")


def test_a_hole_in_a_video_is_named_by_frame(tmp_path):
    """As many frames as rows, but the camera paused: the header does not show it."""
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


def test_the_size_of_frames_is_that_of_the_files_and_not_what_info_states(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    frames = [counter_frame(step, (80, 96)) for step in range(8)]
    write_video(tmp_path / f"videos/{FRONT}/chunk-000/file-000.mp4", frames)
    reader = open_v3(tmp_path)
    assert reader.frame_size(0, FRONT) == (80, 96)
    assert read_counters(reader.frames(1, 0, 2)[0]) == [3, 4]
    reader.close()


def test_a_depth_camera_is_refused(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"][WRIST]["info"] = {"video.is_depth_map": True}
    write_json(tmp_path / "meta/info.json", info)
    refused(tmp_path, r"found dtype video \(depth\); use one of observation.images.front")


def test_episodes_that_are_not_wanted_need_not_be_there(tmp_path):
    plans = {FRONT: VideoPlan(((0,), (1,), (2,))), WRIST: VideoPlan(((0, 1, 2),))}
    root = write_v3(tmp_path, counted_episodes(3, 4, 5), plans=plans, tables=((0, 1), (2,)))
    for path in (*root.rglob("data/*/file-001.parquet"), *root.glob(f"videos/{FRONT}/*/*-000.*")):
        path.unlink()
    damage = {"length": -1, f"videos/{WRIST}/from_timestamp": float("nan")}
    edit_parquet(root / INDEX, lambda row: row | damage if row["episode_index"] == 2 else row)
    edit_json(root / "meta/info.json", splits={"late": "1:3"})
    reader = open_v3(root, keeps=lambda number: number == 1)
    assert (reader.num_episodes, reader.episode_number(0), reader.episode_length(0)) == (1, 1, 4)
    front, wrist = reader.frames(0, 0, 4)
    assert read_counters(front) == [100, 101, 102, 103]
    assert read_counters(wrist) == [1100, 1101, 1102, 1103]
    assert reader.numbers(0, "action").tolist() == np.arange(12.0).reshape(4, 3).tolist()
    assert reader.subset("late") == (1, 2)
    with pytest.raises(DatasetError, match=r"expected at least one episode .* none of 3"):
        open_v3(root, keeps=lambda number: False)
    reader.close()


def test_metadata_of_macos_next_to_the_index_is_ignored(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    (tmp_path / "meta/episodes/chunk-000/._file-000.parquet").write_bytes(b"\0\5\x16\7")
    assert open_v3(tmp_path).num_episodes == 2


def test_unused_features_may_be_texts_and_splits_missing(tmp_path):
    write_v3(tmp_path, tiny_episodes())
    info = json.loads((tmp_path / "meta/info.json").read_text())
    write_json(
        tmp_path / "meta/info.json",
        info
        | {
            "features": info["features"] | {"language": {"dtype": "string", "shape": [1]}},
            "splits": None,
        },
    )
    reader = open_v3(tmp_path)
    assert "language" not in LeRobotV3Reader.survey(tmp_path).numbers
    with pytest.raises(DatasetError, match=r"expected train as start:stop .* found none"):
        reader.subset("train")
    refused(tmp_path, "expected numbers at language, found dtype string", VIEWS, ("language",))


def test_headers_are_not_read_from_elsewhere(tmp_path):
    root = write_v3(tmp_path / "set", tiny_episodes())
    for name in ("meta/info.json", INDEX):
        (root / name).rename(tmp_path / "outside")
        (root / name).symlink_to(tmp_path / "outside")
        refused(root, f"{name}' inside this folder, .*allow_outside")
        assert LeRobotV3Reader.recognizes(root)  # so that opening names the link
        assert open_v3(root, allow_outside=True).num_episodes == 2
        if name == "meta/info.json":
            with pytest.raises(DatasetError, match="copy the files in"):
                LeRobotV3Reader.survey(root)
        (root / name).unlink()
        (tmp_path / "outside").rename(root / name)
    (tmp_path / "card").write_text("---\nlicense: secret\n---\n")
    (root / "README.md").symlink_to(tmp_path / "card")
    assert LeRobotV3Reader.survey(root).notes == {}
