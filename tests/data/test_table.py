"""A table of images is read as written, and what is wrong with it is said by file and row."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raymlc.data.table import Split, choose_heads, read_header, read_split, read_table
from raymlc.errors import UserError
from raymlc.labels import MISSING, Labels

HEADS = ("shape", "code", "marks")


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def cells(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV, by Python's own reader."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def refusal(data: Path, heads: tuple[str, ...] = (), val_fraction: float = 0.2) -> str:
    """The one line in which a table is refused."""
    with pytest.raises(UserError) as refused:
        read_table(data, heads, val_fraction)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def assert_holds(split: Split, path: Path, labels: Labels) -> None:
    """That a split has the rows of a whole CSV."""
    expected = cells(path)
    assert split.csv == path
    assert split.rows == tuple(range(1, len(expected["image_path"]) + 1))
    assert split.images == tuple(path.parent / image for image in expected["image_path"])
    assert split.targets.values_NT.tolist() == labels.encode(expected).values_NT.tolist()


def test_a_folder_is_read_into_its_heads_and_splits(tiny_table: Path) -> None:
    table = read_table(tiny_table)
    assert table.labels == Labels.learn(
        {head: cells(tiny_table / "train.csv")[head] for head in HEADS}
    )
    assert [(head.name, head.classes, head.multi_hot) for head in table.labels.heads] == [
        ("shape", ("flat", "round"), False),
        ("code", ("01", "1", "NA", "None"), False),
        ("marks", ("bar", "dot"), True),
    ]
    assert set(table.splits) == {"train", "val"}
    assert {name: len(split) for name, split in table.splits.items()} == {"train": 36, "val": 12}
    for name, split in table.splits.items():
        assert_holds(split, tiny_table / f"{name}.csv", table.labels)


def test_an_empty_cell_alone_is_missing(tiny_table: Path) -> None:
    table = read_table(tiny_table)
    for name, split in table.splits.items():
        for head, columns in split.targets.columns.items():
            gaps = [cell == "" for cell in cells(tiny_table / f"{name}.csv")[head]]
            values_NT = split.targets.values_NT[:, columns]
            assert (values_NT == MISSING).all(1).tolist() == gaps
            assert (values_NT == MISSING).any(1).tolist() == gaps


@pytest.mark.parametrize(
    "text", ["NA", "None", "nan", "NULL", "01", "1", "1.0", "True", " x", "#N/A"]
)
def test_a_cell_is_text_as_it_is_written(tiny_table: Path, text: str) -> None:
    edit(tiny_table / "train.csv", lambda table: table.replace(",round,", f",{text},"))
    assert text in read_table(tiny_table).labels.heads[0].classes


def test_a_quoted_cell_may_hold_a_comma_and_another_alphabet(tiny_table: Path) -> None:
    edit(tiny_table / "train.csv", lambda table: table.replace(",round,", ',"rund, größer",'))
    assert read_table(tiny_table).labels.heads[0].classes == ("flat", "rund, größer")


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tiny_table: Path) -> None:
    before = read_table(tiny_table)
    for name in ("train", "val"):
        path = tiny_table / f"{name}.csv"
        text = path.read_text(encoding="utf-8").replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    after = read_table(tiny_table)
    assert after.labels == before.labels
    for name, split in after.splits.items():
        assert split.images == before.splits[name].images
        assert (split.targets.values_NT == before.splits[name].targets.values_NT).all()
    assert read_header(tiny_table) == ("image_path", *HEADS)


def test_a_row_shorter_than_the_header_has_missing_labels_at_its_end(tiny_table: Path) -> None:
    edit(tiny_table / "val.csv", lambda table: table + "images/val00.png,flat\n")
    targets = read_table(tiny_table).splits["val"].targets
    assert targets.values_NT[-1].tolist() == [0] + [MISSING] * (targets.values_NT.shape[1] - 1)


@pytest.mark.parametrize("rows", ["all", "first", "last"])
def test_rows_longer_than_the_header_are_refused(tiny_table: Path, rows: str) -> None:
    chosen = {"all": range(1, 37), "first": range(1, 2), "last": range(36, 37)}[rows]
    lines = (tiny_table / "train.csv").read_text().splitlines()
    lines = [line + "," * (place in chosen) for place, line in enumerate(lines)]
    (tiny_table / "train.csv").write_text("\n".join(lines) + "\n")
    assert refusal(tiny_table).startswith("train.csv must ")


@pytest.mark.parametrize(
    ("header", "way_out"),
    [
        ("image,shape,code,marks", "but has 'image', 'shape', 'code', 'marks'; rename 'image'"),
        ("path,shape,code,marks", "name the images' column so"),
        ("image_path;shape;code;marks", "but has 'image_path;shape;code;marks'"),
    ],
)
def test_a_table_without_the_images_column_is_refused_with_its_columns(
    tiny_table: Path, header: str, way_out: str
) -> None:
    separator = ";" if ";" in header else ","
    edit(
        tiny_table / "train.csv",
        lambda table: header + "\n" + table.partition("\n")[2].replace(",", separator),
    )
    for attempt in (read_table, read_header):
        with pytest.raises(
            UserError, match=r"^train\.csv must have a column image_path, "
        ) as refused:
            attempt(tiny_table)
        assert way_out in str(refused.value)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_table_without_rows_is_refused_by_its_file(tiny_table: Path, name: str) -> None:
    edit(tiny_table / f"{name}.csv", lambda table: table.partition("\n")[0] + "\n")
    assert refusal(tiny_table) == (
        f"{name}.csv must have a row for each image, but has none below its header"
    )


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", "größe\n".encode("latin-1"), b'image_path,a\n"x\n']
)
def test_a_file_that_is_no_table_is_refused_by_its_name(tiny_table: Path, content: bytes) -> None:
    (tiny_table / "train.csv").write_bytes(content)
    assert refusal(tiny_table).startswith("train.csv must be a table in UTF-8 with a header line, ")


@pytest.mark.parametrize(("name", "row"), [("train", 1), ("train", 36), ("val", 7)])
def test_a_missing_image_is_named_with_its_row_and_file(
    tiny_table: Path, name: str, row: int
) -> None:
    image = tiny_table / f"images/{name}{row - 1:02}.png"
    image.unlink()
    line = refusal(tiny_table)
    assert line.startswith(f"row {row} of {name}.csv names the image {image}, which is not a file")
    assert line.endswith(f"paths are relative to {tiny_table}")


def test_a_row_without_an_image_path_is_named(tiny_table: Path) -> None:
    edit(tiny_table / "val.csv", lambda table: table + ",flat,1,dot\n")
    assert refusal(tiny_table).startswith("row 13 of val.csv must name an image")


def test_an_image_path_may_be_absolute(tiny_table: Path) -> None:
    edit(tiny_table / "val.csv", lambda table: table.replace("images/", f"{tiny_table}/images/"))
    assert read_table(tiny_table).splits["val"].images[0] == tiny_table / "images/val00.png"


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_rows_set_aside_for_validation_are_the_same_each_time_and_no_others(
    tiny_table: Path, fraction: float
) -> None:
    path = tiny_table / "train.csv"
    first, again = read_table(path, val_fraction=fraction), read_table(path, val_fraction=fraction)
    assert set(first.splits) == {"train", "val"}
    rows = {name: split.rows for name, split in first.splits.items()}
    assert rows == {name: split.rows for name, split in again.splits.items()}
    assert len(rows["val"]) == round(36 * fraction)
    assert sorted(rows["train"] + rows["val"]) == list(range(1, 37))
    expected = cells(path)
    for split in first.splits.values():
        assert split.csv == path
        for row, image in zip(split.rows, split.images, strict=True):
            assert image == tiny_table / expected["image_path"][row - 1]
        kept = {head: [expected[head][row - 1] for row in split.rows] for head in HEADS}
        assert split.targets.values_NT.tolist() == first.labels.encode(kept).values_NT.tolist()


def test_rows_set_aside_are_not_just_the_last_ones(tiny_table: Path) -> None:
    rows = read_table(tiny_table / "train.csv").splits["val"].rows
    assert rows[0] < 18 < rows[-1]
    assert rows != tuple(range(rows[0], rows[0] + len(rows)))


def test_a_folder_without_val_csv_sets_rows_aside(tiny_table: Path) -> None:
    (tiny_table / "val.csv").unlink()
    assert len(read_table(tiny_table, val_fraction=0.25).splits["val"]) == 9


def test_a_folder_with_val_csv_keeps_all_its_training_rows(tiny_table: Path) -> None:
    assert len(read_table(tiny_table, val_fraction=0.5).splits["train"]) == 36


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0, 1.5, -0.2])
def test_a_share_that_leaves_one_side_empty_is_refused_with_the_numbers(
    tiny_table: Path, fraction: float
) -> None:
    line = refusal(tiny_table / "train.csv", val_fraction=fraction)
    assert f"so {fraction} of its 36 rows" in line
    assert "change --val-fraction" in line


def test_a_third_split_is_read_where_there_is_one(tiny_table: Path) -> None:
    text = (tiny_table / "val.csv").read_text()
    (tiny_table / "test.csv").write_text("".join(text.splitlines(keepends=True)[:4]))
    table = read_table(tiny_table)
    assert set(table.splits) == {"train", "val", "test"}
    assert_holds(table.splits["test"], tiny_table / "test.csv", table.labels)


def test_classes_are_learnt_from_the_training_rows_alone(tiny_table: Path) -> None:
    table = read_table(tiny_table)
    targets = table.splits["val"].targets
    assert targets.unseen == {"shape": ("bent",), "code": ("2",), "marks": ("star",)}
    assert targets.values_NT[1].tolist() == [2, 0, 0, 1, 1]
    assert table.splits["train"].targets.unseen == {"shape": (), "code": (), "marks": ()}


def test_chosen_heads_are_the_only_ones_and_in_the_order_of_the_choice(tiny_table: Path) -> None:
    table = read_table(tiny_table, ("marks", "shape"))
    assert table.labels.names == ("marks", "shape")
    assert table.splits["val"].targets.columns == {"marks": slice(0, 3), "shape": slice(3, 4)}


@pytest.mark.parametrize(
    ("head", "way_out"),
    [
        ("mark", "did you mean 'marks'"),
        ("Shape", "did you mean 'shape'"),
        ("zzz", "name one of the columns"),
        ("image_path", "name one of the columns"),
    ],
)
def test_an_unknown_head_is_refused_with_the_columns_and_the_nearest_ones(
    tiny_table: Path, head: str, way_out: str
) -> None:
    line = refusal(tiny_table, ("shape", head))
    assert line.startswith(
        f"head {head!r} is not a column of train.csv (columns: image_path, shape, code, marks); "
    )
    assert way_out in line
    with pytest.raises(UserError, match=way_out):
        choose_heads(read_header(tiny_table), (head,), "train.csv")


def test_a_validation_table_without_a_head_of_the_training_table_is_refused(
    tiny_table: Path,
) -> None:
    edit(tiny_table / "val.csv", lambda table: table.replace("code", "codes", 1))
    assert "head 'code' is not a column of val.csv" in refusal(tiny_table)
    assert read_table(tiny_table, ("shape",)).labels.names == ("shape",)


def test_a_table_of_images_alone_is_refused(tiny_table: Path) -> None:
    (tiny_table / "train.csv").write_text("image_path\nimages/train00.png\n")
    assert refusal(tiny_table).startswith("train.csv must have a column for each head beside")


def test_a_place_without_a_table_is_refused(tiny_table: Path) -> None:
    assert refusal(tiny_table / "none").endswith("none does not exist")
    line = refusal(tiny_table / "images")
    assert line.startswith(
        f"a data folder must hold train.csv, but {tiny_table / 'images'} does not"
    )


def test_image_paths_are_relative_to_the_table_from_any_working_folder(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_table(tiny_table).splits
    monkeypatch.chdir(tiny_table.parent)
    for data in (Path("table"), Path("table/../table"), Path(os.path.relpath(tiny_table))):
        monkeypatch.chdir(tiny_table.parent)
        splits = read_table(data).splits
        # Whoever uses the splits may work elsewhere, as a trial's process does.
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        for name, split in splits.items():
            assert [image.resolve() for image in split.images] == list(expected[name].images)
            assert split.csv.is_file()


def test_any_csv_is_read_as_a_models_labels_see_it(tiny_table: Path) -> None:
    labels = read_table(tiny_table).labels
    other = tiny_table / "other.csv"
    other.write_text("note,marks,image_path,code,shape\nx,dot,images/val03.png,7,\n")
    split = read_split(other, labels)
    assert split.images == (tiny_table / "images/val03.png",)
    assert split.targets.values_NT.tolist() == [[MISSING, 4, 0, 1]]
    assert split.targets.unseen["code"] == ("7",)


def test_a_csv_that_lacks_a_models_head_or_an_image_is_refused(tiny_table: Path) -> None:
    labels = read_table(tiny_table).labels
    edit(tiny_table / "val.csv", lambda table: table.replace("shape", "form", 1))
    with pytest.raises(UserError, match=r"head 'shape' is not a column of val\.csv"):
        read_split(tiny_table / "val.csv", labels)
    (tiny_table / "images/train04.png").unlink()
    with pytest.raises(UserError, match=r"row 5 of train\.csv names the image"):
        read_split(tiny_table / "train.csv", labels)


def test_rows_are_taken_by_place_with_all_that_they_hold(tiny_table: Path) -> None:
    split = read_table(tiny_table).splits["val"]
    taken = split.take([7, 2])
    assert len(taken) == 2
    assert taken.csv == split.csv
    assert taken.rows == (8, 3)
    assert taken.images == (split.images[7], split.images[2])
    assert taken.targets.values_NT.tolist() == split.targets.values_NT[[7, 2]].tolist()


def test_a_class_list_adds_classes_that_no_training_row_has(tiny_table: Path) -> None:
    plain = read_table(tiny_table).labels
    listed = tiny_table / "all.csv"
    listed.write_text("marks,shape,code\nstar|dot,bent,2\n,flat,\n", encoding="utf-8")
    table = read_table(tiny_table, classes=listed)
    for head, before in zip(table.labels.heads, plain.heads, strict=True):
        new = {"shape": "bent", "code": "2", "marks": "star"}[head.name]
        assert set(head.classes) == {*before.classes, new}
        assert table.splits["val"].targets.unseen[head.name] == ()


def test_a_class_list_without_a_heads_column_is_refused(tiny_table: Path) -> None:
    listed = tiny_table / "all.csv"
    listed.write_text("shape,cod\nflat,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"head .code. is not a column of all\.csv") as error:
        read_table(tiny_table, classes=listed)
    assert "did you mean 'cod'" in str(error.value)


@pytest.fixture
def beside(tiny_table: Path) -> Path:
    """A folder beside the table's, with a picture."""
    folder = tiny_table.parent / "beside"
    folder.mkdir()
    (tiny_table / "images/val00.png").rename(folder / "picture.png")
    return folder


