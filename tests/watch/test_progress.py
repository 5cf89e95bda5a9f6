"""The table of a sweep's trials can be read however many parameters were searched."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from raymlc.search.study import Row
from raymlc.watch.progress import table_of_trials, track


def shown(width: int, params: dict[str, list[Any]], heads: tuple[str, ...] = ("shape",)) -> str:
    """The table of as many trials as each parameter has values; None: without that parameter."""
    rows = [
        Row(
            number, "COMPLETE", 8, 0.5, {f"val/accuracy/{head}": 0.75 for head in heads},
            {name: values[number] for name, values in params.items() if values[number] is not None},
            "", 1.0,
        )
        for number in range(len(next(iter(params.values()))))
    ]  # fmt: skip
    text = io.StringIO()
    table = table_of_trials(rows, heads, dict.fromkeys(heads, 0.25), "trials by score", width)
    Console(file=text, width=width).print(table)
    return text.getvalue()


MANY = {f"parameter_{place:02d}": [place / 7, 1 + place / 3] for place in range(20)}


@pytest.mark.parametrize("width", [60, 80, 100, 140, 400, 1000])
def test_no_cell_is_broken_or_cut_off_and_what_is_left_out_is_counted(width: int) -> None:
    text = shown(width, MANY)
    lines = text.splitlines()
    title, _, header, _, first, second, *_ = lines
    assert title.strip() == "trials by score"
    assert max(map(len, lines)) <= width
    assert "…" not in text
    names = [name for name in header.split() if name in MANY]
    assert names == list(MANY)[: len(names)]
    assert len(first.split()) == len(second.split()) == len(header.split())
    left = len(MANY) - len(names)
    assert (
        f"{left} parameters more, for which there is no room, in summary.csv"
        in " ".join(text.split())
    ) == (left > 0)
    assert (left == 0) == (width >= 400)


def test_parameters_that_are_the_same_in_all_trials_give_way_first() -> None:
    params: dict[str, list[Any]] = {
        "backbone": ["tf_efficientnet_lite0"] * 2,
        "lr": [0.1, 0.2],
        "gc": [True, None],
    }
    header = shown(62, params).splitlines()[2].split()
    assert header == ["trial", "state", "epochs", "score", "shape", "lr", "gc"]
    assert "1 parameter more" in shown(62, params)
    assert "backbone" in shown(100, params).splitlines()[2].split()


def test_heads_may_have_the_names_of_other_columns() -> None:
    header = shown(80, {"state": [0.5]}, heads=("state", "score")).splitlines()[2].split()
    assert header == ["trial", "state", "epochs", "score", "state", "score", "state"]


def test_where_no_bar_can_be_drawn_a_long_wait_has_a_line_now_and_then(
    clock: Callable[[float], None],
) -> None:
    text = io.StringIO()
    for _ in track(Console(file=text), range(400), "decoding train.csv once", 400):
        clock(0.25)
    assert text.getvalue().splitlines() == [
        "decoding train.csv once",
        "40 of 400",
        "100 of 400",
        "190 of 400",
        "325 of 400",
    ]


def test_where_no_bar_can_be_drawn_a_short_wait_has_one_line() -> None:
    text = io.StringIO()
    assert list(track(Console(file=text), range(9), "reading 9 images", 9)) == list(range(9))
    assert text.getvalue() == "reading 9 images\n"
