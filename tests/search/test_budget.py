"""Durations and numbers of trials, as people write them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlc.errors import UserError
from raymlc.search.budget import parse_duration, parse_trials


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400),
        ("2h", 7200),
        ("1h30m", 5400),
        ("0.5d", 43200),
        ("45s", 45),
        ("1d1h1m1s", 90061),
    ],
)
def test_a_duration_is_read_in_its_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "2", "h", "2 h", "-1h", "1h30", "0s", "1.h", "１h", "9" * 400 + "d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a duration"):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with suppress(UserError):
        assert parse_duration(text) > 0


@pytest.mark.parametrize(
    ("text", "have", "trials"), [("12", 0, 12), ("12", 40, 12), ("+8", 0, 8), ("+8", 12, 20)]
)
def test_trials_are_all_in_all_or_so_many_more(text: str, have: int, trials: int) -> None:
    assert parse_trials(text, have) == trials


@pytest.mark.parametrize("text", ["", "+", "0", "+0", "-1", "1.5", "+ 3", "++3", "many", "²"])
def test_what_is_no_number_of_trials_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_trials(text, 3)
    assert str(refused.value) == (
        f"--trials must be a number of trials, at least 1, or +N for N more, but is {text!r}"
    )
