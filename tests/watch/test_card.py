"""The model card: what it says is true, and no label can break it."""

from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt

from raymlc.data.batches import Normalization
from raymlc.labels import Labels
from raymlc.model.network import build_network
from raymlc.training.calibration import Calibration, HeadCalibration
from raymlc.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from raymlc.trial import TrialConfig
from raymlc.watch.card import Measured, escaped, model_card

DAY = date(2026, 11, 29)
NASTY = (
    "a|b", "`code`", "*bold* _it_", "[x](http://e.vil)", "<script>alert(1)</script>", "line\nbreak",
    "# no heading", "\\|", "&amp;", "![i](j)", "~~gone~~", "tab\tbed", "$x$", "- item", "1. one",
)  # fmt: skip
TRAIN = {
    "shape": ["flat"] * 30 + ["round"] * 12 + ["bent"] * 3 + [""] * 5,
    "marks": ["bar|dot"] * 10 + ["bar"] * 10 + ["|"] * 30,
    "code": ["1", "2"] * 25,
}
VAL = {
    "shape": ["flat"] * 6 + ["round"] * 2 + ["wavy"] + [""],
    "marks": ["bar"] * 4 + ["dot"] * 6,
    "code": [""] * 10,
}
CALIBRATED = Calibration(
    "val",
    10,
    {
        "shape": HeadCalibration(1.5, (), 9, (0.123, 0.045), None),
        "marks": HeadCalibration(0.75, (0.41, 0.32), 10, (0.2, 0.01), (0.6, 0.7)),
    },
)
METRICS = {
    "epoch": 3.0,
    "val/accuracy/shape": 0.55,
    "val/balanced_accuracy/shape": 0.5,
    "val/macro_f1/shape": 0.4,
    "val/accuracy/marks": 0.9,
}


def checkpoint(tmp_path: Path, labels: Labels, **changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    config = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32, **changes)
    pixels = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    save_checkpoint(
        tmp_path / "best", build_network(config, labels), config, labels, pixels, METRICS
    )
    return load_checkpoint(tmp_path / "best")


def measured(labels: Labels, with_train: bool = True) -> Measured:
    train = labels.encode(TRAIN) if with_train else None
    return Measured("val", "val.csv", labels.encode(VAL), METRICS, "train.csv", train)


def text_of(card: str) -> str:
    """What a person reads: the text of every inline piece, one a line."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    pieces = [token for token in tokens if token.type == "inline"]
    return "\n".join(
        "".join(
            child.content if child.type != "softbreak" else " " for child in piece.children or []
        )
        for piece in pieces
    )


def row_of(card: str, cells: int, first: str) -> list[str]:
    """The cells of the table row that begins so, of the tables with so many columns."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    rows: list[list[str]] = []
    for token, inner in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "td_open":
            rows[-1].append("".join(child.content for child in inner.children or []))
    (found,) = [row for row in rows if len(row) == cells and row[0] == first]
    return found


