"""Videos: the right frame whatever the order of reading, true colors, and refusals of damage."""

from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.datasets.video import VideoDecoder, match_frames, read_header
from pipeline.errors import DatasetError, FrameReadError
from tests.pipeline.datasets.lerobot.lerobot_files import (
    CODECS,
    counter_frame,
    read_counters,
    write_video,
)

SIZE = (64, 96)
OPEN_GOP = {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}


def numbered(count, size=SIZE):
    return [counter_frame(number, size) for number in range(count)]


def decode(decoder, *positions):
    return decoder.frames(np.array(positions, np.int64), "here", 0)


def all_frames(path):
    """The oracle: every frame in order, by PyAV alone and in one thread."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("codec", [*CODECS, "open"])
def test_frames_are_the_same_in_any_order_of_reading(tmp_path, codec):
    name, options = ("h264", OPEN_GOP) if codec == "open" else (codec, {})
    path = write_video(tmp_path / "a.mp4", numbered(120), codec=name, options=options)
    want = all_frames(path)
    assert read_counters(want) == list(range(120))
    decoder = VideoDecoder(path, SIZE, num_threads=2)
    random = np.random.default_rng(0)
    requests = [np.sort(random.choice(120, size, replace=False)) for size in (1, 2, 5, 1, 9) * 4]
    requests += [np.arange(start, start + 3) for start in range(0, 117, 3)]
    for positions in [[119], [119], [0], [118], [3], [3, 117], *requests]:
        np.testing.assert_array_equal(decode(decoder, *positions), [want[p] for p in positions])
    assert decode(decoder).shape == (0, *SIZE, 3)
    decoder.close()
    np.testing.assert_array_equal(decode(decoder, 7), [want[7]])
    decoder.close()


@pytest.mark.parametrize(("start", "stride"), [(0, 1000), (3000, 1000), (0, 1700)])
def test_times_are_those_that_were_written(tmp_path, start, stride):
    """The clock of the file may start late and run unevenly with the rate."""
    ticks = [start + stride * step for step in range(8)]
    path = write_video(tmp_path / "a.mp4", numbered(8), ticks=ticks, codec="h264")
    decoder = VideoDecoder(path, SIZE, num_threads=2)
    # 1e-4 s: the clock of an MP4 has ticks
    np.testing.assert_allclose(decoder.clock.seconds, np.array(ticks) / 1e4, atol=1e-4)
    assert read_counters(decode(decoder, 2, 5)) == [2, 5]
    header = read_header(path)
    assert (header.size, header.num_frames) == (SIZE, 8)
    assert header.end_s > (ticks[-1]) / 1e4
    decoder.close()


@pytest.mark.parametrize("matrix", [None, 1, 5])  # unspecified, BT.709, BT.601
@pytest.mark.parametrize("color_range", [1, 2])  # limited, full
def test_colors_follow_the_matrix_and_the_range_of_the_file(tmp_path, matrix, color_range):
    colors = np.array([[200, 30, 60], [20, 180, 90], [40, 60, 220], [250, 250, 250], [9, 9, 9]])
    pixels = np.repeat(np.repeat(colors[None, :, :], 64, 0), 16, 1).astype(np.uint8)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv444p"
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = color_range
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame = frame.reformat(
            format="yuv444p",
            dst_colorspace=5 if matrix is None else matrix,
            dst_color_range=color_range,
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    decoder = VideoDecoder(path, (64, 80), num_threads=2)
    middles = decode(decoder, 0)[0, 32, 8::16].astype(int)
    # 4 levels: two roundings to 8 bits and the codec; a wrong matrix costs 15 and more
    assert np.abs(middles - colors).max() <= 4, middles
    decoder.close()


def test_matching_takes_the_nearest_frame():
    """Against a search through all frames, for clocks with jitter."""
    random = np.random.default_rng(3)
    for count in (1, 2, 3, 50):
        shown = np.arange(count) / 10 + random.uniform(-0.02, 0.02, count)
        wanted = (np.arange(count) / 10 + random.uniform(-0.02, 0.02, count))[: count // 2 + 1]
        want = [int(np.abs(shown - second).argmin()) for second in wanted]
        assert match_frames(shown, wanted, 10.0, "here").tolist() == want


@pytest.mark.parametrize(
    ("shown", "wanted", "match"),
    [
        ([], [0.0], "expected frames, found none"),
        ([0.0], [0.0, 0.1], r"frame 1: .* within 0\.05 s of 0\.1000 s.* `timestamp`,"),
        ([0.0, 0.1], [0.0, 0.16], r"frame 1: .*nearest of 2 at 0\.1000 s \(1 of 2 steps"),
        ([0.0, 0.1, 0.2], [-0.06, 0.1], "frame 0: expected a frame within"),
        ([0.0, 0.1, 0.2], [0.0, np.nan, 0.2], "frame 1: expected a frame within"),
        ([0.0, 0.1, 0.2], [0.0, 0.06, 0.14], "frame 2: expected a frame later than that of step 1"),
        ([0.0, 0.1, 0.2], [0.1, 0.0], "frame 1: expected a frame later than that of step 0"),
    ],
)
def test_steps_without_a_frame_of_their_own_are_named(shown, wanted, match):
    with pytest.raises(FrameReadError, match=f"^here: .*{match}|^here: {match}"):
        match_frames(np.array(shown), np.array(wanted), 10.0, "here")


def test_half_a_step_is_the_farthest_that_is_taken():
    shown = np.arange(4) / 10
    assert match_frames(shown, shown[:3] + 0.0499, 10.0, "here").tolist() == [0, 1, 2]
    with pytest.raises(FrameReadError, match="frame 3"):
        match_frames(shown, shown + 0.0501, 10.0, "here")


@pytest.mark.parametrize("codec", CODECS)
def test_damage_inside_a_video_is_an_error_and_not_a_patched_frame(tmp_path, codec):
    path = write_video(tmp_path / "a.mp4", numbered(120), codec=codec)
    want = all_frames(path)
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"moov")) // 2
    middle = max(middle, len(content) // 3)
    for place in range(middle, middle + 120):
        content[place] ^= 0x5A
    path.write_bytes(content)
    decoder = VideoDecoder(path, SIZE, num_threads=2)
    with pytest.raises(
        FrameReadError, match=r"here: frame \d+: expected a readable frame"
    ) as error:
        decoder.frames(np.arange(120), "here", 0)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(decode(decoder, 0), [want[0]])  # what is whole still reads
    decoder.close()


def patched_or_refused(path, strictness):
    """The oracle: whether FFmpeg in one thread fails, or marks a frame as patched from others."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        container.streams.video[0].codec_context.options = {"err_detect": strictness}
        try:
            return any(frame.is_corrupt for frame in container.decode(video=0))
        except av.FFmpegError:
            return True


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_no_frame_is_patched_from_its_neighbors(tmp_path, codec):
    """One byte is damaged in one frame after another; left alone, the decoders hide it."""
    path = write_video(tmp_path / "a.mp4", numbered(60), codec=codec)
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    num_marked = 0
    for place in [pos + size // part for pos, size in packets[10:40] for part in (2, 3)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        if any(patched_or_refused(path, strictness) for strictness in ("compliant", "explode")):
            num_marked += 1
            decoder = VideoDecoder(path, SIZE, num_threads=2)
            with pytest.raises(FrameReadError):
                decode(decoder, *range(60))
            decoder.close()
    assert num_marked > 10


def test_files_that_are_cut_off_or_no_videos_are_refused_at_opening(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(40))
    content = path.read_bytes()
    for name, part, match in [
        ("cut", content[: len(content) // 2], "expected a complete MP4 video"),
        ("empty", b"", "expected a complete MP4 video"),
        ("text", b"not a video", "expected a complete MP4 video"),
    ]:
        bad = tmp_path / f"{name}.mp4"
        bad.write_bytes(part)
        with pytest.raises(DatasetError, match=f"{name}.mp4: {match}") as error:
            read_header(bad)
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match=r"absent\.mp4"):
        read_header(tmp_path / "absent.mp4")


def fast_start(path, count):
    """Write a video whose table of contents comes first, so that it opens although cut off."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in numbered(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_that_is_cut_off_behind_its_table_of_contents_is_refused(tmp_path):
    path = fast_start(tmp_path / "a.mp4", 40)
    assert read_header(path).num_frames == 40
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    with pytest.raises(DatasetError, match=rf"found .* cut off before byte {len(content)}"):
        read_header(path)
    with pytest.raises(DatasetError, match=r"a\.mp4: expected a complete MP4 video"):
        decode(VideoDecoder(path, SIZE, num_threads=2), 0)


def test_a_file_without_video_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DatasetError, match=r"sound\.mp4: .*without a video"):
        read_header(path)


def test_a_video_that_asks_to_be_turned_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(4))
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 36  # after type, version, and 36 bytes of fields
    one = (1 << 16).to_bytes(4, "big")
    assert content[matrix : matrix + 4] == one
    quarter = [bytes(4), one, bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)]
    content[matrix : matrix + 20] = b"".join(quarter)
    path.write_bytes(content)
    with pytest.raises(
        FrameReadError, match=r"frame 0: expected an upright frame .* rotate by -?[1-9]\S* degrees"
    ):
        decode(VideoDecoder(path, SIZE, num_threads=2), 0)


def test_frames_of_another_size_than_expected_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(4))
    with pytest.raises(FrameReadError, match=r"frame 0: .* of 96x64 pixels .* found 64x96"):
        decode(VideoDecoder(path, (96, 64), num_threads=2), 0)
