"""Media in the page: exact bytes, a limit that holds, nothing of another kind."""

import base64

from pipeline.rollout.report.rollouts import MediaBudget

PNG = b"\x89PNG\r\n\x1a\n" + bytes(92)
MP4 = b"\0\0\0\x20ftypisom" + bytes(88)


def test_bytes_come_back_from_the_url(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.mp4").write_bytes(MP4)
    budget = MediaBudget(1000)
    image, video = budget.image(tmp_path / "a.png"), budget.video(tmp_path / "a.mp4")
    assert image.startswith("data:image/png;base64,")
    assert video.startswith("data:video/mp4;base64,")
    assert base64.b64decode(image.partition(",")[2]) == PNG
    assert base64.b64decode(video.partition(",")[2]) == MP4
    assert budget.used == len(PNG) + len(MP4)


def test_what_does_not_fit_is_named_and_a_smaller_file_still_enters(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG)
    (tmp_path / "c.png").write_bytes(PNG[:20])
    budget = MediaBudget(len(PNG) + 20)
    assert budget.image(tmp_path / "a.png")
    assert budget.image(tmp_path / "b.png") is None
    assert budget.image(tmp_path / "c.png")
    assert budget.left_out == [tmp_path / "b.png"]


def test_another_kind_of_file_does_not_enter(tmp_path):
    """A link in a run's folder must not carry a stranger's file into a page that is sent around."""
    (tmp_path / "secret").write_text("do not send this to anybody")
    (tmp_path / "seed_1.png").symlink_to(tmp_path / "secret")
    budget = MediaBudget(1000)
    assert budget.image(tmp_path / "seed_1.png") is None
    assert budget.video(tmp_path / "absent.mp4") is None
    assert budget.unusable == [tmp_path / "seed_1.png"]
