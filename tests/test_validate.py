"""Validation: the numbers of the weights that a checkpoint holds, on the split that was asked."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch.nn import functional

import raymlc.training.inference as inference
import raymlc.training.scoring as scoring
from raymlc.data.batches import Normalization
from raymlc.data.store import decode, open_split
from raymlc.data.table import read_split, read_table
from raymlc.labels import Labels
from raymlc.model.network import build_network
from raymlc.training.calibration import fit_calibration
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.training.evaluate import evaluate, seen_batches
from raymlc.training.run import run_trial
from raymlc.trial import TrialConfig
from raymlc.validate import main

CPU = torch.device("cpu")
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
HEADS = {"shape": ("round", "flat", "bent"), "code": ("01", "1"), "marks": ("bar|dot",)}
TRIAL = TrialConfig(
    backbone="test_efficientnet", pretrained=False, image_size=32, batch_size=8, epochs=2, lr=0.01
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order."""
    torch.set_num_threads(1)


def checkpoint(
    folder: Path,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    heads: dict[str, Any] = HEADS,
    metrics: dict[str, float] | None = None,
) -> Path:
    """A checkpoint with random weights."""
    torch.manual_seed(seed)
    config = TRIAL.replace(changes or {})
    labels = Labels.learn(heads)
    network = build_network(config, labels).train()
    network(torch.randn(16, 3, config.image_size, config.image_size))
    save_checkpoint(folder, network, config, labels, PIXELS, metrics or {})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise with labels: 30 rows in val.csv, 17 others in test.csv."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("val", 30), ("test", 17)):
        lines = ["image_path,shape,code,marks"]
        for place in range(count):
            name = f"{split}{place}.png"
            Image.fromarray(random.integers(0, 256, (36, 36, 3), np.uint8)).save(folder / name)
            cells = [random.choice(column) for column in (HEADS["shape"], HEADS["code"])]
            cells.append(random.choice(["bar", "dot", "bar|dot", "|"]))
            lines.append(",".join([name, *cells]))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where results go by default."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def command(data: Path, *arguments: Any) -> int:
    cache = ["--cache", str((data if data.is_dir() else data.parent) / "cache")]
    return main([*map(str, arguments), "--data", str(data), *cache])


def metrics_of(
    capsys: pytest.CaptureFixture[str], data: Path, *arguments: Any, code: int = 0
) -> Any:
    """What the command says in JSON."""
    capsys.readouterr()
    assert command(data, *arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logits_of(
    folder: Path,
    data: Path,
    split: str,
    image_size: int = 32,
    flip: bool = False,
    crop: float = 1.0,
    interpolation: str = "bilinear",
) -> dict[str, torch.Tensor]:
    """By the plainest way there is."""
    names = [row["image_path"] for row in rows_of(data / f"{split}.csv")]
    network = load_checkpoint(folder).network.eval()
    pixels = np.stack([decode(data / name, image_size) for name in names]).astype(np.float32)
    images = (pixels / 255 - np.array(PIXELS.mean, np.float32)) / np.array(PIXELS.std, np.float32)
    images_NCHW = torch.from_numpy(images).permute(0, 3, 1, 2)
    if crop < 1:
        centre_N23 = torch.tensor([[crop, 0, 0], [0, crop, 0]]).expand(len(images), 2, 3)
        places = functional.affine_grid(centre_N23, list(images_NCHW.shape), align_corners=False)
        images_NCHW = functional.grid_sample(
            images_NCHW, places, interpolation, padding_mode="border", align_corners=False
        )
    with torch.no_grad():
        logits: dict[str, torch.Tensor] = network(images_NCHW)
        if flip:
            mirrored = network(images_NCHW.flip(3))
            logits = {head: (logits[head] + mirrored[head]) / 2 for head in logits}
    return logits


def losses_of(logits: dict[str, torch.Tensor], data: Path, split: str) -> dict[str, float]:
    losses = {}
    for head in ("shape", "code"):
        classes = sorted(HEADS[head])
        target_N = [classes.index(row[head]) for row in rows_of(data / f"{split}.csv")]
        losses[head] = float(functional.cross_entropy(logits[head], torch.tensor(target_N)))
    return losses


def test_each_split_gives_its_own_numbers_which_are_scikit_learns(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best")
    told = {split: metrics_of(capsys, data, folder, "--split", split) for split in ("val", "test")}
    by_file = metrics_of(capsys, data / "test.csv", folder, "--split", "mine")
    for split, metrics in told.items():
        assert {name.partition("/")[0] for name in metrics} == {split}
        logits = logits_of(folder, data, split)
        for head in ("shape", "code"):
            true = [row[head] for row in rows_of(data / f"{split}.csv")]
            said = [sorted(HEADS[head])[number] for number in logits[head].argmax(1)]
            for name, value in {
                "accuracy": accuracy_score(true, said),
                "balanced_accuracy": balanced_accuracy_score(true, said),
                "macro_f1": f1_score(true, said, average="macro", labels=sorted(set(true))),
                "loss": losses_of(logits, data, split)[head],
            }.items():
                assert metrics[f"{split}/{name}/{head}"] == pytest.approx(value, rel=1e-5)
    assert {name.replace("mine/", "test/", 1): value for name, value in by_file.items()} == (
        pytest.approx(told["test"], nan_ok=True)
    )
    assert told["val"]["val/loss/shape"] != pytest.approx(told["test"]["test/loss/shape"], rel=1e-3)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "vit_tiny_patch16_224"])
