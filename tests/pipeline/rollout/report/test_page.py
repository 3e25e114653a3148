"""The page as a file: what it says of runs, that it is safe, whole and repeatable."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from pipeline.errors import ConfigError, RunError
from pipeline.rollout.gate.camera_check import CameraVerdict, StartFinding
from pipeline.rollout.report.page import environment, write_report
from pipeline.storage.local import write_json
from pipeline.training.run.folder import read_run
from tests.pipeline.rollout.report.runs import (
    FIRST_SEED,
    copy_run,
    make_result,
    make_suite_result,
    write_log,
    write_rollout,
)

HOSTILE = "<script>alert('1')</script>\"'&lt;"


class Text(HTMLParser):
    """What a reader sees, and the attributes that could load something."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.scripts = 0
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.scripts += tag == "script"
        names = {"src", "href", "poster", "data", "action", "srcset"}
        self.addresses += [value or "" for name, value in attrs if name in names]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            continue

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.seen.append(data)


def read(path) -> tuple[str, Text]:
    """Return the words of a page, as its readers see them, and what the parser met."""
    parsed = Text()
    parsed.feed(path.read_text())
    return " ".join(" ".join(parsed.seen).split()), parsed


@pytest.fixture
def two_runs(trained, tmp_path):
    """Two runs on the same 20 seeds, of which they solved 18 and 7."""
    first = copy_run(trained, tmp_path / "first")
    second = copy_run(trained, tmp_path / "second", seed=7)
    solved = [index not in {5, 12} for index in range(20)]
    write_rollout(first, "drawer", make_result(first, solved))
    write_rollout(second, "drawer", make_result(second, [index < 7 for index in range(20)]))
    return first, second


def test_one_run_says_what_it_is(trained, tmp_path):
    write_log(trained_copy := copy_run(trained, tmp_path / "drawer"), 900, 20)
    write_rollout(trained_copy, "drawer", make_result(trained_copy, [True] * 18 + [False] * 2))
    write_report([trained_copy], tmp_path / "page.html")
    words, parsed = read(tmp_path / "page.html")
    for said in (
        "The encoder is not pretrained.",
        "improved meanflow",
        "Parameters 152,700",
        "18 of 20 90 % 70 to 97 %",
        "seeds 100000 to 100019",
        "Validation error",
        "encode 184.1 221.3 310.0",
        "100019 failed 500 88.1",
        "config.optimizer.learning_rate 0.0001",
    ):
        assert said in words, said
    assert "Comparison" not in words
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert parsed.scripts == 1


