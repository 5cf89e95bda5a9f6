"""The best trial in TensorBoard: pictures of its confusion and mistakes, and its values."""

import io
import math
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raymlc.data.store import open_split
from raymlc.data.table import read_table
from raymlc.training.mistakes import Mistake
from raymlc.training.run import run_trial
from raymlc.trial import TrialConfig
from raymlc.watch.confusion import Confusion
from raymlc.watch.drawing import MOST_CLASSES, draw_confusion, draw_mistakes
from raymlc.watch.tensorboard import EventFile
from raymlc.watch.winner import show_winner

ROOT = Path(__file__).parents[2]
HEADS = ("shape", "code", "marks")
WHITE = 255


def matrix(classes: int, extra: int = 0) -> Confusion:
    """Each class taken for the next as often as its place says; extra: labels never seen."""
    true = tuple(f"class {number}" for number in range(classes + extra))
    counts = np.zeros((classes + extra, classes), np.int64)
    counts[range(classes), range(classes)] = 5
    for number in range(classes + extra):
        counts[number, (number + 1) % classes] += number
    return Confusion(true, true[:classes], counts)


@pytest.mark.parametrize("extra", [0, 2])
def test_a_matrix_is_blue_on_its_diagonal_and_red_beside_it(extra: int) -> None:
    picture = draw_confusion("color", matrix(4, extra)).astype(int)
    assert picture.ndim == 3
    blue = (picture[..., 2] - picture[..., 0] > 60).sum()
    red = (picture[..., 0] - picture[..., 2] > 60).sum()
    assert blue > 3000
    assert red > 1000


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    few = draw_confusion("article", matrix(MOST_CLASSES))
    many = draw_confusion("article", matrix(300))
    assert many.shape[0] < few.shape[0] * 1.2
    assert many.shape[1] < few.shape[1] * 1.2


@pytest.mark.parametrize(
    "one",
    [
        Confusion(("a",), ("a",), np.zeros((1, 1), np.int64)),
        Confusion(("a", "b"), (), np.array([[[3, 1], [0, 2]], [[0, 0], [0, 0]]])),
        Confusion(("x" * 500, "漢字 ü"), ("x" * 500, "漢字 ü"), np.array([[10**7, 1], [1, 0]])),
    ],
    ids=["empty", "multi-hot", "names and counts of any length"],
)
def test_any_head_has_a_picture(one: Confusion) -> None:
    picture = draw_confusion("größe", one)
    assert picture.dtype == np.uint8
    assert picture.shape[1] < 800
    assert (picture != WHITE).any()


