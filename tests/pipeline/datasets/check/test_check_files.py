"""What a check tells of datasets of many files, of which some are wrong."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.check import scan as frame_scan
from pipeline.datasets.check.dataset import check_dataset
from pipeline.datasets.check.report import CheckReport
from pipeline.datasets.manifest.reader import ManifestReader

NUMBERS = (3, 9, 12, 15, 40)
NUM_STEPS = 12
MANIFEST = """
name = "files"
source = "random numbers"
revision = "1"
license = "CC0-1.0"
path = "data"
fps = 10.0
resize = [256, 256]

[[views]]
name = "front"
key = "observations/images/front"

[state]
key = "observations/qpos"
units = "none"

[action]
key = "action"
units = "none"
"""


@pytest.fixture
def root(tmp_path):
    """A clean folder in ACT's layout."""
    root = tmp_path / "data"
    root.mkdir()
    numbers = np.random.default_rng(0)
    for number in NUMBERS:
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            file["observations/images/front"] = numbers.integers(
                0, 256, (NUM_STEPS, 24, 32, 3), np.uint8
            )
            file["observations/qpos"] = numbers.normal(size=(NUM_STEPS, 3))
            file["action"] = numbers.normal(size=(NUM_STEPS, 2))
            file.attrs["fps"] = 10.0
    return root


def check(root: Path, manifest: str = MANIFEST, sheet: Path | None = None) -> CheckReport:
    path = root.parent / "files.toml"
    path.write_text(manifest)
    return check_dataset(str(path), sheet=sheet)


