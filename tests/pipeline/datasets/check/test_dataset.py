import re

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.check.columns import check_columns
from pipeline.datasets.check.dataset import check_dataset
from pipeline.datasets.check.report import Findings
from tests.pipeline.datasets.check.clean_files import (
    ENDS,
    MANIFEST,
    ROWS_PER_CHUNK,
    SIZES,
    check,
    clean_arrays,
    only,
    step,
)
from tests.pipeline.datasets.lerobot.lerobot_files import FRONT as LEFT
from tests.pipeline.datasets.lerobot.lerobot_files import WRIST as RIGHT
from tests.pipeline.datasets.lerobot.lerobot_files import VideoPlan, counted_episodes, write_v3


def test_nothing_is_found_in_clean_data(tmp_path):
    report = check(tmp_path)
    assert report.findings == ()
    assert report.is_clean
    assert (report.num_episodes, report.num_steps) == (7, 146)
    assert report.frames_of == (0, 2, 3, 4, 6)  # spread evenly, the first and the last among them
    assert [(view.name, view.sizes, view.num_frames) for view in report.views] == [
        (view, (size,), 20 + 20 + 22 + 20 + 20) for view, size in SIZES.items()
    ]
    assert report.seconds == pytest.approx(14.6)
    assert check(tmp_path, episodes=None).frames_of == tuple(range(7))
    assert check(tmp_path, episodes=1).frames_of == (0,)
    assert check(tmp_path, episodes=99).is_clean


def test_the_numbers_of_all_episodes_are_summed_up(tmp_path):
    report = check(tmp_path, episodes=1)
    arrays = clean_arrays()
    wanted = np.concatenate([arrays["state"], arrays["action"]], axis=1).astype(np.float32)
    assert [dim.name for dim in report.dims] == [
        *(f"state[{i}]" for i in range(4)),
        *(f"action[{i}]" for i in range(3)),
    ]
    got = [(dim.minimum, dim.maximum, dim.mean, dim.std) for dim in report.dims]
    wide = wanted.astype(np.float64)
    oracle = np.stack([wide.min(0), wide.max(0), wide.mean(0), wide.std(0)], axis=1)
    np.testing.assert_allclose(got, oracle, rtol=1e-9, atol=1e-12)


def test_column_statistics_do_not_lose_digits_far_from_zero():
    values = (1e4 + np.random.default_rng(0).normal(size=(300, 2))).astype(np.float32)
    episodes = {i: (f"episode {i}", part) for i, part in enumerate(np.array_split(values, 7))}
    got = [dim.std for dim in check_columns("state", episodes, Findings())]
    np.testing.assert_allclose(got, values.astype(np.float64).std(0), rtol=1e-9)


# Planted defects, one by one.


def test_a_missing_file_is_found(tmp_path):
    finding = only(check(tmp_path, harm=lambda root: (root / "data/top/0.0.0.0").unlink()))
    assert (finding.severity, finding.kind) == ("error", "unreadable")
    assert "data/top" in finding.found
    assert "0.0.0.0" in finding.found


def test_a_dataset_that_is_not_there_is_found(tmp_path):
    report = check(tmp_path, manifest=MANIFEST.replace("clean.zarr", "other.zarr"))
    assert only(report).kind == "unreadable"
    assert "other.zarr" in only(report).found
    assert report.num_episodes == 0


def test_a_view_with_fewer_frames_than_steps_is_found(tmp_path):
    def plant(arrays):
        arrays["wrist"] = arrays["wrist"][:-1]

    finding = only(check(tmp_path, plant))
    assert finding.kind == "unreadable"
    assert "data/wrist: expected 146 rows" in finding.found
    assert "found 145" in finding.found


def test_a_frame_that_does_not_decode_is_found_with_its_episode(tmp_path):
    def harm(root):
        chunk = root / "data/front" / f"{step(2, 12) // ROWS_PER_CHUNK}.0.0.0"
        chunk.write_bytes(chunk.read_bytes()[:-50])

    report = check(tmp_path, harm=harm, sheet=tmp_path / "sheet.png")
    assert (only(report).severity, only(report).kind) == ("error", "frames")
    assert only(report).place.endswith("episode 2")
    assert "data/front" in only(report).found
    assert report.views[1].num_frames == 20 + 22 + 20 + 20  # the others were read to their ends


def test_a_file_that_differs_from_its_checksum_is_found(tmp_path):
    checksums = 'checksums = {"data/state/.zarray" = "' + "0" * 64 + '"}\nresize'
    finding = only(check(tmp_path, manifest=MANIFEST.replace("resize", checksums)))
    assert (finding.severity, finding.kind) == ("error", "checksum")
    assert "data/state/.zarray" in f"{finding.place} {finding.found}"