def test_a_pretrained_encoder_is_not_called_a_stand_in(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["data"]["encoder"]["pretrained"] = True
    write_json(run / "run.json", content)
    write_report([run], tmp_path / "page.html")
    assert "not pretrained" not in read(tmp_path / "page.html")[0]
    write_report([run, trained], tmp_path / "page.html")
    other = f"{trained.parent.name}/run"
    assert f"The encoder is not pretrained ({other})." in read(tmp_path / "page.html")[0]


def test_cameras_that_could_not_be_compared_are_an_alarm(trained):
    verdict = CameraVerdict(views=(), unchecked="expected 4 or more training episodes, found 2")
    starts = (StartFinding(seed=FIRST_SEED, verdict=verdict),)
    result = make_result(trained, [True], camera_check={"mode": "refuse", "starts": starts})
    assert result.alarms() == ["the cameras were not compared with those of training"]


def test_two_runs_are_compared_on_their_common_seeds(two_runs, tmp_path):
    """Not by a rollout under another instruction, however many episodes it has."""
    other = make_result(two_runs[1], [True] * 30, instruction_source="other")
    write_rollout(two_runs[1], "drawer-other-instruction", other)
    write_report(two_runs, tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert (
        "first solved 18 of 20 seeds on metaworld/drawer-open-v3, second solved 7. They differ on "
        "13: 12 that only first solved, 1 that only second solved. first is better (p = 0.003)."
    ) in words
    assert (
        "first \N{EN DASH} second metaworld/drawer-open-v3 20 6 12 1 1 +55 +24 to +74 0.003"
        in words
    )


def test_a_difference_that_luck_explains_is_not_called_better(two_runs, tmp_path):
    first, second = two_runs
    write_rollout(first, "drawer", make_result(first, [True, True, True, False]))
    write_rollout(second, "drawer", make_result(second, [True, False, False, False]))
    write_report([first, second], tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert "only second solved. The difference is not significant (p = 0.500)." in words  # 2 / 2**2
    assert "is better" not in words


def test_other_seeds_are_left_out_of_the_comparison_and_said(two_runs, tmp_path):
    first, second = two_runs
    write_rollout(second, "drawer", make_result(second, [False] * 30))
    write_report([first, second], tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert "first solved 18 of the 20 seeds that both ran on metaworld/drawer-open-v3" in words


def test_three_pairs_have_adjusted_p_values(two_runs, trained, tmp_path):
    third = copy_run(trained, tmp_path / "third")
    write_rollout(third, "drawer", make_result(third, [index < 7 for index in range(20)]))
    write_report([*two_runs, third], tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert "first is better (adjusted p = 0.010)." in words  # 3 * 28 / 8192
    assert "Both have the same outcome on every seed." in words


def test_runs_that_share_nothing_are_not_compared(two_runs, trained, tmp_path):
    first, _ = two_runs
    other = copy_run(trained, tmp_path / "other")
    write_rollout(other, "door", make_result(other, [True], env="metaworld/door-open-v3"))
    write_report([first, other], tmp_path / "page.html")
    assert (
        "No two of these runs were rolled out on the same environment."
        in read(tmp_path / "page.html")[0]
    )


def test_only_fields_that_differ_are_marked(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text()
    assert re.findall(r'<tr class="differs"><th scope="row">([^<]*)', content) == ["config.seed"]


def test_a_run_that_has_only_begun_gives_a_page(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run", steps=100)
    (run / "log.jsonl").unlink()
    write_report([run], tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert "Nothing logged yet." in words
    assert "No rollout yet; run vla-rollout." in words
    assert "run: not finished, the last checkpoint is at step 8 of 100." in words


def test_names_from_files_are_text(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    description = (run / "run.json").read_text()
    for name in ("tiny", "debug"):  # of the data, its manifest, the encoder; of the preset
        description = description.replace(f'"{name}"', json.dumps(HOSTILE))
    (run / "run.json").write_text(description)
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 8, HOSTILE: 1.0}) + "\n")
    changes = {"env": HOSTILE, "run": HOSTILE}
    write_rollout(run, "drawer", make_result(run, [True], **changes))
    write_report([run], tmp_path / "page.html")
    words, parsed = read(tmp_path / "page.html")
    assert f"Data {HOSTILE}" in words
    assert f"{HOSTILE}: solved 1 of 1" in words
    assert words.count(HOSTILE) >= 8
    assert parsed.scripts == 1


def test_a_name_that_is_no_unicode_becomes_a_question_mark(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run\udcff")
    write_report([run], tmp_path / "page.html")
    assert "<h1>run?</h1>" in (tmp_path / "page.html").read_bytes().decode()


def test_a_template_without_one_of_its_values_is_an_error():
    with pytest.raises(UndefinedError, match="charts"):
        environment().get_template("training.html").render()


def test_only_our_own_files_are_not_escaped():
    templates = environment()
    sources = [
        templates.loader.get_source(templates, name)[0] for name in templates.list_templates()
    ]
    unescaped = re.findall(r"(\w+) *\| *safe", "".join(sources))
    assert unescaped == ["style", "script"]


def test_an_encoder_that_was_not_the_trainings_is_an_alarm(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    encoder = read_run(run).data.encoder.model_copy(update={"weights": "0" * 64})
    write_rollout(run, "drawer", make_result(run, [True], encoder=encoder, store_digest="1"))
    write_report([run], tmp_path / "page.html")
    alarms = re.findall(r'<p class="alarm"[^>]*>([^<]*)', (tmp_path / "page.html").read_text())
    assert alarms == [
        "run, rollout drawer: the encoder is not that of training (tiny)",
        "run, rollout drawer: the policy was trained on other data than this run",
    ]


def test_the_policy_names_exactly_the_pages_own_style_and_script(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text()
    (rules,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', content)
    assert rules.startswith("default-src 'none'; ")
    assert "unsafe" not in rules
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in rules


def test_the_same_files_give_the_same_page(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "a.html")
    write_report(two_runs, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_media_beyond_the_limit_are_named_and_failures_enter_first(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    result = make_result(run, [True, True, False])
    folder = write_rollout(run, "drawer", result, images=3)
    failed = folder / "paths" / "seed_100002.png"
    left_out = write_report([run], tmp_path / "page.html", media_limit=failed.stat().st_size + 10)
    assert [path.name for path in left_out] == ["seed_100000.png", "seed_100001.png"]
    words, parsed = read(tmp_path / "page.html")
    assert "2 files (0.0 MB) are not in this page" in words
    assert f"they are in {folder / 'paths'}" in words
    images = [address for address in parsed.addresses if address.startswith("data:image")]
    assert [base64.b64decode(p.partition(",")[2]) for p in images] == [failed.read_bytes()]


def test_a_suite_and_its_variants_are_side_by_side(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    solved = {"s/object/take_soup": 3, "s/object/take_milk": 1, "s/object_swap/take_soup": 0}
    result = make_suite_result(run, solved, episodes=4)
    told = {"take_soup": "take the soup", "take_milk": "take the milk"}
    episodes = tuple(
        episode.model_copy(update={"instruction": told[episode.task.rpartition("/")[2]]})
        for episode in result.episodes
    )
    result = result.model_copy(update={"episodes": episodes})
    write_rollout(run, "suites", result, images=5)
    write_report([run], tmp_path / "page.html")
    words, parsed = read(tmp_path / "page.html")
    table = words[
        words.index("Environment s/object s/object_swap") : words.index("Below each rate")
    ]
    assert re.findall(r"(take \w+ take the \w+|Mean|\d+ % \d of \d)", table) == [
        *("take soup take the soup", "75 % 3 of 4", "0 % 0 of 4"),
        *("take milk take the milk", "25 % 1 of 4"),
        *("Mean", "50 % 4 of 8", "0 % 0 of 4"),
    ]
    assert "s/object/take_milk 4 episodes, 3 failed" in words
    assert sum(address.startswith("data:image") for address in parsed.addresses) == 5
    # Equal weights: (75 + 25 + 0) / 3.
    assert "s/object, s/object_swap: solved 4 of 12 episodes, 33 %" in words


def test_two_runs_are_compared_episode_by_episode_of_every_environment(trained, tmp_path):
    first, second = (copy_run(trained, tmp_path / name, seed=i) for i, name in enumerate("ab"))
    for run, counts in ((first, (4, 2)), (second, (0, 3))):
        solved = dict(zip(("s/x/0", "s/x/1"), counts, strict=True))
        write_rollout(run, "suite", make_suite_result(run, solved, episodes=4))
    write_report([first, second], tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert "They differ on 5: 4 that only a solved, 1 that only b solved." in words


def test_validations_are_folded_away_from_what_was_asked_for(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    write_rollout(run, "step_00000004", make_result(run, [False] * 5))
    write_rollout(run, "step_00000008", make_result(run, [True] * 5))
    write_report([run], tmp_path / "page.html")
    words, _ = read(tmp_path / "page.html")
    assert "Validation during training: 2 rollouts" in words
    assert words.index("step_00000008, step 8") < words.index("Training")  # stands in for a result


def test_a_failure_leaves_the_old_page(two_runs, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    (two_runs[0] / "rollouts" / "drawer" / "result.json").write_text("{")
    with pytest.raises(RunError):
        write_report(two_runs, page)
    assert page.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_no_place_for_the_page(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a file, found a folder; use .*report\.html"):
        write_report([trained], tmp_path)
