"""Repeated pictures: found by their bytes, told in a line or two, and looked for once."""

import os
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raymlc.data.duplicates as duplicates
from raymlc.data.duplicates import Repeat, find_repeats, label_of, path_of, repeat_lines
from raymlc.data.table import Split, Table, read_table
from raymlc.labels import Labels

Row = tuple[str, str, str]  # content of the image, single label, multi-hot label
TRAIN: list[Row] = [("one", "a", "x|y"), ("two", "b", "y"), ("six", "c", "|")]


def table_of(folder: Path, rows: dict[str, list[Row]]) -> Table:
    """A table whose images hold these texts, each in a file of its own."""
    lines: dict[str, list[str]] = {}
    for split, some in rows.items():
        lines[split] = ["image_path,kind,marks"]
        for place, (content, kind, marks) in enumerate(some):
            name = f"{split}{place}.png"
            (folder / name).write_text(content)
            lines[split].append(f"{name},{kind},{marks}")
        (folder / f"{split}.csv").write_text("\n".join(lines[split]) + "\n")
    return read_table(folder)


def test_a_picture_is_found_again_by_its_bytes_whatever_its_name(tmp_path: Path) -> None:
    others: list[Row] = [("ten", "a", "x"), ("two", "b", "y"), ("longer", "a", ""), ("", "a", "")]
    table = table_of(tmp_path, {"train": TRAIN, "val": others, "test": [("", "a", ""), others[1]]})
    repeats = find_repeats(table, tmp_path / "cache")
    assert repeats == [Repeat((("train", 1), ("val", 1), ("test", 1)), ())]
    assert repeats[0].splits == ("train", "val", "test")


def test_rows_that_name_one_file_have_one_picture_whether_or_not_another_file_has_its_size(
    tmp_path: Path,
) -> None:
    for content in ("odd size", "six"):
        folder = tmp_path / content
        folder.mkdir()
        table_of(folder, {"train": TRAIN, "val": [(content, "a", "x")]})
        with (folder / "val.csv").open("a") as file:
            file.write("val0.png,b,x\n")
        repeats = find_repeats(read_table(folder), tmp_path / "cache")
        rows = (("val", 0), ("val", 1))
        if content == "six":
            assert repeats == [Repeat((("train", 2), *rows), ("kind", "marks"))]
        else:
            assert repeats == [Repeat(rows, ("kind",))]


@pytest.mark.parametrize(
    ("rows", "differing"),
    [
        ([("a", "x"), ("a", "x")], ()),
        ([("a", "x"), ("b", "x")], ("kind",)),
        ([("a", "x"), ("b", "y")], ("kind", "marks")),
        ([("a", "x|y"), ("a", "y|x")], ()),
        ([("a", "x|y"), ("a", "x")], ("marks",)),
        ([("a", "x"), ("a", "|")], ("marks",)),
        ([("a", "x"), ("", "")], ()),
        ([("a", ""), ("", "|"), ("a", "")], ()),
        ([("a", "x"), ("", "x"), ("b", "x")], ("kind",)),
        # Of classes that training never saw, each split counts its own anew.
        ([("new", "x"), ("new", "x")], ()),
        ([("new", "x"), ("other", "x")], ("kind",)),
        ([("a", "new|x"), ("a", "x|new")], ()),
        ([("a", "new"), ("a", "other")], ("marks",)),
    ],
)
def test_labels_differ_if_two_rows_have_others_and_a_missing_one_differs_from_none(
    tmp_path: Path, rows: list[tuple[str, str]], differing: tuple[str, ...]
) -> None:
    split = {"val": rows[:1], "test": rows[1:]}
    same = {name: [("same", *row) for row in some] for name, some in split.items()}
    table = table_of(tmp_path, {"train": TRAIN, **same})
    (repeat,) = find_repeats(table, tmp_path / "cache")
    assert repeat.differing == differing


content = st.sampled_from(["a", "b", "c", "aa", "bb", "aab"])
row = st.tuples(content, st.sampled_from(["p", "q", ""]), st.sampled_from(["x", "x|y", "|", ""]))


