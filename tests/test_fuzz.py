"""Whatever a file holds: it is read as what it says, or refused in words, by a UserError."""

import csv
import dataclasses
import io
import json
import os
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymlc.data.duplicates import label_of
from raymlc.data.table import IMAGE_COLUMN, Split, read_header, read_table
from raymlc.entry import read_trial
from raymlc.errors import UserError
from raymlc.labels import Head, Labels
from raymlc.options import TuneOptions
from raymlc.search.space import check_space, load_space
from raymlc.training.calibration import Calibration, HeadCalibration, save_calibration
from raymlc.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from raymlc.trial import FIELDS, TrialConfig

# The folder of a test is shared by its examples, each of which writes its own file there.
many = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# ---- tables

LOOKING_LIKE_OTHERS = (
    "NA", "None", "nan", "null", "#N/A", "007", "1", "1.0", "1e5", "True", "-", "=1+1", " x ",
    "\ufeff", "ä", "a\u0308", "日本", "🙂", "a\u2028b", "x" * 10_000,
)  # fmt: skip
CELLS = st.one_of(
    st.sampled_from(LOOKING_LIKE_OTHERS),
    st.text(st.sampled_from(",;|\"\n\r\t 'ab"), max_size=6),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)
PIECES = st.sampled_from(
    [b"image_path", b"a", b"b", b",", b",", b'"', b"\n", b"\n", b"\r", b"\0", b"\xff", b"|", b" "]
)
BYTES = st.one_of(
    st.lists(PIECES, max_size=30).map(b"".join),
    st.lists(PIECES, max_size=30).map(lambda some: b"image_path,a\nx.png," + b"".join(some)),
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: text.encode("utf-16")),
)


def said(labels: Labels, split: Split) -> dict[str, list[str]]:
    """The cells of a split, read back from its numbers."""
    return {
        head.name: [label_of(head, split.targets, place) for place in range(len(split))]
        for head in labels.heads
    }


def meant(cell: str, multi_hot: bool) -> str:
    """A cell, but the labels of a multi-hot head in order and each once."""
    if not cell or not multi_hot:
        return cell
    return "|".join(sorted({part.strip() for part in cell.split("|")} - {""})) or "|"


def check_texts(table: Path) -> None:
    """Checks that a table's labels are the texts of Python's own reader, or raises UserError."""
    read = read_table(table, val_fraction=0.5, allow_outside=True)
    header, *rows = [
        row for row in csv.reader(io.StringIO(table.read_bytes().decode("utf-8-sig"), "")) if row
    ]
    rows = [row + [""] * (len(header) - len(row)) for row in rows]
    assert read_header(table) == tuple(header)
    places = [row - 1 for split in read.splits.values() for row in split.rows]
    assert sorted(places) == list(range(len(rows)))
    images = [image for split in read.splits.values() for image in split.images]
    at = header.index(IMAGE_COLUMN)
    assert images == [table.parent / rows[place][at] for place in places]
    for head in read.labels.heads:
        column = [rows[place][header.index(head.name)] for place in places]
        cells = [cell for s in read.splits.values() for cell in said(read.labels, s)[head.name]]
        for cell, text in zip(cells, column, strict=True):
            assert meant(cell, head.multi_hot) == meant(text, head.multi_hot)


@pytest.fixture
def every_image_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isfile", lambda path: True)


