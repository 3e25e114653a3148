"""What a page takes from files: media up to a limit, settings as text."""

import base64

from pipeline.rollout.report.page import MediaBudget, flatten

PNG = b"\x89PNG\r\n\x1a\n" + bytes(92)
MP4 = b"\0\0\0\x20ftypisom" + bytes(88)


def test_bytes_come_back_from_the_url(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.mp4").write_bytes(MP4)
    budget = MediaBudget(1000)
    image, video = (
        budget.url(tmp_path / f"a.{ending}", kind)
        for ending, kind in (("png", "image/png"), ("mp4", "video/mp4"))
    )
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
    assert budget.url(tmp_path / "a.png", "image/png")
    assert budget.url(tmp_path / "b.png", "image/png") is None
    assert budget.url(tmp_path / "c.png", "image/png")
    assert (budget.left_out, budget.left_out_bytes) == ([tmp_path / "b.png"], len(PNG))
    assert budget.url(tmp_path / "absent.mp4", "video/mp4") is None


def test_groups_become_dotted_names_and_plain_lists_stay_one_field():
    content = {
        "steps": 8,
        "agent": {"head": {"n_layer": 2, "positions": "rotary"}},
        "betas": [0.9, 0.95],
        "stores": [{"name": "a"}, {"name": "b", "weight": None}],
        "empty": {},
        "none": [],
    }
    assert flatten(content) == {
        "steps": "8",
        "agent.head.n_layer": "2",
        "agent.head.positions": "rotary",
        "betas": "[0.9, 0.95]",
        "stores.0.name": "a",
        "stores.1.name": "b",
        "stores.1.weight": "null",
        "empty": "{}",
        "none": "[]",
    }
