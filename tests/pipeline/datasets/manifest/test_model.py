import re
from pathlib import Path

import pytest

from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.datasets.manifest.parts import ArraySource, DataSource, Splits, ViewSource
from pipeline.errors import ManifestError
from policy.errors import VlaError

TEXT = """
name = "towel"
source = "our laboratory"
revision = "2026-03"
license = "CC-BY-4.0"
format = "aloha_hdf5"
path = "data"
fps = 50

[[views]]
name = "top"
key = "observations/images/cam_high"

[[views]]
name = "left"
key = "observations/images/cam_left_wrist"

[state]
key = "observations/qpos"
units = "radians"

[action]
key = "action"
units = "radians"
"""


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "towel.toml"
    path.write_text(text)
    return path


def described(path: Path) -> Manifest:
    return load_manifest(path).manifest


def problem_of(folder: Path, text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'towel.toml'}: ")
    return message


def test_a_manifest_is_read_as_written(tmp_path):
    manifest = described(write(tmp_path))
    assert manifest.view_names == ("top", "left")
    assert manifest.views[1].key == "observations/images/cam_left_wrist"
    assert manifest.state.key == ("observations/qpos",)
    assert manifest.fps == 50.0
    assert manifest.resize is None
    loaded = load_manifest(tmp_path / "towel.toml")
    assert loaded.roots == (tmp_path / "data",)
    assert loaded.origin == str(tmp_path / "towel.toml")


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("fps = 50\n", "", r"fps: expected this key, found none; add it"),
        ("fps = 50\n", 'fps = "50"\n', r"fps: expected .*number, found '50'"),
        ('key = "observations/qpos"\n', "", r"state\.key: expected this key"),
        ("fps = 50\n", "fps = 0\n", r"fps: expected .*greater than 0, found 0"),
        ("fps = 50\n", "fps = 50\nfsp = 3\n", r"fsp: expected one of path, .*name, .*unknown key"),
        ("\n[state]", 'color = "red"\n[state]', r"views\[1\]\.color: expected one of name, key"),
        ('name = "left"', 'name = "top"', r"views: expected distinct names, found top"),
        ("cam_left_wrist", "cam_high", r"views: expected distinct keys, found .*cam_high more"),
        ('name = "left"', 'name = "a/b"', r"views\[1\]\.name: expected .*found 'a/b'"),
        ('"aloha_hdf5"', '"lerobot"', r"format: expected .*'aloha_hdf5', .*, found 'lerobot'"),
        ('license = "CC-BY-4.0"', 'license = " "', r"license: expected .*at least 1 character"),
        ("fps = 50\n", "fps = 50\nresize = [224, 224]\n", r"resize\[0\]: expected 256, found 224"),
        ("fps = 50\n", "fps = 50\naction_shift = 1001\n", r"action_shift: .*1000, found 1001"),
        ("fps = 50\n", "fps = [\n", r"TOML in UTF-8, found: .*line"),
        ('"CC-BY-4.0"', "3", r"license: expected a valid string, found 3"),
        ('"action"', "[]", r"action\.key: expected a key or a list of keys, found \[\]"),
        ('"action"', '["a", "b//c"]', r"action\.key\[1\]: expected names .*found 'b//c'"),
        ('"action"\n', '"action"\ncolumns = [-1]\n', r"action\.columns\[0\]: .*found -1"),
        ('"action"\n', '"action"\ncolumns = [1, 1]\n', r"action\.columns: .*each number once.*1"),
        ("fps = 50\n", 'fps = 50\ncolor_order = "grb"\n', r"color_order: expected .*'bgr'"),
        ("fps = 50\n", "fps = 50\nepisodes = [1]\n", r"episodes: expected .*found \[1\]"),
        (
            "fps = 50\n",
            "fps = 50\nepisodes = {only = [1], except = [2]}\n",
            r"episodes: expected either `only` or `except`, found both",
        ),
        (
            "fps = 50\n",
            "fps = 50\nepisodes = {skip = [2]}\n",
            r"episodes\.skip: expected one of only, except, found an unknown key",
        ),
        (
            "fps = 50\n",
            'fps = 50\nepisodes = {except = ["demo_1"]}\n',
            r"episodes\.except\[0\]: expected .*integer, found 'demo_1'",
        ),
        ("fps = 50\n", "fps = 50\nsplits = {validation = 3}\n", r"splits\.validation: .*found 3"),
        (
            "fps = 50\n",
            'fps = 50\nsplits = {validation = ["demo_1"]}\n',
            r"splits\.validation\[0\]: expected .*integer, found 'demo_1'",
        ),
        (
            "fps = 50\n",
            'fps = 50\nchecksums = {"a.hdf5" = "abc"}\n',
            r"checksums\.a\.hdf5: expected .*found 'abc'",
        ),
    ],
)
def test_a_wrong_field_is_told_in_one_line(tmp_path, old, new, pattern):
    assert old in TEXT
    assert re.search(pattern, problem_of(tmp_path, TEXT.replace(old, new, 1)))


