from xml.etree import ElementTree

from suri.study.figures import (
    PAINTS,
    Bar,
    Line,
    Panel,
    bar_figure,
    for_paper,
    heat_figure,
    line_figure,
)

ROWS = [("base", 0), ("merged Meta", 3)]
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_bars_show_their_rows_titles_and_values():
    panels = [
        Panel("Exact match (%)", [Bar(12.5, 3.1, 40.2), None]),
        Panel("s", [Bar(7), Bar(0)], 3),
    ]
    shown = texts(bar_figure("quality", ROWS, panels))
    assert {"base", "merged Meta", "Exact match (%)", "12.5", "7.000", "0.000"} <= set(shown)


def test_an_interval_without_width_is_not_drawn():
    def drawn(*ends):
        return bar_figure("quality", ROWS, [Panel("a", [Bar(1.0, *ends), None])])

    assert drawn(1.0, 1.0 + 1e-15) == drawn(1.0, 1.0) == drawn() != drawn(0.9, 1.1)


def test_lines_show_their_names():
    lines = [Line("training", [1, 2], [3.0, 2.0], 0, faint=True), Line("held out", [0], [2.5], 1)]
    shown = texts(line_figure("training", lines, "step", "loss"))
    assert {"training", "held out", "step", "loss"} <= set(shown)
    named = line_figure(
        "sizes",
        [Line("LoRA", [0, 1], [2, 1], 1, [1, 0], [3, 2])],
        "rows",
        "loss",
        x_names=["64", "1,000"],
    )
    assert {"64", "1,000"} <= set(texts(named))


def test_drawings_take_their_colours_from_the_page_and_clash_in_no_id():
    first = bar_figure("first", ROWS, [Panel("a", [Bar(1, 0.5, 2), Bar(2)])])
    second = bar_figure("second", ROWS, [Panel("a", [Bar(1, 0.5, 2), Bar(2)])])
    assert "var(--c0)" in first
    assert "var(--c3)" in first
    assert not [stand_in for stand_in, _ in PAINTS.values() if stand_in in first]
    ids = [
        [one.attrib["id"] for one in ElementTree.fromstring(svg).iter() if "id" in one.attrib]
        for svg in (first, second)
    ]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert PAINTS["c3"][1] in for_paper(first)


def test_the_same_numbers_give_the_same_drawing():
    again = [line_figure("x", [Line("a", [0, 1], [1, 2], 1)], "x", "y") for _ in range(2)]
    assert again[0] == again[1]


def test_a_heat_map_shows_every_share():
    shown = texts(heat_figure("agree", ["base", "adapter"], [[1.0, 0.25], [0.25, 1.0]]))
    assert shown.count("100") == 2
    assert shown.count("25") == 2
    assert {"base", "adapter"} <= set(shown)


def test_bars_below_zero_stay_inside_the_drawing():
    svg = bar_figure("saved", ROWS, [Panel("saved (%)", [Bar(-40, -50, -30), Bar(12)])])
    assert {"-40.0", "12.0"} <= set(texts(svg))


def test_a_figure_of_many_ways_is_no_wider_so_that_its_letters_stay_legible():
    names = [f"merged Meta, suri, bfloat16, {place}" for place in range(14)]
    widths = {
        ElementTree.fromstring(svg).attrib["width"]
        for svg in (
            heat_figure("prefixes", names, [[0.5] * 14] * 14),
            bar_figure("quality", ROWS, [Panel("a", [Bar(1), Bar(2)])]),
        )
    }
    assert len(widths) == 1