@pytest.mark.parametrize(
    "path", ["BESIDE/picture.png", "../beside/picture.png", "images/../../beside/picture.png"]
)
def test_an_image_outside_of_the_tables_folder_is_refused_unless_it_is_allowed(
    tiny_table: Path, beside: Path, path: str
) -> None:
    path = path.replace("BESIDE", str(beside))
    edit(tiny_table / "val.csv", lambda table: table.replace("images/val00.png", path))
    line = refusal(tiny_table)
    assert line.startswith(
        f"images must lie in the folder of their table, but row 1 of val.csv names {path}, outside"
        f" of {tiny_table}; "
    )
    assert "--allow-outside" in line
    labels = read_table(tiny_table, allow_outside=True).labels
    with pytest.raises(UserError, match="outside of"):
        read_split(tiny_table / "val.csv", labels)
    allowed = read_split(tiny_table / "val.csv", labels, allow_outside=True)
    assert allowed.images[0].samefile(beside / "picture.png")


def test_whether_an_image_outside_is_there_is_not_told(tiny_table: Path) -> None:
    edit(tiny_table / "val.csv", lambda table: table.replace("images/val00.png", "/nowhere.png"))
    assert "outside of" in refusal(tiny_table)


@pytest.mark.parametrize("path", ["images/../images/val00.png", "./images/val00.png"])
def test_a_path_that_comes_back_into_the_folder_is_inside(tiny_table: Path, path: str) -> None:
    edit(tiny_table / "val.csv", lambda table: table.replace("images/val00.png", path))
    assert read_table(tiny_table).splits["val"].images[0].is_file()


