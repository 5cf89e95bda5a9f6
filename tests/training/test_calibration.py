"""Calibration: temperatures and thresholds that fit the labels, and that few labels cannot bend."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from raymlc.data.batches import Normalization
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import build_network
from raymlc.training import scoring
from raymlc.training.calibration import (
    CALIBRATION,
    FEW,
    Calibration,
    HeadCalibration,
    calibration_error,
    fit_calibration,
    probabilities,
    read_calibration,
    save_calibration,
    thresholds,
)
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.training.scoring import calibrated
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
LETTERS = Labels.learn({"letter": ("a", "b", "c", "d")})
TAGS = Labels.learn({"tags": ("x|y|z",)})


def drawn(logits_NK: Tensor, temperature: float, seed: int = 0) -> list[str]:
    """Labels of which the logits over the temperature are the truth."""
    generator = torch.Generator().manual_seed(seed)
    shares_NK = (logits_NK / temperature).softmax(1)
    return ["abcd"[n] for n in torch.multinomial(shares_NK, 1, generator=generator)[:, 0].tolist()]


def noise(rows: int, classes: int, scale: float = 4.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def fit(labels: Labels, logits_NK: Tensor, cells: list[str]) -> HeadCalibration:
    (name,) = labels.names
    calibration = fit_calibration(labels, {name: logits_NK}, labels.encode({name: cells}), "val")
    assert (calibration.split, calibration.rows) == ("val", len(cells))
    return calibration.heads[name]


def by_hand(confidence_M: Any, right_M: Any) -> float:
    """The calibration error of Guo et al., in their own order: bins, then shares of rows."""
    confidence_M, right_M = np.asarray(confidence_M), np.asarray(right_M)
    edges = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in pairwise(edges):
        inside_M = (confidence_M > low) & (confidence_M <= high)
        if inside_M.any():
            gap = abs(right_M[inside_M].mean() - confidence_M[inside_M].mean())
            error += inside_M.mean() * gap
    return error


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found_and_the_error_goes(
    temperature: float,
) -> None:
    logits_NK = noise(5000, 4)
    fitted = fit(LETTERS, logits_NK, drawn(logits_NK, temperature))
    assert fitted.temperature == pytest.approx(temperature, rel=0.06)
    assert fitted.ece[1] < 0.025
    assert temperature == 1 or fitted.ece[0] > 0.04


def test_the_temperature_minimises_the_cross_entropy() -> None:
    logits_NK = noise(4000, 4)
    cells = drawn(logits_NK, 2.5)
    class_N = torch.tensor(["abcd".index(cell) for cell in cells])
    scales = np.geomspace(2, 3, 400)
    losses = [float(functional.cross_entropy(logits_NK.double() / x, class_N)) for x in scales]
    best = scales[int(np.argmin(losses))]
    assert fit(LETTERS, logits_NK, cells).temperature == pytest.approx(best, rel=3e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_the_paper(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence_M = random.random(500) ** (seed + 1)
    right_M = random.random(500) < 0.6
    told = calibration_error(torch.from_numpy(confidence_M), torch.from_numpy(right_M))
    assert told == pytest.approx(by_hand(confidence_M, right_M), abs=1e-12)


def test_both_errors_are_those_of_the_class_that_is_said() -> None:
    logits_NK = noise(300, 4)
    cells = drawn(logits_NK, 2.0)
    fitted = fit(LETTERS, logits_NK, cells)
    for scale, told in zip((1.0, fitted.temperature), fitted.ece, strict=True):
        shares_NK = (logits_NK.double() / scale).softmax(1).numpy()
        right_N = ["abcd"[n] for n in shares_NK.argmax(1)] == np.array(cells)
        assert told == pytest.approx(by_hand(shares_NK.max(1), right_N), abs=1e-9)


@pytest.mark.parametrize(("rows", "low", "high"), [(1, 0.4, 1.0), (8, 0.2, 1.0)])
def test_few_rows_without_a_mistake_do_not_make_a_network_sure_of_everything(
    rows: int, low: float, high: float
) -> None:
    logits_NK = functional.one_hot(torch.zeros(rows, dtype=torch.int64), 4) * 2.0
    assert low < fit(LETTERS, logits_NK, ["a"] * rows).temperature < high


def test_rows_without_a_label_have_no_say_and_labels_without_a_logit_count_as_wrong() -> None:
    logits_NK = noise(400, 4)
    cells = drawn(logits_NK, 2.0)
    plain = fit(LETTERS, logits_NK, cells)
    more_NK = torch.cat([logits_NK, torch.full((3, 4), 50.0), torch.full((1, 4), math.nan)])
    assert fit(LETTERS, more_NK, [*cells, "", "", "", "a"]) == plain
    unseen = fit(LETTERS, torch.cat([logits_NK, noise(40, 4, 9.0)]), [*cells, *["new"] * 40])
    assert unseen.temperature == plain.temperature
    assert unseen.labels == 440
    assert unseen.ece[1] > plain.ece[1] + 0.03


@pytest.mark.parametrize("cells", [["", ""], ["new", "new"]])
def test_a_head_without_a_known_label_stays_as_it_is(cells: list[str]) -> None:
    targets = LETTERS.encode({"letter": cells})
    calibration = fit_calibration(LETTERS, {"letter": noise(2, 4)}, targets, "val")
    assert calibration.heads == {}
    (head,) = LETTERS.heads
    logits_NK = noise(3, 4)
    assert torch.equal(probabilities(head, logits_NK, calibration), logits_NK.softmax(1))


def tags_of(true_NK: Any) -> list[str]:
    return ["|".join("xyz"[n] for n in np.flatnonzero(row)) or "|" for row in np.asarray(true_NK)]


def test_many_positives_have_the_thresholds_that_are_best_for_f1() -> None:
    logits_NK = noise(6000, 3, 2.0) - torch.tensor([0.0, 1.5, 3.0])
    random = torch.rand(6000, 3, generator=torch.Generator().manual_seed(1))
    true_NK = random < (logits_NK / 2).sigmoid()
    fitted = fit(TAGS, logits_NK, tags_of(true_NK))
    assert fitted.temperature == pytest.approx(2, rel=0.06)
    assert fitted.ece[1] < 0.01 < fitted.ece[0]
    shares_NK = (logits_NK.double() / fitted.temperature).sigmoid()
    cuts = np.arange(0.05, 0.951, 0.01)
    for place, cut in enumerate(fitted.thresholds):
        scores = [f1_score(true_NK[:, place], shares_NK[:, place] > one) for one in cuts]
        mine = f1_score(true_NK[:, place], shares_NK[:, place] > cut)
        assert mine > max(scores) - 0.005
        assert cut == pytest.approx(max(scores) / 2, abs=0.06)  # as Lipton et al. prove
    assert fitted.f1 is not None
    for cut_K, told in zip(([0.5] * 3, fitted.thresholds), fitted.f1, strict=True):
        said_NK = shares_NK.numpy() > np.array(cut_K)
        assert told == pytest.approx(f1_score(true_NK, said_NK, average="macro"), abs=1e-6)
    assert fitted.f1[1] > fitted.f1[0]


def test_a_class_with_few_positives_has_nearly_the_threshold_of_its_head() -> None:
    rows = 1000
    apart, alone = [], []
    for seed in range(8):
        logits_NK = noise(rows, 3, 2.0, seed) - torch.tensor([0.0, 0.0, 7.0])
        random = torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed))
        true_NK = random < logits_NK.sigmoid()
        assert 1 <= true_NK[:, 2].sum() < FEW
        x, y, z = fit(TAGS, logits_NK, tags_of(true_NK)).thresholds
        apart.append(abs(z - (x + y) / 2))
        cuts = np.arange(0.05, 0.951, 0.01)
        scores = [f1_score(true_NK[:, 2], logits_NK[:, 2].sigmoid() > cut) for cut in cuts]
        alone.append(abs(cuts[int(np.argmax(scores))] - (x + y) / 2))
    assert max(apart) < 0.2
    assert np.mean(apart) < np.mean(alone) / 2


@pytest.mark.parametrize("positives", [0, 1, FEW - 1])
def test_a_head_with_few_positives_keeps_a_half(positives: int) -> None:
    true_NK = np.zeros((200, 3), bool)
    true_NK[:positives, 1] = True
    fitted = fit(TAGS, noise(200, 3), tags_of(true_NK))
    assert fitted.thresholds == (0.5, 0.5, 0.5)
    assert (fitted.f1 is None) == (positives == 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, and a calibration of its heads but `code`."""
    folder = tmp_path_factory.mktemp("made") / "best"
    labels = Labels.learn({"shape": ("flat", "round"), "code": ("1", "2"), "marks": ("bar|dot",)})
    config = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)
    network = build_network(config, labels)
    pixels = Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    save_checkpoint(folder, network, config, labels, pixels, {})
    save_calibration(folder, CALIBRATED, labels, load_checkpoint(folder).sha256)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "best"))


