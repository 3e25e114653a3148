"""Both kinds of folder keep the same promises; addresses with a secret in them are not repeated."""

import io
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ObjectStorageError, StoreError
from pipeline.storage.local import LocalFolder
from pipeline.storage.location import ObjectUrl, parse_location
from pipeline.storage.locks import shared_writer, sole_writer
from pipeline.storage.objects import folder as object_folder
from pipeline.storage.objects.requests import RETRY
from pipeline.storage.open import Folder, open_folder
from policy.errors import MissingExtraError
from tests.object_server import BUCKET, KEY_ID, SECRET, failing_proxy, free_port, use_server


@pytest.fixture
def quick(monkeypatch):
    """Give up soon where nothing answers."""
    monkeypatch.setitem(RETRY, "max_retries", 1)


class FolderContract:
    """What every Folder must do. Subclasses only say how to get an empty one."""

    @pytest.fixture
    def folder(self) -> Folder:
        raise NotImplementedError

    def make(self, folder: Folder, **content: str) -> None:
        with folder.made("last") as partial:
            (partial / "notes").mkdir()
            for name, text in {"last": "end", **content}.items():
                (partial / name.replace("__", "/")).write_text(text)

    def test_what_is_made_is_there_and_what_is_not_is_said_to_be_missing(self, folder):
        assert folder.is_vacant(("notes",))
        self.make(folder, notes__a="one")
        assert sorted(folder.names()) == ["last", "notes/a"]
        assert list(folder.names("notes")) == ["notes/a"]
        assert (folder.read("notes/a"), folder.read("last")) == (b"one", b"end")
        assert not folder.is_vacant(("notes",))
        assert not folder.exists("notes/b")
        with pytest.raises(FileNotFoundError):
            folder.read("notes/b")

    def test_a_file_is_replaced(self, folder):
        self.make(folder, notes__a="one")
        folder.write("notes/a", b"two")
        assert folder.read("notes/a") == b"two"
        folder.settle("notes")

    def test_a_listing_says_what_is_there_and_whether_it_changed(self, folder):
        assert (folder.is_there(), folder.children(), list(folder.files())) == (False, None, [])
        self.make(folder, notes__b="one", notes__a="other")
        assert folder.is_there()
        assert set(folder.children()) - {"notes"} == {"last"}  # a bucket has no folders
        before = {file.name: file for file in folder.files()}
        assert list(before) == ["last", "notes/a", "notes/b"]
        assert [file.size for file in before.values()] == [3, 5, 3]
        folder.write("notes/b", b"two")
        changed = {file.name for file in folder.files() if file != before[file.name]}
        assert changed == {"notes/b"}

    def test_a_file_at_the_very_place_is_one_file_and_no_folder(self, folder):
        self.make(folder)
        alone = open_folder(folder.location / "last")
        assert (alone.is_there(), alone.children()) == (True, None)
        assert [file.size for file in alone.files()] == [3]

    def test_an_open_file_is_read_from_any_position(self, folder):
        self.make(folder, last="0123456789")
        with folder.open("last") as file:
            file.seek(-4, io.SEEK_END)
            assert (file.read(2), file.tell()) == (b"67", 8)
        with pytest.raises(FileNotFoundError):
            folder.open("notes/none")

    def test_deleting_passes_over_what_is_not_there(self, folder):
        self.make(folder, notes__a="one", notes__b="two")
        folder.delete(["notes/none", "notes/a"])
        assert sorted(folder.names()) == ["last", "notes/b"]

    def test_a_large_file_comes_back(self, folder):
        self.make(folder)
        content = bytes(range(256)) * 30_000  # 7.7 MB: more than a piece, and than a part of a PUT
        folder.write("large", content)
        assert folder.read("large") == content

    def test_what_fails_while_it_is_made_is_not_there(self, folder):
        made = folder.made("last")
        (made.__enter__() / "last").write_text("end")
        assert not made.__exit__(OSError, OSError("the disk is full"), None)
        assert folder.is_vacant(())


class TestLocalFolder(FolderContract):
    @pytest.fixture
    def folder(self, tmp_path):
        return LocalFolder(tmp_path / "folder")


def test_a_lock_keeps_others_out_and_shared_ones_go_together(tmp_path):
    folder, lock = tmp_path / "folder", tmp_path / ".folder.lock"
    alone = partial(sole_writer, folder, StoreError, lock=lock)
    shared = partial(shared_writer, folder, StoreError, lock=lock)
    with alone(), pytest.raises(StoreError, match="another process is writing"):
        shared().__enter__()
    with shared(), shared(), pytest.raises(StoreError, match="another process is writing"):
        alone().__enter__()
    with alone():
        pass
    assert not list(tmp_path.iterdir())


class TestObjectFolder(FolderContract):
    @pytest.fixture
    def folder(self, server, monkeypatch, request):
        use_server(monkeypatch, f"http://127.0.0.1:{server}")
        return open_folder(ObjectUrl("s3", BUCKET, f"folders/{request.node.name}"))

    def test_what_a_crash_left_is_replaced_and_nothing_else_is(self, folder):
        folder.write("notes/a", b"of a crash")
        folder.write("notes/of-a-longer-one", b"of a crash")
        assert folder.is_vacant(("notes",))
        self.make(folder, notes__a="one")
        assert sorted(folder.names()) == ["last", "notes/a"]
        folder.delete(["last"])
        folder.write("other", b"someone else's")
        assert not folder.is_vacant(("notes",))

    def test_of_two_that_make_it_the_first_wins_and_equal_ones_both_do(self, folder):
        self.make(folder, last="of A")
        self.make(folder, last="of A")
        with pytest.raises(FileExistsError, match="last: exists already"):
            self.make(folder, last="of B")
        assert folder.read("last") == b"of A"

    def test_more_names_than_a_page_holds_are_all_listed(self, folder, monkeypatch):
        monkeypatch.setattr(object_folder, "NAMES_PER_PAGE", 2)
        names = ["many/a", "many/a/b", "many/b", "many/c", "other"]
        for name in names:
            folder.write(name, b"")
        assert sorted(folder.names()) == names
        assert sorted(folder.names("many")) == names[:-1]


