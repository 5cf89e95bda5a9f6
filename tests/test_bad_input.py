"""Whatever a person gets wrong is one line and exit code 2, before Ray starts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymlc.data.demo import draw_demo
from raymlc.tune import main

PLAIN_SPACE = """
from raymlc.trial import TrialConfig
def space(trial):
    return TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=48, batch_size=16,
                       lr=trial.suggest_float("lr", 1e-4, 1e-2))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 60 drawn pictures."""
    draw_demo(tmp_path / "data", rows=60)
    return tmp_path / "data"


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def first_row(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Edits the first row below the header of train.csv."""

    def apply(data: Path) -> None:
        lines = (data / "train.csv").read_text().splitlines(keepends=True)
        lines[1] = change(lines[1])
        (data / "train.csv").write_text("".join(lines))

    return apply


def header(text: str) -> Callable[[Path], None]:
    """Replaces the header line of train.csv."""
    return lambda data: edit(data / "train.csv", lambda old: text + "\n" + old.partition("\n")[2])


def space(text: str) -> Callable[[Path], object]:
    """Writes space.py into the data folder."""
    return lambda data: (data / "space.py").write_text(text)


def nothing(data: Path) -> None:
    """Leaves the data as it is."""


USE_SPACE = ["--data", "DATA", "--space", "DATA/space.py"]
WORDS = [
    (nothing, ["--data", "NOWHERE"], "does not exist"),
    (nothing, ["--data", "DATA/images"], "must hold train.csv"),
    (header("image,shape,color,marks"), ["--data", "DATA"], "must have a column image_path"),
    (header("image_path"), ["--data", "DATA"], "must have a column for each head"),
    (nothing, ["--data", "DATA", "--heads", "colour"], "did you mean 'color'?"),
    (
        nothing,
        ["--data", "DATA", "--metric", "val/accuracy/colour"],
        "did you mean 'val/accuracy/color'",
    ),
    (nothing, ["--metric", "accuracy"], "must be one that the heads report"),
    (nothing, ["--data", "DATA", "--set", "learning_rate=0.1"], "not a field of TrialConfig"),
    (nothing, ["--data", "DATA", "--set", "epochs=ten"], "epochs must be of type int"),
    (nothing, ["--data", "DATA", "--set", "epochs"], "written field=value"),
    (nothing, ["--data", "DATA", "--set", "drop_rate=2"], "drop --set drop_rate"),
    (nothing, ["--data", "DATA", "--set", "weight_decay=-1"], "weight_decay must be at least 0"),
    (
        nothing,
        ["--data", "DATA", "--set", "backbone=efficentnet_b0"],
        "did you mean 'efficientnet_b0'",
    ),
    (nothing, ["--data", "DATA", "--weights", "NOWHERE"], "--weights must name a file"),
    (nothing, ["--data", "DATA", "--space", "NOWHERE"], "--space must name a Python file"),
    (space("def spce(trial): pass"), USE_SPACE, "must define a function space"),
    (space("def space(trial)\n  pass"), USE_SPACE, "space.py line 1: expected ':'"),
    (
        space(PLAIN_SPACE.replace("lr=trial", "lrr=trial")),
        USE_SPACE,
        "line 4: 'lrr' is not a field of TrialConfig; did you mean 'lr'?",
    ),
    (
        space(PLAIN_SPACE.replace('"lr"', '"learning_rat"')),
        USE_SPACE,
        "an asked name must be a field: 'learning_rat'",
    ),
    (space(PLAIN_SPACE.replace("1e-4, 1e-2", "1e-2, 1e-4")), USE_SPACE, "space.py line 5"),
    (
        space(PLAIN_SPACE.replace('trial.suggest_float("lr", 1e-4, 1e-2)', "0.1")),
        USE_SPACE,
        "asks for nothing",
    ),
    (space("import nowhere"), USE_SPACE, "space.py line 1: ModuleNotFoundError"),
    (nothing, ["--data", "DATA", "--trials", "0"], "--trials must be a number of trials, at"),
    (nothing, ["--data", "DATA", "--gpus-per-worker", "-1"], "must be at least 0"),
    (nothing, ["--resume"], "by its --name, but none is given"),
    (nothing, ["--resume", "--name", "never"], "needs a run that began"),
    (
        nothing,
        ["--data", "DATA", "--output", "/proc/runs"],
        "--output must be a folder to write in",
    ),
]
TABLE = [
    (
        lambda data: edit(data / "train.csv", lambda text: text.splitlines()[0] + "\n"),
        ["--data", "DATA"],
        "must have a row for each image",
    ),
    (
        first_row(lambda row: "images/none.png," + row.partition(",")[2]),
        ["--data", "DATA"],
        "row 1 of train.csv",
    ),
    (
        lambda data: (data / "val.csv").unlink(),
        ["--data", "DATA", "--val-fraction", "0"],
        "change --val-fraction",
    ),
    (
        lambda data: edit(
            data / "train.csv",
            lambda text: text.splitlines()[0] + "\n" + text.splitlines()[1] + "\n",
        ),
        ["--data", "DATA"],
        "a head needs at least 2 classes",
    ),
    (
        lambda data: (data / "val.csv").write_bytes(b"\xff\xfe\x00"),
        ["--data", "DATA"],
        "must be a table in UTF-8",
    ),
]
HEAVY = [
    (
        lambda data: (data / "images" / "0000.png").write_bytes(
            (data / "images" / "0000.png").read_bytes()[:200]
        ),
        [*USE_SPACE, "--set", "epochs=1"],
        "0000.png",
    ),
    (nothing, [*USE_SPACE, "--set", "batch_size=1000"], "batch_size must be at most"),
    (nothing, [*USE_SPACE, "--workers", "3"], "3 workers do not divide 16"),
    (nothing, [*USE_SPACE, "--set", "backbone=test_efficientnet.nope"], "must be a model of timm"),
    (nothing, [*USE_SPACE, "--set", "optimizer=adamx"], "did you mean"),
    (nothing, [*USE_SPACE, "--weights", "DATA/train.csv"], "could not be loaded"),
    (
        nothing,
        [*USE_SPACE, "--set", "backbone=vgg11", "drop_path_rate=0.1", "image_size=64"],
        "has no drop path",
    ),
]


