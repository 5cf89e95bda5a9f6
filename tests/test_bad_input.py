"""Whatever a person gets wrong is one line and exit code 2, before Ray starts."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymlc.average import main as average
from raymlc.cache import main as cache
from raymlc.check import main as check
from raymlc.data.demo import draw_demo
from raymlc.data.table import read_table
from raymlc.export import main as export
from raymlc.pick import main as pick
from raymlc.predict import main as predict
from raymlc.report import main as report
from raymlc.train import main as train
from raymlc.trial import TrialConfig
from raymlc.tune import main as tune
from raymlc.validate import main as validate
from raymlc.watch.progress import write_summary
from tests.watch.made import Made

PLAIN_SPACE = """
from raymlc.trial import TrialConfig
def space(trial):
    return TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=48, batch_size=16,
                       lr=trial.suggest_float("lr", 1e-4, 1e-2))
"""
COMMANDS = {
    "tune": tune,
    "train": train,
    "validate": validate,
    "predict": predict,
    "export": export,
    "average": average,
    "pick": pick,
    "cache": cache,
    "check": check,
    "report": report,
}
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the rows below spoil: 60 drawn pictures, a space, a checkpoint, a sweep's folder."""
    from raymlc.data.batches import Normalization
    from raymlc.model.network import build_network
    from raymlc.training.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("whole")
    draw_demo(folder / "data", rows=60)
    (folder / "space.py").write_text(PLAIN_SPACE)
    config = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)
    labels = read_table(folder / "data").labels
    pixels = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    network = build_network(config, labels, fetch=False)
    save_checkpoint(folder / "best", network, config, labels, pixels, {"val/accuracy": 0.5})
    made = Made(folder / "sweep", 2, data=folder / "data")
    made.run(0.5)
    write_summary(folder / "sweep" / "summary.csv", made.book.rows())
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(whole, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def row(number: int, change: Callable[[str], str], csv: str = "train") -> Spoil:
    """Changes a line of a CSV; 0 is its header."""

    def apply(place: Path) -> None:
        path = place / "data" / f"{csv}.csv"
        lines = path.read_text().splitlines(keepends=True)
        lines[number] = change(lines[number])
        path.write_text("".join(lines))

    return apply


def header(text: str) -> Spoil:
    """Replaces the header line of train.csv."""
    return row(0, lambda old: text + "\n")


def image(path: str) -> Spoil:
    """Has the first row of train.csv name another image."""
    return row(1, lambda line: path + "," + line.partition(",")[2])


def file(name: str, content: str | bytes | Callable[[bytes], bytes]) -> Spoil:
    """Writes a file, or changes its bytes."""

    def apply(place: Path) -> None:
        path = place / name
        if callable(content):
            path.write_bytes(content(path.read_bytes()))
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return apply


def instead(name: str, make: Callable[[Path], object]) -> Spoil:
    """Puts something else in a file's place."""

    def apply(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        make(place / name)

    return apply


def space(old: str, new: str) -> Spoil:
    """Changes space.py."""
    return lambda place: edit(place / "space.py", lambda text: text.replace(old, new))


def values(name: str, **changes: Any) -> Spoil:
    """Changes values of a JSON object in a file."""
    return file(name, lambda old: json.dumps({**json.loads(old), **changes}).encode())


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG that is so large."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    return b"\x89PNG\r\n\x1a\n" + parts + struct.pack(">I", 2**20) + b"IDAT"


def nothing(place: Path) -> None:
    """Leaves all as it is."""


def bad(name: str, typed: str, line: str, spoil: Spoil = nothing) -> Any:
    """A row: what is bad, the command that a person types, what the line says of it."""
    return pytest.param(typed, line, spoil, id=name)


TUNE = "tune --data data --space space.py"
SCORE = "validate best --data data"
CSVS = [
    bad("no such folder", "tune --data nowhere", "does not exist"),
    bad("a folder without a table", "tune --data data/images", "must hold train.csv"),
    bad(
        "a table that is a folder", "tune --data data", "must hold train.csv",
        instead("data/train.csv", Path.mkdir),
    ),
    bad(
        "a val.csv that is a folder", "tune --data data", "val.csv must be readable, but",
        instead("data/val.csv", Path.mkdir),
    ),
    bad(
        "a val.csv that links to nothing", "check data", "val.csv must be readable, but",
        instead("data/val.csv", lambda path: path.symlink_to("nowhere")),
    ),
    bad(
        "a table that links to itself", "check data", "must hold train.csv",
        instead("data/train.csv", lambda path: path.symlink_to(path)),
    ),
    bad(
        "a table that the disk does not give", "check data", "train.csv must be readable, but",
        instead("data/train.csv", lambda path: path.symlink_to("/proc/self/mem")),
    ),
    bad("a path longer than the system takes", f"tune --data {'x' * 300}", "cannot be used"),
    bad(
        "no column of images", "tune --data data", "must have a column image_path, but has 'image'",
        header("image,shape,color,marks"),
    ),
    bad(
        "columns between semicolons", "train --data data", "put commas between the columns",
        file("data/train.csv", lambda old: old.replace(b",", b";")),
    ),
    bad(
        "columns between tabs", "check data", "put commas between the columns",
        file("data/train.csv", lambda old: old.replace(b",", b"\t")),
    ),
    bad(
        "no column but that of images", "tune --data data", "must have a column for each head",
        file("data/train.csv", "image_path\nimages/0000.png\n"),
    ),
    bad(
        "two columns of one name", "train --data data", "2 that are called 'color'; rename",
        header("image_path,color,color,marks"),
    ),
    bad(
        "two columns of images", "check data", "2 that are called 'image_path'; rename",
        header("image_path,image_path,color,marks"),
    ),
    bad(
        "a column without a name", "tune --data data", "column 3 of 4 has no name; name it",
        header("image_path,shape,,marks"),
    ),
    bad("an empty table", "tune --data data", "is empty", file("data/train.csv", "")),
    bad("a table of empty lines", "check data", "is empty", file("data/train.csv", "\n\r\n\n")),
    bad(
        "a header alone", "tune --data data", "must have a row for each image",
        file("data/train.csv", "image_path,color\n"),
    ),
    bad(
        "a header alone to validate on", SCORE, "val.csv must have a row for each image",
        file("data/val.csv", "image_path,shape,color,marks\n"),
    ),
    bad(
        "UTF-16", "tune --data data", "line 1 is not UTF-8 (invalid start byte); save the table as",
        file("data/train.csv", lambda old: old.decode().encode("utf-16")),
    ),
    bad(
        "UTF-16 without its mark", "tune --data data", "NUL character in line 1; save it as UTF-8",
        file("data/train.csv", lambda old: old.decode().encode("utf-16-le")),
    ),
    bad(
        "a label in Latin-1", "check data", "train.csv must be a table in UTF-8 with a header line,"
        " but line 51 is not UTF-8",
        file("data/train.csv", lambda old: old + "\nx,größe,red,\n".encode("latin-1")),
    ),
    bad(
        "Latin-1 to validate on", SCORE, "is not UTF-8",
        file("data/val.csv", lambda old: old + "ä".encode("latin-1")),
    ),
    bad(
        "a NUL", "tune --data data", "has a NUL character in line 2",
        row(1, lambda line: line.replace(",", ",\0", 1)),
    ),
    bad(
        "a quote that none closes", "tune --data data", "from line 2 on it is none: a quote opens",
        row(1, lambda line: line.replace(",", ',"', 1)),
    ),
    bad(
        "text after a closing quote", "check data", "from line 2 on it is none: ',' expected after",
        row(1, lambda line: '"images"/0000.png,' + line.partition(",")[2]),
    ),
    bad(
        "a cell longer than a table's", "tune --data data", "field larger than field limit",
        row(1, lambda line: "x" * 200_000 + line),
    ),
    bad(
        "a row with more cells than the header", "tune --data data",
        "row 3 has 5 cells and the header 4 names",
        row(3, lambda line: line.strip() + ",\n"),
    ),
    bad(
        "a picture in place of the table", "tune --data data/images/0000.png", "is not UTF-8",
    ),
    bad(
        "a class list that is not there", "tune --data data --classes nowhere",
        "--classes must name a CSV file",
    ),
    bad(
        "a class list without a head", "check data --classes all.csv",
        "head 'color' is not a column of all.csv",
        file("all.csv", "shape,marks\ndisc,\n"),
    ),
]  # fmt: skip
LABELS = [
    bad(
        "a head that is no column", "tune --data data --heads colour", "did you mean 'color'?",
    ),
    bad(
        "a head that validation has not", "tune --data data", "head 'color' is not a column of val",
        row(0, lambda line: line.replace("color", "hue"), "val"),
    ),
    bad(
        "one class in all rows", "tune --data data --heads color", "a head needs at least 2 class",
        file("data/train.csv", "image_path,color\nimages/0000.png,red\nimages/0001.png,red\n"),
    ),
    bad(
        "no label in any row", "train --data data", "head 'color' has no label in any training row",
        file("data/train.csv", "image_path,color\nimages/0000.png,\nimages/0001.png,\n"),
    ),
    bad(
        "multi-hot without any class", "check data", "'color' has no label in any training row",
        file("data/train.csv", "image_path,color\nimages/0000.png,|\nimages/0001.png,\n"),
    ),
    bad(
        "no label to validate on", "tune --data data --heads color",
        "needs labels to validate on, but no validation row has any",
        file("data/val.csv", "image_path,color\nimages/0000.png,\n"),
    ),
    bad(
        "a model's head that the table has not", SCORE, "head 'marks' is not a column of val.csv",
        row(0, lambda line: line.replace("marks", "spots"), "val"),
    ),
    bad(
        "a share that leaves no row to validate on", "tune --data data --val-fraction 0",
        "change --val-fraction", instead("data/val.csv", lambda path: None),
    ),
    bad(
        "a share that is no number", "check data --val-fraction nan",
        "so nan of its 48 rows", instead("data/val.csv", lambda path: None),
    ),
]  # fmt: skip
IMAGES = [
    bad("an image that is not there", "tune --data data", "row 1 of train.csv names the image",
        image("images/none.png")),
    bad("no path of an image", "tune --data data", "row 1 of train.csv must name an image",
        image("")),
    bad("an image that is a folder", "check data", "images, which is not a file", image("images")),
    bad("a path of 300 letters", "check data", "which is not a file (File name too long)",
        image("x" * 300)),
    bad("a path through a file", "check data", "which is not a file (Not a directory)",
        image("images/0000.png/x.png")),
    bad("a link to itself", "check data", "which is not a file (Too many levels of symbolic links)",
        instead("data/images/0000.png", lambda path: path.symlink_to(path))),
    bad("an absolute path elsewhere", "tune --data data", "trust the table with --allow-outside",
        image("/etc/passwd")),
    bad("a path up and out", SCORE + " --split train", "outside of", image("../../x.png")),
    bad("a path out through a folder", "check data", "outside of", image("images/../../x.png")),
    bad("an image of zero bytes", TUNE + " --set epochs=1", "0000.png: UnidentifiedImageError",
        file("data/images/0000.png", b"")),
    bad("an image cut short", TUNE + " --set epochs=1", "in row 1: ",
        file("data/images/0000.png", lambda old: old[:200])),
    bad("a text called .png", SCORE + " --split train", "cannot identify image file",
        file("data/images/0000.png", "no image")),
    bad("a bomb of 400 million pixels", "train --data data --set backbone=test_efficientnet"
        " pretrained=false", "0000.png: DecompressionBombError",
        file("data/images/0000.png", png(20_000, 20_000))),
    bad("an image of 90 million pixels", "predict best large.png", "are not decoded",
        file("large.png", png(20_000, 4_500))),
    bad("a broken image to predict", "predict best data/images", "each image must be readable, but",
        file("data/images/0003.png", b"\x89PNG\r\n\x1a\n")),
    bad("a program called .jpg", "predict best x.jpg", "cannot identify image file",
        file("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")),
    bad("a pipe to predict", "predict best pipe.png", "pipe.png is not: OSError: it is no file",
        instead("pipe.png", os.mkfifo)),
    bad("nothing to predict", "predict best nowhere.jpg", "nowhere.jpg is not there"),
    bad("a folder without an image", "predict best sweep", "sweep has no image in it"),
]  # fmt: skip
SPACES = [
    bad("no such space", "tune --data data --space nowhere", "--space must name a Python file"),
    bad("a folder as the space", "tune --data data --space data", "--space must name a Python"),
    bad("a space of other syntax", TUNE, "line 3: expected ':'", space("trial):", "trial)")),
    bad("a space that is no text", TUNE, "space.py", file("space.py", b"\xff\x00\x80")),
    bad("a space without space", TUNE, "must define a function space", space("def space", "def x")),
    bad("a space that is no function", TUNE, "must define a function space",
        file("space.py", "space = 3\n")),
    bad("a space without arguments", TUNE, "takes 0 positional arguments", space("trial):", "):")),
    bad("a space that returns nothing", TUNE, "must return a TrialConfig, but returned None",
        space("return ", "")),
    bad("a space that returns a dict", TUNE, "must return a TrialConfig, but returned {",
        space("return TrialConfig", "return dict")),
    bad("a space of a field that is none", TUNE, "line 4: 'lrr' is not a field of TrialConfig; did"
        " you mean 'lr'?", space("lr=trial", "lrr=trial")),
    bad("a space that asks for what is no field", TUNE,
        "an asked name must be a field: 'learning_rat'", space('"lr"', '"learning_rat"')),
    bad("a space that asks for a number", TUNE, "must be a text, but is of type int",
        space('"lr"', "7")),
    bad("a range that is upside down", TUNE, "space.py line 5", space("1e-4, 1e-2", "1e-2, 1e-4")),
    bad("a range without an end", TUNE, "space.py", space("1e-2)", 'float("inf"))')),
    bad("a range from no number", TUNE, "space.py", space("1e-4", 'float("nan")')),
    bad("a range of log from 0", TUNE, "space.py line 5", space("1e-4, 1e-2", "0, 1, log=True")),
    bad("a range beyond the field's law", TUNE, "lr must be above 0, but is -",
        space("1e-4, 1e-2", "-2.0, -1.0")),
    bad("a range that changes", TUNE, "a name must keep one range",
        space("1e-4, 1e-2", "1e-4, __import__('random').random() + 1")),
    bad("a space that asks for nothing", TUNE, "asks for nothing",
        space('trial.suggest_float("lr", 1e-4, 1e-2)', "0.1")),
    bad("a space that raises", TUNE, "space.py line 4: ZeroDivisionError",
        space("return ", "1 / 0; return ")),
    bad("a space that raises in many lines", TUNE, "ValueError: one two",
        space("return ", "raise ValueError('one\\n\\ntwo'); return ")),
    bad("a space that ends the process", TUNE, "space.py line 2: SystemExit",
        space("from raymlc", "raise SystemExit; from raymlc")),
    bad("a space that imports what is not there", TUNE, "space.py line 1: ModuleNotFoundError",
        file("space.py", "import nowhere")),
    bad("a field both set and searched", TUNE + " --set lr=0.1", "drop --set lr"),
]  # fmt: skip
SETTINGS = [
    bad("a metric that no head reports", "tune --data data --metric val/accuracy/colour",
        "did you mean 'val/accuracy/color'"),
    bad("a metric of nothing", "tune --metric accuracy", "must be one that the heads report"),
    bad("a setting of what is no field", "tune --set learning_rate=0.1", "not a field of Trial"),
    bad("a setting of another type", "train --set epochs=ten", "epochs must be of type int"),
    bad("a setting without a value", "train --set epochs", "written field=value"),
    bad("a setting beyond its law", "tune --set weight_decay=-1", "weight_decay must be at"),
    bad("a setting that is no number", "train --set lr=NaN", "lr must be of type float, but"),
    bad("a setting without an end", "train --set lr=Infinity", "lr must be of type float"),
    bad("a searched field that is set", "tune --set drop_rate=2", "drop --set drop_rate"),
    bad("a head of a setting that is none", TUNE + " --set head_weights/colour=2",
        "'colour', which is no head; did you mean 'color'?"),
    bad("a backbone that is none", "tune --data data --set backbone=efficentnet_b0",
        "did you mean 'efficientnet_b0'"),
    bad("weights that are not there", "tune --data data --weights nowhere", "--weights must name"),
    bad("no trial", "tune --trials 0", "--trials must be a number of trials, at"),
    bad("half a trial", "tune --trials 2.5", "--trials must be a number of trials, at"),
    bad("no time", "tune --time-budget 0m", "a duration must be longer than nothing"),
    bad("a time without a unit", "tune --time-budget 90", "a number with d, h, m or s"),
    bad("no epoch", "tune --epoch-budget 0", "--epoch-budget must be at least 1"),
    bad("fewer GPUs than none", "tune --gpus-per-worker -1", "must be at least 0"),
    bad("a part of a GPU", "tune --gpus-per-worker 0.25",
        "whole GPUs, but is 0.25; let trials share one by --trials-per-gpu 4"),
    bad("no trial on a GPU", "tune --trials-per-gpu 0", "--trials-per-gpu must be at least 1"),
    bad("a trial of two workers on one GPU", "tune --trials-per-gpu 2 --workers 2",
        "--trials-per-gpu is for trials of one worker"),
    bad("trials that share two GPUs", "tune --trials-per-gpu auto --gpus-per-worker 2",
        "--trials-per-gpu needs one GPU a worker, but --gpus-per-worker is 2"),
    bad("trials to be measured elsewhere", "tune --trials-per-gpu auto --trainer torch",
        "measures trials in their own process, but --trainer is torch"),
    bad("no worker", "train --workers 0", "--workers must be at least 1"),
    bad("no finalist at all", "tune --finalists -1", "--finalists must be at least 0"),
    bad("no checkpoint to keep", "train --keep 0", "--keep must be at least 1"),
    bad("no image at a time", SCORE + " --batch-size 0", "--batch-size must be at least 1"),
    bad("no pixel", SCORE + " --image-size -32", "--image-size must be at least 1"),
    bad("too many pixels", SCORE + " --image-size 100000", "image_size must be from 8 to 4096"),
    bad("a device that is none", "predict best data --device gpu", "--device must be auto, cpu"),
    bad("a split that is not there", SCORE + " --split dev", "dev.csv is not a file; see --split"),
    bad("a metric to sort by that is none", "validate best sweep/trials --data data",
        "is none and has none below it"),
    bad("fewer than none of the best", "predict best data --top -1", "--top must be at least 0"),
    bad("to go on without a name", "tune --resume", "by its --name, but none is given"),
    bad("to go on with what never began", "train --resume --name never", "needs a run that began"),
    bad("an output that is a file", "tune --output space.py", "--output must be a folder to write"),
    bad("an output that cannot be made", "train --output /proc/runs", "--output must be a folder"),
    bad("an output in no folder", "export best --output nowhere/x.onnx", "--output must be in a"),
    bad("an output that is a folder", "predict best data --output data --overwrite",
        "--output must name a file, but data is a folder"),
    bad("an output that is there", "predict best data --output data/val.csv", "take --overwrite"),
    bad("an output that cannot be written", "check data --output /proc/found.csv",
        "--output must be a file to write"),
    bad("a report that is none", "report sweep --output data/val.csv", "replaces older reports"),
    bad("mistakes that are there", SCORE + " --mistakes data", "must name a new folder"),
    bad("a cache that is a file", TUNE + " --cache space.py", "name another folder with --cache"),
    bad("a study in another database", "tune --study oracle://me@host/db", "begins with oracle://"),
    bad("a study whose password is elsewhere", "tune --study postgresql:///db?password=secret",
        "has one after its ?"),
    bad("a study that is no journal", TUNE + " --study data/train.csv", "cannot be read"),
    bad("a sampler for one metric alone", "tune --metric val/accuracy/color,val/loss/color"
        " --sampler cmaes", "of several metrics --sampler must be one of"),
]  # fmt: skip
TRIALS = [
    bad("no such trial", "train --trial nowhere.json", "nowhere.json cannot be read"),
    bad("a trial that is no JSON", "train --trial t.json", "t.json cannot be read: Expecting",
        file("t.json", "lr=0.1")),
    bad("a trial that is no text", "train --trial t.json", "t.json cannot be read: 'utf-8' codec",
        file("t.json", b"\xff\xfe")),
    bad("a trial that is a list", "tune --enqueue t.json", "a trial is a JSON object of fields",
        file("t.json", "[1]")),
    bad("a trial nested without end", "train --trial t.json", "t.json cannot be read: maximum",
        file("t.json", "[" * 100_000)),
    bad("a trial of a field that is none", "train --trial t.json", "'lrr' is not a field",
        file("t.json", '{"lrr": 1}')),
    bad("a trial of another type", "train --trial t.json", "epochs must be of type int, but is '3'",
        file("t.json", '{"epochs": "3"}')),
    bad("a trial of no number", "tune --enqueue t.json", "lr must be above 0, but is nan",
        file("t.json", '{"lr": NaN}')),
    bad("a trial of a number without an end", "train --trial t.json", "seed must be from 0 to",
        file("t.json", '{"seed": ' + "9" * 400 + "}")),
    bad("a trial that binds fields falsely", "train --trial t.json", "at most one of randaug_ops",
        file("t.json", '{"augmix": true, "autoaugment": true}')),
    bad("a Python file of no trial", "train --trial t.py", "must define one TrialConfig",
        file("t.py", "lr = 0.1\n")),
    bad("a Python file that raises", "train --trial t.py", "t.py does not run: ZeroDivisionError",
        file("t.py", "1 / 0\n")),
    bad("a sweep to start from that is none", TUNE + " --warm-start data", "sweep.json"),
]  # fmt: skip
CACHES = [
    bad("a limit without a unit", "cache --limit 50", "a size is a number with MB, GB or TB"),
    bad("a limit below nothing", "cache --limit=-5GB", "but is '-5GB'"),
    bad("a time that is none", "cache --unused soon", "a duration is a number with d, h, m or s"),
    bad("a cache to look at that is a file", "cache --cache data/train.csv",
        "--cache must be a folder, but"),
]  # fmt: skip
CHECKPOINTS = [
    bad("no such checkpoint", "export nowhere --output x.onnx", "is a folder that holds model.saf"),
    bad("a folder without a checkpoint", "validate data --data data", "has none below it"),
    *(
        bad(f"a checkpoint without {name}", "predict best data", name,
            instead(f"best/{name}", lambda path: None))
        for name in ("checkpoint.json", "trial.json", "labels.json", "preprocessing.json",
                     "metrics.json")
    ),
    bad("a flipped bit of the weights", SCORE, "model.safetensors is not as it was written",
        file("best/model.safetensors", flipped)),
    bad("weights cut short", "predict best data", "model.safetensors is not as it was written",
        file("best/model.safetensors", lambda old: old[: len(old) // 2])),
    bad("spoilt labels", "predict best data", "labels.json is no JSON",
        file("best/labels.json", lambda old: old[:-9])),
    bad("labels of other classes", "predict best data", "classes in labels.json, but",
        file("best/labels.json", lambda old: old.replace(b'"red"', b'"red", "rot"'))),
    bad("a class twice", "export best --output x.onnx", "has no class, or one of them twice",
        file("best/labels.json", lambda old: old.replace(b'"red"', b'"red", "red"'))),
    bad("a spoilt trial", SCORE, "trial.json is no JSON",
        file("best/trial.json", lambda old: b"(" + old[1:])),
    bad("a trial of another backbone", "predict best data", "must hold the weights of trial.json's",
        values("best/trial.json", backbone="test_convnext")),
    bad("a trial of a field to come", "predict best data", "'lr2' is not a field of TrialConfig",
        values("best/trial.json", lr2=0.1)),
    bad("pixels of no deviation", "predict best data", "a std above 0",
        values("best/preprocessing.json", std=[0, 1, 1])),
    bad("pixels that contradict the trial", "predict best data", "must agree on image_size",
        values("best/preprocessing.json", image_size=64)),
    bad("a score that is a text", "predict best data", "metrics.json must hold named numbers",
        values("best/metrics.json", epoch="one")),
    bad("a checkpoint of a version to come", "predict best data", "upgrade raymlc",
        values("best/checkpoint.json", format=2)),
    bad("a calibration of other weights", "predict best data", "but is of others; remove it",
        file("best/calibration.json", '{"sha256": "0"}')),
    bad("an average of one", "average best --output soup", "at least 2 checkpoints, but gets 1"),
    bad("an average that is there", "average best --output data", "must name a new folder"),
    bad("a checkpoint as weights that is none", TUNE + " --weights data", "no labels.json of one"),
    bad("labels of a checkpoint as weights", TUNE + " --weights best", "labels must be heads with",
        file("best/labels.json", '{"heads": [1]}')),
]  # fmt: skip
SWEEPS = [
    bad("a folder that is no sweep's", "report data", "holds sweep.json, but data does not"),
    bad("a sweep to pick from that is none", "pick data", "holds sweep.json, but data does not"),
    bad("a sweep that has not ended", "pick sweep", "but sweep has none yet",
        instead("sweep/summary.csv", lambda path: None)),
    bad("spoilt options", "report sweep", "hold a run's options", file("sweep/sweep.json", "{")),
    bad("options that are a list", "pick sweep", "cannot be read", file("sweep/sweep.json", "[]")),
    bad("a spoilt summary", "pick sweep", "cannot be", file("sweep/summary.csv", "trial\nx\n")),
    bad("a summary in UTF-16", "pick sweep", "cannot be read",
        file("sweep/summary.csv", lambda old: old.decode().encode("utf-16"))),
    bad("a weight that is no number", "pick sweep --weights color=many", "METRIC=WEIGHT"),
    bad("a weight of what is no metric", "pick sweep --weights colour=1", "did you mean"),
    bad("a study that is gone", "report sweep", "must be where it was kept",
        instead("sweep/study.journal", lambda path: None)),
    bad("a study that is a text", "report sweep", "sweep/study.journal holds none",
        file("sweep/study.journal", "no journal at all\n")),
    bad("a study of JSON that is no journal", "report sweep", "cannot be read",
        file("sweep/study.journal", '{"a": 1}\n')),
    bad("a study with a spoilt line", "report sweep", "cannot be read",
        file("sweep/study.journal", lambda old: old.replace(b'"op_code"', b'"op_co\xff"', 3))),
]  # fmt: skip
HEAVY = [
    bad("a batch larger than the data", TUNE + " --set batch_size=1000", "batch_size must be"),
    bad("workers that do not divide a batch", TUNE + " --workers 3", "3 workers do not divide 16"),
    bad("a tag that is none", TUNE + " --set backbone=test_efficientnet.nope",
        "must be a model of timm"),
    bad("an optimizer that is none", TUNE + " --set optimizer=adamx", "did you mean"),
    bad("weights that are a table", TUNE + " --weights data/train.csv", "could not be loaded"),
    bad("a drop path that the backbone has not", TUNE + " --set backbone=vgg11 drop_path_rate=0.1"
        " image_size=64", "has no drop path"),
]  # fmt: skip
ROWS = CSVS + LABELS + IMAGES + SPACES + SETTINGS + TRIALS + CACHES + CHECKPOINTS + SWEEPS + HEAVY


def test_the_table_has_at_least_sixty_rows_of_all_commands() -> None:
    names = [str(one.id) for one in ROWS]
    assert len(names) == len(set(names)) >= 60
    assert {str(one.values[0]).split()[0] for one in ROWS} == set(COMMANDS)
    faults = Path(__file__).parents[1] / "docs" / "faults.md"
    assert f"is bad in one of {len(names)} ways" in faults.read_text(encoding="utf-8")


@pytest.mark.parametrize(("typed", "line", "spoil"), ROWS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_wrong_input_gets_one_line_and_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], typed: str, line: str, spoil: Spoil
) -> None:
    spoil(place)
    command, *arguments = typed.split()
    if command in ("tune", "train", "validate", "check") and "--cache" not in arguments:
        arguments += ["--cache", str(place.parent / "cache")]
    assert COMMANDS[command](arguments) == 2
    said = capsys.readouterr().err
    assert line in said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in said
    if command in ("tune", "train"):
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--data nowhere",
        "--data data --metric val/accuracy/colour",
        "--data data --set backbone=efficentnet_b0",
        "--data data --space space.py --set nope=1",
    ],
)
def test_words_are_checked_in_three_seconds_without_torch_timm_or_ray(
    place: Path, arguments: str
) -> None:
    code = (
        "import sys; from raymlc.tune import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'timm', 'ray'} & set(sys.modules), 'heavy imports'\n"
        "sys.exit(code)"
    )
    began = os.times()
    wall = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    ended = os.times()
    assert done.returncode == (0 if arguments == "--help" else 2), done.stderr
    cpu = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert min(cpu, time.monotonic() - wall) < 3


def test_two_processes_do_not_run_one_sweep(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    folder = place / "runs" / "mine"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert tune(["--data", "data", "--name", "mine"]) == 2
    assert "one process at a time is at a run" in capsys.readouterr().err


def test_a_name_that_is_taken_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    assert tune(["--data", "data", "--name", "mine"]) == 2
    assert "go on with it by --resume, or choose another --name" in capsys.readouterr().err