def cut_off(root: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        path = root / f"episode_{number}.hdf5"
        path.write_bytes(path.read_bytes()[:300])


def narrow(root: Path, number: int) -> None:
    """Leave out a column of an episode's action."""
    with h5py.File(root / f"episode_{number}.hdf5", "r+") as file:
        action = file["action"][:, :1]
        del file["action"]
        file["action"] = action


def test_nothing_is_found_in_clean_files_which_go_by_their_own_numbers(root):
    report = check(root)
    assert report.is_clean
    assert report.frames_of == NUMBERS


def test_the_sheet_names_episodes_by_the_numbers_of_their_files(root, tmp_path, monkeypatch):
    def labels(manifest: str) -> set[str]:
        told = []
        with monkeypatch.context() as patch:
            real = frame_scan.contact_sheet
            patch.setattr(frame_scan, "contact_sheet", lambda rows: told.append(rows) or real(rows))
            check(root, manifest, tmp_path / "sheet.png")
        return {label for row in told[0] for label, _ in row}

    assert {f"front  episode {number}  step 6" for number in (3, 12, 40)} < labels(MANIFEST)
    several = MANIFEST.replace('path = "data"\n', "")
    several += '[[sources]]\npath = "data"\n[[sources]]\npath = "data"\n'
    assert {f"front  source {source}  episode 3  step 0" for source in (0, 1)} < {
        label.replace("episode 40", "episode 3").replace("step 11", "step 0")
        for label in labels(several)
    }


@pytest.mark.parametrize("bad", [{3}, {40}, {9, 12}, {3, 12, 40}])
def test_every_file_that_does_not_open_is_told_and_the_others_are_checked(root, bad):
    cut_off(root, bad)
    report = check(root)
    assert [(f.severity, f.kind, f.place) for f in report.findings] == [
        ("error", "unreadable", f"episode {number}") for number in sorted(bad)
    ]
    for finding, number in zip(report.findings, sorted(bad), strict=True):
        assert f"episode_{number}.hdf5" in finding.found
    assert report.num_episodes == len(NUMBERS) - len(bad)
    assert set(report.frames_of) == set(NUMBERS) - bad
    assert len(report.dims) == 5


def test_numbers_of_the_first_file_that_do_not_read_do_not_hide_the_others(root):
    with h5py.File(root / "episode_3.hdf5", "r+") as file:
        values = file["action"][:]
        del file["action"]
        chunked = file.create_dataset("action", data=values, chunks=(12, 2), fletcher32=True)
        place = chunked.id.get_chunk_info(0).byte_offset
    path = root / "episode_3.hdf5"
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    report = check(root)
    assert [finding.kind for finding in report.findings] == ["numbers"]
    assert "episode_3.hdf5" in report.findings[0].place
    assert report.num_episodes == len(NUMBERS)
    assert len(report.dims) == 5


def test_only_the_files_that_differ_from_the_first_are_told(root):
    narrow(root, 12)
    narrow(root, 40)
    report = check(root)
    assert [finding.place for finding in report.findings] == ["episode 12", "episode 40"]
    assert all("width 2 of action as in " in finding.found for finding in report.findings)
    assert report.frames_of == (3, 9, 15)


def test_what_all_files_lack_is_told_once(root):
    report = check(root, MANIFEST.replace("images/front", "images/top"))
    [finding] = report.findings
    assert finding.kind == "unreadable"
    assert "observations/images/top" in finding.found
    assert report.num_episodes == 0


def test_a_file_that_is_held_out_and_does_not_open_is_told_as_that_file(root):
    cut_off(root, [9])
    manifest = MANIFEST + "\n[splits]\nvalidation = [9, 40]\n"
    [finding] = check(root, manifest).findings
    assert finding.place == "episode 9"


def test_files_of_each_source_are_told(root):
    cut_off(root, [9])
    manifest = MANIFEST.replace('path = "data"\n', "")
    manifest += '[[sources]]\npath = "data"\n[[sources]]\npath = "data"\nepisodes={except=[40]}\n'
    report = check(root, manifest)
    told = [f.place for f in report.findings if f.kind == "unreadable"]
    assert told == ["sources[0].episode 9", "sources[1].episode 9"]
    assert report.num_episodes == 4 + 3


def test_after_many_bad_files_no_more_are_opened(root):
    for number in range(100, 140):
        (root / f"episode_{number}.hdf5").write_bytes(b"damaged")
    report = check(root, MANIFEST + "\n[splits]\nvalidation = [9, 135]\n")
    assert [finding.place for finding in report.findings] == [
        *(f"episode {number}" for number in range(100, 119)),
        "episodes",
    ]
    assert report.findings[-1].found == "21 more were not opened"
    assert report.num_episodes == len(NUMBERS)


def test_another_rate_is_told_as_that_and_the_rest_is_checked(root):
    narrow(root, 40)
    report = check(root, MANIFEST.replace("fps = 10.0", "fps = 50.0"))
    assert [(f.severity, f.kind) for f in report.findings] == [
        ("error", "unreadable"),
        ("error", "fps"),
    ]
    assert "expected 10 as " in report.findings[1].found
    assert report.num_episodes == 4
    assert report.views[0].num_frames == 4 * NUM_STEPS


def test_every_file_of_another_checksum_is_told(root):
    wrong = {f"episode_{number}.hdf5": "0" * 64 for number in (3, 15, 40)}
    manifest = MANIFEST + "\n[checksums]\n"
    manifest += "".join(f'"{name}" = "{value}"\n' for name, value in wrong.items())
    findings = check(root, manifest).findings
    assert [finding.kind for finding in findings] == ["checksum"] * 3
    for finding, name in zip(findings, wrong, strict=True):
        assert name in finding.found


@pytest.mark.parametrize("shift", [11, -12, 1000])
def test_a_shift_as_long_as_an_episode_is_found(root, shift):
    report = check(root, MANIFEST.replace("resize", f"action_shift = {shift}\nresize"))
    findings = [finding for finding in report.findings if finding.kind == "shift"]
    assert len(findings) == len(NUMBERS)
    assert findings[0].severity == "error"
    assert f"`action_shift` of {shift} gives all 12 steps the same action" in findings[0].found
    report = check(root, MANIFEST.replace("resize", "action_shift = -1\nresize"))
    assert report.is_clean


def test_frames_are_read_in_blocks_of_few_bytes(root, monkeypatch):
    """A block holds at least one step; nothing depends on where blocks end."""
    asked = []
    real = ManifestReader.frames

    def frames(self, episode, start, stop):
        asked.append(stop - start)
        return real(self, episode, start, stop)

    monkeypatch.setattr(ManifestReader, "frames", frames)
    reports = []
    for num_bytes in (1, 5 * 24 * 32 * 3, 2**25):
        monkeypatch.setattr(frame_scan, "_BLOCK_BYTES", num_bytes)
        reports.append(check(root))
    assert asked == [1] * 12 * 5 + [5, 5, 2] * 5 + [12] * 5
    assert reports[0] == reports[1] == reports[2]
