"""Numbers in tables."""

from __future__ import annotations

from lg.cli.figures import figure, percent


def test_figures_have_three_digits() -> None:
    assert [figure(x) for x in (288_231.4, 999.96, 999.6, 12.345, 9.999, 0.05149, 0)] == [
        "288,231",
        "1000",
        "1000",
        "12.3",
        "10.0",
        "0.0515",
        "0.00",
    ]


def test_shares_have_two_digits_or_more() -> None:
    assert [percent(x) for x in (1.09, 1, 0.722, 0.09996, 0.031, 0.0099, 0.00099999, 0.00027, 3e-7, 0)] == [
        "109.0%",
        "100.0%",
        "72.2%",
        "10.0%",
        "3.1%",
        "0.99%",
        "0.10%",
        "0.027%",
        "0.000030%",
        "0.0%",
    ]
