"""The metrics that rank trials have names, and a direction; several of them have one score."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymlc.data.batches import Normalization
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.metric import (
    METRICS,
    check_metric,
    higher_is_better,
    metric_names,
    objectives,
    score_of,
)
from raymlc.training.evaluate import evaluate

CELLS = {
    "color": ["red", "blue", "green", "black", "white", "grey", ""],
    "marks": ["dot|bar", "|", "bar", "dot", "|", "", "bar"],
}
LABELS = Labels.learn(CELLS)


class Undecided(nn.Module):
    """Gives each image the same logits."""

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        rows = len(images_BCHW)
        return {head.name: torch.zeros(rows, len(head.classes)) for head in LABELS.heads}


def test_there_is_a_mean_of_each_metric_and_as_many_for_each_head() -> None:
    names = metric_names(["color", "marks"])
    assert names[: len(METRICS)] == (
        "val/accuracy",
        "val/top5_accuracy",
        "val/balanced_accuracy",
        "val/macro_f1",
        "val/micro_f1",
        "val/mean_average_precision",
        "val/loss",
    )
    assert names[len(METRICS) :] == tuple(
        f"val/{metric}/{head}" for metric in METRICS for head in ("color", "marks")
    )
    assert metric_names(iter(["color", "marks"])) == names


def test_an_evaluation_reports_no_metric_without_a_name_and_each_one_somewhere() -> None:
    images = ImageSplit(np.zeros((7, 8, 8, 3), np.uint8), np.arange(7), LABELS.encode(CELLS))
    counts = evaluate(
        Undecided(),
        LABELS,
        images,
        Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        torch.device("cpu"),
        batch_size=2,
        precision="fp32",
    )
    reported = counts.metrics("val")
    assert set(reported) <= set(metric_names(LABELS.names))
    assert {name for name in reported if name.count("/") == 1} == set(metric_names([]))


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("val/accuracy", True),
        ("val/balanced_accuracy", True),
        ("val/loss", False),
        ("val/accuracy/loss", True),
        ("val/balanced_accuracy/color", True),
        ("val/loss/accuracy", False),
        ("val/top5_accuracy", True),
        ("val/macro_f1/color", True),
        ("val/micro_f1/loss", True),
        ("val/mean_average_precision", True),
    ],
)
def test_a_loss_is_minimised_and_an_accuracy_maximised(metric: str, higher: bool) -> None:
    assert higher_is_better(metric) is higher


@pytest.mark.parametrize("metric", metric_names(["color", "marks"]))
def test_a_metric_that_a_head_reports_is_let_through(metric: str) -> None:
    check_metric(metric, ["color", "marks"])


@pytest.mark.parametrize(
    ("metric", "way_out"),
    [
        ("val/accuracy/colour", "did you mean 'val/accuracy/color'"),
        ("val/acuracy", "did you mean 'val/accuracy'"),
        ("accuracy", "did you mean 'val/accuracy'"),
        ("val/f1", "did you mean 'val/micro_f1' or 'val/macro_f1'"),
        ("val/top1_accuracy", "did you mean 'val/top5_accuracy'"),
        (
            "zzz",
            "the metrics are val/accuracy, val/top5_accuracy, val/balanced_accuracy, val/macro_f1,"
            " val/micro_f1, val/mean_average_precision, val/loss, and of one head"
            " val/accuracy/color and so on (heads: color, marks)",
        ),
    ],
)
def test_another_metric_is_refused_with_the_nearest_ones(metric: str, way_out: str) -> None:
    with pytest.raises(UserError) as refused:
        check_metric(metric, ["color", "marks"])
    line = str(refused.value)
    assert line.startswith(f"--metric must be one that the heads report, but is {metric!r}; ")
    assert way_out in line


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("val/accuracy", ("val/accuracy",)),
        ("val/accuracy/a,val/accuracy/b", ("val/accuracy/a", "val/accuracy/b")),
        ("val/loss, val/accuracy/a", ("val/loss", "val/accuracy/a")),
        ("val/loss/b,val/loss,val/macro_f1", ("val/loss/b", "val/loss", "val/macro_f1")),
        ("val/accuracy/red,green", ("val/accuracy/red,green",)),
        ("val/loss/red,green,val/loss/val", ("val/loss/red,green", "val/loss/val")),
        ("val/accuracy,", ("val/accuracy,",)),
        ("val/accuracy/a,accuracy/b", ("val/accuracy/a,accuracy/b",)),
        ("", ("",)),
    ],
)
def test_a_comma_parts_two_metrics_where_val_follows_it(
    metric: str, names: tuple[str, ...]
) -> None:
    assert objectives(metric) == names


@pytest.mark.parametrize("metric", ["val/loss,val/loss/color", "val/accuracy,val/loss"])
def test_the_score_of_several_is_maximised_whatever_they_are(metric: str) -> None:
    assert higher_is_better(metric)


METRICS_OF_A_TRIAL = {
    "val/accuracy/a": 0.75,
    "val/accuracy/b": 0.25,
    "val/loss": 2.0,
    "val/macro_f1": math.nan,
}


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("val/accuracy/a", 0.75),
        ("val/loss", 2.0),
        ("val/accuracy/a,val/accuracy/b", 0.5),
        ("val/accuracy/a,val/loss", -0.625),
        ("val/loss,val/accuracy/b,val/accuracy/a", -1 / 3),
        ("val/macro_f1", math.nan),
        ("val/accuracy/a,val/macro_f1", math.nan),
        ("val/accuracy/c", math.nan),
        ("val/accuracy/c,val/accuracy/a", math.nan),
    ],
)
def test_a_score_is_the_metric_itself_or_the_mean_of_several_with_losses_negative(
    metric: str, score: float
) -> None:
    assert score_of(METRICS_OF_A_TRIAL, metric) == pytest.approx(score, nan_ok=True)


@pytest.mark.parametrize(
    "metric",
    ["val/loss,val/loss/color", "val/accuracy/color, val/accuracy/marks,val/macro_f1"],
)
def test_several_metrics_that_heads_report_are_let_through(metric: str) -> None:
    check_metric(metric, ["color", "marks"])


def test_a_heads_name_may_hold_a_comma() -> None:
    check_metric("val/accuracy/red,green,val/loss/red,green", ["red,green"])


@pytest.mark.parametrize(
    ("metric", "wrong", "way_out"),
    [
        ("val/loss,val/acuracy", "is 'val/acuracy'", "did you mean 'val/accuracy' or"),
        (
            "val/accuracy/colour,val/loss/mark",
            "is 'val/accuracy/colour'",
            "did you mean 'val/accuracy/color'",
        ),
        (
            "val/accuracy/color,marks",
            "is 'val/accuracy/color,marks'",
            "'val/accuracy/color' or",
        ),
        ("val/accuracy/color,marks", "color,marks'", "; each of several has its own val/"),
        ("val/loss,val/accuracy,val/loss", "has 'val/loss' again", "leave one out"),
    ],
)
def test_of_several_metrics_the_wrong_one_is_named(metric: str, wrong: str, way_out: str) -> None:
    with pytest.raises(UserError) as refused:
        check_metric(metric, ["color", "marks"])
    assert wrong in str(refused.value)
    assert way_out in str(refused.value)
