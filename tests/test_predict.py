"""Predictions: what the network says of any image, without the table that it was trained on."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import raymlc
import raymlc.training.prediction as prediction
from raymlc.data.batches import Normalization, evaluation_batches
from raymlc.data.store import ImageSplit, decode, open_split
from raymlc.data.table import read_split, read_table
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import build_network
from raymlc.predict import main
from raymlc.training.calibration import Calibration, HeadCalibration, save_calibration
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.training.evaluate import evaluate
from raymlc.training.prediction import Answer, Predictor, cells, columns, load_predictor
from raymlc.training.run import run_trial
from raymlc.trial import TrialConfig

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
HEADS = {"shape": ("round", "flat", "NA"), "code": ("01", "1"), "marks": ("bar|dot|star",)}
TRIAL = TrialConfig(
    backbone="test_efficientnet", pretrained=False, image_size=32, batch_size=8, epochs=2
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order."""
    torch.set_num_threads(1)


def checkpoint(
    folder: Path,
    changes: dict[str, Any] | None = None,
    heads: dict[str, tuple[str, ...]] = HEADS,
) -> Path:
    """A checkpoint with random weights whose answers differ from image to image."""
    torch.manual_seed(0)
    config = TRIAL.replace(changes or {})
    labels = Labels.learn(heads)
    network = build_network(config, labels).train()
    network(torch.randn(16, 3, config.image_size, config.image_size))
    with torch.no_grad():
        for layers in network.heads:
            layers[1].weight.mul_(20)  # type: ignore[index]
    save_checkpoint(folder, network, config, labels, PIXELS, {})
    return folder


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return checkpoint(tmp_path_factory.mktemp("trial") / "best")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 11 images of noise of many sizes."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for place in range(11):
        shape = (20 + place, 40 - place, 3)
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"{place}.png")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def said(arguments: list[Any], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """What the command prints, of which nothing may be an error."""
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("error: ")
    return text


def by_hand(folder: Path, images: list[Path], flip: bool = False) -> dict[str, Tensor]:
    """The probabilities of each head, by the plainest way there is."""
    loaded = load_checkpoint(folder)
    network, size = loaded.network.eval(), loaded.config.image_size
    pixels_NHWC = np.stack([decode(path, size) for path in images]).astype(np.float32) / 255
    images_NHWC = (pixels_NHWC - np.array(PIXELS.mean, np.float32)) / np.array(
        PIXELS.std, np.float32
    )
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = network(images_NCHW)
        if flip:
            mirrored = network(images_NCHW.flip(3))
            logits = {head: (logits[head] + mirrored[head]) / 2 for head in logits}
    return {
        head.name: logits[head.name].sigmoid() if head.multi_hot else logits[head.name].softmax(1)
        for head in loaded.labels.heads
    }


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_row_has_each_heads_class_and_its_probability(
    best: Path, photos: Path, flip: bool, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [photos / f"{place}.png" for place in range(11)]
    flags = ["--flip"] if flip else []
    told = rows(said([best, photos, "--batch-size", batch_size, *flags], capsys))
    assert [row["image_path"] for row in told] == list(map(str, images))
    expected = by_hand(best, images, flip)
    labels = load_checkpoint(best).labels
    assert len({tuple(row.values())[1:] for row in told}) == 11
    for place, row in enumerate(told):
        for head in labels.heads:
            values_K = expected[head.name][place]
            if head.multi_hot:
                there = [number for number, value in enumerate(values_K) if value > 0.5]
            else:
                there = [int(values_K.argmax())]
            assert row[head.name] == ("|".join(head.classes[n] for n in there) or "|")
            shares = [float(text) for text in row[f"{head.name}_probability"].split("|") if text]
            assert shares == pytest.approx([float(values_K[n]) for n in there], abs=1e-4)


def test_predicted_labels_can_be_read_as_a_tables_own(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said([best, photos, "--output", tmp_path / "table.csv"], capsys)
    labels = load_checkpoint(best).labels
    split = read_split(tmp_path / "table.csv", labels, allow_outside=True)
    assert len(split) == 11
    assert not any(split.targets.unseen.values())
    expected = by_hand(best, list(split.images))
    targets = split.targets
    for head in labels.heads:
        said_NC = torch.from_numpy(targets.values_NT[:, targets.columns[head.name]])
        values_NK = expected[head.name]
        if head.multi_hot:
            assert torch.equal(said_NC, (values_NK > 0.5).long())
            assert {0, 1} == set(said_NC.flatten().tolist())
        else:
            assert torch.equal(said_NC[:, 0], values_NK.argmax(1))


def test_predictions_are_as_right_as_validation_says(
    best: Path, photos: Path, tmp_path: Path
) -> None:
    loaded = load_checkpoint(best)
    predictor = load_predictor(best)
    images = [photos / f"{place}.png" for place in range(11)]
    cells = {"shape": ["round", "flat", "NA", ""], "code": ["01", "1"], "marks": ["bar", "|", ""]}
    lines = ["image_path,shape,code,marks"]
    for place, image in enumerate(images):
        lines.append(",".join([str(image), *(c[place % len(c)] for c in cells.values())]))
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    for config in ({}, {"eval_crop": 0.6, "interpolation": "bicubic"}):
        changed = loaded.config.replace(config)
        split = read_split(tmp_path / "test.csv", loaded.labels, allow_outside=True)
        counts = evaluate(
            loaded.network,
            loaded.labels,
            open_split(split, 32, tmp_path / "cache"),
            PIXELS,
            CPU,
            batch_size=4,
            eval_crop=changed.eval_crop,
            interpolation=changed.interpolation,
        )
        folder = checkpoint(tmp_path / f"best{changed.eval_crop}", config)
        predictor = load_predictor(folder)
        right: dict[str, list[bool]] = {head: [] for head in cells}
        for place, answers in enumerate(predictor(images)):
            for head, column in cells.items():
                label = column[place % len(column)]
                if label:
                    right[head].append(answers[head].label == label)
        for head, hits in right.items():
            assert counts.metrics("test")[f"test/accuracy/{head}"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("eval_crop", [1.0, 0.7])
def test_the_network_sees_what_it_sees_in_evaluation(
    tmp_path: Path, photos: Path, eval_crop: float, interpolation: str
) -> None:
    changes = {"eval_crop": eval_crop, "interpolation": interpolation}
    loaded = load_checkpoint(checkpoint(tmp_path / "best", changes))
    images_NHWC = np.stack([decode(photos / f"{place}.png", 32) for place in range(5)])
    targets = loaded.labels.encode({head: [""] * 5 for head in HEADS})
    (batch,) = evaluation_batches(
        ImageSplit(images_NHWC, np.arange(5), targets),
        5,
        PIXELS,
        CPU,
        eval_crop=eval_crop,
        interpolation=loaded.config.interpolation,
    )
    pixels_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    given = Predictor(loaded, CPU).logits(pixels_NCHW)
    with torch.no_grad():
        expected = loaded.network(batch.images_BCHW)
    for head in HEADS:
        torch.testing.assert_close(given[head], expected[head], rtol=1e-4, atol=1e-4)
    if eval_crop < 1:
        whole = Predictor(load_checkpoint(checkpoint(tmp_path / "whole")), CPU)
        assert not torch.allclose(whole.logits(pixels_NCHW)["shape"], given["shape"], atol=0.01)


def test_predictions_do_not_change_when_the_training_table_does(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_table(tiny_table)
    train, val = (open_split(table.splits[n], 32, tmp_path / "cache") for n in ("train", "val"))
    metric = "val/accuracy"
    for _ in run_trial(TRIAL, table.labels, train, val, tmp_path / "trial", metric, CPU):
        pass
    arguments = [tmp_path / "trial" / "best", tiny_table / "images", "--top", 9]
    before = said(arguments, capsys)
    assert len(rows(before)) == 48
    header, *lines = (tiny_table / "train.csv").read_text().splitlines()
    more = ["images/train00.png,aaa,00,aaa|zzz", *reversed(lines)]
    (tiny_table / "train.csv").write_text("\n".join([header, *more]))
    assert said(arguments, capsys) == before
    for path in tiny_table.glob("*.csv"):
        path.unlink()
    assert said(arguments, capsys) == before


@pytest.mark.slow
def test_predicting_needs_no_ray_and_works_from_any_folder(
    best: Path, photos: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from raymlc.predict import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, best, photos / "3.png", photos / "4.png"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["image_path"] for row in rows(done.stdout)] == [
        str(photos / name) for name in ("3.png", "4.png")
    ]
    assert done.stderr == "predicting 2 images\n"


def quarters(grey: bool = False) -> Image.Image:
    """Four squares of plain colours, which every way of storing colours keeps."""
    image = Image.new("RGB", (64, 64))
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    if grey:
        colors = [(value,) * 3 for value in (0, 80, 160, 240)]
    for place, color in enumerate(colors):
        image.paste(color, (32 * (place % 2), 32 * (place // 2), *_end(place)))
    return image


def _end(place: int) -> tuple[int, int]:
    return 32 + 32 * (place % 2), 32 + 32 * (place // 2)


def turned(image: Image.Image) -> Image.Image:
    """An image that lies on its side, and says so."""
    lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    return lying


def deep(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def see_through(image: Image.Image) -> Image.Image:
    """An image whose third quarter is white, since nothing is there."""
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 32, 32, 64))
    image.putalpha(alpha)
    return image


def with_white(image: Image.Image) -> Image.Image:
    image.paste((255, 255, 255), (0, 32, 32, 64))
    return image


MODES: dict[str, tuple[str, Image.Image, Image.Image]] = {
    "L": ("png", quarters(True).convert("L"), quarters(True)),
    "LA": ("png", see_through(quarters(True)).convert("LA"), with_white(quarters(True))),
    "P": ("png", quarters().quantize(4), quarters()),
    "RGBA": ("png", see_through(quarters()), with_white(quarters())),
    "CMYK": ("tiff", quarters().convert("CMYK"), quarters()),
    "16-bit": ("png", deep(quarters(True)), quarters(True)),
    "EXIF": ("png", turned(quarters()), quarters()),
    "GIF": ("gif", quarters(), quarters()),
    "1": ("bmp", quarters().convert("L").point(lambda v: 255 * (v > 100)).convert("1"), quarters()),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_is_predicted_as_the_upright_colours_that_it_shows(
    best: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, image, plain = MODES[mode]
    if mode == "1":
        plain = image.convert("RGB")
    image.save(tmp_path / f"one.{kind}", exif=image.getexif())
    plain.save(tmp_path / "plain.png")
    told = rows(said([best, tmp_path], capsys))
    assert [Path(row["image_path"]).name for row in told] == [f"one.{kind}", "plain.png"]
    predictor = load_predictor(best)
    (expected,) = predictor(plain)
    for row in told:
        assert row["shape"] == expected["shape"].label
        assert float(row["code_probability"]) == pytest.approx(
            max(expected["code"].probabilities.values()), abs=1e-5
        )
    with Image.open(tmp_path / f"one.{kind}") as opened:
        for picture in (tmp_path / f"one.{kind}", image, opened):
            assert difference(predictor(picture), [expected]) < 1e-5


def difference(one: list[dict[str, Answer]], other: list[dict[str, Answer]]) -> float:
    """The largest between two probabilities; a few 1e-8 are the order of a batch's sums."""
    return max(
        abs(value - answers[head].probabilities[name])
        for answers, others in zip(one, other, strict=True)
        for head, answer in others.items()
        for name, value in answer.probabilities.items()
    )


def test_an_image_that_lies_on_its_side_would_be_predicted_otherwise(best: Path) -> None:
    """Else the test above could not tell."""
    predictor = load_predictor(best)
    lying = turned(quarters())
    expected = predictor(lying)
    lying.getexif().clear()
    assert difference(predictor(lying), expected) > 1e-3


def test_files_images_in_memory_and_tensors_get_the_same_answers(best: Path, photos: Path) -> None:
    predictor = load_predictor(best)
    paths = [photos / f"{place}.png" for place in range(11)]
    answers = predictor(paths)
    assert len(answers) == 11
    assert predictor(list(map(str, paths))) == answers
    assert predictor([Image.open(path).copy() for path in paths]) == answers
    pixels_NHWC = np.stack([decode(path, 32) for path in paths])
    in_batches = predictor(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))
    assert difference(in_batches, answers) < 1e-6
    assert predictor(str(paths[3])) == predictor(paths[3])
    assert difference(predictor(paths[3]), answers[3:4]) < 1e-6
    assert predictor([]) == []
    for answer in answers:
        assert list(answer) == list(HEADS)
        assert answer["shape"].classes == (answer["shape"].label,)
        assert sum(answer["shape"].probabilities.values()) == pytest.approx(1)
        best_one = max(answer["shape"].probabilities.items(), key=lambda item: item[1])
        assert answer["shape"].label == best_one[0]
        there = {name for name, value in answer["marks"].probabilities.items() if value > 0.5}
        assert set(answer["marks"].classes) == there
        assert answer["marks"].label == ("|".join(sorted(there)) or "|")


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 3, 31, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
    ],
)
def test_another_tensor_than_pixels_is_refused(best: Path, pixels: Tensor) -> None:
    with pytest.raises(UserError, match=r"a uint8 tensor of shape \('N', 3, 32, 32\)"):
        load_predictor(best)(pixels)


@pytest.fixture
def broken(photos: Path, tmp_path: Path) -> Path:
    """A folder of 7 files, of which the third is cut short and the last is no image."""
    content = (photos / "0.png").read_bytes()
    for place in range(7):
        (tmp_path / f"{place}.jpg").write_bytes(content)
    (tmp_path / "2.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "6.jpg").write_text("no image")
    return tmp_path


def test_a_broken_image_stops_the_command_and_nothing_is_left(
    best: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused([best, broken, "--output", broken / "out.csv"], capsys)
    assert f"{broken / '2.jpg'} is not: " in text
    assert "--broken-images skip" in text
    assert not list(broken.glob("*out.csv*")) + list(broken.glob(".*"))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
def test_broken_images_are_named_and_left_out_where_that_is_asked(
    best: Path, broken: Path, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [best, broken, "--broken-images", "skip", "--batch-size", batch_size]
    assert main([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr()
    names = [Path(row["image_path"]).name for row in rows(told.out)]
    assert names == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    for name in ("2.jpg", "6.jpg"):
        assert f"left out, since it cannot be read: {broken / name}: " in told.err
    assert "2 images left out" in told.err


def test_a_notebook_is_told_which_image_is_broken(best: Path, broken: Path) -> None:
    with pytest.raises(UserError, match=r"2\.jpg is not: "):
        load_predictor(best)([broken / "0.jpg", broken / "2.jpg"])


def test_however_many_images_there_are_only_some_batches_are_decoded_ahead(
    best: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def counting(path: Path, image_size: int) -> Any:
        begun.append(path)
        return decode(path, image_size)

    monkeypatch.setattr(prediction, "decode", counting)
    outcomes = load_predictor(best, batch_size=2).outcomes([photos / "1.png"] * 50)
    next(outcomes)
    assert 2 <= len(begun) <= 6
    assert len(list(outcomes)) == 49
    assert len(begun) == 50


def test_a_file_is_not_replaced_unless_that_is_asked(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.csv"
    output.write_text("mine")
    arguments = [best, photos / "1.png", "--output", output]
    assert f"{output} is there" in refused(arguments, capsys)
    assert output.read_text() == "mine"
    assert said([*arguments, "--overwrite"], capsys) == ""
    assert len(rows(output.read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_the_best_classes_are_a_json_object_of_no_more_than_there_are(
    best: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [photos / f"{place}.png" for place in range(11)]
    told = rows(said([best, photos, "--top", 2], capsys))
    all_of_them = rows(said([best, photos, "--top", 100], capsys))
    expected = by_hand(best, images)
    for place, (row, whole) in enumerate(zip(told, all_of_them, strict=True)):
        for head in load_checkpoint(best).labels.heads:
            ranked = sorted(
                zip(head.classes, expected[head.name][place].tolist(), strict=True),
                key=lambda pair: -pair[1],
            )
            for cell, count in ((row, 2), (whole, len(head.classes))):
                shares = json.loads(cell[f"{head.name}_top"])
                assert list(shares) == [name for name, _ in ranked[:count]]
                assert list(shares.values()) == pytest.approx(
                    [share for _, share in ranked[:count]], abs=1e-4
                )


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 7])
def test_heads_of_any_number_of_classes_are_predicted(
    tmp_path: Path, photos: Path, classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"c{number}" for number in range(classes)]
    heads = {"many": ("|".join(names) + "|",)} | ({"one": tuple(names)} if classes > 1 else {})
    folder = checkpoint(tmp_path / "best", heads=heads)
    told = rows(said([folder, photos, "--top", 5], capsys))
    for row in told:
        for head in heads:
            shares = json.loads(row[f"{head}_top"])
            assert len(shares) == min(5, classes)
            assert set(shares) <= set(names)


def test_columns_of_heads_whose_names_clash_stay_apart() -> None:
    labels = Labels.learn({name: ["a", "b"] for name in ("x", "x_probability", "x_top")})
    assert columns(labels, top=1) == [
        "x", "x_probability_", "x_top_",
        "x_probability", "x_probability_probability", "x_probability_top",
        "x_top", "x_top_probability", "x_top_top",
    ]  # fmt: skip
    assert columns(labels) == [
        "x", "x_probability_", "x_probability", "x_probability_probability", "x_top",
        "x_top_probability",
    ]  # fmt: skip


def test_a_multi_hot_head_says_what_is_more_likely_than_not() -> None:
    labels = Labels.learn({"marks": ["a|b|c"]})
    for values, told in (
        ([0.5, 0.4, 0.1], ["|", ""]),
        ([0.50001, 0.4, 0.1], ["a", "0.50001"]),
        ([0.6, 0.1, 0.87654321], ["a|c", "0.6|0.876543"]),
    ):
        assert cells(labels, {"marks": np.array(values, np.float32)}) == told


def test_out_of_memory_halves_the_batch_and_nothing_else_does(
    best: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [best, photos, "--batch-size", 10, "--top", 2]
    expected = said(arguments, capsys)
    tried = failing(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory"))
    assert main([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr()
    assert told.out == expected
    assert tried[:3] == [10, 5, 2]
    assert max(tried[3:]) == 2
    lines = [line for line in told.err.splitlines() if "memory" in line]
    assert lines == [f"out of memory; going on with {size} images at a time" for size in (5, 2)]


def failing(monkeypatch: pytest.MonkeyPatch, limit: int, error: Exception) -> list[int]:
    """Every network fails for as many images at a time; returns the batch sizes that are tried."""
    forward: Callable[..., Any] = prediction.Predictor._logits
    tried: list[int] = []

    def forward_or_fail(self: Predictor, pixels_NCHW: Tensor, size: int) -> Any:
        tried.append(size)
        if min(size, len(pixels_NCHW)) >= limit:
            raise error
        return forward(self, pixels_NCHW, size)

    monkeypatch.setattr(prediction.Predictor, "_logits", forward_or_fail)
    return tried


def test_an_error_that_is_no_lack_of_memory_is_not_tried_again(
    best: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, 1, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        main([str(best), str(photos), "--batch-size", "8"])
    assert tried == [8]


def test_memory_for_not_even_one_image_is_said_in_a_line(
    best: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = failing(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    assert "one image at a time" in refused([best, photos, "--batch-size", 5], capsys)
    assert tried == [5, 2, 1]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_trial_of_any_precision_predicts_on_a_cpu(
    tmp_path: Path, best: Path, photos: Path, precision: str
) -> None:
    folder = checkpoint(tmp_path / "best", {"precision": precision})
    images = [photos / f"{place}.png" for place in range(11)]
    given, expected = load_predictor(folder, device="cpu")(images), load_predictor(best)(images)
    assert difference(given, expected) < 0.05
    assert (difference(given, expected) > 1e-5) == (precision == "bf16")


def test_a_file_name_that_is_no_text_comes_through(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"caf\xe9 [red],\n.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes((photos / "1.png").read_bytes())
    said([best, tmp_path, "--output", tmp_path / "out.csv"], capsys)
    text = (tmp_path / "out.csv").read_text("utf-8", "surrogateescape")
    assert [row["image_path"] for row in rows(text)] == [str(tmp_path / name)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["BEST", "NOWHERE"], "NOWHERE is not there"),
        (["NOWHERE", "PHOTOS"], "model.safetensors"),
        (["BEST", "PHOTOS", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["BEST", "PHOTOS", "--top", "-1"], "--top must be at least 0"),
        (["BEST", "PHOTOS", "--device", "abacus"], "--device must be auto, cpu, cuda"),
        (["BEST", "PHOTOS", "--output", "NOWHERE/out.csv"], "--output must be a file to write"),
        (["BEST", "PHOTOS", "--output", "PHOTOS", "--overwrite"], "is a folder"),
    ],
)
def test_wrong_words_are_refused_in_a_line(
    best: Path,
    photos: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"BEST": str(best), "PHOTOS": str(photos)}
    assert words in refused([places.get(word, word) for word in arguments], capsys)


def calibrate(folder: Path) -> Calibration:
    """Give a checkpoint a calibration of its heads `shape` and `marks`."""
    loaded = load_checkpoint(folder)
    made = Calibration(
        "val",
        40,
        {
            "shape": HeadCalibration(2.5, (), 38, (0.1, 0.05), None),
            "marks": HeadCalibration(3.0, (0.9, 0.2, 0.55), 40, (0.2, 0.01), (0.6, 0.7)),
        },
    )
    save_calibration(folder, made, loaded.labels, loaded.sha256)
    return made


def test_probabilities_are_calibrated_and_marks_go_by_their_thresholds(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(best, tmp_path / "best"))
    made = calibrate(folder)
    plain, told = said([best, photos], capsys), said([folder, photos], capsys)
    assert said([folder, photos, "--raw"], capsys) == plain
    loaded = load_predictor(folder)
    raw = by_hand(folder, [photos / f"{place}.png" for place in range(11)])
    answers = loaded([photos / f"{place}.png" for place in range(11)])
    several = set()
    for place, (row, before) in enumerate(zip(rows(told), rows(plain), strict=True)):
        assert row["shape"] == before["shape"]
        assert row["code"] == before["code"]
        assert row["code_probability"] == before["code_probability"]
        shares = raw["shape"][place].log().div(2.5).softmax(0)
        assert float(row["shape_probability"]) == pytest.approx(float(shares.max()), abs=1e-4)
        shares = raw["marks"][place].logit().div(3.0).sigmoid()
        cuts = made.heads["marks"].thresholds
        there = [n for n, share in enumerate(shares.tolist()) if share > cuts[n]]
        classes = tuple(("bar", "dot", "star")[n] for n in there)
        assert row["marks"] == ("|".join(classes) or "|")
        assert answers[place]["marks"].classes == classes
        assert list(answers[place]["marks"].probabilities.values()) == pytest.approx(
            shares.tolist(), abs=1e-4
        )
        several.add(row["marks"] == before["marks"])
    assert False in several


def test_a_calibration_changes_no_logit(best: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(best, tmp_path / "best"))
    images_NCHW = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    before = load_predictor(folder).logits(images_NCHW)
    calibrate(folder)
    after = load_predictor(folder).logits(images_NCHW)
    assert all(torch.equal(after[head], before[head]) for head in before)


def test_a_broken_calibration_is_an_error_in_a_line(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(best, tmp_path / "best"))
    (folder / "calibration.json").write_text('{"sha256"')
    assert "calibration.json is no JSON" in refused([folder, photos], capsys)


def test_three_lines_are_enough_for_files_images_and_tensors(best: Path, photos: Path) -> None:
    model = raymlc.load(best)
    path = photos / "3.png"
    by_path = model(path)
    with Image.open(path) as image:
        assert model([image]) == model(str(path)) == by_path
    batch_NCHW = torch.from_numpy(decode(path, 32).copy()).permute(2, 0, 1)[None]
    assert model(batch_NCHW) == by_path


_ALONE = """
import sys
for name in ("ray", "optuna", "tensorboard", "plotly"):
    sys.modules[name] = None
import raymlc
assert not {"torch", "numpy", "pandas", "timm"} & set(sys.modules)
from raymlc import load
model = load(sys.argv[1])
(answer, *_) = model([sys.argv[2] + "/0.png"])
print(answer["shape"].label)
from raymlc.predict import main
sys.exit(main(sys.argv[1:]))
"""


def test_new_photos_are_predicted_where_ray_is_not_installed(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(best, tmp_path / "winner"))
    calibrate(folder)
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, folder, photos],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    label, _, told = done.stdout.partition("\n")
    assert told == said([folder, photos], capsys)
    assert rows(told)[0]["shape"] == label


def test_raymlc_has_nothing_else_at_its_top() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'save'"):
        raymlc.save  # noqa: B018