@pytest.mark.parametrize("key", ["/", "a//b", "a/", "../b"])
@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("observations/images/cam_left_wrist", "views[1].key"),
        ("observations/qpos", "state.key"),
        ("action", "action.key"),
    ],
)
def test_a_key_that_no_file_has_is_an_error_of_the_manifest(tmp_path, written, place, key):
    text = TEXT.replace(f'key = "{written}"', f'key = "{key}"')
    message = problem_of(tmp_path, text)
    assert f": {place}: expected names joined by single slashes" in message
    assert f"found '{key}'; correct this key" in message
    assert "remove" not in message


def test_a_key_may_begin_with_a_slash(tmp_path):
    text = TEXT.replace('key = "action"', 'key = "/action"')
    assert described(write(tmp_path, text)).action.key_paths == ("action",)


def test_the_mark_that_windows_puts_before_a_text_is_passed_over(tmp_path):
    path = write(tmp_path)
    plain = load_manifest(path).manifest
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_manifest(path).manifest == plain


def test_a_manifest_without_views_is_refused(tmp_path):
    text = re.sub(r"\[\[views\]\]\n.*\n.*\n", "", TEXT)
    assert "views: expected this key" in problem_of(tmp_path, text)
    text = text.replace("fps = 50\n", "fps = 50\nviews = []\n")
    assert "views: expected " in problem_of(tmp_path, text)


def test_several_problems_are_counted(tmp_path):
    text = TEXT.replace("fps = 50\n", "").replace('name = "towel"\n', "")
    assert "(1 more to correct)" in problem_of(tmp_path, text)