def test_mistakes_stand_in_rows_of_six_each_with_label_and_prediction(tmp_path: Path) -> None:
    Image.new("L", (30, 90), 128).save(tmp_path / "a.png")
    one = Mistake(tmp_path / "a.png", "a.png", 1, "", "Shirts and more " * 9, "Tops", math.nan, 0.9)
    assert draw_mistakes([one] * 7).shape[:2] == draw_mistakes([one] * 12).shape[:2]
    assert draw_mistakes([]).size
    assert draw_mistakes([one]).shape[1] < draw_mistakes([one] * 2).shape[1]


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a single-label head with a class more in val, and a multi-hot head."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "images").mkdir()
    for name, rows in {"train": 24, "val": 12}.items():
        lines = ["image_path,shape,code,marks"]
        for row in range(rows):
            path = f"images/{name}{row}.png"
            Image.new("RGB", (12, 8), (9 * row, 90, 30)).save(folder / path)
            shape = ("round", "flat", "odd" if name == "val" else "flat")[row % 3]
            lines.append(f"{path},{shape},{row % 2},{('dot', 'dot|bar', '|')[row % 3]}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trials(table_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two trained trials with their events, of which the first has been shown."""
    output = tmp_path_factory.mktemp("sweep")
    table = read_table(table_folder)
    config = TrialConfig(
        backbone="test_efficientnet", pretrained=False, image_size=16, batch_size=8, epochs=2
    )
    train, val = (open_split(table.splits[name], 16, output / "cache") for name in ("train", "val"))
    for number in range(2):
        folder = output / "trials" / f"{number:04}"
        own = config.replace({"seed": number})
        cpu = torch.device("cpu")
        events = EventFile(folder)
        for metrics in run_trial(own, table.labels, train, val, folder, "val/accuracy", cpu):
            events.epoch(metrics)
        events.end({"seed": number}, metrics)
    # TensorBoard reads files in the order of their names: the second they are from, then a number
    # without leading zeros.
    time.sleep(1.1)
    show_winner(output / "trials" / "0000", table, output / "cache", "stop", Console(quiet=True))
    return output / "trials"


def test_the_best_trial_has_pictures_of_every_head_and_its_values_as_text(
    trials: Path, table_folder: Path
) -> None:
    events = EventAccumulator(str(trials / "0000"))
    events.Reload()
    wanted = {f"{kind}/{head}" for kind in ("confusion", "mistakes") for head in HEADS}
    assert set(events.Tags()["images"]) == wanted
    for tag in wanted:
        (image,) = events.Images(tag)
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (
            image.width,
            image.height,
        )
    (text,) = events.Tensors("trial/config/text_summary")
    words = text.tensor_proto.string_val[0].decode()
    assert "| image_size | **16** |" in words
    assert "| weight_decay | **" not in words
    # The scalars are those that there were.
    assert len(events.Scalars("val/accuracy")) == 2


def test_what_has_been_shown_is_not_shown_twice(trials: Path, table_folder: Path) -> None:
    before = sorted(trials.rglob("*tfevents*"))
    table = read_table(table_folder)
    show_winner(trials / "0000", table, trials.parent / "cache", "stop", Console(quiet=True))
    assert sorted(trials.rglob("*tfevents*")) == before


def test_what_cannot_be_shown_is_said_in_a_line(tmp_path: Path, table_folder: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, width=200)
    show_winner(tmp_path, read_table(table_folder), tmp_path / "cache", "stop", console)
    (line,) = text.getvalue().splitlines()
    assert line.startswith("the best trial is not shown in TensorBoard: ")


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard of its own."""
    words = ["--logdir", str(folder), "--port", "0", "--host", "localhost", "--load_fast", "false"]
    with subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stderr
        found = None
        while found is None and (line := server.stderr.readline()):
            found = re.search(r"http://\S+", line)
        # It would stop where a full pipe is not read.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            assert found
            yield found[0]
        finally:
            server.terminate()


def fetched(url: str, **query: str) -> str:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
        return str(answer.read().decode())


BROWSERS = ("chromium", "google-chrome", "chromium-browser")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"there is none of {', '.join(BROWSERS)}")
def test_tensorboard_in_a_browser_has_the_charts_of_the_heads(trials: Path, tmp_path: Path) -> None:
    with tensorboard(trials) as url:
        layout = fetched(f"{url}data/plugin/custom_scalars/layout")
        assert layout.count('"title": "accuracy on val"') == 1  # once for all runs
        (regex,) = re.findall(r'"(\^val/accuracy[^"]*)"', layout)
        chart = "data/plugin/custom_scalars/scalars"
        drawn = fetched(f"{url}{chart}", run="0001", tag=regex)
        assert all(f'"val/accuracy/{head}"' in drawn for head in HEADS)
        assert "balanced" not in drawn
        wanted = {f"val/accuracy/{head}" for head in HEADS}
        # Its clock jumps ahead where the page waits, at times past an answer that comes late.
        for attempt in range(6):
            done = subprocess.run(
                [
                    str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update",
                    "--disable-sync", f"--user-data-dir={tmp_path / str(attempt)}",
                    "--window-size=1400,2000", "--virtual-time-budget=20000", "--dump-dom",
                    f"{url}?tagFilter=^val/accuracy#timeseries",
                ],
                capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
            titles = set(re.findall(r'title="([^"]+)"', done.stdout))
            if wanted <= titles:
                break
    assert wanted <= titles
