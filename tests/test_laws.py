"""What the scripts of 2021 got wrong, or did well, and must hold: laws that no other file holds.

Shapes: N rows, H and W pixels, C = 3 channels, K classes of a head.
"""

import ast
import csv
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import tyro
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, recall_score
from timm.optim import list_optimizers
from torch import Tensor, nn
from torch.nn import functional

import raymlc.cluster.single as single
from raymlc.average import AverageOptions
from raymlc.data.batches import Normalization
from raymlc.data.store import ImageSplit, open_split
from raymlc.data.table import read_table
from raymlc.errors import UserError
from raymlc.export import ExportOptions
from raymlc.labels import Head, Labels
from raymlc.model.network import Network, build_network
from raymlc.optim.build import LOOKAHEAD, build_optimizer
from raymlc.options import TrainOptions, TuneOptions
from raymlc.predict import PredictOptions
from raymlc.train import main as train
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.training.evaluate import Workers, evaluate
from raymlc.training.loop import fit
from raymlc.training.prediction import Predictor
from raymlc.training.state import Training
from raymlc.trial import FIELDS, TrialConfig, check_field, parse_assignment
from raymlc.tune import main as tune
from raymlc.validate import ValidateOptions
from tests.patched import patch_in_processes

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "from-2021.md"
CPU = torch.device("cpu")
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SMALL = TrialConfig(
    backbone="test_efficientnet", pretrained=False, image_size=32, batch_size=8, epochs=1
)
# No batch norm, whose statistics move at any lr, and nothing that is drawn.
STILL = [
    "backbone=test_convnext", "pretrained=false", "image_size=32", "batch_size=16", "epochs=1",
    "drop_rate=0", "augment=false", "ema_decay=0", "optimizer=sgd", "lr=1e-12",
]  # fmt: skip
COMMANDS: dict[str, type] = {
    "tune": TuneOptions,
    "train": TrainOptions,
    "validate": ValidateOptions,
    "predict": PredictOptions,
    "export": ExportOptions,
    "average": AverageOptions,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order, and no fight for the cores of whoever runs the tests."""
    torch.set_num_threads(1)


def noise(labels: Labels, cells: dict[str, list[str]], seed: int = 0) -> ImageSplit:
    """An image of noise for each row of the cells."""
    rows = len(next(iter(cells.values())))
    images_NHWC = np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), np.uint8)
    return ImageSplit(images_NHWC, np.arange(rows), labels.encode(cells))


def add_column(path: Path, name: str, cells: Sequence[str]) -> None:
    """Adds a column to a CSV file, in which the cells come over and over again."""
    lines = path.read_text().splitlines()
    added = [f"{line},{cells[place % len(cells)]}" for place, line in enumerate(lines[1:])]
    path.write_text("\n".join([f"{lines[0]},{name}", *added]) + "\n")


def arguments_for(data: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(output), "--cache", str(output / "cache"), *more]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def option_names(options: type) -> set[str]:
    """The options of a command, as they are typed."""
    names = {field.name for field in dataclasses.fields(options)}
    return {f"--{'set' if name == 'fixed' else name.replace('_', '-')}" for name in names}


def guide(section: str) -> list[list[str]]:
    """The cells of the rows of a table of the guide from 2021."""
    text = GUIDE.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", guide("Training flags"), ids=lambda row: row[0])
def test_every_field_and_option_that_the_guide_from_2021_names_exists(row: list[str]) -> None:
    flags, fields, remarks = row
    assert quoted(fields) or fields == "–" or flags == ""
    for name in quoted(fields):
        if "=" in name:
            field, value = parse_assignment(name)
            assert getattr(TrialConfig.from_dict({field: value}), field) == value
        else:
            assert name in FIELDS
    known = set().union(*map(option_names, COMMANDS.values())) | set(quoted(flags))
    for text in [*quoted(fields), *quoted(remarks)]:
        for option in re.findall(r"(?<![\w-])--[\w-]+", text):
            assert option in known or any(flag.startswith(option) for flag in known), option


def test_every_command_that_the_guide_from_2021_names_can_be_typed() -> None:
    seen = set()
    for cell in itertools.chain.from_iterable(guide("Commands")):
        for name, words in re.findall(r"`python -m raymlc\.(\w+)([^`]*)`", cell):
            typed = words.replace("…", "").replace("--workers N", "--workers 2").split()
            tyro.cli(COMMANDS[name], args=typed)  # which ends the process for a wrong word
            seen.add(name)
    assert seen == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_read_by_it(name: str) -> None:
    """Of the scripts' options a dozen did nothing."""
    read = set()
    for path in (ROOT / "raymlc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "options":
                read.add(node.attr)
    assert {field.name for field in dataclasses.fields(COMMANDS[name])} <= read


@pytest.mark.parametrize("command", [tune, train])
def test_the_help_says_what_workers_do_to_the_lr(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    about = told.partition("--workers ")[2].partition(" --")[0]
    assert re.search(r"\blr\b", about)


def test_a_setting_goes_over_the_trials_file_and_the_file_over_the_defaults(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "check_trial", lambda *_: (1, torch.zeros(0)))
    monkeypatch.setattr(single, "train_trial", lambda *_: 0)
    (tmp_path / "mine.json").write_text('{"lr": 0.5, "drop_rate": 0.5}')
    more = ["--trial", str(tmp_path / "mine.json"), "--set", "lr=0.25", "--name", "a"]
    assert train(arguments_for(tiny_table, tmp_path, *more)) == 0
    kept = json.loads((tmp_path / "a" / "trial.json").read_text())
    assert kept == TrialConfig(lr=0.25, drop_rate=0.5).to_dict()


SHORT_OF_A_LETTER = {
    "schedule": (["--set", "schedule=cosin"], "'cosine'"),
    "loss": (["--set", "loss=focall"], "'focal'"),
    "metric": (["--metric", "val/acuracy"], "'val/accuracy'"),
    "head of the metric": (["--metric", "val/accuracy/shap"], "'val/accuracy/shape'"),
    "field": (["--set", "drop_rat=0.1"], "'drop_rate'"),
    "head of the field": (["--set", "head_weights/shap=2"], "'shape'"),
    "backbone": (["--set", "backbone=efficentnet_b0"], "'efficientnet_b0'"),
    "head": (["--heads", "shap"], "'shape'"),
    "optimizer": (["--set", *STILL[:3], "optimizer=adamww"], "'adamw'"),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [(command, kind) for command in (train, tune) for kind in SHORT_OF_A_LETTER],
)
def test_a_misspelt_name_is_a_line_with_the_right_one_before_an_image_is_touched(
    command: Callable[..., int],
    kind: str,
    tiny_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, right = SHORT_OF_A_LETTER[kind]
    output = tmp_path / "runs"
    assert command(arguments_for(tiny_table, output, *words, "--name", "mine")) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "did you mean " in told.err
    assert right in told.err
    assert told.err.count("\n") == 1
    assert not list(output.glob("cache/*.npy"))
    # The name is free for the next attempt.
    assert not list(output.glob("mine/*.json"))


def jpeg(path: Path, kept: float) -> None:
    """A JPEG of noise of which only this share is there."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


def test_a_training_of_another_folders_table_stops_at_a_jpeg_cut_short_or_leaves_its_row_out(
    tiny_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, kept in (("whole", 1.0), ("short", 0.5)):
        jpeg(tiny_table / "images" / f"{name}.jpg", kept)
    for split, name, row in (("train", "whole", 2), ("train", "short", 4), ("val", "short", 1)):
        lines = (tiny_table / f"{split}.csv").read_text().splitlines()
        lines[row] = f"images/{name}.jpg,round,1,dot"
        (tiny_table / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = Path("..") / tiny_table.name
    more = ["--name", "mine", "--set", *STILL]
    assert train(arguments_for(data, Path("runs"), *more)) == 2
    told = capsys.readouterr().err
    assert "but 1 of train.csv are not, the first in row 4: " in told
    assert "images/short.jpg: " in told
    assert "--broken-images skip" in told
    assert told.count("\n") == 1

    assert train(arguments_for(data, Path("runs"), *more, "--broken-images", "skip")) == 0
    told = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"1 rows of {split}.csv left out: their images cannot be read" in told
    (epoch,) = rows_of(Path("runs") / "mine" / "summary.csv")
    assert epoch["epoch"] == "1.0"


def test_a_column_more_is_a_head_more_and_of_an_own_checkpoint_the_same_heads_are_kept(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(arguments_for(tiny_table, tmp_path, "--name", "old", "--set", *STILL)) == 0
    assert capsys.readouterr().out.count("heads:") == 0
    for name in ("train", "val"):
        path = tiny_table / f"{name}.csv"
        path.write_text(path.read_text().replace(",None,", ",new,"))
        add_column(path, "size", ["small", "large"])
    best = tmp_path / "old" / "best"
    more = ["--name", "new", "--weights", str(best), "--set", *STILL, "seed=1"]
    assert train(arguments_for(tiny_table, tmp_path, *more)) == 0
    told = capsys.readouterr().out
    assert "kept heads: shape, marks; new heads: code, size" in told

    (before,), (after,) = (rows_of(tmp_path / name / "summary.csv") for name in ("old", "new"))
    for head in ("shape", "marks"):
        name = f"val/loss/{head}"
        assert float(after[name]) == pytest.approx(float(before[name]), rel=1e-5)
    assert float(after["val/loss/code"]) != pytest.approx(float(before["val/loss/code"]), rel=1e-3)
    assert "val/accuracy/size" not in before
    for kind in ("train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy"):
        assert after[f"{kind}/size"]
    heads = load_checkpoint(tmp_path / "new" / "best").labels.heads
    assert heads[3:] == (Head("size", ("large", "small")),)


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_a_head_of_any_number_of_classes_trains_and_is_measured(
    classes: int, multi_hot: bool
) -> None:
    names = [f"c{number}" for number in range(classes)]
    column = [name + "|" * multi_hot for name in names]
    cells = {"head": [*column, *column, *16 * column][:16], "other": 8 * ["a", "b"]}
    if classes == 1 and not multi_hot:
        with pytest.raises(UserError, match="a head needs at least 2 classes"):
            Labels.learn(cells)
        return
    labels = Labels.learn(cells)
    data = noise(labels, cells)
    (metrics,) = fit(Training(SMALL, labels, CPU), data, data)
    measured = {name for name in metrics if name.startswith("val/") and name.endswith("/head")}
    assert all(np.isfinite(metrics[name]) for name in ("train/loss/head", *measured))
    assert ("val/top5_accuracy/head" in measured) == (classes > 5 and not multi_hot)


def test_augmix_trains_several_heads_and_its_divergence_is_not_offered() -> None:
    labels = Labels.learn({"color": ["a", "b", "c"], "side": ["l", "r"], "tags": ["x|y"]})
    cells = {
        "color": ["a", "b", "c", ""] * 6,
        "side": ["l", "r", ""] * 8,
        "tags": ["x", "y", "|", ""] * 6,
    }
    data = noise(labels, cells)
    trainings = [Training(SMALL.replace({"augmix": on}), labels, CPU) for on in (True, False)]
    (metrics,), (plain,) = (fit(training, data, data) for training in trainings)
    for head in labels.names:
        name = f"train/loss/{head}"
        assert np.isfinite(metrics[name])
        assert metrics[name] != plain[name]
    for name in ("jsd", "aug_splits"):
        with pytest.raises(UserError, match="not a field of TrialConfig"):
            check_field(name)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_however_many_threads_decode_the_images_are_the_same(
    threads: int, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = read_table(tiny_table).splits["train"]
    expected = open_split(split, 16, tmp_path / "cache")
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    images = open_split(split, 16, tmp_path / "other cache")
    np.testing.assert_array_equal(images.images_NHWC, expected.images_NHWC)
    np.testing.assert_array_equal(images.targets.values_NT, expected.targets.values_NT)


def test_the_backbone_that_is_trained_unless_another_is_named_works() -> None:
    config = TrialConfig(pretrained=False, image_size=64)
    labels = Labels.learn({"color": ["a", "b", "c"], "side": ["l", "r"]})
    logits = build_network(config, labels)(torch.randn(2, 3, 64, 64))
    torch.autograd.backward([logits_BK.sum() for logits_BK in logits.values()])
    assert {head: logits_BK.shape[1] for head, logits_BK in logits.items()} == {
        "color": 3,
        "side": 2,
    }


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit"])
def test_pixels_are_normalised_as_the_backbones_weights_expect_it_or_as_is_asked(
    backbone: str,
) -> None:
    labels = Labels.learn({"side": ["l", "r"]})
    own = timm.get_pretrained_cfg(backbone)
    for name, mean, std in (
        ("backbone", own.mean, own.std),
        ("imagenet", timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
        ("clip", timm.data.OPENAI_CLIP_MEAN, timm.data.OPENAI_CLIP_STD),
    ):
        config = SMALL.replace({"backbone": backbone, "normalization": name})
        assert Training(config, labels, CPU).normalization == Normalization(mean, std)


def test_the_first_step_gives_the_average_every_weight_of_the_network() -> None:
    cells = {"side": ["l", "r"] * 8}
    labels = Labels.learn(cells)
    for rows, same in ((8, True), (16, False)):
        data = noise(labels, {"side": cells["side"][:rows]})
        training = Training(SMALL.replace({"ema_decay": 0.9999}), labels, CPU)
        start = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
        list(fit(training, data, data))
        network, deployed = training.network.state_dict(), training.deployed.state_dict()
        weights = [name for name, tensor in network.items() if tensor.is_floating_point()]
        assert all(torch.equal(network[name], deployed[name]) for name in weights) == same
        assert not any(torch.equal(deployed[name], start[name]) for name in weights)


class Meeting:
    """Where workers that are threads add up their tensors."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._parts: dict[int, Tensor] = {}

    def sum_of(self, rank: int) -> Callable[[Tensor], None]:
        def sum_(tensor: Tensor) -> None:
            self._parts[rank] = tensor.clone()
            self._barrier.wait(60)
            total = torch.stack([self._parts[rank] for rank in sorted(self._parts)]).sum(0)
            self._barrier.wait(60)
            tensor.copy_(total)

        return sum_


@pytest.mark.parametrize("rows", [7, 1])
def test_two_workers_measure_seven_images_as_scikit_learn_does(rows: int) -> None:
    labels = Labels.learn({"color": ["a", "b", "c"], "side": ["l", "r"]})
    true = {"color": ["a", "b", "a", "a", "", "b", "a"][:rows], "side": list("lrlrrll")[:rows]}
    data = noise(labels, true)
    network = Network(Pixels(), labels, 0.0)
    told: dict[int, dict[str, float]] = {}
    meeting = Meeting(2)

    def work(rank: int) -> None:
        workers = Workers(rank, 2, meeting.sum_of(rank))
        counts = evaluate(network, labels, data, PIXELS, CPU, batch_size=2, workers=workers)
        told[rank] = counts.metrics("val")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told[0] == told[1]
    with torch.no_grad():
        logits = network(PIXELS(torch.from_numpy(data.images_NHWC).permute(0, 3, 1, 2)))
    for head in labels.heads:
        known = [place for place in range(rows) if true[head.name][place]]
        truth = [true[head.name][place] for place in known]
        said = [head.classes[number] for number in logits[head.name][known].argmax(1)]
        target_N = torch.tensor([head.classes.index(label) for label in truth])
        for name, expected in {
            "accuracy": accuracy_score(truth, said),
            "balanced_accuracy": recall_of(truth, said),
            "macro_f1": f1_score(truth, said, average="macro", labels=sorted(set(truth))),
            "loss": float(functional.cross_entropy(logits[head.name][known], target_N)),
        }.items():
            assert told[0][f"val/{name}/{head.name}"] == pytest.approx(expected, rel=1e-5)


def recall_of(truth: list[str], said: list[str]) -> float:
    return float(recall_score(truth, said, average="macro", labels=sorted(set(truth))))


class Pixels(nn.Module):
    """A backbone whose features are the pixels of a corner."""

    head_hidden_size = 48

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, :, :4, :4].flatten(1)


class Linear(nn.Module):
    """A backbone of a weight and a bias."""

    head_hidden_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, images_BF: Tensor) -> Tensor:
        features_BF: Tensor = self.layer(images_BF)
        return features_BF


# What a trial cannot run here (test_build shows that it is refused); and what torch compiles, which
# takes a minute.
LEFT_OUT = ("bnb", "fused", "kron")


@pytest.mark.filterwarnings("ignore:.*opt_einsum")
@pytest.mark.parametrize(
    "optimizer",
    [
        name
        for name in list_optimizers()
        if not name.startswith(LEFT_OUT)
        and not name.endswith(("adan", "adanw"))
        and "hessian" not in name
    ],
)
def test_a_lookahead_goes_around_each_optimizer_that_a_trial_may_name(optimizer: str) -> None:
    torch.manual_seed(0)
    labels = Labels.learn({"color": ["a", "b", "c"], "side": ["l", "r"]})
    network = Network(Linear(), labels, 0.0)
    config = SMALL.replace({"optimizer": LOOKAHEAD + optimizer})
    built = build_optimizer(config, network)
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    for _ in range(7):
        built.zero_grad()
        logits = network(torch.randn(6, 4))
        torch.autograd.backward([logits_BK.square().sum() for logits_BK in logits.values()])
        built.step()
    for weight, parameter in zip(weights, network.parameters(), strict=True):
        assert parameter.isfinite().all()
        assert not torch.equal(weight, parameter)
    assert built.param_groups[0]["lookahead_step"] == 7


def test_labels_that_look_like_gaps_and_numbers_are_classes_from_table_to_prediction(
    tiny_table: Path, tmp_path: Path
) -> None:
    cells = ["NA", "None", "nan", "1", "01", ""]
    for name in ("train", "val"):
        add_column(tiny_table / f"{name}.csv", "odd", cells)
    table = read_table(tiny_table, ["odd"])
    (head,) = table.labels.heads
    assert head.classes == ("01", "1", "NA", "None", "nan")
    for split in table.splits.values():
        assert split.targets.values_NT[:6, 0].tolist() == [2, 3, 4, 1, 0, -1]
    torch.manual_seed(0)
    network = build_network(SMALL, table.labels).train()
    network(torch.randn(16, 3, 32, 32))
    nn.init.normal_(network.heads[0][1].weight, std=5.0)  # type: ignore[index]
    save_checkpoint(tmp_path / "best", network, SMALL, table.labels, PIXELS, {})
    checkpoint = load_checkpoint(tmp_path / "best")
    assert checkpoint.labels == table.labels
    images = table.splits["train"].images
    for answers in Predictor(checkpoint, CPU)(images):
        assert set(answers["odd"].probabilities) == set(cells) - {""}
        assert answers["odd"].label in cells[:5]


def declared() -> tuple[set[str], set[str]]:
    """The packages that an installation brings, and with them those that its extras do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    plain, all_ = (
        {re.split(r"[\[<>=]", text)[0].lower() for text in texts}
        for texts in (project["dependencies"], [*project["dependencies"], *extras])
    )
    return plain, all_


def test_what_the_package_imports_is_declared() -> None:
    plain, all_ = declared()
    seen = set()
    for path in [*(ROOT / "raymlc").rglob("*.py"), *(ROOT / "search_spaces").glob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for package in {name.partition(".")[0] for name in names}:
                if package in sys.stdlib_module_names or package == "raymlc":
                    continue
                package = {"PIL": "pillow"}.get(package, package).replace("_", "-")
                # What only some commands import, they import late and may be an extra.
                assert package in (plain if node in tree.body else all_), f"{path}: {package}"
                seen.add(package)
    assert seen >= {"torch", "timm", "ray", "optuna", "pillow", "onnx"}


NOTES_RANKS = """
    import os
    run_trial = module.run_trial

    def noting(config, labels, train, val, folder, metric, device, workers, *rest):
        with open(os.path.join(os.environ["NOTES"], str(os.getpid())), "w") as file:
            file.write(f"{workers.rank} of {workers.size} on {device} in {folder}")
        return run_trial(config, labels, train, val, folder, metric, device, workers, *rest)

    module.run_trial = noting
"""


@pytest.mark.slow
def test_two_workers_have_two_ranks_and_one_folder(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "notes").mkdir()
    patch_in_processes(tmp_path / "hook", monkeypatch, "raymlc.training.run", NOTES_RANKS)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    more = ["--name", "two", "--workers", "2", "--set", *STILL]
    command = arguments_for(tiny_table, tmp_path / "runs", *more)
    subprocess.run([sys.executable, "-m", "raymlc.train", *command], check=True, cwd=ROOT)
    folder = tmp_path / "runs" / "two"
    notes = sorted(path.read_text() for path in (tmp_path / "notes").iterdir())
    assert notes == [f"{rank} of 2 on cpu in {folder}" for rank in range(2)]
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != "cache"] == ["two"]
    assert len(list(folder.rglob("model.safetensors"))) == 1
    assert len(rows_of(folder / "summary.csv")) == 1
