"""Values per head, which do not change, and the types that fields hold."""

import copy
import pickle
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlc.errors import UserError
from raymlc.fields import PerHead, typed

Values = Mapping[str, float]
values_by_head = st.dictionaries(st.text(), st.floats(allow_nan=False))


@given(values_by_head)
def test_values_per_head_are_those_of_the_dict_by_head_in_the_order_of_names(
    values: dict[str, float],
) -> None:
    per_head = PerHead(values)
    assert list(per_head) == sorted(values)
    assert len(per_head) == len(values)
    assert {head: per_head[head] for head in per_head} == values
    assert per_head.get("no such head \0") is None
    assert repr(per_head) == repr(dict(sorted(values.items())))


@given(values_by_head, st.randoms(use_true_random=False))
def test_equal_values_are_one_key_in_whatever_order_they_came(
    values: dict[str, float], random: Any
) -> None:
    items = list(values.items())
    random.shuffle(items)
    twins = [PerHead(dict(items)), pickle.loads(pickle.dumps(PerHead(values)))]
    twins += [copy.copy(PerHead(values)), copy.deepcopy(PerHead(values))]
    for twin in twins:
        assert type(twin) is PerHead
        assert twin == PerHead(values) == values
        assert hash(twin) == hash(PerHead(values))
    assert PerHead({**values, "one more \0": 1.0}) != PerHead(values)


def test_other_values_are_another_key() -> None:
    assert len({PerHead(), PerHead({"a": 1.0}), PerHead({"a": 2.0}), PerHead({"b": 1.0})}) == 4


def test_values_per_head_keep_what_they_were_given() -> None:
    given = {"a": 1.0}
    per_head = PerHead(given)
    given["a"] = 2.0
    assert per_head == {"a": 1.0}
    with pytest.raises(TypeError):
        per_head["a"] = 2.0  # type: ignore[index]
    assert PerHead() == PerHead(None) == PerHead({}) == {}


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        (0.5, float, 0.5),
        (1, int, 1),
        (True, bool, True),
        ("", str, ""),
        ("a", Literal["a", "b"], "a"),
        ({"h": 1}, Values, PerHead({"h": 1.0})),
        (PerHead({"h": 1}), Values, PerHead({"h": 1.0})),
        ({}, Values, PerHead()),
        ({"h": "a"}, Mapping[str, Literal["a", "b"]], PerHead({"h": "a"})),
    ],
)
def test_a_value_of_a_fields_type_is_taken_and_a_whole_number_widened(
    value: Any, annotation: Any, expected: Any
) -> None:
    taken = typed("f", value, annotation)
    assert taken == expected
    assert type(taken) is type(expected)
    if isinstance(taken, PerHead):
        assert [type(one) for one in taken.values()] == [type(one) for one in expected.values()]


@pytest.mark.parametrize(
    ("value", "annotation", "line"),
    [
        ("1", float, "f must be of type float, but is '1'"),
        (True, float, "f must be of type float, but is True"),
        pytest.param(10**400, float, "f must be of type float, but is 1000", id="too large"),
        (1.0, int, "f must be of type int, but is 1.0"),
        (True, int, "f must be of type int, but is True"),
        (1, bool, "f must be of type bool, but is 1"),
        (1, str, "f must be of type str, but is 1"),
        ("c", Literal["a", "b"], "f must be one of its names, but is 'c'; choose from a, b"),
        (None, Literal["a", "b"], "f must be one of its names, but is None; choose from a, b"),
        (2.0, Values, "f must be an object with a value a head, but is 2.0"),
        ([("h", 1)], Values, "f must be an object with a value a head, but is [('h', 1)]"),
        ({"h": 1, "k": "1"}, Values, "f of 'k' must be of type float, but is '1'"),
        ({"h": {"k": 1}}, Values, "f of 'h' must be of type float, but is {'k': 1}"),
    ],
)
def test_a_value_of_another_type_is_refused_by_field_and_value(
    value: Any, annotation: Any, line: str
) -> None:
    with pytest.raises(UserError) as refused:
        typed("f", value, annotation)
    assert str(refused.value).startswith(line)
