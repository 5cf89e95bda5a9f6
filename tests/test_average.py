"""The mean of checkpoints is what its numbers say, and is made of like networks only."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymlc.average import main
from raymlc.data.batches import Normalization
from raymlc.labels import Head, Labels
from raymlc.model.network import build_network
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.trial import TrialConfig

LABELS = Labels.learn({"color": ["blue", "green", "red"], "tags": ["dim|noisy"]})
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
TRIAL = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)
COUNT = "backbone.bn1.num_batches_tracked"


def checkpoint(
    folder: Path,
    seed: int,
    changes: dict[str, Any] | None = None,
    labels: Labels = LABELS,
    pixels: Normalization = PIXELS,
    **metrics: float,
) -> Path:
    """A checkpoint of which every number, batch statistics included, follows from the seed."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config = TRIAL.replace({"lr": 0.001 * (1 + seed), **(changes or {})})
    network = build_network(config, labels).train()
    for _ in range(1 + seed):
        network(torch.randn(8, 3, 32, 32))
    named = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    save_checkpoint(folder, network, config, labels, pixels, named)
    return folder


def average(*arguments: Any, code: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == code


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("count", [2, 3])
def test_every_floating_number_is_the_mean_and_whole_ones_are_the_firsts(
    tmp_path: Path, count: int
) -> None:
    folders = [checkpoint(tmp_path / str(seed), seed) for seed in range(count)]
    average(*folders, "--output", tmp_path / "mean")
    parts = [weights(folder) for folder in folders]
    given = weights(tmp_path / "mean")
    assert given.keys() == parts[0].keys()
    for name, value in given.items():
        if value.is_floating_point():
            expected = np.mean([part[name].numpy().astype(np.float64) for part in parts], axis=0)
            assert value.dtype == torch.float32
            np.testing.assert_array_equal(value.numpy(), expected.astype(np.float32))
        else:
            assert torch.equal(value, parts[0][name])
    assert given[COUNT] == 1
    assert parts[1][COUNT] == 2


def test_sums_are_taken_in_double_precision(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(seed), seed) for seed in range(3)]
    for folder, value in zip(folders, (2.0**24, 1.0, 1.0), strict=True):
        loaded = load_checkpoint(folder)
        with torch.no_grad():
            loaded.network.backbone.conv_stem.weight.fill_(value)  # type: ignore[operator, union-attr]
        save_checkpoint(folder, loaded.network, loaded.config, LABELS, PIXELS, {})
    average(*folders, "--output", tmp_path / "mean")
    mean = weights(tmp_path / "mean")["backbone.conv_stem.weight"]
    assert (mean == (2**24 + 2) / 3).all()


