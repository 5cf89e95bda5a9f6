"""The metrics that rank trials have names, and a direction."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymlc.data.batches import Normalization
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.metric import check_metric, higher_is_better, metric_names
from raymlc.training.evaluate import evaluate

CELLS = {"color": ["red", "blue", "red", ""], "marks": ["dot|bar", "|", "bar", "dot"]}


class Undecided(nn.Module):
    """Gives each image the same logits."""

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return {head: torch.zeros(len(images_BCHW), 2) for head in CELLS}


def test_there_are_three_means_and_as_many_for_each_head() -> None:
    assert metric_names(["color", "marks"]) == (
        "val/accuracy",
        "val/balanced_accuracy",
        "val/loss",
        "val/accuracy/color",
        "val/accuracy/marks",
        "val/balanced_accuracy/color",
        "val/balanced_accuracy/marks",
        "val/loss/color",
        "val/loss/marks",
    )
    assert metric_names(iter(["color", "marks"])) == metric_names(["color", "marks"])


def test_an_evaluation_reports_every_metric_that_has_a_name() -> None:
    labels = Labels.learn(CELLS)
    images = ImageSplit(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), labels.encode(CELLS))
    reported = evaluate(
        Undecided(),
        labels,
        images,
        Normalization((0, 0, 0), (1, 1, 1)),
        torch.device("cpu"),
        batch_size=2,
        precision="fp32",
    )
    assert set(metric_names(labels.names)) <= set(reported)


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("val/accuracy", True),
        ("val/balanced_accuracy", True),
        ("val/loss", False),
        ("val/accuracy/loss", True),
        ("val/balanced_accuracy/color", True),
        ("val/loss/accuracy", False),
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
        ("val/f1", "val/accuracy"),
        (
            "zzz",
            "the metrics are val/accuracy, val/balanced_accuracy, val/loss, val/accuracy/color",
        ),
    ],
)
def test_another_metric_is_refused_with_the_nearest_ones(metric: str, way_out: str) -> None:
    with pytest.raises(UserError) as refused:
        check_metric(metric, ["color", "marks"])
    line = str(refused.value)
    assert line.startswith(f"--metric must be one that the heads report, but is {metric!r}; ")
    assert way_out in line
