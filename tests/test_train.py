"""raymlc.train as people run it: one trial, resumed, kept, from a file, in workers."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raymlc.data.demo import draw_demo
from raymlc.train import main
from raymlc.training.checkpoint import load_checkpoint
from raymlc.trial import TrialConfig

ROOT = Path(__file__).parents[1]
HEADS = ("shape", "color", "marks")
SMALL = ("epochs=4", "image_size=32", "batch_size=16", "backbone=test_efficientnet")
SETTINGS = ["--set", *SMALL, "pretrained=false", "lr=0.02"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 drawn pictures."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    draw_demo(folder, rows=200)
    return folder


def start(data: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    places = ["--data", str(data), "--output", str(output), "--cache", str(output / "cache")]
    return subprocess.Popen(
        [sys.executable, "-m", "raymlc.train", *places, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        # A runner in the background ignores Ctrl-C, and its children would with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def train(data: Path, output: Path, *arguments: str) -> str:
    process = start(data, output, *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def without_speed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: v for name, v in row.items() if name != "images_per_second"} for row in rows]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training that was never interrupted, and what it said."""
    output = tmp_path_factory.mktemp("whole")
    options = ["--keep", "2", "--keep-heads"]
    return output / "whole", train(data, output, "--name", "whole", *options, *SETTINGS)


@pytest.mark.slow
def test_a_training_says_each_epoch_and_ends_with_a_table_of_the_heads(
    whole: tuple[Path, str],
) -> None:
    folder, said = whole
    for epoch in range(1, 5):
        assert f"epoch {epoch} of 4: val/accuracy " in said
    for word in (*HEADS, "balanced_accuracy", "macro_f1", "majority", "images/s", "left"):
        assert word in said
    assert f"checkpoint: {folder / 'best'}" in said


@pytest.mark.slow
def test_a_training_ends_with_its_winner_calibrated_on_val_and_a_card(
    whole: tuple[Path, str],
) -> None:
    folder, said = whole
    calibration = load_checkpoint(folder / "best").calibration
    assert calibration is not None
    assert calibration.heads.keys() == set(HEADS)
    assert f"calibrated on {calibration.rows} rows of val" in said
    assert said.splitlines()[-1] == f"model card: {folder / 'best' / 'README.md'}"
    assert (folder / "best" / "README.md").is_file()


@pytest.mark.slow
def test_summary_csv_has_a_row_an_epoch_with_lr_and_every_metric_of_every_head(
    whole: tuple[Path, str],
) -> None:
    rows = rows_of(whole[0])
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    wanted = {"lr", "train/loss", "images_per_second", "val/accuracy", "val_raw/accuracy"}
    for head in HEADS:
        wanted |= {f"train/loss/{head}", f"val/accuracy/{head}", f"val/macro_f1/{head}"}
    wanted |= {"val/mean_average_precision/marks"}
    for row in rows:
        assert all(row[name] for name in wanted)
    assert float(rows[-1]["lr"]) == pytest.approx(0.02 * 0.01)


@pytest.mark.slow
def test_the_event_file_holds_the_rows_of_summary_csv(whole: tuple[Path, str]) -> None:
    events = EventAccumulator(str(whole[0]))
    events.Reload()
    for name in ("lr", "val/accuracy", *(f"val/accuracy/{head}" for head in HEADS)):
        told = [event.value for event in events.Scalars(name)]
        assert told == pytest.approx([float(row[name]) for row in rows_of(whole[0])], abs=1e-6)


@pytest.mark.slow
def test_the_event_file_shows_training_images_as_the_network_sees_them(
    whole: tuple[Path, str],
) -> None:
    events = EventAccumulator(str(whole[0]))
    events.Reload()
    assert events.Tags()["images"]
    (image, *_) = events.Images(events.Tags()["images"][0])
    assert (image.width, image.height) == (8 * 32, 2 * 32)  # 16 pictures of 32 pixels
    shown = {f"{kind}/{head}" for kind in ("confusion", "mistakes") for head in HEADS}
    assert shown <= set(events.Tags()["images"])