def test_a_missing_file_a_folder_and_a_binary_file_are_manifest_errors(tmp_path):
    absent = r"absent\.toml: expected a manifest.* No such file .*data_manifests/README\.md"
    with pytest.raises(ManifestError, match=absent) as caught:
        load_manifest(tmp_path / "absent.toml")
    assert "vla-data" not in str(caught.value)  # no command starts a manifest
    with pytest.raises(ManifestError, match="directory"):
        load_manifest(tmp_path)
    (tmp_path / "towel.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VlaError, match="UTF-8"):
        load_manifest(tmp_path / "towel.toml")


def test_resize_is_an_opt_in_that_only_knows_the_size_of_the_encoder(tmp_path):
    text = TEXT.replace("fps = 50\n", "fps = 50\nresize = [256, 256]\n")
    assert described(write(tmp_path, text)).resize == (256, 256)


def test_the_saved_content_rebuilds_the_manifest_without_its_place(tmp_path):
    manifest = described(write(tmp_path))
    saved = manifest.to_dict()
    assert str(tmp_path) not in str(saved)
    rebuilt = Manifest.from_dict(saved)
    assert rebuilt.to_dict() == saved
    assert rebuilt.digest() == manifest.digest()
    with pytest.raises(ManifestError, match=r"a\.zarr: fps: expected this key"):
        Manifest.from_dict({k: v for k, v in saved.items() if k != "fps"}, origin="a.zarr")


def test_toml_text_round_trips_with_awkward_strings(tmp_path):
    saved = described(write(tmp_path)).to_dict()
    saved |= {
        "source": 'a "quoted" \\ back\tslash, 1\u00b0, \U0001f916, \x7f',
        "resize": [256, 256],
    }
    manifest = Manifest.from_dict(saved)
    assert described(write(tmp_path, manifest.to_toml())).to_dict() == manifest.to_dict()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fps = 50", "fps = 25"),
        ("fps = 50", "fps = 50\nresize = [256, 256]"),
        ('revision = "2026-03"', 'revision = "2026-04"'),
        ('name = "left"', 'name = "right"'),
        ("cam_high", "cam_low"),
        ("observations/qpos", "observations/qvel"),
        ('key = "action"', 'key = "base_action"'),
        ('key = "action"', 'key = ["action", "base_action"]'),
        ('key = "action"', 'key = "action"\ncolumns = [0]'),
        ('key = "observations/qpos"', 'key = "observations/qpos"\ncolumns = [0]'),
        ("fps = 50", 'fps = 50\ncolor_order = "bgr"'),
        ("fps = 50", "fps = 50\naction_shift = 1"),
        ("fps = 50", "fps = 50\nepisodes = {only = [1]}"),
        ("fps = 50", "fps = 50\nepisodes = {except = [1]}"),
        ('format = "aloha_hdf5"\npath = "data"', 'sources = [{path = "a"}, {path = "b"}]'),
    ],
)
def test_the_digest_changes_with_what_decides_the_rows(tmp_path, old, new):
    before = described(write(tmp_path)).digest()
    assert described(write(tmp_path, TEXT.replace(old, new, 1))).digest() != before


def test_the_digest_ignores_place_and_words_but_not_the_order_of_views(tmp_path):
    manifest = described(write(tmp_path))
    assert re.fullmatch("[0-9a-f]{64}", manifest.digest())
    text = TEXT.replace('"data"', '"/srv/other"').replace("radians", "degrees")
    text = text.replace('"towel"', '"cloth"').replace("our laboratory", "theirs")
    assert described(write(tmp_path, text)).digest() == manifest.digest()
    swapped = manifest.to_dict()
    swapped["views"] = swapped["views"][::-1]
    assert Manifest.from_dict(swapped).digest() != manifest.digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('format = "aloha_hdf5"\n', ""),
        ("fps = 50", 'fps = 50\nsplits = {validation = "valid"}'),
        ("fps = 50", f'fps = 50\nchecksums = {{"a" = "{"0" * 64}"}}'),
        ("fps = 50", "fps = 50\nallow_outside = true"),
        ('key = "action"', 'key = "/action"'),
        ('format = "aloha_hdf5"\npath = "data"', 'sources = [{path = "a", weight = 3.0}]'),
    ],
)
def test_the_digest_ignores_what_changes_no_row(tmp_path, old, new):
    before = described(write(tmp_path)).digest()
    assert old in TEXT
    assert described(write(tmp_path, TEXT.replace(old, new, 1))).digest() == before


SOURCES = """
[[sources]]
path = "ours"
format = "robomimic_hdf5"
splits = {validation = "valid"}

[[sources]]
path = "/srv/theirs"
weight = 0.25
episodes = {except = [3]}
allow_outside = true
"""
SEVERAL = TEXT.replace('format = "aloha_hdf5"\npath = "data"\n', "") + SOURCES


