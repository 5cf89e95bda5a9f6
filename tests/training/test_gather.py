"""Checkpoints and images are found by the folder, in natural order, and each once."""

import json
import os
from pathlib import Path

import pytest

from raymlc.errors import UserError
from raymlc.training.gather import best_by, checkpoints_in, files_in, natural, once_each

NAN = float("nan")


def write(folder: Path, weights: str = "", metrics: dict[str, float] | None = None) -> Path:
    """What is looked at of a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights or folder.name)
    (folder / "metrics.json").write_text(json.dumps(metrics or {}))
    return folder


def test_checkpoints_at_any_depth_come_in_natural_order(tmp_path: Path) -> None:
    names = ["trials/2/best", "trials/10/best", "trials/10/epochs/9", "trials/10/epochs/11", "x"]
    for name in reversed(names):
        write(tmp_path / name)
    (tmp_path / "trials" / "3" / "last").mkdir(parents=True)
    assert checkpoints_in([tmp_path]) == [tmp_path / name for name in names]
    assert checkpoints_in([tmp_path / "x", tmp_path / "trials" / "2", tmp_path / "x"]) == [
        tmp_path / "x",
        tmp_path / "trials" / "2" / "best",
    ]


def test_of_a_folder_that_was_being_written_the_whole_one_is_found(tmp_path: Path) -> None:
    write(tmp_path / "7" / ".best.old")
    write(tmp_path / "7" / ".best.filling")
    write(tmp_path / "8" / ".best.old")
    write(tmp_path / "8" / "best")
    assert checkpoints_in([tmp_path]) == [tmp_path / "7" / "best", tmp_path / "8" / "best"]
    assert checkpoints_in([tmp_path / "7" / "best"]) == [tmp_path / "7" / "best"]


@pytest.mark.parametrize("name", ["none", "empty", "file"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"holds model.safetensors, but .* is none"):
        checkpoints_in([tmp_path / name])


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="at least one checkpoint must be named"):
        checkpoints_in([])


def test_links_are_followed_and_a_circle_of_them_ends(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "best")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "up").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "trial").symlink_to(tmp_path / "elsewhere")
    assert checkpoints_in([tmp_path / "runs"]) == [tmp_path / "runs" / "trial" / "best"]


def test_the_same_weights_are_taken_once_whatever_leads_to_them(tmp_path: Path) -> None:
    first = write(tmp_path / "1", "weights")
    copied = write(tmp_path / "2", "weights")
    other = write(tmp_path / "3", "weight!")
    (tmp_path / "4").symlink_to(first)
    (tmp_path / "5").mkdir()
    os.link(first / "model.safetensors", tmp_path / "5" / "model.safetensors")
    kept, again = once_each(checkpoints_in([tmp_path]))
    assert kept == [first, other]
    assert again == dict.fromkeys((copied, tmp_path / "4", tmp_path / "5"), first)


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("val/accuracy", [3, 1, 2]),
        ("val/accuracy/loss", [1, 2, 3]),
        ("val/loss", [1, 3, 2]),
        ("val/loss/accuracy", [2, 1, 3]),
        ("train/loss", [3, 2, 1]),
        ("test/loss", [2, 3, 1]),
    ],
)
def test_the_best_have_the_lowest_loss_and_the_highest_of_all_else(
    tmp_path: Path, metric: str, best: list[int]
) -> None:
    scores: dict[str, list[float]] = {
        "val/accuracy": [0.5, 0.4, 0.6],
        "val/accuracy/loss": [0.9, 0.8, 0.7],  # of a head that is called loss
        "val/loss": [0.1, 0.3, 0.2],
        "val/loss/accuracy": [0.2, 0.1, 0.3],
        "train/loss": [3, 2, 1],
        "test/loss": [3, 1, 2],
    }
    folders = [
        write(tmp_path / str(1 + place), metrics={name: row[place] for name, row in scores.items()})
        for place in range(3)
    ]
    ranked = [tmp_path / str(number) for number in best]
    assert best_by(folders, metric, 3) == ranked
    assert best_by(folders, metric, 1) == ranked[:1]


def test_of_equals_the_first_is_best_and_no_number_is_never(tmp_path: Path) -> None:
    values = [0.5, NAN, 0.7, 0.5, 0.7]
    folders = [
        write(tmp_path / str(place), metrics={"val/accuracy": value})
        for place, value in enumerate(values)
    ]
    folders.append(write(tmp_path / "unscored"))
    ranked = [tmp_path / name for name in "2403"]
    assert best_by(folders, "val/accuracy", 4) == ranked
    with pytest.raises(UserError, match=r"--best must be at most .* but is 5 of 4"):
        best_by(folders, "val/accuracy", 5)


def test_a_metric_that_no_checkpoint_has_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "1", metrics={"epoch": 1, "lr": 0.1, "val/accuracy": 0.5})
    with pytest.raises(UserError, match="did you mean 'val/accuracy'"):
        best_by([folder], "val/acuracy", 1)
    for name in ("epoch", "lr"):
        with pytest.raises(UserError, match="they have val/accuracy"):
            best_by([folder], name, 1)


def test_images_of_folders_come_by_their_suffix_in_natural_order(tmp_path: Path) -> None:
    names = ["a/2.PNG", "a/10.jpeg", "b.png", "c/d/1.JPG"]
    for name in [*names, "a/x.txt", "a/.hidden.png", ".git/y.png", "a/png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    suffixes = (".png", ".jpg", ".jpeg")
    assert files_in([tmp_path], suffixes) == [tmp_path / name for name in names]
    text, one = tmp_path / "a" / "x.txt", tmp_path / "b.png"
    assert files_in([text, tmp_path, one], suffixes) == [text, *(tmp_path / n for n in names)]


def test_paths_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for paths, words in (
        ([tmp_path / "none.png"], "none.png is not there"),
        ([tmp_path / "empty"], "empty has no image in it"),
        ([], "none is"),
    ):
        with pytest.raises(UserError, match=words):
            files_in(paths, (".png",))


def test_numbers_in_names_count_by_their_size() -> None:
    names = ["1a", "2", "10", "a2b1", "a2b10", "a10b1", "b"]
    assert sorted(sorted(names), key=lambda name: natural(Path(name))) == names