def test_what_a_link_in_the_folder_leads_to_is_inside(tiny_table: Path) -> None:
    images = tiny_table / "images"
    images.rename(tiny_table.parent / "elsewhere")
    images.symlink_to(tiny_table.parent / "elsewhere")
    for data in (tiny_table, tiny_table / ".." / "table"):
        assert len(read_table(data).splits["val"]) == 12


def test_a_step_up_from_a_link_is_one_up_from_where_it_leads(
    tiny_table: Path, beside: Path
) -> None:
    (tiny_table / "link").symlink_to(beside / "deeper")
    (beside / "deeper").mkdir()
    edit(
        tiny_table / "val.csv",
        lambda table: table.replace("images/val00.png", "link/../picture.png"),
    )
    assert "outside of" in refusal(tiny_table)


def test_a_table_below_a_linked_folder_is_read_from_there(tiny_table: Path) -> None:
    (tiny_table.parent / "link").symlink_to(tiny_table)
    edit(
        tiny_table / "val.csv",
        lambda table: table.replace("images/val00.png", f"{tiny_table}/images/val00.png"),
    )
    assert len(read_table(tiny_table.parent / "link").splits["val"]) == 12


def test_a_column_without_a_name_is_refused_unless_heads_are_chosen(tiny_table: Path) -> None:
    # As pandas writes a table with its row numbers.
    for name in ("train", "val"):
        lines = (tiny_table / f"{name}.csv").read_text().splitlines()
        numbered = [f"{place or ''},{line}" for place, line in enumerate(lines)]
        numbered[0] = f",{lines[0]}"
        (tiny_table / f"{name}.csv").write_text("\n".join(numbered) + "\n")
    assert refusal(tiny_table) == (
        "train.csv must name each column, but column 1 of 5 has no name; name it, take it out, or"
        " choose columns by --heads"
    )
    assert read_table(tiny_table, HEADS).labels.names == HEADS


def test_empty_lines_are_no_rows(tiny_table: Path) -> None:
    before = read_table(tiny_table)
    for name in ("train", "val"):
        edit(tiny_table / f"{name}.csv", lambda table: "\n" + table.replace("\n", "\n\n"))
    assert read_table(tiny_table).splits["val"].rows == before.splits["val"].rows
