"""The built-in data set is what its docstring promises, whoever draws it and whatever goes wrong.

Suffixes: N rows, M marks, HWC a picture.
"""

import colorsys
import csv
import multiprocessing
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymlc.data import demo
from raymlc.data.demo import draw_demo
from raymlc.errors import UserError

HEADS = ("shape", "color", "marks")
CLASSES = {
    "shape": {"circle", "square", "triangle", "star", "cross", "ring"},
    "color": {"red", "orange", "yellow", "green", "teal", "blue", "purple", "pink"},
    "marks": {"dot", "stripe", "border"},
}
Table = list[dict[str, str]]


def read(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(cell: str) -> list[str]:
    return [name for name in cell.split("|") if name]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "not" / "there" / "yet"
    draw_demo(folder)
    return folder


@pytest.fixture(scope="module")
def train(folder: Path) -> Table:
    return read(folder / "train.csv")


@pytest.fixture(scope="module")
def val(folder: Path) -> Table:
    return read(folder / "val.csv")


def test_each_picture_is_in_one_row_of_one_split(folder: Path, train: Table, val: Table) -> None:
    assert (len(train), len(val)) == (1600, 400)
    paths = [row["image_path"] for row in train + val]
    assert paths == [f"images/{row:04d}.png" for row in range(2000)]
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        Path(path).name for path in paths
    ]


def test_tables_have_a_path_and_three_heads(train: Table, val: Table) -> None:
    assert all(list(row) == ["image_path", *HEADS] for row in train + val)


def test_pictures_are_small_rgb_and_all_different(folder: Path) -> None:
    pixels = set()
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 48))
            pixels.add(image.tobytes())
    assert len(pixels) == 2000


@pytest.mark.parametrize(
    ("rows", "train_rows", "val_rows"), [(10, 8, 2), (14, 12, 2), (99, 80, 19)]
)
def test_a_fifth_of_any_number_of_rows_is_for_validation(
    tmp_path: Path, rows: int, train_rows: int, val_rows: int
) -> None:
    draw_demo(tmp_path / "demo", rows=rows)
    assert len(read(tmp_path / "demo" / "train.csv")) == train_rows
    assert len(read(tmp_path / "demo" / "val.csv")) == val_rows


@pytest.mark.parametrize("head", HEADS)
def test_every_class_occurs_in_both_splits(train: Table, val: Table, head: str) -> None:
    for table in (train, val):
        cells = [row[head] for row in table if row[head]]
        found = {name for cell in cells for name in (names(cell) if head == "marks" else [cell])}
        assert found == CLASSES[head]


@pytest.mark.parametrize("seed", range(20))
def test_even_the_smallest_train_split_knows_every_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    train = demo.label_rows(demo.draw_contents(10, rng), 8, rng)[:8]
    assert {row[1] for row in train} >= CLASSES["shape"]
    assert {row[2] for row in train} >= CLASSES["color"]
    assert {name for row in train for name in names(row[3])} == CLASSES["marks"]


@pytest.mark.parametrize("head", HEADS)
def test_no_two_classes_are_equally_frequent(train: Table, head: str) -> None:
    counts = Counter(name for row in train for name in names(row[head]))
    assert len(set(counts.values())) == len(counts) == len(CLASSES[head])


@pytest.mark.parametrize("head", HEADS)
def test_the_most_common_answer_is_right_for_a_fifth_to_a_third(val: Table, head: str) -> None:
    counts = Counter(row[head] for row in val if row[head])
    assert 0.2 < max(counts.values()) / counts.total() < 0.35


@pytest.mark.parametrize("head", HEADS)
def test_about_one_label_in_twenty_is_missing(train: Table, val: Table, head: str) -> None:
    for table in (train, val):
        missing = sum(not row[head] for row in table) / len(table)
        assert 0.02 < missing < 0.08


def test_marks_are_a_set_and_a_lone_bar_means_none_of_them(train: Table, val: Table) -> None:
    cells = Counter(row["marks"] for row in train + val if row["marks"])
    sets = {cell: frozenset(names(cell)) for cell in cells}
    assert sets["|"] == frozenset()
    assert len(set(sets.values())) == len(sets) == 2 ** len(CLASSES["marks"])
    assert all("|".join(names(cell)) == cell for cell in cells if cell != "|")


def test_labels_are_wrong_in_train_only_and_in_single_label_heads_only() -> None:
    rng = np.random.default_rng(1)
    drawn = demo.draw_contents(50_000, rng)
    rows = demo.label_rows(drawn, 40_000, rng)
    truth = {
        1: [list(demo.SHAPE_SHARE)[index] for index in drawn.shape],
        2: [list(demo.COLOR_SHARE)[index] for index in drawn.color],
    }
    for column, true_names in truth.items():
        wrong_N = np.array(
            [row[column] not in ("", true) for row, true in zip(rows, true_names, strict=True)]
        )
        assert wrong_N[:40_000].mean() == pytest.approx(0.03 * 0.95, abs=0.003)
        assert not wrong_N[40_000:].any()
    for row, on_M in zip(rows, drawn.marks, strict=True):
        true = {mark for mark, on in zip(demo.MARK_SHARE, on_M, strict=True) if on}
        assert row[3] == "" or set(names(row[3])) == true