def spoiled(
    data: Path, spoil: Callable[[Path], object], arguments: list[str], output: Path
) -> list[str]:
    """The arguments of a command on data that is spoiled now."""
    if not (data / "space.py").exists():
        (data / "space.py").write_text(PLAIN_SPACE)
    spoil(data)
    given = [
        text.replace("DATA", str(data)).replace("NOWHERE", str(data / "none")) for text in arguments
    ]
    cache = ["--cache", str(output.parent / "cache")]
    return given + ([] if "--output" in given else ["--output", str(output)]) + cache


@pytest.mark.parametrize(("spoil", "arguments", "line"), WORDS + TABLE + HEAVY)
def test_wrong_input_gets_one_line_and_exit_code_2(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    arguments: list[str],
    line: str,
) -> None:
    assert main(spoiled(data, spoil, arguments, tmp_path / "runs")) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--data", "NOWHERE"],
        ["--data", "DATA", "--metric", "val/accuracy/colour"],
        ["--data", "DATA", "--set", "backbone=efficentnet_b0"],
        [*USE_SPACE, "--set", "nope=1"],
    ],
)
def test_words_are_checked_in_three_seconds_without_torch_timm_or_ray(
    data: Path, tmp_path: Path, arguments: list[str]
) -> None:
    code = (
        "import sys; from raymlc.tune import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'timm', 'ray'} & set(sys.modules), 'heavy imports'\n"
        "sys.exit(code)"
    )
    given = spoiled(data, nothing, arguments, tmp_path / "runs")
    began = os.times()
    wall = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False
    )
    ended = os.times()
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    cpu = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert min(cpu, time.monotonic() - wall) < 3


def test_two_processes_do_not_run_one_sweep(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        arguments = ["--data", str(data), "--output", str(tmp_path / "runs"), "--name", "mine"]
        assert main(arguments) == 2
    assert "one process at a time is at a run" in capsys.readouterr().err


def test_a_name_that_is_taken_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    arguments = ["--data", str(data), "--output", str(tmp_path / "runs"), "--name", "mine"]
    assert main(arguments) == 2
    assert "go on with it by --resume, or choose another --name" in capsys.readouterr().err