def test_several_sources_are_read_as_written(tmp_path):
    manifest = described(write(tmp_path, SEVERAL))
    loaded = load_manifest(tmp_path / "towel.toml")
    assert loaded.roots == (tmp_path / "ours", Path("/srv/theirs"))
    first, second = manifest.data_sources
    assert (first.format, first.weight, first.allow_outside) == ("robomimic_hdf5", 1.0, False)
    assert (second.format, second.weight, second.allow_outside) == (None, 0.25, True)
    assert second.episodes is not None
    assert (second.episodes.only, second.episodes.except_) == (None, (3,))
    assert described(write(tmp_path, manifest.to_toml())).to_dict() == manifest.to_dict()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (
            TEXT.replace('path = "data"\n', ""),
            r"path: expected this key, or \[\[sources\]\] blocks",
        ),
        (TEXT + SOURCES, r"path: expected it inside each of the \[\[sources\]\] blocks, found"),
        ("splits = {validation = [1]}\n" + SEVERAL, r"splits: expected it inside each of the"),
        ("allow_outside = false\n" + SEVERAL, r"allow_outside: expected it inside each"),
        (SEVERAL.replace("0.25", "0.0"), r"sources\[1\]\.weight: expected .*greater than 0"),
        (SEVERAL.replace("0.25", "inf"), r"sources\[1\]\.weight: expected .*finite"),
        (SEVERAL.replace('"ours"', '"$HOME/ours"'), r"sources\[0\]\.path: expected an absolute"),
        (SEVERAL.replace("weight", "share"), r"sources\[1\]\.share: expected one of path, format"),
        (
            SEVERAL.replace("except = [3]", "without = [3]"),
            r"sources\[1\]\.episodes\.without: expected one of only, except",
        ),
    ],
)
def test_a_wrong_source_is_told_with_its_number(tmp_path, text, pattern):
    assert re.search(pattern, problem_of(tmp_path, text))


def test_the_order_of_sources_counts_only_where_it_decides_rows(tmp_path):
    manifest = described(write(tmp_path, SEVERAL))
    swapped = manifest.to_dict()
    swapped["sources"] = swapped["sources"][::-1]
    assert Manifest.from_dict(swapped).digest() != manifest.digest()


def test_every_field_survives_the_way_through_a_store_and_a_file(tmp_path):
    content = described(write(tmp_path)).to_dict() | {
        "state": {"key": ["a.b", "c"], "columns": [1, 0], "units": "m"},
        "color_order": "bgr",
        "action_shift": 1,
        "episodes": {"only": [3, 1]},
        "splits": {"validation": [1]},
        "checksums": {"videos/a b.mp4": "0" * 64},
        "allow_outside": True,
        "resize": [256, 256],
    }
    manifest = Manifest.from_dict(content)
    assert manifest.to_dict() == content
    assert described(write(tmp_path, manifest.to_toml())).to_dict() == content


def test_the_example_in_the_readme_is_a_manifest(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[4] / "data_manifests" / "README.md").read_text()
    on_manifests = readme.partition("\n## Environments\n")[0]
    example, sources = re.findall(r"```toml\n(.*?)```", on_manifests, flags=re.DOTALL)
    monkeypatch.setenv("DATA_ROOT", "/data")
    assert load_manifest(write(tmp_path, example)).roots == (Path("/data/fold_towel"),)
    several = re.sub(r"format = .*\npath = .*\n", "", example) + sources
    assert [place.weight for place in described(write(tmp_path, several)).data_sources] == [1, 3]


def test_the_readme_explains_every_field():
    readme = (Path(__file__).parents[4] / "data_manifests" / "README.md").read_text()
    for field in Manifest.model_fields:
        assert re.search(rf"\| `\[*{field}\]*` \|", readme), field
    for parent, model in (
        ("views", ViewSource),
        ("state", ArraySource),
        ("splits", Splits),
        ("sources", DataSource),
    ):
        for field in model.model_fields:
            assert re.search(rf"`{parent}\.{field}`|`{field}`", readme), f"{parent}.{field}"