@given(
    names=st.lists(CELLS, min_size=1, max_size=3, unique=True),
    rows=st.lists(st.lists(CELLS, min_size=4, max_size=4), min_size=2, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    mark=st.booleans(),
)
@many
def test_the_labels_of_a_table_are_the_texts_that_were_written(
    tmp_path: Path,
    every_image_is_there: None,
    names: list[str],
    rows: list[list[str]],
    end: str,
    quoting: Any,
    mark: bool,
) -> None:
    table = tmp_path / "table.csv"
    names = [name for name in names if name != IMAGE_COLUMN]
    with table.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        lines = csv.writer(file, lineterminator=end, quoting=quoting)
        lines.writerow([IMAGE_COLUMN, *names])
        lines.writerows([f"{row[0]}.png", *row[1 : len(names) + 1]] for row in rows)
    with suppress(UserError):  # of a column with less than two labels, or without a name
        check_texts(table)


@given(content=BYTES)
@many
def test_of_any_bytes_a_table_has_the_texts_of_pythons_reader_or_is_refused(
    tmp_path: Path, every_image_is_there: None, content: bytes
) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    with suppress(UserError):
        check_texts(table)


def test_a_table_of_all_odd_labels_is_read_and_not_refused(
    tmp_path: Path, every_image_is_there: None
) -> None:
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([IMAGE_COLUMN, "of, one", "of\nmany"])
        odd = (*LOOKING_LIKE_OTHERS, "a,b", 'say "x"', "a\nb")
        lines.writerows([f"{n}.png", label, f"{label}|b"] for n, label in enumerate(odd))
    check_texts(table)
    assert set(odd) == set(read_table(table).labels.heads[0].classes) | set(
        read_table(table).splits["val"].targets.unseen["of, one"]
    )


# ---- trials and options in JSON

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, "adamp", "step", "efficientnet_b0", "nan"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
NAMES = st.sampled_from([*FIELDS, "head_weights/color", "lr/x", "nope"]) | st.text(max_size=4)


@given(values=st.dictionaries(NAMES, VALUES, max_size=3) | VALUES)
@many
def test_a_trial_of_any_json_is_the_same_trial_again_or_refused(
    tmp_path: Path, values: Any
) -> None:
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(values))
    with suppress(UserError):
        config = read_trial(path, "--trial")
        assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(
    text=st.text(st.sampled_from('{}[]":,\\ u019.eE-nNatrueflsI'), max_size=40)
    | st.binary(max_size=20).map(lambda some: some.decode("latin-1"))
    | st.integers(1, 100_000).map(lambda depth: "[" * depth)
    | st.integers(1, 100_000).map(lambda depth: '{"lr":' * depth)
    | st.integers(1, 9_000).map(lambda zeros: '{"lr": 1' + "0" * zeros + "}")
)
@many
def test_a_trial_of_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trial.json"
    path.write_bytes(text.encode("latin-1"))
    with suppress(UserError):
        read_trial(path, "--trial")


@given(
    text=st.text(st.sampled_from('{}[]":, 01aets'), max_size=20),
    field=st.sampled_from([field.name for field in dataclasses.fields(TuneOptions)]),
    name=NAMES,
    value=VALUES,
)
@many
def test_the_options_of_a_sweep_are_read_or_refused(
    tmp_path: Path, text: str, field: str, name: str, value: Any
) -> None:
    path = tmp_path / "sweep.json"
    TuneOptions().save(path)
    values = json.loads(path.read_text())
    for changed in (json.dumps({**values, field: value}), text, json.dumps({name: value})):
        path.write_text(changed)
        with suppress(UserError):
            TuneOptions.load(path)


# ---- spaces

SPACE = """
from raymlc.trial import TrialConfig
def space(trial):
    lr = trial.suggest_float("lr", 1e-4, 1e-2)
    return TrialConfig(lr=lr, epochs=trial.suggest_int("epochs", 1, 9))
"""
ODD_CODE = st.sampled_from(
    ["inf", "nan", "-1", "0", "None", "[]", "'x'", "1e999", "10**5000", "lambda: 0", "raise", ")",
     "trial", "exit()", "space(trial)", "...", "\0", "é", "\n", "    "]
)  # fmt: skip
NUMBERS = ("1e-4", "1e-2", "1, 9", '"lr"', '"epochs"', "TrialConfig", "return", "trial.suggest_int")


