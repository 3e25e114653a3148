"""Where a manifest says that its data lies."""

from pathlib import Path

import pytest

from pipeline.datasets.manifest.model import load_manifest
from pipeline.storage.location import ObjectUrl
from tests.pipeline.datasets.manifest.test_model import TEXT, problem_of, write


def test_paths_may_be_relative_absolute_or_begin_with_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TOWEL_ROOT", str(tmp_path / "elsewhere"))
    written = {
        "../data": tmp_path.parent / "data",
        "/srv/data": Path("/srv/data"),
        "${TOWEL_ROOT}/x": tmp_path / "elsewhere" / "x",
        "${TOWEL_ROOT}": tmp_path / "elsewhere",
    }
    for path, root in written.items():
        text = TEXT.replace('path = "data"', f'path = "{path}"')
        assert load_manifest(write(tmp_path, text)).roots == (root,)


def test_links_in_paths_are_kept_because_names_tell_the_layout(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(b"")
    (tmp_path / "image.hdf5").symlink_to("blobs/0a1b")
    text = TEXT.replace('path = "data"', 'path = "blobs/../image.hdf5"')
    assert load_manifest(write(tmp_path, text)).roots == (tmp_path / "image.hdf5",)


def test_a_relative_variable_counts_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TOWEL_ROOT", "recordings")
    path = write(tmp_path / "manifests", TEXT.replace('"data"', '"${TOWEL_ROOT}/x"'))
    assert load_manifest(path).roots == (tmp_path / "here" / "recordings" / "x",)


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_is_named(tmp_path, monkeypatch, value):
    monkeypatch.delenv("TOWEL_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("TOWEL_ROOT", value)
    message = problem_of(tmp_path, TEXT.replace('"data"', '"${TOWEL_ROOT}/x"'))
    assert "export TOWEL_ROOT=" in message


@pytest.mark.parametrize("path", ["~/data", "$HOME/data", "/a/${HOME}", "${HOME}/${USER}"])
def test_other_shorthand_is_refused_and_not_taken_for_a_folder(tmp_path, monkeypatch, path):
    monkeypatch.setenv("HOME", "/home/me")
    assert repr(path) in problem_of(tmp_path, TEXT.replace('"data"', f'"{path}"'))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("s3://bucket/x/y.hdf5", ObjectUrl("s3", "bucket", "x/y.hdf5")),
        ("${TOWEL_ROOT}/y/", ObjectUrl("gs", "towels", "x/y")),
        ("file:///x/y", Path("/x/y")),
    ],
)
def test_an_address_is_a_place(tmp_path, monkeypatch, path, place):
    monkeypatch.setenv("TOWEL_ROOT", "gs://towels/x")
    assert load_manifest(write(tmp_path, TEXT.replace('"data"', f'"{path}"'))).roots == (place,)


@pytest.mark.parametrize(
    "path",
    ["s3://key:SECRET@bucket/x", "s3://key:$ECRET@bucket/x", "${TOWEL_ROOT}", "http://SECRET"],
)
def test_an_address_that_leads_nowhere_is_refused_without_its_secrets(tmp_path, monkeypatch, path):
    monkeypatch.setenv("TOWEL_ROOT", "gs://SECRET")
    message = problem_of(tmp_path, TEXT.replace('"data"', f'"{path}"'))
    assert "expected s3://bucket/path or gs://bucket/path" in message
    assert "ECRET" not in message
