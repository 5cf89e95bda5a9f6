"""A study goes on with the rows that it was begun with."""

from pathlib import Path

import optuna
import pytest

from raymlc.data.table import read_table
from raymlc.errors import UserError
from raymlc.search.rows import keep_rows
from raymlc.search.storage import open_study


def study_in(folder: Path) -> optuna.Study:
    return open_study(folder / "study.journal", "val/accuracy", "random", "none", 0, 10)


@pytest.mark.parametrize(
    ("old", "new", "split"),
    [
        ("round,01,dot", "flat,01,dot", "train"),
        ("train00.png", "train01.png", "train"),
        ("", "", ""),
    ],
)
def test_a_study_goes_on_with_the_rows_that_it_was_begun_with_and_no_others(
    tmp_path: Path, tiny_table: Path, old: str, new: str, split: str
) -> None:
    study = study_in(tmp_path)
    keep_rows(study, read_table(tiny_table))
    csv = tiny_table / "train.csv"
    header, *lines = csv.read_text().replace(old, new, 1).splitlines()
    # A column that no head was made of and another name of the folder change no row.
    csv.write_text("\n".join([f"{header},note", *(f"{line},x" for line in lines)]))
    moved = tiny_table.rename(tiny_table.with_name("moved"))
    table = read_table(moved, ("shape", "code", "marks"))
    study = study_in(tmp_path)
    if not split:
        keep_rows(study, table)
        return
    with pytest.raises(UserError, match=f"the {split} rows of {moved}/train.csv are others than"):
        keep_rows(study, table)


def test_other_validation_rows_are_others_too(tmp_path: Path, tiny_table: Path) -> None:
    study = study_in(tmp_path)
    keep_rows(study, read_table(tiny_table))
    csv = tiny_table / "val.csv"
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match=r"the val rows of .*val.csv are others .* --warm-start"):
        keep_rows(study, read_table(tiny_table))
