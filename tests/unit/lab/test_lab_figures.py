"""The pictures of rings and popek-goldberg: well-formed, readable without colour, and in 80
columns; and the one in examples/ is what is drawn today."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmpy.lab.show import rings_figure as _rings_figure, sensitive_figure as _sensitive_figure
from kvmpy.report import svg
from kvmpy.report.blocks import Picture

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
#: As on kvm_intel: rings 0 to 3 of a guest, and this process.
COUNTS = ((25, 26, 8), (3, 26, 1), (3, 26, 1), (3, 26, 1), (3, 26, None))
BARS = {
    "kernel at CPL 1": {"traps": 5, "leaks": 6, "differs": 8},
    "kernel at CPL 1, UMIP on": {"traps": 10, "leaks": 1, "differs": 8, "": 0},
    "kernel in non-root ring 0": {"own": 18, "": 1},
}


@pytest.mark.parametrize(
    "picture",
    [
        _rings_figure.picture(COUNTS),
        _rings_figure.picture((*COUNTS[:4], None)),
        _sensitive_figure.picture(BARS),
    ],
)
def test_picture(picture: Picture) -> None:
    """XML, with a label; text of at most 79 columns; nothing drawn outside."""
    root = ElementTree.fromstring(picture.svg)
    assert root.get("aria-label")
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        if "width" in element.attrib:
            assert float(element.attrib["x"]) + float(element.attrib["width"]) <= width
            assert float(element.attrib["y"]) + float(element.attrib["height"]) <= height
    lines = picture.text.splitlines()
    assert max(map(len, lines)) <= 79
    assert not any(line != line.rstrip() for line in lines)


def test_rings_say_what_was_counted() -> None:
    """In the drawing and in the text; root ring 0 was not tried."""
    picture = _rings_figure.picture(COUNTS)
    for shown in (picture.svg, picture.text):
        assert shown.count("may run 3 of 26, 1 exiting") == 3
        assert shown.count("may run 3 of 26") == 4
        assert shown.count("may run 25 of 26, 8 exiting") == 1


def test_bars_are_as_long_as_they_count() -> None:
    """A letter for each instruction; what there is none of is not in the legend."""
    text = _sensitive_figure.picture(BARS).text
    assert "##### oooooo xxxxxxxx" in text
    assert text.count("=") == 18 + 1
    assert "not shown" not in _sensitive_figure.picture({"x": {"traps": 1, "": 0}}).text


def test_the_example_is_up_to_date() -> None:
    """The README shows it."""
    first, _, rest = _rings_figure.picture(COUNTS).svg.partition("\n")
    width, height = first.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    paper = svg.box(0, 0, float(width), float(height), kind="paper")  # whatever is behind it
    drawn = f"{first}\n{paper}\n{rest}\n"
    assert (EXAMPLES / "lab-rings.svg").read_text() == drawn
