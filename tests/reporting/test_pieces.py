from __future__ import annotations

import math
import re

import pytest

from akssl_core.reporting.html import Html, join, table, tag
from akssl_core.reporting.svg import line_chart, pieces, short, thin, ticks


def test_markup_is_escaped_once():
    assert tag("td", "a < b", Html("<i>c</i>"), title='"q"') == '<td title="&quot;q&quot;">a &lt; b<i>c</i></td>'
    assert join(["<", tag("br")]) == "&lt;<br>"
    assert '<th scope="row">&amp;</th>' in table(["A"], [["&"]])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0, 100, [0, 50, 100]), (-1, -0.5, [-1, -0.8, -0.6, -0.4]), (3, 3, None), (0, 0, None)],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 3 <= len(found) <= 7
    if expected:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1e-9, 2e-9], [1e9, 1e9 + 1], [-3e5, 8e5], [0.1 + 0.2, 0.3]])
def test_any_scale_can_be_drawn(values):
    chart = line_chart(list(enumerate(values)), title="t", x_label="epoch")
    numbers = [float(n) for n in re.findall(r"[ML]?(-?[\d.]+) (-?[\d.]+)", chart)[0]]
    assert all(0 <= n <= 360 for n in numbers)


def test_a_wide_label_has_its_room():
    """At the style's 12 px a digit is at most 7 units wide; the label ends where its anchor is."""
    chart = line_chart([(0.0, -1.2345e-7), (1.0, -1.2343e-7)], title="t", x_label="epoch")
    labels = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]*)<', chart)
    assert len(labels) >= 3
    assert max(len(text) for _, text in labels) >= 9
    assert all(float(x) - 7 * len(text) >= 0 for x, text in labels)


def test_the_name_of_a_mark_lies_over_the_curve():
    chart = line_chart([(0.0, 1.0), (1.0, 2.0)], title="t", x_label="epoch", marks=[("untrained", 1.5)])
    assert chart.index('class="mark"') < chart.index('class="curve"') < chart.index(">untrained<")


def test_one_point_can_be_drawn():
    chart = line_chart([(1.0, 5.0)], title="t", x_label="epoch")
    assert "<path" not in chart
    assert "<circle" in chart


def test_thinning_keeps_highs_lows_and_gaps():
    points = [(float(i), math.sin(i / 50)) for i in range(20_000)]
    points[7777] = (7777.0, 9.0)
    points[12_345] = (12_345.0, math.nan)
    shown = thin(points, 600)
    assert len(shown) <= 605
    assert max(y for _, y in shown if math.isfinite(y)) == 9.0
    assert min(y for _, y in shown if math.isfinite(y)) == min(y for _, y in points if math.isfinite(y))
    assert len(pieces(shown)) == 2
    assert [x for x, _ in shown] == sorted(x for x, _ in shown)
    assert thin(points[:600], 600) == points[:600]


@pytest.mark.parametrize(("value", "expected"), [(0.012349, "0.01235"), (4500, "4500"), (-1e-17, "0"), (12.0, "12")])
def test_numbers_are_short(value, expected):
    assert short(value) == expected
