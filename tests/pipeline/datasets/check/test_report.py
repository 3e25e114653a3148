import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli.data
from pipeline.datasets.check.report import Finding, Findings
from pipeline.errors import ConfigError, DatasetError, ManifestError
from tests.pipeline.datasets.check.clean_files import MANIFEST, ROWS_PER_CHUNK, check, step


def test_a_broken_manifest_is_no_finding(tmp_path):
    with pytest.raises(ManifestError, match="fps"):
        check(tmp_path, manifest=MANIFEST.replace("fps = 10.0\n", ""))


def test_the_document_for_programs_is_stable(tmp_path):
    def plant(arrays):
        arrays["state"][:, 3] = 1

    document = check(tmp_path, plant, episodes=2).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)).keys() == {
        "version",
        "clean",
        "manifest",
        "name",
        "num_episodes",
        "num_steps",
        "seconds",
        "frames_of",
        "views",
        "dims",
        "statements",
        "findings",
        "sheet",
    }
    assert (document["version"], document["clean"]) == (1, False)
    assert document["findings"] == (
        {
            "severity": "warning",
            "kind": "constant",
            "place": "state[3]",
            "found": "always 1, to within 0",
            "to_do": document["findings"][0]["to_do"],
        },
    )


def test_the_table_shows_views_columns_and_findings(tmp_path):
    def plant(arrays):
        arrays["state"][:, 3] = 1

    table = check(tmp_path, plant).table()
    assert "7 episodes, 146 steps, 14.6 s; read the frames of 5 episodes" in table
    assert "front  24x32  102          0.0 ms" in table
    assert "warning: constant: state[3]" in table
    assert table.endswith("1 warning")
    assert check(tmp_path).table().endswith("no problems found")


def test_many_alike_are_counted_and_not_listed():
    findings = Findings()
    for episode in range(1000):
        error = DatasetError(f"episode {episode}: expected a, found b; do c")
        findings.add_error("numbers", f"episode {episode}", error)
    told = findings.all()
    assert len(told) == 21
    assert told[0] == Finding("error", "numbers", "episode 0", "expected a, found b", "do c")
    assert told[-1].found == "980 more of this kind"


def test_the_sheet_shows_first_middle_and_last_frames_of_every_view(tmp_path):
    def plant(arrays):
        for view, color in (
            ("front", (250, 20, 20)),
            ("top", (20, 250, 20)),
            ("wrist", (9, 9, 250)),
        ):
            arrays[view][:, ::2] = color  # still not flat

    report = check(tmp_path, plant, sheet=tmp_path / "sheet.png")
    assert report.sheet == str(tmp_path / "sheet.png")
    picture = np.asarray(Image.open(io.BytesIO((tmp_path / "sheet.png").read_bytes())))
    rows, columns = 3 * 3, 3  # every second of the five episodes, their steps; views
    assert picture.shape == (rows * 242 + 4, columns * 228 + 4, 3)
    for column, color in enumerate([(250, 20, 20), (20, 250, 20), (9, 9, 250)]):
        x = 4 + 228 * column + 10
        for row in range(rows):  # the first pixel row of each frame, enlarged
            assert tuple(picture[4 + 242 * row + 14 + 1, x]) == color
        label = picture[4 : 4 + 14, x - 10 : x + 200]
        assert (label < 128).any()


def test_the_sheet_keeps_frames_as_they_are_and_crosses_those_that_do_not_read(tmp_path):
    def plant(arrays):
        arrays["front"][step(0, 0), :12] = (255, 0, 0)  # the upper half
        arrays["front"][step(0, 0), 12:] = (0, 0, 255)

    def harm(root):
        (root / "data/front" / f"{step(6, 19) // ROWS_PER_CHUNK}.0.0.0").write_bytes(b"no")

    check(tmp_path, plant, harm=harm, episodes=2, sheet=tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert tuple(picture[4 + 14 + 5, 50]) == (255, 0, 0)
    assert tuple(picture[4 + 14 + 160, 50]) == (0, 0, 255)
    last = picture[4 + 242 * 5 + 14 :][:224, 4 : 4 + 224]
    assert set(np.unique(last)) == {0, 255}  # a black cross on white


@pytest.mark.parametrize("name", ["clean.toml", "sheet", "absent/sheet.png"])
def test_a_sheet_without_a_place_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(ConfigError, match=name):
        check(tmp_path, sheet=tmp_path / name)
    assert (tmp_path / "clean.toml").read_text() == MANIFEST


def invoke(*words: object):
    return CliRunner().invoke(cli.data.main, ["check", *map(str, words)])


def test_the_command_ends_with_0_where_nothing_is_found_and_1_where_something_is(tmp_path):
    check(tmp_path)
    manifest = tmp_path / "clean.toml"
    clean = invoke(manifest)
    assert clean.exit_code == 0, clean.stderr
    assert "no problems found" in clean.stdout
    assert "next: vla-embed" in clean.stdout
    sheet = tmp_path / "sheet.png"
    found = invoke(manifest, "--json", "--all", "--sheet", sheet)
    assert found.exit_code == 0
    assert json.loads(found.stdout)["frames_of"] == list(range(7))
    assert sheet.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "clean.zarr/data/top/0.0.0.0").unlink()
    found = invoke(manifest, "--json")
    assert found.exit_code == 1
    document = json.loads(found.stdout)
    assert [finding["kind"] for finding in document["findings"]] == ["unreadable"]
    found = invoke(manifest, "--episodes", "2")
    assert found.exit_code == 1
    assert "next:" not in found.stdout  # what does not read cannot be embedded


def test_the_command_ends_with_2_for_what_cannot_be_checked(tmp_path):
    check(tmp_path)
    for words in (
        (tmp_path / "absent.toml",),
        (tmp_path / "absent",),
        (tmp_path / "clean.toml", "--sheet", tmp_path / "clean.toml"),
        (tmp_path / "clean.toml", "--episodes", "0"),
    ):
        assert invoke(*words).exit_code == 2, words
