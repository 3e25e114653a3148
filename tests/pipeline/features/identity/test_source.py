"""The stamp of a dataset's files, and the note that keeps it."""

import os
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.features.identity.source import (
    SOURCE_NOTE,
    SourceNote,
    files_stamp,
    read_source,
    write_source,
)
from pipeline.storage.local import LocalFolder

STORE = Path("/elsewhere/s.zarr")


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a.bin").write_bytes(b"a")
    (tmp_path / "data" / "deep" / "b.bin").write_bytes(b"b")
    return tmp_path / "data"


def _rewrite(root: Path) -> None:
    (root / "a.bin").write_bytes(b"A")
    os.utime(root / "a.bin", ns=(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        _rewrite,
        lambda root: (root / "deep" / "c.bin").write_bytes(b""),
        lambda root: (root / "deep" / "b.bin").unlink(),
        lambda root: (root / "a.bin").rename(root / "z.bin"),
        lambda root: os.utime(root / "deep" / "b.bin", ns=(1, 1)),
    ],
    ids=["written", "added", "removed", "renamed", "touched"],
)
def test_every_change_of_files_changes_the_stamp(root, change):
    before = files_stamp([root], STORE)
    assert files_stamp([root], STORE) == before
    change(root)
    assert files_stamp([root], STORE) != before


def test_the_stamp_knows_which_root_a_file_belongs_to(root):
    assert files_stamp([root, root / "deep"], STORE) != files_stamp([root / "deep", root], STORE)
    assert files_stamp([root / "a.bin"], STORE) != files_stamp([root / "deep" / "b.bin"], STORE)


def test_a_store_in_a_folder_of_the_dataset_does_not_count_and_what_is_named_alike_does(root):
    store = root / "deep"
    before = files_stamp([root], store)
    for own in (store / "c.bin", root / ".deep.lock"):
        own.write_bytes(b"")
        assert files_stamp([root], store) == before
    (root / "deeper").write_bytes(b"")
    after = files_stamp([root], store)
    assert after != before
    (root / "other" / "deep").mkdir(parents=True)
    (root / "other" / "deep" / "b.bin").write_bytes(b"")
    assert files_stamp([root], store) != after


def test_the_note_is_read_back_and_its_absence_is_no_error(tmp_path):
    assert read_source(LocalFolder(tmp_path)) is None
    note = SourceNote(manifest=tmp_path / "x.toml", stamp="0" * 64)
    write_source(LocalFolder(tmp_path), note)
    assert read_source(LocalFolder(tmp_path)) == note


def test_a_damaged_note_is_named(tmp_path):
    (tmp_path / SOURCE_NOTE).write_text('{"manifest": 3')
    with pytest.raises(StoreError, match=rf"{SOURCE_NOTE}: damaged .*; delete this file"):
        read_source(LocalFolder(tmp_path))