def test_the_mean_is_a_checkpoint_that_nobody_has_scored(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(s), s, val_accuracy=0.5 + s) for s in range(2)]
    average(*folders, "--output", tmp_path / "new" / "mean")
    loaded = load_checkpoint(tmp_path / "new" / "mean")
    assert loaded.metrics == {}
    assert loaded.confusion == {}
    assert loaded.origin == "average"
    first = load_checkpoint(folders[0])
    assert (loaded.config, loaded.labels) == (first.config, first.labels)
    assert loaded.normalization == first.normalization


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    average(*arguments, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def heads(*changed: Head) -> Labels:
    return Labels(tuple(changed))


COLOR, TAGS = LABELS.heads


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"changes": {"backbone": "test_resnet"}},
            "backbone ('test_efficientnet' and 'test_resnet')",
        ),
        ({"changes": {"image_size": 48}}, "image_size (32 and 48)"),
        ({"changes": {"eval_crop": 0.5}}, "eval_crop (1.0 and 0.5)"),
        ({"changes": {"bn_eps": 0.1}}, "bn_eps (0.0 and 0.1)"),
        (
            {"changes": {"image_size": 48, "interpolation": "bicubic"}},
            "image_size (32 and 48); interpolation ('bilinear' and 'bicubic')",
        ),
        ({"pixels": Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.4))}, "mean and std"),
        ({"labels": heads(TAGS, COLOR)}, "heads (('color', 'tags') and ('tags', 'color'))"),
        ({"labels": heads(COLOR)}, "heads (('color', 'tags') and ('color',))"),
        (
            {"labels": heads(Head("color", ("blue", "green", "rot")), TAGS)},
            "the classes of head 'color' ('red', 'rot')",
        ),
        (
            {"labels": heads(COLOR, Head("tags", ("noisy", "dim"), True))},
            "the classes of head 'tags' (their order)",
        ),
        (
            {"labels": heads(COLOR, Head("tags", ("dim", "noisy")))},
            "head 'tags' (one is multi-hot, the other single-label)",
        ),
    ],
)
def test_other_networks_and_labels_are_refused_with_what_differs(
    tmp_path: Path, other: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = checkpoint(tmp_path / "first", 0)
    second = checkpoint(tmp_path / "second", 1, **other)
    text = refused(capsys, first, second, "--output", tmp_path / "mean")
    assert text.endswith(f"{first} and {second} differ in {words}") or "mean and std" in words
    assert words in text
    assert not (tmp_path / "mean").exists()


def test_what_only_training_was_asked_may_differ(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first", 0)
    asked = {"drop_rate": 0.5, "epochs": 3, "optimizer": "sgd", "batch_size": 16, "ema_decay": 0.0}
    second = checkpoint(tmp_path / "second", 1, asked)
    average(first, second, "--output", tmp_path / "mean")
    assert load_checkpoint(tmp_path / "mean").config == load_checkpoint(first).config


@pytest.mark.parametrize(
    ("metric", "chosen"), [("val/accuracy", (2, 0)), ("val/loss", (1, 2)), (None, (2, 0))]
)
def test_the_best_of_a_folder_are_those_with_the_highest_metric_or_the_lowest_loss(
    tmp_path: Path,
    metric: str | None,
    chosen: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed, (accuracy, loss) in enumerate([(0.6, 0.9), (0.5, 0.1), (0.7, 0.5), (0.1, 2.0)]):
        folder = tmp_path / "trials" / str(seed) / "best"
        checkpoint(folder, seed, val_accuracy=accuracy, val_loss=loss)
    flags = ["--metric", metric] if metric else []
    average(tmp_path / "trials", "--best", 2, *flags, "--output", tmp_path / "mean")
    name = "backbone.conv_stem.weight"
    parts = [weights(tmp_path / "trials" / str(seed) / "best")[name] for seed in chosen]
    expected = torch.stack([part.double() for part in parts]).mean(0)
    assert torch.equal(weights(tmp_path / "mean")[name], expected.float())
    told = capsys.readouterr().out
    assert [str(seed) for seed in chosen] == [
        Path(line.strip()).parts[-2] for line in told.splitlines() if line.startswith("  /")
    ]


def test_the_same_weights_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (checkpoint(tmp_path / str(seed), seed) for seed in range(2))
    copy = checkpoint(tmp_path / "copy", 0)
    assert weights(copy).keys() == weights(first).keys()
    average(first, second, copy, "--output", tmp_path / "mean")
    average(first, second, "--output", tmp_path / "expected")
    mean, expected = weights(tmp_path / "mean"), weights(tmp_path / "expected")
    assert all(torch.equal(mean[name], expected[name]) for name in expected)
    assert f"{copy} has the weights of {first}, which count once" in capsys.readouterr().out
    assert "needs at least 2 checkpoints, but gets 1" in refused(
        capsys, first, copy, "--output", tmp_path / "other"
    ).replace("\n", " ")


def test_a_broken_checkpoint_among_them_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (checkpoint(tmp_path / str(seed), seed) for seed in range(2))
    content = json.loads((second / "labels.json").read_text())
    content["heads"][0]["classes"].pop()
    (second / "labels.json").write_text(json.dumps(content))
    text = refused(capsys, first, second, "--output", tmp_path / "mean")
    assert f"checkpoint {second} cannot be used" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_wrong_words_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = checkpoint(tmp_path / "0", 0, val_accuracy=0.5)
    second = checkpoint(tmp_path / "1", 1, val_accuracy=0.5)
    output = ["--output", tmp_path / "mean"]
    for arguments, words in (
        ([first, *output], "at least 2 checkpoints, but gets 1"),
        ([tmp_path / "none", *output], "model.safetensors"),
        ([first, second, "--output", second], "is there"),
        ([first, second, "--best", 0, *output], "--best must be at least 1"),
        ([first, second, "--best", 3, *output], "is 3 of 2"),
        ([first, second, "--best", 1, *output], "at least 2 checkpoints, but gets 1"),
        ([first, second, "--best", 2, "--metric", "val/acc", *output], "did you mean"),
    ):
        assert words in refused(capsys, *arguments)