@pytest.mark.parametrize(
    ("key", "value"), [("state", np.nan), ("action", np.inf), ("state", 1e300)]
)
def test_a_number_that_is_not_finite_is_found_in_any_episode(tmp_path, key, value):
    def plant(arrays):
        arrays[key][step(5, 7), 1] = value  # an episode whose frames are not read

    finding = only(check(tmp_path, plant, episodes=1))
    assert (finding.severity, finding.kind) == ("error", "numbers")
    assert finding.place.endswith("episode 5")
    assert "step 7, dim 1" in finding.found


@pytest.mark.parametrize(
    ("key", "noise", "kind"),
    [("state", 0, "constant"), ("action", 2e-5, "constant"), ("state", 4e-4, "tiny_spread")],
)
def test_a_column_that_hardly_changes_is_found(tmp_path, key, noise, kind):
    def plant(arrays):
        arrays[key][:, 2] = 0.5 + noise * np.random.default_rng(0).uniform(-1, 1, ENDS[-1])

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind, finding.place) == ("warning", kind, f"{key}[2]")
    assert "0.5" in finding.found


@pytest.mark.parametrize(
    ("level", "kind"), [(0, "black"), (9, "black"), (128, "flat"), (255, "flat")]
)
def test_a_frame_that_shows_nothing_is_found_with_its_step(tmp_path, level, kind):
    def plant(arrays):
        arrays["top"][step(3, 4) : step(3, 6)] = level

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind, finding.place) == ("error", kind, "view top")
    assert finding.found.startswith("2 of 102 frames are")
    assert finding.found.endswith("episode 3, step 4")


def test_a_camera_that_stands_still_is_found(tmp_path):
    def plant(arrays):
        arrays["wrist"][step(4, 8) : step(4, 16)] = arrays["wrist"][step(4, 8)]

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind, finding.place) == ("warning", "repeated", "view wrist")
    assert "7 of 97 moves of the robot changed no pixel" in finding.found
    assert "7 frames in a row up to" in finding.found
    assert "episode 4, step 15" in finding.found


def test_a_camera_of_half_the_rate_is_found(tmp_path):
    def plant(arrays):
        arrays["front"][1::2] = arrays["front"][::2]

    finding = only(check(tmp_path, plant))
    assert (finding.kind, finding.place) == ("repeated", "view front")
    assert "51 of 97" in finding.found


def test_frames_may_repeat_while_the_robot_stands_still(tmp_path):
    def plant(arrays):
        for key in ("front", "top", "wrist", "state"):
            arrays[key][step(4, 8) : step(4, 16)] = arrays[key][step(4, 8)]

    assert check(tmp_path, plant).is_clean


def test_two_views_of_the_same_camera_are_found(tmp_path):
    def plant(arrays):
        arrays["wrist"] = arrays["front"].copy()

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("error", "same_view")
    assert finding.place == "views front and wrist"


def test_the_same_camera_in_another_size_and_a_little_noise_is_found(tmp_path):
    def plant(arrays):
        coarse = [Image.fromarray(frame[::3, ::4]) for frame in arrays["front"]]  # 8x8 pixels
        noise = np.random.default_rng(1)
        for view, size in (("front", (128, 96)), ("top", (160, 120))):
            images = [image.resize(size, Image.Resampling.BICUBIC) for image in coarse]
            frames = np.minimum(np.stack(list(map(np.asarray, images))), 250)
            arrays[view] = frames + noise.integers(0, 4, frames.shape, np.uint8)

    assert only(check(tmp_path, plant)).place == "views front and top"


def test_a_size_that_nobody_allowed_is_found(tmp_path):
    report = check(tmp_path, manifest=MANIFEST.replace("resize = [256, 256]\n", ""))
    assert [(f.severity, f.kind, f.place) for f in report.findings] == [
        ("error", "size", f"view {view}") for view in SIZES
    ]
    assert "24x32" in report.findings[0].found
    assert "resize = [256, 256]" in report.findings[0].to_do


def test_a_rate_that_differs_from_the_clock_is_found(tmp_path):
    report = check(tmp_path, manifest=MANIFEST.replace("fps = 10.0", "fps = 30.0"))
    assert {(f.severity, f.kind) for f in report.findings} == {("error", "fps")}
    assert len(report.findings) == 7
    assert "10 steps per second from the first" in report.findings[0].found


