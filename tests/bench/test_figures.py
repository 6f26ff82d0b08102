"""The one form of all figures: turns, picking, the table, the file, the page made of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import figures, page
from tests.bench.figures import OTHERS, P50, RATE, Figure, in_turn, pick
from tests.bench.pictures import bars_by_load

FOUND = [
    Figure("peers", "ours", "tiny", "1 in flight", RATE, (90.0, 100.0, 120.0)),
    Figure("peers", "Triton", "tiny", "1 in flight", RATE, (50.0,), "2.51.0: as it comes"),
    Figure("peers", "Ray Serve", "tiny", "1 in flight", RATE, (), "not installed: no wheel"),
    Figure("peers", "ours", "tiny", "1 in flight", OTHERS, (0.0, 0.5, 0.25)),
]


def test_turns_are_taken_and_each_begins_a_round() -> None:
    order: list[str] = []

    def turn(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn({name: lambda name=name: turn(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(order) == "abcbcacab"
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_a_figure_is_picked_by_its_fields() -> None:
    assert pick(FOUND, subject="Triton", metric=RATE) is FOUND[1]
    assert pick(FOUND, subject="Ray Serve") is None
    assert pick(FOUND, subject="nobody") is None
    with pytest.raises(ValueError, match="2 figures"):
        pick(FOUND, subject="ours")


def test_the_table_has_ratios_and_how_far_the_repeats_were_apart() -> None:
    printed = io.StringIO()
    figures.show(Console(width=figures.WIDTH, file=printed), FOUND, "ours")
    text = " ".join(printed.getvalue().split())
    assert "100 ±20%" in text
    assert "0.50 × 50" in text
    assert "Ray Serve: not installed: no wheel" in text
    assert OTHERS not in text


def test_how_busy_others_were() -> None:
    assert figures.disturbance(FOUND) == "others used 0.25 cores in the median run, 0.50 at most"
    assert figures.disturbance(FOUND[:1]) == "not measured with h2load"


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "reports" / "bench.json"
    figures.write(file, {"command": ["x"]}, FOUND)
    assert figures.read(file) == ({"command": ["x"]}, FOUND)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"served": {}}')
    with pytest.raises(ValueError, match="not the figures"):
        figures.read(tmp_path / "x.json")


def test_a_table_of_the_page() -> None:
    text = page.by_load(FOUND, "peers", "tiny", RATE, page.EVERYBODY, ["1 in flight", "4 in flight"], "ours")
    assert text.splitlines() == [
        "| tiny: requests/s | 1 in flight | 4 in flight |",
        "|---|---:|---:|",
        "| ours | 100 | – |",
        "| Triton | 50 (0.50 ×) | – |",
    ]


def test_every_place_in_the_pages_text_is_filled() -> None:
    about = {"machine": {"cpu": "x", "commit": "abc"}, "command": ["python", "-m", "tests.bench"]}
    text = page.text(about, FOUND)
    assert "${" not in text
    assert "not installed: no wheel" in text


def test_a_plot_is_a_file_of_its_own(tmp_path: Path) -> None:
    bars_by_load(tmp_path / "x.svg", FOUND, RATE, ("ours", "Triton"), ("1 in flight",))
    svg = (tmp_path / "x.svg").read_text()
    assert svg.startswith("<svg xmlns=")
    assert "--c0: #" in svg
    assert svg.count('class="bar"') == 2
    assert P50 not in svg