@pytest.mark.slow
def test_the_best_epochs_are_kept_and_the_best_of_each_head(whole: tuple[Path, str]) -> None:
    folder, rows = whole[0], rows_of(whole[0])
    ranked = sorted(rows, key=lambda row: -float(row["val/accuracy"]))
    kept = {int(path.name) for path in (folder / "epochs").iterdir()}
    assert kept == {int(float(row["epoch"])) for row in ranked[:2]}
    best = json.loads((folder / "best" / "metrics.json").read_text())
    assert best["val/accuracy"] == float(ranked[0]["val/accuracy"])
    for number, head in enumerate(HEADS):
        stored = json.loads((folder / "heads" / f"{number}_{head}" / "metrics.json").read_text())
        name = f"val/accuracy/{head}"
        assert stored[name] == max(float(row[name]) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"]
)
def test_a_training_that_is_cut_ends_as_if_it_had_not_been(
    whole: tuple[Path, str],
    data: Path,
    tmp_path: Path,
    signal_number: signal.Signals,
    code: int,
) -> None:
    process = start(data, tmp_path, "--name", "cut", "--keep", "2", *SETTINGS)
    folder = tmp_path / "cut"
    while not (folder / "last" / "history.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal_number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    if code == 130:
        assert "raymlc.train" in said
        assert "--name cut --resume" in said
    assert 1 <= len(rows_of(folder)) < 4
    said = train(data, tmp_path, "--name", "cut", "--resume")
    assert "goes on after epoch" in said
    assert without_speed(rows_of(folder)) == without_speed(rows_of(whole[0]))
    same = ("best/model.safetensors", "best/trial.json")
    for name in same:
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()
    assert {path.name for path in (folder / "epochs").iterdir()} == {
        path.name for path in (whole[0] / "epochs").iterdir()
    }


@pytest.mark.slow
def test_two_workers_train_in_a_torchtrainer_with_one_folder(data: Path, tmp_path: Path) -> None:
    said = train(data, tmp_path, "--name", "two", "--workers", "2", *SETTINGS)
    assert "epoch 4 of 4" in said
    assert len(rows_of(tmp_path / "two")) == 4
    assert not (tmp_path / "two" / "ray-train").exists()


@pytest.mark.slow
def test_the_trial_of_a_checkpoint_is_trained_again_to_the_same_weights(
    whole: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    train(data, tmp_path, "--name", "again", "--trial", str(whole[0] / "best"))
    for name in ("trial.json", "best/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.slow
def test_a_training_may_start_from_a_checkpoint_and_says_which_heads_it_kept(
    whole: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    said = train(
        data, tmp_path, "--name", "more", "--weights", str(whole[0] / "best"),
        "--heads", "color", "shape", *SETTINGS,
    )  # fmt: skip
    assert "kept heads: color, shape; new heads: none" in said
    first = float(rows_of(tmp_path / "more")[0]["val/accuracy/color"])
    assert first > float(rows_of(whole[0])[0]["val/accuracy/color"])


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.json", None, "cannot be read"),
        ("trial.json", "{", "cannot be read"),
        ("trial.json", "[1]", "is a JSON object of fields"),
        ("trial.json", '{"lrr": 1}', "did you mean 'lr'?"),
        ("trial.json", '{"lr": -1}', "lr must be above 0"),
        ("trial.json", '{"head_weights": {"colour": 2}}', "did you mean 'color'?"),
        ("trial.py", "import nowhere", "trial.py does not run: ModuleNotFoundError"),
        ("trial.py", "LR = 1", "must define one TrialConfig to be trained, but defines none"),
    ],
)
def test_a_trial_that_cannot_be_read_is_one_line(
    name: str,
    text: str | None,
    words: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    arguments = ["--data", str(data), "--output", str(tmp_path), "--trial", str(tmp_path / name)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "0"], "--keep must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--resume"], "by its --name, but none is given"),
        (["--resume", "--name", "never"], "needs a run that began"),
        (["--set", "loss=focall"], "did you mean 'focal'?"),
        (["--set", "head_losses/colour=bce"], "did you mean 'color'?"),
        (["--set", "lr/color=0.1"], "'lr/color' is not a field"),
        (["--set", "batch_size=4096"], "batch_size must be at most the number of training rows"),
        (["--metric", "val/mean_average_precision/color"], "val/mean_average_precision"),
    ],
)
def test_an_option_that_cannot_work_is_one_line(
    arguments: list[str],
    words: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ["--data", str(data), "--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    if "--set" not in arguments:
        arguments = [*arguments, *SETTINGS]
    else:
        arguments = [*arguments, *SMALL[1:], "pretrained=false"]
        if "batch_size=4096" in arguments:
            arguments.remove("batch_size=16")
    assert main([*places, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.splitlines()[-1].startswith("error: ")


def test_the_2021_recipe_is_a_trial_that_the_command_finds() -> None:
    from raymlc.entry import read_trial

    config = read_trial(ROOT / "search_spaces" / "recipe_2021.py", "--trial")
    assert isinstance(config, TrialConfig)
    assert (config.optimizer, config.gc, config.epochs) == ("adamp", True, 60)
