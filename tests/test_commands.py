"""The commands' options, so that a new one is a decision, and the README's words about them."""

import dataclasses
import re
from pathlib import Path

import pytest

from raymlc.average import AverageOptions
from raymlc.average import main as average
from raymlc.check import CheckOptions
from raymlc.check import main as check
from raymlc.export import ExportOptions
from raymlc.export import main as export
from raymlc.options import RunOptions, TrainOptions, TuneOptions
from raymlc.pick import PickOptions
from raymlc.pick import main as pick
from raymlc.predict import PredictOptions
from raymlc.predict import main as predict
from raymlc.report import ReportOptions
from raymlc.report import main as report
from raymlc.train import main as train
from raymlc.tune import main as tune
from raymlc.validate import ValidateOptions
from raymlc.validate import main as validate

ROOT = Path(__file__).parents[1]
RUN = {
    "--address", "--allow-outside", "--broken-images", "--cache", "--classes",
    "--cpus-per-worker", "--data", "--gpus-per-worker", "--heads", "--metric", "--name", "--output",
    "--resume", "--set", "--trainer", "--val-fraction", "--verbose", "--weights", "--workers",
}  # fmt: skip
TUNE = RUN | {
    "--concurrency", "--enqueue", "--epoch-budget", "--finalists", "--pruner", "--repeats",
    "--sampler", "--seed", "--space", "--study", "--time-budget", "--trials", "--warm-start",
}  # fmt: skip
TRAIN = RUN | {"--keep", "--keep-heads", "--trial"}
VALIDATE = {
    "--allow-outside", "--batch-size", "--broken-images", "--cache", "--data", "--device", "--flip",
    "--image-size",
    "--json", "--mistakes", "--overwrite", "--results", "--sort-by", "--split",
}  # fmt: skip
PREDICT = {
    "--batch-size", "--broken-images", "--device", "--flip", "--output", "--overwrite", "--top",
}  # fmt: skip
EXPORT = {"--output", "--overwrite"}
AVERAGE = {"--best", "--metric", "--output"}
CHECK = {"--allow-outside", "--cache", "--classes", "--heads", "--output", "--overwrite", "--val-fraction"}
PICK = {"--all", "--weights"}
REPORT = {"--output"}
COMMANDS = {
    "tune": (tune, TUNE),
    "train": (train, TRAIN),
    "validate": (validate, VALIDATE),
    "predict": (predict, PREDICT),
    "export": (export, EXPORT),
    "average": (average, AVERAGE),
    "pick": (pick, PICK),
    "check": (check, CHECK),
    "report": (report, REPORT),
}


def options_in_help(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"}


@pytest.mark.parametrize(("command", "options"), COMMANDS.values(), ids=COMMANDS)
def test_the_help_lists_exactly_these_options(
    command: object, options: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--help"])  # type: ignore[operator]
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert options_in_help(said) == options


@pytest.mark.parametrize(
    "options",
    [
        RunOptions,
        TuneOptions,
        TrainOptions,
        ValidateOptions,
        PredictOptions,
        ExportOptions,
        AverageOptions,
        CheckOptions,
        PickOptions,
        ReportOptions,
    ],
)
def test_every_option_is_typed_frozen_and_explained(options: type) -> None:
    assert dataclasses.is_dataclass(options)
    assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    source = (ROOT / (options.__module__.replace(".", "/") + ".py")).read_text()
    for field in dataclasses.fields(options):
        assert re.search(rf'    {field.name}: .*\n    """', source), field.name


def test_every_option_of_a_command_in_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    for module, (_, known) in COMMANDS.items():
        for line in re.findall(rf"raymlc\.{module}\b([^\n`]*)", readme):
            assert options_in_help(line) <= known, line


def test_ci_runs_the_readmes_own_test_command() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    (command,) = re.findall(r"^(python3 -m venv .* pytest)$", readme, re.MULTILINE)
    assert command in ci