def test_the_color_label_names_the_hue_of_the_shape(folder: Path, val: Table) -> None:
    hues = {"red": 0, "orange": 24, "yellow": 50, "green": 118}
    hues |= {"teal": 176, "blue": 218, "purple": 272, "pink": 328}
    agree = []
    for row in val:
        if row["marks"] == "|" and row["color"] and row["shape"] not in ("", "ring"):
            with Image.open(folder / row["image_path"]) as image:
                center_HWC = np.asarray(image)[22:26, 22:26] / 255
            hue = 360 * colorsys.rgb_to_hsv(*center_HWC.mean((0, 1)).tolist())[0]
            nearest = min(hues, key=lambda name: abs((hue - hues[name] + 180) % 360 - 180))
            agree.append(nearest == row["color"])
    assert len(agree) > 50
    assert 0.8 < np.mean(agree) < 1  # neighbouring hues overlap


@pytest.mark.parametrize("shape", sorted(CLASSES["shape"]))
@pytest.mark.parametrize(
    ("marks", "bright", "dark"),
    [
        (set(), False, False),
        ({"dot"}, True, False),
        ({"border"}, True, False),
        ({"stripe"}, False, True),
        ({"dot", "stripe", "border"}, True, True),
    ],
)
def test_marks_are_drawn_and_only_those_named(
    shape: str, marks: set[str], bright: bool, dark: bool
) -> None:
    for seed in range(5):
        picture = demo.draw_picture(shape, "blue", marks, np.random.default_rng(seed))
        image_HWC = np.asarray(picture)
        assert ((image_HWC.min(2) > 175).sum() > 40) == bright
        assert ((image_HWC.max(2) < 60).sum() > 100) == dark


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw_demo(tmp_path / name, rows=40, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not [name for name in a if a[name] == c[name]]


def test_a_second_call_draws_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    draw_demo(folder, rows=40)
    (folder / "images" / "0000.png").write_bytes(b"touched")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    draw_demo(folder, rows=40)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert (folder / "images" / "0000.png").read_bytes() == b"touched"


def test_a_drawing_that_stops_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw_picture = demo.draw_picture

    def stop_at_the_tenth(
        shape: str, color: str, marks: set[str], rng: np.random.Generator
    ) -> Image.Image:
        drawn.append(shape)
        if len(drawn) == 10:
            raise KeyboardInterrupt
        return draw_picture(shape, color, marks, rng)

    monkeypatch.setattr(demo, "draw_picture", stop_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        draw_demo(tmp_path / "demo", rows=40)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_drawing_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(target=draw_demo, args=(killed, 20_000))
    process.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.part/images/*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    (leftover,) = tmp_path.iterdir()
    assert leftover != killed
    draw_demo(killed, rows=40)
    draw_demo(tmp_path / "undisturbed", rows=40)
    assert contents(killed) == contents(tmp_path / "undisturbed")


def test_processes_that_draw_at_once_all_end_well_and_leave_one_drawing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "demo"
    processes = [context.Process(target=draw_demo, args=(folder, 300)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_drawing_finished_by_another_process_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    label_rows = demo.label_rows

    def be_overtaken(
        drawn: demo.Drawn, train_rows: int, rng: np.random.Generator
    ) -> list[list[str]]:
        monkeypatch.setattr(demo, "label_rows", label_rows)
        draw_demo(folder, rows=40)
        (folder / "theirs").touch()
        return label_rows(drawn, train_rows, rng)

    monkeypatch.setattr(demo, "label_rows", be_overtaken)
    draw_demo(folder, rows=40)
    assert (folder / "theirs").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    draw_demo(tmp_path / "expected", rows=10)
    (tmp_path / "empty").mkdir()
    draw_demo(tmp_path / "empty", rows=10)
    assert contents(tmp_path / "empty") == contents(tmp_path / "expected")


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="something else; name another folder"):
        draw_demo(tmp_path)
    assert contents(tmp_path) == {"train.csv": b"mine"}


@pytest.mark.parametrize(("rows", "seed"), [(11, 0), (10, 1)])
def test_a_different_drawing_is_not_passed_off_as_the_one_asked_for(
    tmp_path: Path, rows: int, seed: int
) -> None:
    draw_demo(tmp_path / "demo", rows=10)
    with pytest.raises(UserError, match=r'holds \{"rows": 10, "seed": 0\}'):
        draw_demo(tmp_path / "demo", rows=rows, seed=seed)


@pytest.mark.parametrize(
    ("rows", "seed", "message"),
    [(9, 0, "rows of the demo must be at least 10.*are 9"), (10, -1, "seed .* is -1")],
)
def test_arguments_out_of_range_are_named(
    tmp_path: Path, rows: int, seed: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        draw_demo(tmp_path / "demo", rows=rows, seed=seed)
    assert list(tmp_path.iterdir()) == []
