"""LeRobot v2.1 and v2.0: the contract, and what only their layout can get wrong."""

import pytest

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.v2 import LeRobotV2Reader
from pipeline.datasets.lerobot.v3 import LeRobotV3Reader
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.format_contract import FormatContract, tiny_frames
from tests.pipeline.datasets.lerobot.lerobot_files import (
    FRONT,
    WRIST,
    counted_episodes,
    counter_frames,
    edit_json,
    edit_parquet,
    read_counters,
    tiny_episodes,
    tiny_image_episodes,
    write_v2,
    write_video,
)

VIEWS = (FRONT, WRIST)
NUMBERS = ("observation.state", "action")


def open_v2(root, **place):
    return LeRobotV2Reader(DatasetConfig(root, VIEWS, NUMBERS, **place))


def refused(root, match):
    with pytest.raises(DatasetError, match=match) as caught:
        open_v2(root)
    assert "\n" not in str(caught.value)


class TestLeRobotV21Av1(FormatContract):
    lossless = False
    tolerance = 6.0  # levels, what the coarse settings of the fixtures cost at block borders
    view_keys = VIEWS
    state_key, action_key = NUMBERS

    def frames(self, episode, view):
        return counter_frames(episode, f"observation.images.{view}")

    def make_reader(self, root):
        return open_v2(write_v2(root, tiny_episodes(), codec="av1"))


class TestLeRobotV20Images(FormatContract):
    view_keys = VIEWS
    state_key, action_key = NUMBERS

    def frames(self, episode, view):
        return tiny_frames(episode, view)

    def make_reader(self, root):
        episodes = tiny_image_episodes()
        return open_v2(write_v2(root, episodes, version="v2.0", image_keys=VIEWS, lists="variable"))


@pytest.mark.parametrize("codec", ["av1", "h264", "mpeg4"])
def test_every_step_gets_its_own_frame(tmp_path, codec):
    lengths = (20, 7)
    reader = open_v2(write_v2(tmp_path, counted_episodes(*lengths), codec=codec))
    for episode, length in [*enumerate(lengths), (0, 20)]:
        for start, stop in [(0, length), (length - 3, length), (2, 5)]:
            front, wrist = reader.frames(episode, start, stop)
            want = [100 * episode + step for step in range(start, stop)]
            assert read_counters(front) == want
            assert read_counters(wrist) == [1000 + number for number in want]
    assert reader.frame_drift(1, FRONT) == pytest.approx(0, abs=5e-5)  # the file's clock is finer
    reader.close()


def test_files_are_where_the_templates_and_chunks_say(tmp_path):
    write_v2(tmp_path, counted_episodes(3, 4))
    (tmp_path / "data/chunk-001").mkdir()
    (tmp_path / "data/chunk-000/episode_000001.parquet").rename(tmp_path / "data/chunk-001/1.pq")
    (tmp_path / "data/chunk-000/episode_000000.parquet").rename(tmp_path / "data/chunk-000/0.pq")
    for key in VIEWS:
        for number in (0, 1):
            old = tmp_path / f"videos/chunk-000/{key}/episode_00000{number}.mp4"
            old.rename(tmp_path / f"{key}-{number}.mp4")
    edit_json(
        tmp_path / "meta/info.json",
        chunks_size=1,
        data_path="data/chunk-{episode_chunk:03d}/{episode_index}.pq",
        video_path="{video_key}-{episode_index}.mp4",
    )
    reader = open_v2(tmp_path)
    assert read_counters(reader.frames(1, 0, 4)[0]) == [100, 101, 102, 103]
    assert reader.episode_name(1) == f"{tmp_path}/data/chunk-001/1.pq: episode 1"
    reader.close()


