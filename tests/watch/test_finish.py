"""The winner's calibration and card, made where a sweep or a training ends."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import raymlc.watch.finish as finishing
from raymlc.data.batches import Normalization
from raymlc.data.table import read_table
from raymlc.model.network import build_network
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.trial import TrialConfig
from raymlc.watch.finish import finish

PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def winner(tiny_table: Path, tmp_path: Path) -> Path:
    """A checkpoint with random weights of the table's heads."""
    torch.manual_seed(0)
    labels = read_table(tiny_table).labels
    config = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)
    network = build_network(config, labels)
    metrics = {"epoch": 2.0, "val/accuracy/shape": 0.5}
    save_checkpoint(tmp_path / "best", network, config, labels, PIXELS, metrics)
    return tmp_path / "best"


def finished(folder: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What it says."""
    cache = tiny_table.parent / "cache"
    finish(folder, read_table(tiny_table), cache, "stop", Console(width=140))
    said = capsys.readouterr().out
    return said.removeprefix("decoding val.csv once (12 images, 0 MiB)\n")


def test_a_winner_is_calibrated_on_val_and_has_a_card(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = winner(tiny_table, tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    said = finished(folder, tiny_table, capsys).splitlines()
    assert said[0].startswith("calibrated on 12 rows of val: expected calibration error shape 0.")
    assert said[1] == f"model card: {folder / 'README.md'}"
    assert len(said) == 2
    calibration = load_checkpoint(folder).calibration
    assert calibration is not None
    # Of 12 rows a quarter have no label; of the codes of val training knows 2, in half the rows.
    assert {name: head.labels for name, head in calibration.heads.items()} == {
        "shape": 9, "code": 9, "marks": 9,
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "Trained on 36 rows of train.csv" in card
    assert "On 12 rows of val.csv" in card
    assert "Head code cannot say 1 label" in card
    assert str(tmp_path) not in card
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_winner_that_has_both_is_left_as_it_is(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = winner(tiny_table, tmp_path)
    finished(folder, tiny_table, capsys)
    (folder / "README.md").write_text("mine")
    assert finished(folder, tiny_table, capsys) == f"model card: {folder / 'README.md'}\n"
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("odd")])
def test_what_fails_is_said_in_a_line_with_the_command_for_later(
    tiny_table: Path,
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = winner(tiny_table, tmp_path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(finishing, "write_product", fail)
    (said,) = finished(folder, tiny_table, capsys).splitlines()
    assert said.startswith(f"not calibrated: {type(error).__name__}: ")
    assert said.endswith(f"python -m raymlc.validate {folder} --data DIR --calibrate")
    assert load_checkpoint(folder).calibration is None


def test_a_disk_that_fills_leaves_no_part_of_a_file(
    tiny_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = winner(tiny_table, tmp_path)
    names = {path.name for path in folder.iterdir()}
    write_text = Path.write_text

    def full(path: Path, text: str, **named: str) -> int:
        write_text(path, text[: len(text) // 2], **named)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert "not calibrated: " in finished(folder, tiny_table, capsys)
    assert {path.name for path in folder.iterdir()} == names
    assert "calibrated on 12 rows" in finished(folder, tiny_table, capsys)
    assert json.loads((folder / "calibration.json").read_text())["split"] == "val"
