"""What is read out of a result that has been through Tune."""

from typing import Any

import pytest

from raymlc.cluster.searcher import epoch_metrics


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (
            {"metrics": {"epoch": 2.0, "val/accuracy/color": 0.5, "new": 1.0}, "done": False},
            {"epoch": 2.0, "val/accuracy/color": 0.5, "new": 1.0},
        ),
        (
            {"metrics/epoch": 2.0, "metrics/val/accuracy/color": 0.5, "training_iteration": 2},
            {"epoch": 2.0, "val/accuracy/color": 0.5},
        ),
        ({"failure": "the loss was not finite", "done": True, "time_total_s": 1.0}, {}),
    ],
    ids=["as it left the trial", "flattened by Tune", "a failure"],
)
def test_a_result_gives_back_every_metric_of_its_trial_and_nothing_of_tunes(
    result: dict[str, Any], metrics: dict[str, float]
) -> None:
    assert epoch_metrics(result) == metrics
