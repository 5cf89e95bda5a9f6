"""Labels turn a table's cells into numbers, and nothing but an empty cell is missing."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymlc.errors import UserError
from raymlc.labels import MISSING, SEPARATOR, Head, Labels, Targets

SHAPE = Head("shape", ("flat", "round"))
MARKS = Head("marks", ("bar", "dot", "ring"), multi_hot=True)


def encoded(head: Head, *cells: str) -> list[list[int]]:
    """The rows of numbers of one head's cells."""
    numbers: list[list[int]] = Labels((head,)).encode({head.name: cells}).values_NT.tolist()
    return numbers


def decoded(head: Head, targets: Targets) -> list[str]:
    """The cells of one head, from its numbers, by what `Targets` says of them."""
    classes = head.classes + targets.unseen[head.name]
    cells = []
    for row in targets.values_NT[:, targets.columns[head.name]].tolist():
        if MISSING in row:
            assert set(row) == {MISSING}
            cells.append("")
        elif head.multi_hot:
            assert set(row) <= {0, 1}
            cells.append(SEPARATOR.join(classes[i] for i, on in enumerate(row) if on) or SEPARATOR)
        else:
            cells.append(classes[row[0]])
    return cells


def test_classes_are_text_in_code_point_order() -> None:
    cells = ["b", "10", "9", "B", "é", "z", "", "9"]
    assert Labels.learn({"head": cells}).heads == (Head("head", ("10", "9", "B", "b", "z", "é")),)


def test_heads_keep_the_order_of_the_columns() -> None:
    labels = Labels.learn({"z": ["1", "2"], "a": ["x|y", "x"], "m": ["3", "4"]})
    assert labels.names == ("z", "a", "m")
    assert [head.multi_hot for head in labels.heads] == [False, True, False]


@pytest.mark.parametrize("text", ["NA", "None", "nan", "null", "01", "1", "1.0", "-1", " ", "#N/A"])
def test_what_looks_like_a_number_or_a_gap_is_a_class_like_any_other(text: str) -> None:
    cells = [text, "", "other"]
    labels = Labels.learn({"head": cells})
    assert text in labels.heads[0].classes
    assert len(labels.heads[0].classes) == 2
    values = labels.encode({"head": cells}).values_NT[:, 0]
    assert (values == MISSING).tolist() == [False, True, False]
    assert decoded(labels.heads[0], labels.encode({"head": cells})) == cells


def test_classes_that_differ_as_text_are_not_one_class() -> None:
    assert Labels.learn({"head": ["01", "1", "1.0", "1 "]}).heads[0].classes == (
        "01",
        "1",
        "1 ",
        "1.0",
    )


@pytest.mark.parametrize(
    ("cell", "row"),
    [
        ("", [MISSING, MISSING, MISSING]),
        ("|", [0, 0, 0]),
        ("||", [0, 0, 0]),
        ("dot", [0, 1, 0]),
        ("dot|", [0, 1, 0]),
        ("|dot", [0, 1, 0]),
        ("ring|bar", [1, 0, 1]),
        ("bar|ring", [1, 0, 1]),
        (" bar | dot ", [1, 1, 0]),
        ("bar||dot|ring", [1, 1, 1]),
        ("dot|dot", [0, 1, 0]),
    ],
)
def test_a_multi_hot_cell_is_a_row_of_0_and_1(cell: str, row: list[int]) -> None:
    assert encoded(MARKS, cell) == [row]


@pytest.mark.parametrize(
    ("cell", "number"), [("flat", 0), ("round", 1), ("", MISSING), ("bent", 2), ("flat|round", 2)]
)
def test_a_single_label_cell_is_one_number(cell: str, number: int) -> None:
    assert encoded(SHAPE, cell) == [[number]]


@pytest.mark.parametrize(
    ("cells", "multi_hot"),
    [
        (["a", "b"], False),
        (["a", "b", "|"], True),
        (["a|b", "a"], True),
        (["a", "b", ""], False),
        (["a|"], True),
    ],
)
def test_one_separator_in_a_column_makes_its_head_multi_hot(
    cells: list[str], multi_hot: bool
) -> None:
    assert Labels.learn({"head": cells}).heads[0].multi_hot is multi_hot


def test_classes_unseen_in_training_are_numbered_after_the_heads_own() -> None:
    targets = Labels((SHAPE,)).encode({"shape": ["round", "oval", "", "bent", "oval"]})
    assert targets.values_NT.tolist() == [[1], [3], [MISSING], [2], [3]]
    assert targets.unseen == {"shape": ("bent", "oval")}