@pytest.mark.parametrize("kind", ["503", "500", "drop", "lose", "cut"])
def test_every_request_survives_a_failure_of_its_answer(server, monkeypatch, kind):
    """Each is failed once, in each way; what is asked for must come out as if nothing had been."""
    with failing_proxy(server) as proxy:
        proxy.fails_first_time = kind
        use_server(monkeypatch, proxy.url)
        folder = open_folder(ObjectUrl("s3", BUCKET, f"failures/{kind}"))
        with folder.made("last") as partial:
            (partial / "last").write_text("end")
            (partial / "large").write_bytes(bytes(6_000_000))
        assert not folder.exists("nothing")
        with pytest.raises(FileNotFoundError):
            folder.read("nothing")
        folder.delete(["nothing", "large"])
        folder.write("a", b"one")
        assert (folder.read("a"), folder.read("last")) == (b"one", b"end")
        assert sorted(folder.names()) == ["a", "last"]
        assert len(proxy.failed) > 8


def one_line(error: ObjectStorageError) -> str:
    """Return the message, which holds nothing of what object storage quotes."""
    said = f"{error!r} {error.__cause__!r} {error}"
    assert error.__suppress_context__
    assert KEY_ID not in said
    assert SECRET not in said
    assert "\n" not in str(error)
    return str(error)


def test_a_refusal_says_its_code_and_no_credentials(server, monkeypatch):
    with failing_proxy(server) as proxy:
        proxy.denies = True
        use_server(monkeypatch, proxy.url)
        folder = open_folder(ObjectUrl("s3", BUCKET, "denied"))
        for ask_for in (lambda: folder.read("a"), lambda: folder.write("a", b""), folder.names):
            with pytest.raises(ObjectStorageError) as caught:
                list(ask_for())
            said = one_line(caught.value)
            assert said.startswith(f"s3://{BUCKET}/denied")
            assert "403 Forbidden (SignatureDoesNotMatch); check the credentials" in said


def test_no_answer_no_bucket_and_no_credentials_are_one_line_each(server, monkeypatch, quick):
    use_server(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ObjectStorageError) as caught:
        open_folder(ObjectUrl("s3", BUCKET, "x")).read("a")
    assert "x/a: object storage does not respond after 1 retries; check" in one_line(caught.value)
    use_server(monkeypatch, f"http://127.0.0.1:{server}")
    nowhere = open_folder(ObjectUrl("s3", "no-bucket", "x"))
    for ask_for in (lambda: nowhere.read("a"), lambda: nowhere.write("a", b""), nowhere.names):
        with pytest.raises(ObjectStorageError) as caught:
            list(ask_for())
        assert "the bucket does not exist" in one_line(caught.value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(ObjectStorageError) as caught:
        open_folder(ObjectUrl("s3", BUCKET, "x")).read("a")
    assert "set AWS_ALLOW_HTTP=true" in one_line(caught.value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ObjectStorageError) as caught:
        open_folder(ObjectUrl("s3", BUCKET, "x")).read("a")
    assert "no credentials for object storage; set AWS_ACCESS_KEY_ID" in one_line(caught.value)


def test_without_obstore_a_line_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "pipeline.storage.objects.folder")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"s3://bucket/x: .*'\.\[obj"):
        open_folder(ObjectUrl("s3", BUCKET, "x"))


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("stores/x.zarr", Path("stores/x.zarr")),
        ("/tmp/x@y.zarr", Path("/tmp/x@y.zarr")),
        ("file:///tmp/x%20y.zarr", Path("/tmp/x y.zarr")),
        ("s3://bucket/a/x.zarr", ObjectUrl("s3", "bucket", "a/x.zarr")),
        ("gs://my-bucket/x.zarr/", ObjectUrl("gs", "my-bucket", "x.zarr")),
    ],
)
def test_a_path_or_an_address_leads_somewhere(text, location):
    assert parse_location(text) == location


@pytest.mark.parametrize(
    "text",
    [
        "s3://SECRET:SECRET@bucket/x.zarr",
        "s3://SECRET:SEC/RET@bucket/x.zarr",
        "s3://bucket/x.zarr?X-Amz-Signature=SECRET",
        "s3://bucket/x.zarr#SECRET",
        "SECRET://bucket/x.zarr",
        "file://SECRET@host/x.zarr",
        "s3://SECRET",
        "s3://bucket//SECRET",
        "s3://bucket/../SECRET",
        "s3:///SECRET",
        "s3:/SECRET/x.zarr",
        "gs:SECRET",
    ],
)
def test_any_other_address_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match="credentials come from the environment") as caught:
        parse_location(text)
    assert "SEC" not in str(caught.value)
    assert "RET" not in str(caught.value)


def test_links_that_lead_back_list_each_folder_once(tmp_path):
    """Of two, every path below one leads through the other, and so on."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "up").symlink_to("..")
    (tmp_path / "a" / "file").write_bytes(b"x")
    assert [str(entry.name) for entry in LocalFolder(tmp_path).files()] == ["a/file"]
