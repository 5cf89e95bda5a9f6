"""The commands' options, so that a new one is a decision, and the README's words about them."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raymlc.average import AverageOptions
from raymlc.average import main as average
from raymlc.cache import CacheOptions
from raymlc.cache import main as cache
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
    "--quiet", "--resume", "--set", "--trainer", "--val-fraction", "--verbose", "--weights",
    "--workers",
}  # fmt: skip
TUNE = RUN | {
    "--concurrency", "--enqueue", "--epoch-budget", "--finalists", "--pruner", "--repeats",
    "--sampler", "--seed", "--space", "--study", "--time-budget", "--trials", "--trials-per-gpu",
    "--warm-start",
}  # fmt: skip
TRAIN = RUN | {"--keep", "--keep-heads", "--trial"}
VALIDATE = {
    "--allow-outside", "--batch-size", "--broken-images", "--cache", "--calibrate", "--data",
    "--device", "--flip", "--image-size", "--json", "--mistakes", "--overwrite", "--results",
    "--sort-by", "--split",
}  # fmt: skip
PREDICT = {
    "--batch-size", "--broken-images", "--device", "--flip", "--output", "--overwrite", "--raw",
    "--top",
}  # fmt: skip
EXPORT = {"--output", "--overwrite"}
AVERAGE = {"--best", "--metric", "--output"}
CACHE = {"--cache", "--limit", "--unused"}
CHECK = {
    "--allow-outside",
    "--cache",
    "--classes",
    "--heads",
    "--output",
    "--overwrite",
    "--val-fraction",
}
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
    "cache": (cache, CACHE),
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
    # In boxes, or where a terminal has none between blanks.
    about, listed = re.split(
        r"^\W*(?:positional arguments|options)\W*$", said, maxsplit=1, flags=re.MULTILINE
    )
    assert options_in_help(listed) == options
    assert re.search(r"Examples?:\n  python -m raymlc\.", about)
    for line in re.findall(r"^  python -m (raymlc.*)", about, re.MULTILINE):
        assert options_in_help(line) <= options, line


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        (tune, ("data", "network", "folder", "worker", "search", "amount")),
        (train, ("data", "network", "folder", "worker", "trial")),
    ],
    ids=["tune", "train"],
)
def test_the_many_options_stand_in_groups_with_their_defaults(
    command: object, groups: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])  # type: ignore[operator]
    said = capsys.readouterr().out
    assert tuple(re.findall(r"^\W*(\w+) options\W*$", said, re.MULTILINE)) == groups
    assert re.search(r"\(default:\s[^)]*val/accuracy\)", said)
    assert "(default: None)" not in said


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_gets_a_script_that_completes_the_console_script(
    name: str, shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, options = COMMANDS[name]
    with pytest.raises(SystemExit) as end:
        command(["--tyro-print-completion", shell])
    assert not end.value.code
    said = capsys.readouterr().out
    # Completing `python` itself would take its own completion away.
    assert not re.search(r"^(complete .*|#compdef) python\b", said, re.MULTILINE)
    registered = f"complete -F _tyro_raymlc_{name}" if shell == "bash" else "#compdef"
    assert re.search(rf"^{registered} raymlc-{name}$", said, re.MULTILINE)
    assert all(f"'{option}'" in said for option in options)


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
        CacheOptions,
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


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_an_option_and_its_choices(tmp_path: Path) -> None:
    with (tmp_path / "completion.bash").open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "raymlc.tune", "--tyro-print-completion", "bash"],
            stdout=file, check=True, cwd=ROOT,
        )  # fmt: skip
    for line, found in {"--time-": "--time-budget", "--broken-images s": "stop skip"}.items():
        words = f"raymlc-tune {line}".split()
        script = (
            f"source {tmp_path}/completion.bash; COMP_WORDS=({' '.join(words)});"
            f" COMP_CWORD={len(words) - 1}; _tyro_raymlc_tune; echo ${{COMPREPLY[@]}}"
        )
        said = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True
        ).stdout
        assert set(said.split()) == set(found.split())


def test_ci_runs_the_readmes_own_test_command() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    (command,) = re.findall(r"^(python3 -m venv .* pytest .*)$", readme, re.MULTILINE)
    assert command in ci
