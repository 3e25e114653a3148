import pytest

from pipeline.datasets.manifest.paths import read_file, resolve_inside
from pipeline.errors import DatasetError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "chunk").mkdir(parents=True)
    (tmp_path / "secret").write_text("")
    return tmp_path / "data"


@pytest.mark.parametrize("relative", ["chunk/a.mp4", "chunk/../a.mp4", ".", "absent/b"])
def test_a_path_below_the_root_is_resolved_whether_it_exists_or_not(root, relative):
    path = resolve_inside(root, relative, allow_outside=False)
    assert path == (root / relative).resolve()
    assert path.is_absolute()


def test_a_root_behind_a_link_is_no_way_out(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert resolve_inside(tmp_path / "link", "chunk", allow_outside=False) == root / "chunk"


@pytest.mark.parametrize("relative", ["../secret", "chunk/../../secret", "/etc/passwd", "escape"])
def test_a_path_that_leads_out_needs_the_manifests_leave(root, tmp_path, relative):
    (root / "escape").symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match="allow_outside = true") as caught:
        resolve_inside(root, relative, allow_outside=False)
    assert repr(relative) in str(caught.value)
    assert "\n" not in str(caught.value)
    allowed = resolve_inside(root, relative, allow_outside=True)
    assert allowed == (root / relative).resolve()


def test_a_neighbor_whose_name_begins_like_the_root_is_outside(root):
    with pytest.raises(DatasetError, match="a link to"):
        resolve_inside(root, "../data2/x", allow_outside=False)


def test_a_file_is_read_inside_the_root(root, tmp_path):
    (root / "info.json").write_bytes(b"{}")
    assert read_file(root, "info.json", allow_outside=False) == b"{}"
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match="allow_outside"):
        read_file(root, "link", allow_outside=False)
    assert read_file(root, "link", allow_outside=True) == b""
    with pytest.raises(FileNotFoundError):
        read_file(root, "absent", allow_outside=False)