def test_a_checkpoint_is_validated_at_another_size_than_it_was_trained_at(
    tmp_path: Path, data: Path, backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"backbone": backbone, "image_size": 64}
    folder = checkpoint(tmp_path / "best", changes=changes)
    small = metrics_of(capsys, data, folder)
    same = metrics_of(capsys, data, folder, "--image-size", 64)
    large = metrics_of(
        capsys, data, folder, "--image-size", 96, "--results", tmp_path / "results.csv"
    )
    assert small == same
    assert small["val/loss"] != pytest.approx(large["val/loss"], rel=1e-6)
    (row,) = rows_of(tmp_path / "results.csv")
    assert row["image_size"] == "96"
    if backbone == "test_efficientnet":
        expected = losses_of(logits_of(folder, data, "val", 96), data, "val")
        for head, loss in expected.items():
            assert large[f"val/loss/{head}"] == pytest.approx(loss, rel=1e-5)


def test_a_size_that_the_backbone_does_not_take_is_refused_in_a_line(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best", changes={"backbone": "test_vit"})
    for size, words in ((36, "fails for 36"), (10**9, "from 8 to 4096 pixels")):
        assert command(data, folder, "--image-size", size) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_validating_the_best_gives_the_number_that_made_it_the_best(
    tiny_table: Path, tmp_path: Path, ema_decay: float, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_table(tiny_table)
    train, val = (open_split(table.splits[n], 32, tmp_path / "cache") for n in ("train", "val"))
    config = TRIAL.replace({"ema_decay": ema_decay, "eval_crop": 0.8})
    trial = tmp_path / "trial"
    for _ in run_trial(config, table.labels, train, val, trial, "val/loss", CPU):
        pass
    recorded = load_checkpoint(trial / "best").metrics
    told = metrics_of(capsys, tiny_table, trial / "best", "--batch-size", 8)
    assert told == pytest.approx({name: recorded[name] for name in told}, abs=1e-6, nan_ok=True)
    if ema_decay:
        assert recorded["val_raw/loss"] != pytest.approx(told["val/loss"], rel=1e-4)
    assert command(tiny_table, trial / "best") == 0
    weights = "moving average" if ema_decay else "as trained"
    line = f"weights: {weights}, of epoch {recorded['epoch']:.0f}; val/accuracy was"
    assert f"{line} {recorded['val/accuracy']:.4f} when they were kept" in capsys.readouterr().out


def test_flips_are_averaged_by_their_logits(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best")
    plain, flipped = (metrics_of(capsys, data, folder, *flag) for flag in ([], ["--flip"]))
    expected = losses_of(logits_of(folder, data, "val", flip=True), data, "val")
    for head, loss in expected.items():
        assert flipped[f"val/loss/{head}"] == pytest.approx(loss, rel=1e-5)
        assert plain[f"val/loss/{head}"] != pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_trial_that_sees_the_central_part_is_validated_on_it(
    tmp_path: Path, data: Path, interpolation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = {"eval_crop": 0.6, "interpolation": interpolation}
    told = metrics_of(capsys, data, checkpoint(tmp_path / "best", changes=cut))
    logits = logits_of(tmp_path / "best", data, "val", crop=0.6, interpolation=interpolation)
    for head, loss in losses_of(logits, data, "val").items():
        assert told[f"val/loss/{head}"] == pytest.approx(loss, rel=1e-5)
    whole = losses_of(logits_of(tmp_path / "best", data, "val"), data, "val")
    assert told["val/loss/shape"] != pytest.approx(whole["shape"], rel=1e-4)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve places with checkpoints, of which three are of other weights."""
    folder = tmp_path / "trials"
    for number, name in enumerate(["2/best", "10/best", "10/heads/0_shape"]):
        checkpoint(folder / name, seed=number, metrics={"epoch": number})
    shutil.copytree(folder / "2" / "best", folder / "3" / "best")
    (folder / "11").symlink_to(folder / "10" / "best")
    (folder / "12").mkdir()
    for path in (folder / "2" / "best").iterdir():
        os.link(path, folder / "12" / path.name)
    return folder


@pytest.mark.parametrize(
    ("sort_by", "sign"),
    [(None, -1), ("val/loss", 1), ("val/loss/code", 1), ("val/macro_f1/marks", -1)],
)
def test_several_checkpoints_are_written_best_first_each_once(
    many: Path,
    data: Path,
    sort_by: str | None,
    sign: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(data, many, *(["--sort-by", sort_by] if sort_by else [])) == 0
    told = capsys.readouterr()
    rows = rows_of(tmp_path / "here" / "results.csv")
    names = [str(many / name) for name in ("2/best", "10/best", "10/heads/0_shape")]
    assert sorted(row["checkpoint"] for row in rows) == sorted(names)
    scores = [sign * float(row[sort_by or "val/accuracy"]) for row in rows]
    assert scores == sorted(scores)
    for row in rows:
        alone = metrics_of(capsys, data, row["checkpoint"])
        assert {name: float(row[name]) for name in alone} == pytest.approx(alone, nan_ok=True)
        network = load_checkpoint(Path(row["checkpoint"])).network
        assert int(row["param_count"]) == sum(p.numel() for p in network.parameters())
        assert (row["image_size"], row["weights"]) == ("32", "ema")
        assert int(float(row["epoch"])) == names.index(row["checkpoint"])
    assert next(iter(rows[0])) == "checkpoint"
    places = [told.out.find(str(Path(row["checkpoint"]).relative_to(many))) for row in rows]
    assert places == sorted(places)
    assert -1 not in places
    first = str(many / "2" / "best")
    for name in ("3/best", "12"):
        assert f"{many / name} has the weights of {first}, which are scored once" in told.err


def test_results_of_one_checkpoint_are_written_too(tmp_path: Path, data: Path) -> None:
    folder = checkpoint(tmp_path / "best")
    assert command(data, folder) == 0
    assert not list((tmp_path / "here").iterdir())
    assert command(data, folder, "--results", "one.csv") == 0
    (row,) = rows_of(tmp_path / "here" / "one.csv")
    assert row["checkpoint"] == str(folder)


def test_results_are_not_replaced_unless_that_is_asked(
    many: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "here" / "results.csv"
    results.write_text("mine")
    assert command(data, many) == 2
    assert "results.csv is there" in capsys.readouterr().err
    assert results.read_text() == "mine"
    assert command(data, many, "--overwrite") == 0
    assert len(rows_of(results)) == 3


def test_a_broken_checkpoint_is_named_and_the_others_are_scored(
    many: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, other = many / "1" / "best", many / "4" / "best"
    checkpoint(broken, seed=7)
    (broken / "model.safetensors").write_bytes(b"x")
    checkpoint(other, seed=8, heads={"hat": ("a", "b")})
    assert command(data, many) == 1
    told = capsys.readouterr().err
    assert f"1 of 5: {broken} has no score: checkpoint {broken} cannot be used" in told
    assert f"{other} has no score: head 'hat' is not a column of val.csv" in told
    assert "2 of 5 checkpoints have no score" in told
    assert len(rows_of(tmp_path / "here" / "results.csv")) == 3


def test_of_checkpoints_with_other_heads_each_has_its_own_columns(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "runs" / "1")
    checkpoint(tmp_path / "runs" / "2", heads={"code": HEADS["code"]})
    rows = {row["checkpoint"][-1]: row for row in metrics_of(capsys, data, tmp_path / "runs")}
    assert "val/accuracy/shape" in rows["1"]
    assert "val/accuracy/shape" not in rows["2"]
    written = {row["checkpoint"][-1]: row for row in rows_of(Path("results.csv"))}
    assert written["2"]["val/accuracy/shape"] == ""
    assert float(written["1"]["val/accuracy/shape"]) == rows["1"]["val/accuracy/shape"]
    assert command(data, tmp_path / "runs", "--sort-by", "val/loss/shape", "--overwrite") == 0
    assert [row["checkpoint"][-1] for row in rows_of(Path("results.csv"))] == ["1", "2"]


def failing(monkeypatch: pytest.MonkeyPatch, limit: int, error: Exception) -> list[int]:
    """Evaluation fails from this batch size on; returns the sizes that are tried."""
    tried: list[int] = []

    def evaluate_or_fail(*arguments: Any, batch_size: int, **named: Any) -> Any:
        tried.append(batch_size)
        if batch_size >= limit:
            raise error
        return evaluate(*arguments, batch_size=batch_size, **named)

    monkeypatch.setattr(scoring, "evaluate", evaluate_or_fail)
    return tried


def test_out_of_memory_halves_the_batch_and_says_so(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = checkpoint(tmp_path / "best")
    expected = metrics_of(capsys, data, folder)
    tried = failing(monkeypatch, 4, torch.OutOfMemoryError("CUDA out of memory"))
    assert command(data, folder, "--batch-size", 30, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == pytest.approx(expected, nan_ok=True)
    assert tried == [30, 15, 7, 3]
    assert [line for line in told.err.splitlines() if "memory" in line] == [
        f"out of memory; going on with {size} images at a time" for size in (15, 7, 3)
    ]


def test_an_error_that_is_no_lack_of_memory_is_not_tried_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        command(data, checkpoint(tmp_path / "best"))
    assert tried == [8]


def test_a_checkpoint_too_large_for_memory_lets_the_others_go_on(
    many: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = failing(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    assert command(data, many) == 1
    told = capsys.readouterr().err
    assert tried == [8, 4, 2, 1] * 3
    assert told.count("has no score: the device must have the memory") == 3
    assert "no checkpoint has a score" in told


def test_a_float16_trial_is_validated_on_a_cpu(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = checkpoint(tmp_path / "half", changes={"precision": "fp16"})
    full = checkpoint(tmp_path / "full", changes={"precision": "fp32"})
    told = [metrics_of(capsys, data, folder, "--device", "cpu") for folder in (half, full)]
    assert told[0] == pytest.approx(told[1], nan_ok=True)


def test_heads_of_few_classes_and_names_of_any_text_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = ["image_path,one,[bold]two,a/b", "a.png,x|,p,q", "a.png,|,r,s"]
    (tmp_path / "val.csv").write_text("\n".join(lines) + "\n")
    heads = {"one": ("x|",), "[bold]two": ("p", "r"), "a/b": ("q", "s", "t", "u", "v")}
    folder = checkpoint(tmp_path / "best", heads=heads)
    told = metrics_of(capsys, tmp_path, folder)
    assert told["val/accuracy/a/b"] in (0, 0.5, 1)
    assert command(tmp_path, folder) == 0
    table = capsys.readouterr().out
    for head in heads:
        assert f"{head} " in table


def test_rows_that_do_not_count_are_said(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    (tmp_path / "data" / "val3.png").write_text("broken")
    folder = checkpoint(tmp_path / "best", heads=HEADS | {"shape": ("round", "flat")})
    assert command(tmp_path / "data", folder) == 2
    assert "val3.png" in capsys.readouterr().err
    assert command(tmp_path / "data", folder, "--broken-images", "skip") == 0
    told = capsys.readouterr().err
    assert "1 rows left out: their images cannot be read" in told
    assert "head shape: labels that training never saw count as wrong" in told


def test_a_fault_of_the_table_ends_the_run_at_once(
    many: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    (tmp_path / "data" / "val3.png").unlink()
    assert command(tmp_path / "data", many) == 2
    told = capsys.readouterr().err
    assert told.count("val3.png") == 1


def test_wrong_words_are_refused_in_a_line(
    many: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = many / "2" / "best"
    for arguments, words in (
        ([tmp_path / "none"], "model.safetensors"),
        ([best, "--split", "tset"], "tset.csv is not a file"),
        ([best, "--batch-size", 0], "--batch-size must be at least 1"),
        ([best, "--image-size", 0], "--image-size must be at least 1"),
        ([best, "--device", "abacus"], "--device must be auto, cpu, cuda"),
        ([best, "--results", "none/x.csv"], "--results must be a file to write"),
        ([many, "--sort-by", "val/acuracy"], "did you mean 'val/accuracy'"),
        ([many, "--sort-by", "test/loss", "--split", "val"], "--sort-by must be a metric"),
        ([many, "--sort-by", "val/loss/hat"], "--sort-by must be a metric of the split"),
    ):
        assert command(data, *arguments) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert told[-1].startswith("error: ")
        assert words in told[-1]
    assert not list((tmp_path / "here").iterdir())


def expected_mistakes(folder: Path, data: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """By head, as of `logits_of`, the surest disagreement first."""
    logits = logits_of(folder, data, split)
    mistakes: dict[str, list[dict[str, Any]]] = {"shape": [], "code": [], "marks": []}
    for number, row in enumerate(rows_of(data / f"{split}.csv")):
        for head in ("shape", "code"):
            said = dict(
                zip(sorted(HEADS[head]), logits[head][number].softmax(0).tolist(), strict=True)
            )
            best = max(said, key=lambda name: said[name])
            if best != row[head]:
                words = ("", row[head], best)
                mistakes[head].append(mistake(row, number, words, said[row[head]], said[best]))
        for name, chance in zip(
            ("bar", "dot"), logits["marks"][number].sigmoid().tolist(), strict=True
        ):
            true = name in row["marks"].split("|")
            if true != (chance > 0.5):
                words = (name, *(("yes", "no") if true else ("no", "yes")))
                label = chance if true else 1 - chance
                mistakes["marks"].append(mistake(row, number, words, label, 1 - label))
    for some in mistakes.values():
        some.sort(key=lambda one: one["label_probability"] - one["prediction_probability"])
    return mistakes


def mistake(
    row: dict[str, str], number: int, words: tuple[str, ...], label: float, prediction: float
) -> dict[str, Any]:
    named = dict(zip(("class", "label", "prediction"), words, strict=True))
    chances = {"label_probability": label, "prediction_probability": prediction}
    return {"image_path": row["image_path"], "row": str(number + 1), **named, **chances}


def mistakes_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What mistakes.csv says, by head."""
    by_head: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(folder / "mistakes.csv"):
        told: dict[str, Any] = {**row}
        for name in ("label_probability", "prediction_probability"):
            told[name] = float(row[name] or "nan")
        by_head.setdefault(told.pop("head"), []).append(told)
    return by_head


def assert_same(told: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(told) == len(expected)
    for one, other in zip(told, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_the_labels_that_the_model_disagrees_with_are_written_surest_first(
    tmp_path: Path, data: Path, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best")
    out = tmp_path / "look" / "here"
    metrics = metrics_of(capsys, data, folder, "--mistakes", out, "--batch-size", batch_size)
    told, expected = mistakes_of(out), expected_mistakes(folder, data, "val")
    for head in HEADS:
        assert_same(told[head], expected[head])
    for head in ("shape", "code"):
        assert len(told[head]) == round(30 * (1 - metrics[f"val/accuracy/{head}"]))
    assert sorted(path.name for path in out.iterdir()) == ["mistakes.csv", "mistakes.html"]
    page = (out / "mistakes.html").read_text()
    assert page.count("<figure>") == sum(map(len, told.values()))


def test_mistakes_beyond_the_most_of_a_head_are_left_out_aloud(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = checkpoint(tmp_path / "best")
    monkeypatch.setattr("raymlc.validate._MOST", 4)
    assert command(data, folder, "--mistakes", tmp_path / "m", "--split", "test") == 0
    expected = expected_mistakes(folder, data, "test")
    for head, told in mistakes_of(tmp_path / "m").items():
        assert_same(told, expected[head][:4])
    total = len(expected["shape"])
    assert total > 4
    assert (
        f"head shape: the model disagrees with {total} of 17 labels; the worst 4 in mistakes.csv"
        in capsys.readouterr().err
    )


def test_rows_without_a_label_are_no_mistakes_and_labels_that_training_never_saw_come_last(
    tmp_path: Path, data: Path
) -> None:
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    lines = (data / "val.csv").read_text().splitlines()
    lines[1:4] = ["val0.png,,,", "val1.png,new,1,star|bar", "val2.png,new,,|"]
    (tmp_path / "data" / "val.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "data" / "val5.png").write_text("broken")
    folder = checkpoint(tmp_path / "best")
    words = ["--mistakes", tmp_path / "m", "--broken-images", "skip"]
    assert command(tmp_path / "data", folder, *words) == 0
    told = mistakes_of(tmp_path / "m")
    plain = expected_mistakes(folder, data, "val")
    for head in HEADS:
        assert_same(
            [one for one in told[head] if int(one["row"]) > 3],
            [one for one in plain[head] if int(one["row"]) > 3 and one["row"] != "6"],
        )
        assert not [one for one in told[head] if one["row"] == "1"]
    last = told["shape"][-2:]
    assert [(one["row"], one["label"]) for one in last] == [("2", "new"), ("3", "new")]
    assert all(np.isnan(one["label_probability"]) for one in last)
    assert all(one["prediction_probability"] > 1 / 3 for one in last)
    star = told["marks"][-1]
    assert (star["row"], star["class"], star["label"], star["prediction"]) == (
        "2",
        "star",
        "yes",
        "no",
    )


def test_mistakes_are_seen_as_the_metrics_are(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best", changes={"eval_crop": 0.6})
    words = ["--flip", "--image-size", 48]
    metrics = metrics_of(capsys, data, folder, "--mistakes", tmp_path / "m", *words)
    plain = metrics_of(capsys, data, checkpoint(tmp_path / "plain"), "--mistakes", tmp_path / "p")
    for told, of in (("m", metrics), ("p", plain)):
        for head, found in mistakes_of(tmp_path / told).items():
            if head != "marks":
                assert len(found) == round(30 * (1 - of[f"val/accuracy/{head}"]))
    assert mistakes_of(tmp_path / "m") != mistakes_of(tmp_path / "p")


def test_a_folder_of_mistakes_is_not_replaced_unless_that_is_asked(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = checkpoint(tmp_path / "best"), tmp_path / "m"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "mistakes.csv").write_text("old")
    assert command(data, folder, "--mistakes", out) == 2
    assert f"--mistakes must name a new folder, but {out} is there" in capsys.readouterr().err
    assert (out / "mistakes.csv").read_text() == "old"
    assert command(data, folder, "--mistakes", out, "--overwrite") == 0
    assert mistakes_of(out)["shape"]
    assert (out / "mine.txt").read_text() == "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command(data, folder, "--mistakes", empty) == 0


def test_mistakes_of_several_checkpoints_and_in_a_file_are_refused_in_a_line(
    many: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments, words in (
        ([many, "--mistakes", "m"], "--mistakes are those of one checkpoint, but 6 are named"),
        ([many / "2", "--mistakes", tmp_path / "file"], "--mistakes must be a folder to write in"),
        (
            [many / "2", "--mistakes", tmp_path / "file", "--overwrite"],
            "--mistakes must be a folder to write in",
        ),
    ):
        assert command(data, *arguments) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "here").iterdir())


def test_out_of_memory_halves_the_batch_of_mistakes_too(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "best")
    assert command(data, folder, "--mistakes", tmp_path / "m") == 0

    sizes: list[int] = []

    def batches_or_fail(*arguments: Any, **named: Any) -> Any:
        sizes.append(named["batch_size"])
        if named["batch_size"] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seen_batches(*arguments, **named)

    monkeypatch.setattr(inference, "seen_batches", batches_or_fail)
    assert command(data, folder, "--mistakes", tmp_path / "n") == 0
    assert sizes[0] > 3 >= sizes[-1]
    for head, told in mistakes_of(tmp_path / "n").items():
        assert_same(told, mistakes_of(tmp_path / "m")[head])


def test_calibrate_writes_the_calibration_of_the_split_and_a_card(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best")
    assert command(data, folder, "--calibrate") == 0
    told = capsys.readouterr().err
    assert "calibrated on 30 rows of val: expected calibration error shape " in told
    assert f"model card: {folder / 'README.md'}" in told
    loaded = load_checkpoint(folder)
    targets = read_split(data / "val.csv", loaded.labels).targets
    expected = fit_calibration(loaded.labels, logits_of(folder, data, "val"), targets, "val")
    assert loaded.calibration is not None
    assert loaded.calibration.rows == 30
    for name, head in loaded.calibration.heads.items():
        assert head.temperature == pytest.approx(expected.heads[name].temperature, rel=1e-3)
    card = (folder / "README.md").read_text()
    assert "The training rows were not at hand" in card
    for private in (str(tmp_path), str(data)):
        assert private not in card
        assert private not in (folder / "calibration.json").read_text()


def test_calibrate_knows_the_training_rows_of_a_folder_that_has_them(
    data: Path, tmp_path: Path
) -> None:
    table = Path(shutil.copytree(data, tmp_path / "table"))
    shutil.copy(table / "test.csv", table / "train.csv")
    folder = checkpoint(tmp_path / "best")
    assert command(table, folder, "--calibrate") == 0
    assert "Trained on 17 rows of train.csv" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--split", "train"], "--calibrate needs rows that training did not see"),
        (["--flip"], "--calibrate is of the checkpoint as it predicts, but --flip changes that"),
        (["--image-size", "48"], "but --image-size changes that"),
    ],
)
def test_calibrate_refuses_what_would_not_be_true(
    data: Path, tmp_path: Path, arguments: list[str], law: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Path(shutil.copytree(data, tmp_path / "table"))
    shutil.copy(table / "test.csv", table / "train.csv")
    folder = checkpoint(tmp_path / "best")
    assert command(table, folder, "--calibrate", *arguments) == 2
    assert law in capsys.readouterr().err
    assert not (folder / "calibration.json").exists()


def test_calibrate_is_for_one_checkpoint_and_replaces_nothing_unasked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        checkpoint(tmp_path / "all" / str(number), seed=number)
    assert command(data, tmp_path / "all", "--calibrate") == 2
    assert "--calibrate is for one checkpoint, but 2 are named" in capsys.readouterr().err
    folder = tmp_path / "all" / "0"
    (folder / "README.md").write_text("mine")
    assert command(data, folder, "--calibrate") == 2
    assert "take --overwrite to replace it" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"
    assert command(data, folder, "--calibrate", "--overwrite") == 0
    assert (folder / "README.md").read_text().startswith("# shape, code, marks")