@pytest.mark.parametrize("fps", [30.0, 60.0, 24.0])
def test_a_clock_that_is_rounded_has_the_rate_of_its_first_and_last_time(tmp_path, fps):
    """Hundredths of a second: the usual step of 30 Hz is 0.03 s, which is no rate of 33 Hz."""

    def plant(arrays):
        arrays["timestamp"] = np.round((arrays["timestamp"] - 1e9) * 10 / fps, 2)

    assert check(tmp_path, plant, MANIFEST.replace("fps = 10.0", f"fps = {fps}")).is_clean
    report = check(tmp_path, plant, MANIFEST.replace("fps = 10.0", f"fps = {1.1 * fps:.4f}"))
    assert {finding.kind for finding in report.findings} == {"fps"}


def test_an_uneven_clock_of_the_right_rate_is_told_as_uneven(tmp_path):
    """Steps that arrive two at a time."""

    def plant(arrays):
        arrays["timestamp"][step(2, 1) : step(3, 0) : 2] += 0.07

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("warning", "jitter")
    assert "steps between 0.03 and 0.17 s" in finding.found


def test_a_gap_does_not_change_the_rate_between_gaps(tmp_path):
    def plant(arrays):
        arrays["timestamp"][step(1, 9) : step(2, 0)] += 30

    assert only(check(tmp_path, plant)).kind == "clock"


def test_a_clock_that_runs_back_is_found(tmp_path):
    def plant(arrays):
        arrays["timestamp"][step(1, 9)] -= 5

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("error", "clock")
    assert finding.place.endswith("episode 1")
    assert finding.found.endswith("at step 9")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda times: times.astype(np.float32), "time goes from 0 s to 0 s at step 1"),
        (lambda times: (times - 1e9) * 1000, "times are milliseconds"),
    ],
)
def test_a_clock_of_another_unit_or_too_coarse_is_named(tmp_path, change, found):
    def plant(arrays):
        arrays["timestamp"] = change(arrays["timestamp"] + 7e8)

    report = check(tmp_path, plant)
    assert {finding.kind for finding in report.findings} == {"clock"}
    assert found in report.findings[0].found


def test_a_gap_in_the_recording_is_found(tmp_path):
    def plant(arrays):
        arrays["timestamp"][step(1, 9) : step(2, 0)] += 0.35

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("warning", "clock")
    assert "1 gaps of up to 0.45 s, the first before step 9" in finding.found


def test_frames_that_drift_away_from_their_steps_are_found(tmp_path):
    """Offsets of the second episode in one camera's video are off by 0.4 of a step."""
    episodes = counted_episodes(20, 24)
    episodes[0].frames[LEFT][0] = episodes[0].frames[LEFT][-1]  # the counter 0 is one flat color
    plans = {LEFT: VideoPlan(((0, 1),), drift_s=0.04)}
    write_v3(tmp_path / "clean.zarr", episodes, plans=plans)
    manifest = re.sub(r"\n\[\[views\]\](\n.+)+", "", MANIFEST).replace(
        "diffusion_policy_zarr", "lerobot_v3"
    )
    for name, key in (("left", LEFT), ("right", RIGHT)):
        manifest += f'\n[[views]]\nname = "{name}"\nkey = "{key}"\n'
    manifest = manifest.replace("data/state", "observation.state").replace("data/action", "action")
    (tmp_path / "clean.toml").write_text(manifest)
    finding = only(check_dataset(str(tmp_path / "clean.toml")))
    assert (finding.severity, finding.kind, finding.place) == ("warning", "drift", "view left")
    assert "up to 40.0 ms" in finding.found


def test_an_episode_that_is_there_twice_is_found(tmp_path):
    def plant(arrays):
        for values in arrays.values():
            values[step(5, 0) : step(6, 0)] = values[step(2, 0) : step(3, 0)]

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind) == ("warning", "duplicate")
    assert finding.place.endswith("episode 5")
    assert finding.found.endswith("episode 2")


def test_actions_that_are_copies_of_their_states_are_found_and_the_next_states_are_none(tmp_path):
    def plant(arrays):
        arrays["action"] = arrays["state"]

    finding = only(check(tmp_path, plant))
    assert (finding.severity, finding.kind, finding.place) == ("warning", "shift", "action")
    assert "`action_shift = -1`" in finding.to_do
    mended = MANIFEST.replace("fps = 10.0", "fps = 10.0\naction_shift = -1")
    assert check(tmp_path, plant, mended).is_clean


def test_several_defects_are_all_told_errors_first(tmp_path):
    def plant(arrays):
        arrays["state"][:, 0] = 1
        arrays["action"][step(0, 3), 0] = np.nan
        arrays["front"][step(0, 5)] = 0

    report = check(tmp_path, plant)
    assert [finding.kind for finding in report.findings] == ["numbers", "black", "constant"]