@settings(max_examples=30)
@given(st.lists(row, max_size=8), st.lists(row, min_size=1, max_size=5))
def test_repeats_are_those_of_comparing_each_row_with_each(
    train: list[Row], val: list[Row]
) -> None:
    splits = {"train": [("1st", "p", "x|y"), ("2nd", "q", "x"), *train], "val": val}
    rows = {(name, place): row for name, some in splits.items() for place, row in enumerate(some)}
    with TemporaryDirectory() as folder:
        table = table_of(Path(folder), splits)
        repeats = find_repeats(table, Path(folder) / "cache")
    pairs = {pair for repeat in repeats for pair in combinations(repeat.rows, 2)}
    assert pairs == {pair for pair in combinations(rows, 2) if rows[pair[0]][0] == rows[pair[1]][0]}
    for repeat in repeats:
        for head, column in (("kind", 1), ("marks", 2)):
            labels = {rows[one][column] for one in repeat.rows} - {""}
            assert (head in repeat.differing) == (len(labels) > 1)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files whose bytes are read from now on."""
    names: list[str] = []
    digest = duplicates._digest

    def noted(image: str) -> bytes | None:
        names.append(Path(image).name)
        return digest(image)

    monkeypatch.setattr(duplicates, "_digest", noted)
    return names


def test_only_files_of_equal_size_are_read_each_once(tmp_path: Path, read: list[str]) -> None:
    val: list[Row] = [("two", "b", "y"), ("longer", "a", ""), ("the longest", "a", "")]
    find_repeats(table_of(tmp_path, {"train": TRAIN, "val": val}), tmp_path / "cache")
    assert sorted(read) == ["train0.png", "train1.png", "train2.png", "val0.png"]


def test_a_second_look_reads_no_file_until_one_changes(tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "cache"
    table = table_of(tmp_path, {"train": TRAIN, "val": [("two", "b", "y")]})
    first = find_repeats(table, cache)
    read.clear()
    assert find_repeats(table, cache) == first
    assert len(first) == 1
    assert not read
    changed = tmp_path / "val0.png"
    changed.write_text("six")
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert find_repeats(table, cache) == [Repeat((("train", 2), ("val", 0)), ("kind", "marks"))]
    assert read


@pytest.mark.parametrize("harm", ["cut", "taken", "none"])
def test_the_answer_needs_no_cache(tmp_path: Path, harm: str) -> None:
    cache = tmp_path / "cache"
    table = table_of(tmp_path, {"train": TRAIN, "val": [("two", "b", "y")]})
    expected = find_repeats(table, tmp_path / "other")
    if harm == "taken":
        cache.write_text("a file where the folder shall be")
    elif harm == "cut":
        find_repeats(table, cache)
        (kept,) = cache.iterdir()
        kept.write_text(kept.read_text()[:3])
    assert find_repeats(table, cache) == expected
    assert len(expected) == 1


def test_files_that_cannot_be_read_repeat_none(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"train": TRAIN, "val": [("two", "a", ""), ("two", "a", "")]})
    (tmp_path / "val0.png").unlink()
    (tmp_path / "val1.png").unlink()
    (tmp_path / "val1.png").mkdir()
    assert find_repeats(table, tmp_path / "cache") == []


def test_files_of_several_parts_are_compared_to_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_PART", 4)
    monkeypatch.setattr(duplicates, "_AT_A_TIME", 2)
    rows: list[Row] = [("0123456x", "a", "x"), ("0123456y", "a", "x"), ("0123456x", "a", "x")]
    table = table_of(tmp_path, {"train": TRAIN, "val": rows})
    asked: list[tuple[str, int]] = []

    def progress(done: object, text: str, total: int) -> object:
        asked.append((text, total))
        return done

    repeats = find_repeats(table, tmp_path / "cache", progress)  # type: ignore[arg-type]
    assert [repeat.rows for repeat in repeats] == [(("val", 0), ("val", 2))]
    assert asked == [("comparing the bytes of 6 images", 3)]


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ({"val": [("new", "a", "x")]}, []),
        ({"val": [("new", "a", "x")] * 2}, []),
        (
            {"val": [("new", "a", "x"), ("new", "b", "x")]},
            ["1 picture stands in several rows with different labels, 0 of them across splits"],
        ),
        (
            {"val": [("one", "", ""), ("new", "b", "x")]},
            [
                "1 picture stands in more than one split: train has the pictures of 1 of 2 rows of"
                " val"
            ],
        ),
        (
            {"val": [("new", "b", "x")], "test": [("new", "b", "x"), ("tens", "a", "x")]},
            ["1 picture stands in more than one split"],
        ),
        (
            {
                "val": [("one", "b", "x"), ("one", "b", "x"), ("ten", "b", "x")],
                "test": [("one", "b", "x"), ("two", "b", "y"), ("ten", "b", "x")],
            },
            [
                "3 pictures stand in more than one split: train has the pictures of 2 of 3 rows of"
                " val and of 2 of 3 rows of test",
                "1 picture stands in several rows with different labels, 1 of them across splits",
            ],
        ),
    ],
)
def test_what_matters_of_the_repeats_is_said_in_a_line_or_two(
    tmp_path: Path, rows: dict[str, list[Row]], lines: list[str]
) -> None:
    table = table_of(tmp_path, {"train": TRAIN, **rows})
    assert repeat_lines(table, find_repeats(table, tmp_path / "cache")) == lines


def test_rows_set_aside_from_one_csv_are_a_split_of_their_own(tmp_path: Path) -> None:
    table_of(tmp_path, {"train": TRAIN * 4})
    table = read_table(tmp_path / "train.csv", val_fraction=0.5)
    repeats = find_repeats(table, tmp_path / "cache")
    assert len(repeats) == 3
    for repeat in repeats:
        rows = [table.splits[split].rows[place] for split, place in repeat.rows]
        assert {(row - 1) % 3 for row in rows} == {(rows[0] - 1) % 3}
        assert len(rows) == 4
        assert not repeat.differing


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("a", "x"), ("a", "x")),
        (("", ""), ("", "")),
        (("new", "|"), ("new", "|")),
        (("b", "y|x"), ("b", "x|y")),
        (("b", "zz|y|aa"), ("b", "y|aa|zz")),
    ],
)
def test_a_label_is_told_as_a_table_has_it(
    cells: tuple[str, str], expected: tuple[str, str]
) -> None:
    labels = Labels.learn({"kind": ["a", "b"], "marks": ["x|y", "|"]})
    targets = labels.encode({"kind": ["b", cells[0]], "marks": ["|", cells[1]]})
    assert tuple(label_of(head, targets, 1) for head in labels.heads) == expected
    again = labels.encode({"kind": ["b", expected[0]], "marks": ["|", expected[1]]})
    assert np.array_equal(again.values_NT, targets.values_NT)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/data/images/a.png", "images/a.png"),
        ("/data/../other/a.png", "../other/a.png"),
        ("/elsewhere/a.png", "/elsewhere/a.png"),
    ],
)
def test_an_image_is_named_as_its_table_names_it(image: str, expected: str) -> None:
    targets = Labels.learn({"kind": ["a", "b"]}).encode({"kind": ["a"]})
    split = Split(Path("/data/val.csv"), (1,), (Path(image),), targets)
    assert path_of(split, 0) == expected