def test_it_is_recognized_whatever_its_minor_version(tmp_path):
    for version in ("v2.0", "v2.1"):
        write_v2(tmp_path, tiny_episodes(), version=version)
        assert LeRobotV2Reader.recognizes(tmp_path)
        assert not LeRobotV3Reader.recognizes(tmp_path)
        assert LeRobotV2Reader.survey(tmp_path).fps == 10
    edit_json(tmp_path / "meta/info.json", codebase_version="v1.6")
    assert LeRobotV2Reader.recognizes(tmp_path)  # so that opening names the version
    refused(tmp_path, r"expected v2\.1 or v2\.0, found v1\.6; correct `format` .* or convert")


def test_the_index_may_be_in_any_order_and_lack_what_is_not_wanted(tmp_path):
    write_v2(tmp_path, counted_episodes(3, 4, 5))
    index = tmp_path / "meta/episodes.jsonl"
    first, second, third = index.read_text().splitlines()
    index.write_text(f"{third}\n{first}\n\n{second}\n")
    assert open_v2(tmp_path).episode_length(2) == 5
    empty = '{"episode_index": 1, "length": 0}'
    for lines, match in [
        ([first, third], "expected one row for episode 1 of 3, found 0"),
        ([first, second[:12], third], "expected one row for episode 1 of 3, found 0"),
        ([first, second, second, third], "expected one row for episode 1 of 3, found 2"),
        ([first, empty, third], "episode 1: length: Input should be greater than 0"),
    ]:
        index.write_text("\n".join(lines))
        refused(tmp_path, rf"episodes\.jsonl: {match}")
        reader = open_v2(tmp_path, keeps=lambda number: number != 1)
        assert reader.episode_length(1) == 5
    index.unlink()
    refused(tmp_path, r"episodes\.jsonl: expected the index")
    index.write_text(first.replace(",", ",\n").replace("{", "{\n").replace("}", "\n}"))
    refused(tmp_path, r"episodes\.jsonl: expected one row for episode 0 of 3, found 0")


def test_missing_files_are_named_with_their_episodes(tmp_path):
    write_v2(tmp_path, tiny_episodes())
    (tmp_path / f"videos/chunk-000/{WRIST}/episode_000001.mp4").unlink()
    refused(tmp_path, r"expected 6 files .* 1 of them missing: .*001\.mp4 \(episode 1\); download")