def test_marks_unseen_in_training_are_columns_after_the_heads_own() -> None:
    targets = Labels((MARKS, SHAPE)).encode(
        {"marks": ["star|dot", "|", "", "axe"], "shape": ["flat", "flat", "", "round"]}
    )
    assert targets.unseen == {"marks": ("axe", "star"), "shape": ()}
    assert targets.columns == {"marks": slice(0, 5), "shape": slice(5, 6)}
    assert targets.multi_hot == {"marks": True, "shape": False}
    assert targets.values_NT.tolist() == [
        [0, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [MISSING] * 5 + [MISSING],
        [0, 0, 0, 1, 0, 1],
    ]


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (["", ""], "head 'color' has no label in any training row; "),
        ([], "head 'color' has no label in any training row; "),
        (["|", "", "||"], "head 'color' has no label in any training row; "),
        (["red", "", "red"], "but every label of 'color' in the training rows is 'red'; "),
    ],
)
def test_a_head_from_which_nothing_can_be_learnt_is_refused(cells: list[str], line: str) -> None:
    with pytest.raises(UserError) as refused:
        Labels.learn({"shape": ["a", "b"], "color": cells})
    assert line in str(refused.value)
    assert "--heads" in str(refused.value)


def test_labels_unseen_in_training_are_named_with_the_number_of_their_rows() -> None:
    labels = Labels((SHAPE, MARKS))
    new = [f"n{number}" for number in range(7)]
    targets = labels.encode(
        {
            "shape": ["flat", *new, "", "n0"],
            "marks": ["dot", "star|dot", "axe|star", "|", "", "bar", "star", "", "", ""],
        }
    )
    assert labels.unseen_lines(targets) == [
        "head shape: labels that training never saw count as wrong, in 8 rows:"
        " 'n0', 'n1', 'n2', 'n3', 'n4', …",
        "head marks: labels that training never saw count as wrong, in 3 rows: 'axe', 'star'",
    ]
    assert labels.unseen_lines(labels.encode({"shape": ["flat", ""], "marks": ["|", "dot"]})) == []


def test_a_multi_hot_head_may_have_one_class() -> None:
    labels = Labels.learn({"marks": ["dot", "|", ""]})
    assert labels.heads == (Head("marks", ("dot",), multi_hot=True),)
    assert encoded(labels.heads[0], "dot", "|", "") == [[1], [0], [MISSING]]


def test_targets_are_taken_by_row_and_keep_their_columns() -> None:
    targets = Labels((SHAPE, MARKS)).encode(
        {"shape": ["flat", "", "bent"], "marks": ["dot", "|", ""]}
    )
    taken = targets.take([2, 0])
    assert len(taken) == 2
    np.testing.assert_array_equal(taken.values_NT, targets.values_NT[[2, 0]])
    assert (taken.columns, taken.multi_hot, taken.unseen) == (
        targets.columns,
        targets.multi_hot,
        targets.unseen,
    )
    assert len(targets.take([])) == 0


single_cells = st.lists(st.text().filter(lambda text: SEPARATOR not in text), min_size=1)
names = st.text(min_size=1).map(str.strip).filter(lambda text: text and SEPARATOR not in text)
multi_cells = st.lists(
    st.none() | st.sets(names).map(lambda labels: SEPARATOR.join(sorted(labels)) or SEPARATOR),
    min_size=1,
).map(lambda cells: [cell or "" for cell in cells])


@given(train=single_cells, val=single_cells)
def test_single_label_cells_come_back_from_their_numbers(train: list[str], val: list[str]) -> None:
    assume(any(train))
    head = Head("head", tuple(sorted(set(train) - {""})))
    for cells in (train, val):
        targets = Labels((head,)).encode({"head": cells})
        assert decoded(head, targets) == cells
        assert targets.values_NT.dtype == np.int64
        new = set(cells) - {"", *head.classes}
        assert targets.unseen["head"] == tuple(sorted(new))


@given(train=multi_cells, val=multi_cells)
def test_multi_hot_cells_come_back_from_their_numbers(train: list[str], val: list[str]) -> None:
    found = {label for cell in train for label in cell.split(SEPARATOR) if label}
    assume(found)
    head = Head("head", tuple(sorted(found)), multi_hot=True)
    for cells in (train, val):
        targets = Labels((head,)).encode({"head": cells})
        back = decoded(head, targets)
        assert [set(cell.split(SEPARATOR)) for cell in back] == [
            set(cell.split(SEPARATOR)) for cell in cells
        ]
        assert [cell == "" for cell in back] == [cell == "" for cell in cells]


@given(st.dictionaries(st.text(), st.tuples(st.lists(st.text(), unique=True), st.booleans())))
def test_labels_come_back_from_json_as_they_were(heads: dict[str, tuple[list[str], bool]]) -> None:
    labels = Labels(
        tuple(Head(name, tuple(classes), multi_hot) for name, (classes, multi_hot) in heads.items())
    )
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        {"heads": None},
        {"heads": [1]},
        {"heads": [{"name": "a", "classes": ["b"]}]},
        {"heads": [{"name": "a", "classes": 3, "multi_hot": False}]},
    ],
)
def test_other_json_than_labels_is_refused(values: Any) -> None:
    with pytest.raises(UserError, match="labels must be heads with name, classes, multi_hot"):
        Labels.from_dict(values)