CALIBRATED = Calibration(
    "val",
    40,
    {
        "shape": HeadCalibration(1.5, (), 38, (0.1, 0.05), None),
        "marks": HeadCalibration(0.75, (0.4, 0.3), 40, (0.2, 0.01), (0.6, 0.7)),
    },
)


def test_a_calibration_is_read_as_it_was_written_and_is_optional(folder: Path) -> None:
    assert load_checkpoint(folder).calibration == CALIBRATED
    (folder / CALIBRATION).unlink()
    assert load_checkpoint(folder).calibration is None


def test_only_a_calibrated_heads_probabilities_change(folder: Path) -> None:
    shape, code, marks = load_checkpoint(folder).labels.heads
    logits_NK = noise(5, 2)
    assert torch.equal(probabilities(shape, logits_NK, CALIBRATED), (logits_NK / 1.5).softmax(1))
    assert torch.equal(probabilities(code, logits_NK, CALIBRATED), logits_NK.softmax(1))
    assert torch.equal(probabilities(marks, logits_NK, CALIBRATED), (logits_NK / 0.75).sigmoid())
    assert torch.equal(probabilities(marks, logits_NK, None), logits_NK.sigmoid())
    assert np.allclose(thresholds(marks, CALIBRATED), [0.4, 0.3])
    assert thresholds(marks, None) == 0.5


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []),
        (("sha256",), "0" * 64),
        (("split",), 3),
        (("rows",), -1),
        (("rows",), 2.5),
        (("heads",), []),
        (("heads", "color"), {}),
        (("heads", "shape"), None),
        (("heads", "shape", "temperature"), 0),
        (("heads", "shape", "temperature"), math.nan),
        (("heads", "shape", "temperature"), 1e300),
        (("heads", "shape", "temperature"), True),
        (("heads", "shape", "temperature"), "1.5"),
        (("heads", "shape", "thresholds"), [0.5, 0.5]),
        (("heads", "shape", "labels"), None),
        (("heads", "shape", "ece"), [0.1]),
        (("heads", "shape", "ece"), [0.1, math.inf]),
        (("heads", "marks", "thresholds"), None),
        (("heads", "marks", "thresholds"), {"bar": 0.5}),
        (("heads", "marks", "thresholds"), {"bar": 0.5, "dot": 1.5}),
        (("heads", "marks", "thresholds"), {"bar": 0.5, "dot": "high"}),
        (("heads", "marks", "f1"), 0.5),
    ],
)
def test_a_bad_value_is_refused_in_a_line_that_names_the_file(
    folder: Path, path: tuple[str, ...], value: Any
) -> None:
    values = json.loads((folder / CALIBRATION).read_text())
    inner: Any = {"root": values}
    for name in ("root", *path)[:-1]:
        inner = inner[name]
    inner[("root", *path)[-1]] = value
    (folder / CALIBRATION).write_text(json.dumps(values if path else value))
    law = f"cannot be used: {CALIBRATION} must (hold|be of)"
    with pytest.raises(UserError, match=law) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_a_calibration_of_other_weights_is_refused_with_the_way_out(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    with pytest.raises(UserError, match="but is of others; remove it"):
        read_calibration(folder, checkpoint.labels, "0" * 64)


def test_a_checkpoint_that_takes_the_place_of_another_has_none(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    save_checkpoint(
        folder, checkpoint.network, checkpoint.config, checkpoint.labels,
        checkpoint.normalization, {},
    )  # fmt: skip
    assert not (folder / CALIBRATION).exists()


@pytest.mark.parametrize("most", [1000, 7])
def test_a_pass_over_the_rows_gives_the_calibration_of_their_logits(
    val: ImageSplit, labels: Labels, config: TrialConfig, tmp_path: Path, most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    network = build_network(config, labels)
    pixels = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    save_checkpoint(tmp_path / "best", network, config, labels, pixels, {})
    checkpoint = load_checkpoint(tmp_path / "best")
    before = {name: weight.clone() for name, weight in checkpoint.network.state_dict().items()}
    monkeypatch.setattr(scoring, "CALIBRATION_ROWS", most)
    told = calibrated(checkpoint, val, "val", CPU, pytest.fail, batch_size=4)
    rows = np.linspace(0, 20, 7).astype(int) if most == 7 else np.arange(21)
    images_NHWC = torch.from_numpy(val.images_NHWC[val.places_N[rows]].astype(np.float32)) / 255
    images_NHWC = (images_NHWC - torch.tensor(pixels.mean)) / torch.tensor(pixels.std)
    with torch.no_grad():
        logits = checkpoint.network.eval()(images_NHWC.permute(0, 3, 1, 2))
    expected = fit_calibration(labels, logits, val.targets.take(rows), "val")
    assert told.rows == len(rows)
    assert told.heads.keys() == expected.heads.keys()
    for name, head in told.heads.items():
        assert head.temperature == pytest.approx(expected.heads[name].temperature, rel=1e-3)
        assert head.labels == expected.heads[name].labels
    for name, weight in checkpoint.network.state_dict().items():
        assert torch.equal(weight, before[name])
