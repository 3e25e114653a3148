"""The page in a real browser: it loads nothing, complains of nothing, plays, and fits."""

import pytest

from pipeline.rollout.report.page import write_report
from tests.browser import Browser
from tests.pipeline.rollout.report.runs import (
    copy_run,
    make_result,
    make_suite_result,
    write_log,
    write_rollout,
)

LONG_NAME = "a-run-with_a_very_long_name_that_offers_no_place_to_break_" + "x" * 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The address of a page of three runs: videos, many points, long names, failures."""
    folder = tmp_path_factory.mktemp("page")
    first = copy_run(trained, folder / "first")
    second = copy_run(trained, folder / LONG_NAME, seed=7)
    third = copy_run(trained, folder / "begun", steps=100)
    write_log(first, 900, 20)
    write_log(second, 50_000, 50, rate=0.5)
    (third / "log.jsonl").unlink()
    solved = make_result(first, [True] * 18 + [False] * 2)
    write_rollout(first, "drawer", solved, videos=2, images=3)
    variants = [f"libero/libero_object{variant}" for variant in ("", "_lan", "_swap", "_task")]
    names = ("pick_up_the_alphabet_soup_and_place_it_in_the_basket", "pick_up_the_milk")
    suites = {f"{suite}/{name}": index for index, suite in enumerate(variants) for name in names}
    write_rollout(first, "suites", make_suite_result(first, suites, episodes=4))
    write_rollout(second, "drawer", make_result(second, [False] * 60), videos=1)
    write_rollout(second, "step_00000008", make_result(second, [False] * 5), images=1)
    write_report([first, second, third], folder / "page.html")
    return (folder / "page.html").as_uri()


def test_nothing_is_loaded_and_nothing_complains(browser, page):
    browser.open(page)
    assert browser.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth)")
    assert [address for address in browser.requests if not address.startswith("data:")] == [page]
    assert browser.complaints == []


def test_the_policy_forbids_loading_and_foreign_scripts(browser, page):
    """What the browser itself enforces, whatever a file smuggled into the page."""
    browser.open(page)
    browser.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.hit=1\">')"
    )
    browser.evaluate("document.querySelector('body > b').click()")
    browser.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert browser.evaluate("window.hit === undefined")
    assert len(browser.complaints) >= 2
    assert all("Content Security Policy" in text for text in browser.complaints[:2])


def test_videos_play(browser, page):
    browser.open(page)
    videos = "document.querySelectorAll('video')"
    assert browser.evaluate(f"{videos}.length") == 3
    for index in range(3):
        browser.evaluate(f"{videos}[{index}].play()")
        browser.wait_for(f"{videos}[{index}].currentTime > 0.1")
        assert browser.evaluate(f"{videos}[{index}].videoWidth") == 256
        browser.evaluate(f"{videos}[{index}].pause()")


def test_curves_are_drawn_inside_their_pictures(browser, page):
    browser.open(page)
    titles = browser.evaluate("[...document.querySelectorAll('.chart b')].map((b) => b.innerText)")
    assert titles == [
        "Success in validation rollouts",
        "Validation error",
        "Training loss",
        "Raw error",
        "Gradient norm",
        "Learning rate",
    ]
    outside = browser.evaluate(
        """[...document.querySelectorAll('.chart .course')].filter((line) => {
          const [inner, outer] = [line, line.closest('svg')].map((e) => e.getBoundingClientRect());
          return !(inner.width > 0 && inner.left >= outer.left && inner.right <= outer.right
            && inner.top >= outer.top && inner.bottom <= outer.bottom);
        }).length"""
    )
    assert outside == 0
    assert browser.evaluate("document.querySelectorAll('.chart .course').length") == 12


def test_the_pointer_and_the_arrow_keys_read_values(browser, page):
    browser.open(page)
    browser.evaluate("window.loss = document.querySelectorAll('.chart')[2]")
    legend = "loss.querySelector('.legend').innerText.split(/\\s+/).join(' ')"
    before = browser.evaluate(legend)
    assert "step 900" in before
    assert "step 50,000" in before
    browser.evaluate("loss.scrollIntoView({block: 'center'})")
    box = browser.evaluate("loss.querySelector('svg').getBoundingClientRect().toJSON()")
    browser.call(
        "Input.dispatchMouseEvent",
        type="mouseMoved",
        x=box["x"] + 0.55 * box["width"],
        y=box["y"] + box["height"] / 2,
    )
    under_pointer = browser.evaluate(legend)
    assert "step 900" in under_pointer  # its last point is the nearest one
    assert "step 50,000" not in under_pointer
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert browser.evaluate(legend) == before
    browser.evaluate("loss.querySelector('svg').focus()")
    for _ in range(3):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert "step 50,000" not in browser.evaluate(legend)
    assert browser.complaints == []


def test_the_filter_leaves_what_differs(browser, page):
    browser.open(page)
    shown = (
        "[...document.querySelectorAll('.config.filtered tbody tr')]"
        ".filter((row) => row.offsetHeight).map((row) => row.cells[0].innerText)"
    )
    browser.evaluate("document.querySelector('.only-differing').click()")
    assert browser.evaluate(shown) == ["config.steps", "config.seed"]


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_nothing_overflows_sideways(browser, page, width):
    browser.open(page, width=width)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = browser.evaluate(
        f"const width = {width};"
        """[...document.querySelectorAll('body *')].filter((element) => {
          const box = element.getBoundingClientRect();
          return !element.closest('.scroll table') && box.right > width + 0.5;
        }).map((element) => element.outerHTML.slice(0, 100))"""
    )
    assert found == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_differ_and_both_are_legible(browser, page):
    """WCAG 2.1 asks for a contrast of 4.5 between text and what lies behind it."""
    contrasts = {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        contrasts[dark] = browser.evaluate(
            """(() => {
              const light = (color) => color.match(/[\\d.]+/g).slice(0, 3)
                .map((part) => part / 255)
                .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
                .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
              const behind = (element) => {
                const color = getComputedStyle(element).backgroundColor;
                return color === 'rgba(0, 0, 0, 0)' ? behind(element.parentElement) : color;
              };
              return ['p', 'h1', 'small', '.caution', '.failed td', '.note', 'summary', 'td']
                .map((name) => document.querySelector(name)).map((element) => {
                  const two = [getComputedStyle(element).color, behind(element)].map(light);
                  return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
                });
            })()"""
        )
        backgrounds = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (backgrounds == "rgb(22, 24, 27)") is dark
    assert min(contrasts[False]) >= 4.5
    assert min(contrasts[True]) >= 4.5