@pytest.mark.parametrize("num_frames", [4, 1])
def test_a_camera_that_stops_early_is_refused_at_opening(tmp_path, num_frames):
    write_v2(tmp_path, tiny_episodes())
    path = tmp_path / f"videos/chunk-000/{WRIST}/episode_000001.mp4"
    write_video(path, counter_frames(1, WRIST)[:num_frames])
    refused(tmp_path, f"wrist: expected 5 frames .* found {num_frames} frames")


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_frame_too_many_is_refused_because_it_shifts_the_others(tmp_path, place):
    """A file is one episode: nothing else can be between its frames."""
    write_v2(tmp_path, tiny_episodes())
    path = tmp_path / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    frames = counter_frames(1, FRONT)
    extra = frames[:1] if place == "first" else frames[-1:]
    write_video(path, [*extra, *frames] if place == "first" else [*frames, *extra])
    refused(
        tmp_path,
        "front: expected 5 frames for episode 1, one per row, found 6: frames cannot be assigned",
    )
    write_video(path, counter_frames(1, FRONT, 10), fps=20)  # twice the rate
    refused(tmp_path, "front: expected 5 frames for episode 1, one per row, found 10")
    assert open_v2(tmp_path, keeps=lambda number: number != 1).num_episodes == 1


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path):
    write_v2(tmp_path, tiny_episodes())
    path = tmp_path / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    write_video(path, counter_frames(1, FRONT, 8), options={"g": "1"})
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 4  # version and flags, count, then duration and media time
    time_scale = int.from_bytes(content[content.index(b"mdhd") + 16 :][:4])
    length_ms = int.from_bytes(content[place + 8 : place + 12]) * 5 // 8
    content[place + 8 : place + 12] = length_ms.to_bytes(4)
    content[place + 12 : place + 16] = (time_scale * 3 // 10).to_bytes(4)
    path.write_bytes(content)
    reader = open_v2(tmp_path)
    assert read_counters(reader.frames(1, 0, 5)[0]) == [103, 104, 105, 106, 107]
    reader.close()


def test_a_camera_of_another_rate_is_named_by_frame(tmp_path):
    write_v2(tmp_path, tiny_episodes())
    path = tmp_path / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    write_video(path, counter_frames(1, FRONT, 5), fps=5)
    reader = open_v2(tmp_path)
    assert read_counters(reader.frames(0, 0, 1)[0]) == [0]
    with pytest.raises(FrameReadError, match=r"episode 1: .*front: frame 1: expected a frame"):
        reader.frames(1, 0, 5)
    assert read_counters(reader.frames(0, 1, 3)[0]) == [1, 2]  # the file of episode 0 again
    reader.close()


def test_a_table_of_another_episode_or_length_is_refused(tmp_path):
    write_v2(tmp_path, tiny_episodes())
    path = tmp_path / "data/chunk-000/episode_000001.parquet"
    original = path.read_bytes()
    edit_parquet(path, lambda row: row | {"episode_index": 0})
    with pytest.raises(DatasetError, match="episode 1: expected 5 rows with its number"):
        open_v2(tmp_path).numbers(1, "action")
    path.write_bytes(original)
    edit_parquet(path, lambda row: row if row["frame_index"] < 4 else None)
    refused(tmp_path, r"000001\.parquet: expected 5 rows for episode 1, .* found 4")
    path.write_bytes(original)
    edit_json(tmp_path / "meta/info.json", data_path="data/chunk-000/episode_000001.parquet")
    refused(tmp_path, "expected 8 rows .* found 5")


def test_an_unfinished_table_is_named(tmp_path):
    write_v2(tmp_path, tiny_episodes())
    path = tmp_path / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    refused(tmp_path, r"000001\.parquet: expected a parquet file, .*was not finished")


def test_links_out_of_the_dataset_need_permission(tmp_path):
    root = write_v2(tmp_path / "set", tiny_episodes())
    path = root / f"videos/chunk-000/{FRONT}/episode_000000.mp4"
    path.rename(tmp_path / "elsewhere.mp4")
    path.symlink_to(tmp_path / "elsewhere.mp4")
    refused(root, "allow_outside")
    reader = open_v2(root, allow_outside=True)
    assert read_counters(reader.frames(0, 0, 3)[0]) == [0, 1, 2]
    reader.close()


def test_episodes_that_are_not_wanted_need_not_be_there(tmp_path):
    write_v2(tmp_path, counted_episodes(3, 4, 5))
    edit_json(tmp_path / "meta/info.json", splits={"late": "1:3"})
    for path in tmp_path.rglob("episode_000000.*"):
        path.unlink()
    (tmp_path / f"videos/chunk-000/{WRIST}/episode_000002.mp4").write_bytes(b"damaged")
    refused(tmp_path, r"3 of them missing: .*episodes = \{only = \[\.\.\]\}")
    reader = open_v2(tmp_path, keeps=lambda number: number == 1)
    assert (reader.num_episodes, reader.episode_number(0), reader.episode_length(0)) == (1, 1, 4)
    assert read_counters(reader.frames(0, 0, 4)[0]) == [100, 101, 102, 103]
    assert reader.subset("late") == (1, 2)
    with pytest.raises(DatasetError, match=r"expected at least one episode .* none of 3"):
        open_v2(tmp_path, keeps=lambda number: number > 2)
    reader.close()


def test_the_index_is_not_read_from_elsewhere(tmp_path):
    root = write_v2(tmp_path / "set", tiny_episodes())
    for name in ("meta/info.json", "meta/episodes.jsonl"):
        content = (root / name).read_bytes()
        (tmp_path / "outside").write_bytes(content)
        (root / name).unlink()
        (root / name).symlink_to(tmp_path / "outside")
        refused(root, f"{name}' inside this folder, .*allow_outside")
        assert open_v2(root, allow_outside=True).num_episodes == 2
        (root / name).unlink()
        (root / name).write_bytes(content)