def test_a_card_says_what_the_checkpoint_is_and_can_do(tmp_path: Path) -> None:
    labels = Labels.learn(TRAIN)
    loaded = checkpoint(tmp_path, labels, eval_crop=0.9)
    card = model_card(loaded, CALIBRATED, measured(labels), DAY)
    # On val: 6 of 9 known labels are training's most common one, flat.
    assert row_of(card, 7, "shape") == [
        "shape",
        "one of 3",
        "9",
        "0.550",
        "0.667",
        "0.500",
        "0.400",
    ]
    assert row_of(card, 7, "marks") == ["marks", "any of 2", "10", "0.900", "0.000", "", ""]
    assert row_of(card, 7, "code") == ["code", "one of 2", "0", "", "", "", ""]
    assert row_of(card, 5, "shape") == ["shape", "9", "1.500", "0.123", "0.045"]
    assert row_of(card, 5, "code") == ["code", "0", "", "not calibrated", ""]
    assert row_of(card, 3, "bar") == ["bar", "4", "0.41"]
    assert row_of(card, 3, "dot") == ["dot", "6", "0.32"]
    said = text_of(card)
    for fact in (
        "2026-11-29",
        "test_efficientnet of timm with 3 heads",
        "of epoch 3",
        "Trained on 50 rows of train.csv",
        "shape, 3 classes, 5 rows without a label: flat 30, round 12, bent 3",
        "marks, 2 classes: bar 20, dot 10",
        "its mean F1 is 0.700, where thresholds of 0.5 give 0.600",
        "squashed to 32 × 32 pixels, bicubic",
        "Its central part, 0.9 of each side, is enlarged to that size, bilinear",
        "minus the mean (0.4, 0.5, 0.6), divided by the standard deviation (0.2, 0.25, 0.3)",
        "Head shape is no better than always saying the majority class",
        "Head shape cannot say 1 label that these rows have and training had not, such as wavy",
        "Head shape: 1 of 3 classes had fewer than 10 rows in training",
        "Head code is not calibrated",
    ):
        assert fact in said, fact
    assert "Head marks is no better" not in said
    assert str(tmp_path) not in card


def test_without_the_training_rows_a_card_says_so_and_guesses_nothing(tmp_path: Path) -> None:
    labels = Labels.learn(TRAIN)
    card = model_card(
        checkpoint(tmp_path, labels), CALIBRATED, measured(labels, with_train=False), DAY
    )
    assert row_of(card, 7, "shape")[4] == ""
    said = text_of(card)
    assert "The training rows were not at hand" in said
    assert "shape, 3 classes: bent, flat, round" in said
    assert "no better" not in said


@pytest.mark.parametrize("text", NASTY)
def test_an_escaped_text_reads_as_it_is_and_makes_no_markup(text: str) -> None:
    lines = f"| head |\n| --- |\n| {escaped(text)} |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(lines)
    (cell,) = [inner for token, inner in pairwise(tokens) if token.type == "td_open"]
    assert {child.type for child in cell.children or []} <= {"text", "text_special"}
    told = "".join(child.content for child in cell.children or [])
    assert told == " ".join(text.split())
    assert "\n" not in escaped(text)


def test_nasty_names_and_labels_leave_the_card_whole(tmp_path: Path) -> None:
    heads = {"he`ad|1\n# x": list(NASTY) * 2, '"]\n```\nimport os': ["a", "b"] * len(NASTY)}
    cells = {name: [cell.replace("|", "/") for cell in column] for name, column in heads.items()}
    labels = Labels.learn(cells)
    targets = labels.encode(cells)
    nothing = Calibration("v|l", 30, {})
    given = Measured("v|l", "a`b|.csv", targets, METRICS, "c|d.csv", targets)
    card = model_card(checkpoint(tmp_path, labels), nothing, given, DAY)
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    assert [t.tag for t in tokens if t.type == "heading_open"] == ["h1", *["h2"] * 6]
    assert [t.type for t in tokens if t.type == "fence"] == ["fence", "fence"]
    assert not [t for t in tokens if t.type.startswith("html")]
    inline = [child.type for t in tokens if t.type == "inline" for child in t.children or []]
    assert not {"link_open", "image", "html_inline", "s_open"} & set(inline)
    (python,) = [t.content for t in tokens if t.type == "fence" and t.info == "python"]
    compile(python, "card", "exec")
    said = text_of(card)
    for label in cells["he`ad|1\n# x"]:
        assert " ".join(label.split()) in said


def test_of_very_many_classes_the_card_names_the_most_common(tmp_path: Path) -> None:
    cells = {"number": [str(n) for n in range(300)] + ["7"]}
    labels = Labels.learn(cells)
    targets = labels.encode(cells)
    given = Measured("val", "val.csv", targets, METRICS, "train.csv", targets)
    card = model_card(checkpoint(tmp_path, labels), Calibration("val", 301, {}), given, DAY)
    assert "300 classes: 7 2, 0 1, " in text_of(card)
    assert ", and 100 more" in text_of(card)