@given(place=st.sampled_from(NUMBERS), code=ODD_CODE)
@many
def test_a_space_with_odd_code_in_some_place_is_drawn_from_or_refused(
    tmp_path: Path, place: str, code: str
) -> None:
    path = tmp_path / "space.py"
    path.write_text(SPACE.replace(place, code, 1))
    with suppress(UserError):
        assert check_space(load_space(path, {}))


@given(
    text=st.text(st.sampled_from(string.printable), max_size=20)
    | st.binary(max_size=20).map(lambda some: some.decode("latin-1"))
    | st.integers(1, 9_000).map(lambda depth: "(" * depth)
    | st.integers(1, 9_000).map(lambda depth: "-" * depth + "1")
    | st.sampled_from(["import raymlc.nowhere", "raise SystemExit", "exit()"])
)
@many
def test_a_space_of_any_text_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.py"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError):
        load_space(path, {})


# ---- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    from raymlc.data.batches import Normalization
    from raymlc.model.network import build_network

    config = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)
    labels = Labels((Head("color", ("blue", "red")), Head("tags", ("dim",), multi_hot=True)))
    folder = tmp_path_factory.mktemp("checkpoint") / "best"
    network = build_network(config, labels, fetch=False)
    metrics = {"epoch": 1.0, "val/accuracy": 0.5}
    pixels = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_checkpoint(folder, network, config, labels, pixels, metrics, {"color": [[1, 0], [0, 1]]})
    fitted = {
        "color": HeadCalibration(1.5, (), 9, (0.2, 0.1), None),
        "tags": HeadCalibration(0.5, (0.25,), 9, (0.2, 0.1), (0.5, 0.75)),
    }
    sha256 = load_checkpoint(folder).sha256
    save_calibration(folder, Calibration("val", 9, fitted), labels, sha256)
    return folder


@pytest.fixture(scope="module")
def whole(saved: Path) -> Checkpoint:
    return load_checkpoint(saved)


def changes() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    """Ways to damage a file: a bit, some bytes, its end, another's beginning."""
    share = st.floats(0, 1, exclude_max=True)

    def flip(content: bytes, share: float, bit: int) -> bytes:
        damaged = bytearray(content)
        damaged[int(len(damaged) * share)] ^= 1 << bit
        return bytes(damaged)

    def overwrite(content: bytes, share: float, some: bytes) -> bytes:
        place = int(len(content) * share)
        return content[:place] + some + content[place + len(some) :]

    return st.one_of(
        st.builds(lambda a, b: lambda content: flip(content, a, b), share, st.integers(0, 7)),
        st.builds(
            lambda a, b: lambda content: overwrite(content, a, b), share, st.binary(max_size=8)
        ),
        st.builds(lambda a: lambda content: content[: int(len(content) * a)], share),
        st.builds(lambda a: lambda content: content + a, st.binary(max_size=8)),
    )


SIGNED = {"model.safetensors", "checkpoint.json"}  # whose damage cannot go unnoticed


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "checkpoint.json",
        "trial.json",
        "labels.json",
        "preprocessing.json",
        "metrics.json",
        "confusion.json",
        "calibration.json",
    ],
)
@given(change=changes())
@settings(many, max_examples=40)
def test_a_checkpoint_with_a_damaged_file_is_refused_or_is_what_its_files_say(
    saved: Path, whole: Checkpoint, name: str, change: Callable[[bytes], bytes]
) -> None:
    content = (saved / name).read_bytes()
    damaged = change(content)
    (saved / name).write_bytes(damaged)
    try:
        read = load_checkpoint(saved)
    except UserError:
        return
    finally:
        (saved / name).write_bytes(content)
    for key, weight in read.network.state_dict().items():
        assert weight.equal(whole.network.state_dict()[key])
    if damaged == content or name in SIGNED:
        assert (read.config, read.labels) == (whole.config, whole.labels)
        assert read.calibration == whole.calibration
