"""Elements: text stays text, whatever it holds."""

from html.parser import HTMLParser

from pipeline.rollout.report.markup import Markup, element


class Reader(HTMLParser):
    """Collects what an independent parser sees."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


def test_text_and_attributes_come_back_as_they_went_in():
    hostile = "</td><script>alert('1')</script> & \"quoted\" &lt;"
    seen = read(element("td", hostile, title=hostile))
    assert seen.tags == [("td", {"title": hostile})]
    assert seen.text == hostile


def test_children_nest_and_none_is_nothing():
    inner = element("b", 7)
    made = element("p", ["a", [inner, None]], None, class_="x", data_y=1, hidden=False, open=True)
    assert made == '<p class="x" data-y="1" open>a<b>7</b></p>'
    assert isinstance(made, Markup)


def test_a_void_element_has_no_end():
    assert element("input", type="checkbox") == '<input type="checkbox">'


def test_a_name_that_is_no_unicode_still_encodes():
    assert element("b", "run\udcff").encode() == b"<b>run?</b>"
