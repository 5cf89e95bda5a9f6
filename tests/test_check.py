"""What the check of a table finds, and what it leaves alone."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raymlc.check import main

HEADER = "image_path,kind,marks"


def draw(path: Path, red: int) -> None:
    Image.new("RGB", (6, 5), (red, 7, 7)).save(path)


def write(folder: Path, split: str, cells: Sequence[str], first: int) -> None:
    """A split with a picture of its own for each row."""
    lines = [HEADER]
    for place, labels in enumerate(cells):
        draw(folder / f"{split}{place}.png", first + place)
        lines.append(f"{split}{place}.png,{labels}")
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A table without fault: two kinds and two marks, ten rows of each to train on."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, "train", ["a,x", "b,y|x"] * 10, 0)
    write(folder, "val", ["a,x|y", "b,|", "a,"], 100)
    return folder


def check(capsys: pytest.CaptureFixture[str], data: Path, *arguments: Any) -> list[str]:
    """The lines of what is found."""
    capsys.readouterr()
    assert main([str(data), "--cache", str(data.parent / "cache"), *map(str, arguments)]) == 0
    said = capsys.readouterr().out.splitlines()
    return [line.removeprefix("- ") for line in said if line.startswith("- ")]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add(path: Path, *rows: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{row}\n" for row in rows)


def test_of_a_table_without_fault_nothing_is_said_but_what_it_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "f.csv")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 20 rows; val: 3 rows",
        "head kind: single-label, 2 classes",
        "head marks: multi-hot, 2 classes",
        "",
        "nothing to mend was found",
        "",
        f"0 findings, a row each, in {tmp_path / 'f.csv'}",
    ]
    assert rows_of(tmp_path / "f.csv") == []


def test_repeated_pictures_are_counted_and_listed_those_across_splits_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, red in (("p", 0), ("q", 1), ("r", 101), ("s", 102)):
        draw(data / f"{name}.png", red)
    add(data / "train.csv", "r.png,b,|", "s.png,b,y")
    add(data / "val.csv", "q.png,b,x|y")
    add(data / "train.csv", "p.png,a,x")
    out = tmp_path / "found.csv"
    assert check(capsys, data, "--output", out) == [
        "3 pictures stand in more than one split: train has the pictures of 3 of 4 rows of val",
        "1 picture stands in several rows with different labels, 1 of them across splits",
        "pictures in several rows of one split, with the same labels: 1",
    ]
    found = rows_of(out)
    assert {row["finding"] for row in found} == {"same picture"}
    assert [(row["group"], row["csv"], row["row"], row["image_path"]) for row in found] == [
        ("1", "train.csv", "22", "s.png"),
        ("1", "val.csv", "3", "val2.png"),
        ("2", "train.csv", "2", "train1.png"),
        ("2", "val.csv", "4", "q.png"),
        ("3", "train.csv", "21", "r.png"),
        ("3", "val.csv", "2", "val1.png"),
        ("4", "train.csv", "1", "train0.png"),
        ("4", "train.csv", "23", "p.png"),
    ]
    assert [row["note"] for row in found[::2]] == [
        "in train and val, different kind",
        "in train and val",
        "in train and val",
        "in train",
    ]
    assert [(row["kind"], row["marks"]) for row in found[:4]] == [
        ("b", "y"),
        ("a", ""),
        ("b", "x|y"),
        ("b", "x|y"),
    ]


def test_images_that_cannot_be_read_are_all_found(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train3.png").write_text("no picture")
    whole = (data / "val1.png").read_bytes()
    (data / "val1.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "found.csv"
    (line,) = check(capsys, data, "--output", out)
    assert line.startswith("2 images cannot be read, the first in row 4 of train.csv: ")
    assert line.endswith("leave such rows out with --broken-images skip")
    assert [(row["finding"], row["split"], row["row"]) for row in rows_of(out)] == [
        ("unreadable image", "train", "4"),
        ("unreadable image", "val", "2"),
    ]
    assert "cannot identify image file" in rows_of(out)[0]["note"]


def test_rows_without_any_label_are_found_and_those_with_one_are_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, "val", [",", ",|", "a,", ","], 100)
    write(data, "test", ["a,x", ","], 150)
    out = tmp_path / "found.csv"
    assert check(capsys, data, "--output", out) == [
        "val: 2 rows without any label",
        "test: 1 row without any label",
    ]
    assert [(row["finding"], row["split"], row["row"]) for row in rows_of(out)] == [
        ("no label", "val", "1"),
        ("no label", "val", "4"),
        ("no label", "test", "2"),
    ]


def test_labels_that_training_never_saw_are_found_in_every_split(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, "val", ["new,x", "a,star|x", "b,y", "new,"], 100)
    write(data, "test", ["a,star", "other,|"], 150)
    out = tmp_path / "found.csv"
    seen = "labels that training never saw count as wrong, in"
    assert check(capsys, data, "--output", out) == [
        f"val: head kind: {seen} 2 rows: 'new'",
        f"val: head marks: {seen} 1 rows: 'star'",
        f"test: head kind: {seen} 1 rows: 'other'",
        f"test: head marks: {seen} 1 rows: 'star'",
    ]
    assert [(row["split"], row["row"], row["note"]) for row in rows_of(out)] == [
        ("val", "1", "kind 'new'"),
        ("val", "4", "kind 'new'"),
        ("val", "2", "marks 'x|star'"),
        ("test", "2", "kind 'other'"),
        ("test", "1", "marks 'star'"),
    ]


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (["c,x"] * 5, []),
        (["c,x"] * 4, ["head kind: 1 of 3 classes have fewer than 5 training rows: 'c' (4)"]),
        (
            ["c,x", "c,z", "d,z"],
            [
                "head kind: 2 of 4 classes have fewer than 5 training rows: 'd' (1), 'c' (2)",
                "head marks: 1 of 3 classes have fewer than 5 training rows: 'z' (2)",
            ],
        ),
        (
            [f"k{number},x" for number in range(9)],
            [
                "head kind: 9 of 11 classes have fewer than 5 training rows: "
                + ", ".join(f"'k{number}' (1)" for number in range(8))
                + ", …"
            ],
        ),
    ],
)
def test_classes_of_few_training_rows_are_named_with_their_counts(
    data: Path, rows: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, "train", ["a,x", "b,y|x"] * 10 + rows, 0)
    assert check(capsys, data) == lines


def test_a_class_list_makes_classes_without_a_row(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.csv").write_text("kind,marks\nc,z|x\n")
    assert check(capsys, data, "--classes", tmp_path / "classes.csv") == [
        "head kind: 1 of 3 classes have fewer than 5 training rows: 'c' (0)",
        "head marks: 1 of 3 classes have fewer than 5 training rows: 'z' (0)",
    ]


@pytest.mark.parametrize(
    ("names", "near"),
    [
        (("T Shirt", "t shirt"), "'T Shirt' (5) and 't shirt' (5)"),
        (("TShirt", "T Shirt "), "'T Shirt ' (5) and 'TShirt' (5)"),
        (("tshirt", "T-shirt"), None),
        (("1", "01"), None),
        (("STRASSE", "straße"), "'STRASSE' (5) and 'straße' (5)"),
        (("ｔｏｐ", "top"), "'top' (5) and 'ｔｏｐ' (5)"),
    ],
)
def test_classes_that_differ_in_case_or_spaces_alone_are_named_with_their_counts(
    data: Path, names: tuple[str, str], near: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{name},x" for name in names] * 5
    write(data, "train", ["a,x", "b,y|x"] * 10 + rows, 0)
    words = "head kind: classes that differ in case or spaces alone (training rows): "
    assert check(capsys, data) == ([words + near] if near else [])


def test_a_label_that_is_nearly_a_class_of_training_is_named(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, "val", ["A,X|x"], 100)
    lines = check(capsys, data)
    words = "classes that differ in case or spaces alone (training rows): "
    assert lines[:2] == [
        f"head kind: {words}'a' (10) and 'A' (0)",
        f"head marks: {words}'x' (20) and 'X' (0)",
    ]
    assert len(lines) == 4


def test_a_column_of_ids_or_texts_is_named_alone(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [f"i{number},{'x' if number % 2 else 'y|x'}" for number in range(19)]
    write(data, "train", [*ids, "I1,x", ",x"], 0)
    write(data, "val", ["i3,x"], 100)
    assert check(capsys, data) == [
        "head kind: 20 classes in 20 labelled training rows, as in a column of ids or texts; leave"
        " it out with --heads"
    ]
    assert check(capsys, data, "--heads", "marks") == []


def test_one_csv_is_checked_as_it_would_be_split(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        draw(data / f"again{number}.png", number)
    add(data / "train.csv", *(f"again{number}.png,{'ba'[number % 2]},x" for number in range(20)))
    out = tmp_path / "found.csv"
    words = ["--val-fraction", 0.5, "--output", out, "--heads", "kind"]
    lines = check(capsys, data / "train.csv", *words)
    assert "stand in more than one split: train has the pictures of " in lines[0]
    found = rows_of(out)
    assert len(found) == 40
    assert {row["csv"] for row in found} == {"train.csv"}
    assert {row["split"] for row in found} == {"train", "val"}
    assert "marks" not in found[0]


def test_a_head_may_have_the_name_of_a_column_of_the_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for red, name in enumerate(("a", "b", "c")):
        draw(tmp_path / f"{name}.png", red)
    (tmp_path / "train.csv").write_text("image_path,row,note\na.png,1,p\nb.png,2,q\n")
    (tmp_path / "val.csv").write_text("image_path,row,note\na.png,2,p\n")
    out = tmp_path / "found.csv"
    check(capsys, tmp_path, "--output", out)
    first = rows_of(out)[0]
    assert (first["row"], first["note"]) == ("1", "p")
    assert (first["row_"], first["note_"]) == ("1", "in train and val, different row")


def test_where_rows_are_at_fault_the_way_to_their_list_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data), "--cache", str(tmp_path / "cache")]
    assert main(words) == 0
    assert "--output" not in capsys.readouterr().out
    add(data / "val.csv", "train0.png,a,x")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "which rows these are: --output FILE.csv" in said
    assert "1 thing to look at:" in said


def test_wrong_words_are_refused_in_a_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    for arguments, words in (
        ([tmp_path / "none"], "does not exist"),
        ([data, "--heads", "kin"], "did you mean 'kind'"),
        ([data, "--output", tmp_path / "mine.csv"], "--output must name a new file"),
        ([data, "--output", tmp_path / "no" / "f.csv"], "--output must be a file to write"),
    ):
        assert main([*map(str, arguments), "--cache", str(tmp_path / "cache")]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("error: ")
        assert words in told
    assert (tmp_path / "mine.csv").read_text() == "mine"
    words_of_it = [str(data), "--output", str(tmp_path / "mine.csv"), "--overwrite"]
    assert main([*words_of_it, "--cache", str(tmp_path / "cache")]) == 0
    assert (tmp_path / "mine.csv").read_text().startswith("finding,note,group,split,csv,row,")
