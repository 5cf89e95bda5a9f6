"""The names of the validation metrics, one of which ranks the trials of a sweep."""

from __future__ import annotations

from collections.abc import Iterable

from raymlc.errors import UserError, did_you_mean

# What is measured of a head. Which heads have all of it is known once their classes are.
METRICS = (
    "accuracy",
    "top5_accuracy",
    "balanced_accuracy",
    "macro_f1",
    "micro_f1",
    "mean_average_precision",
    "loss",
)


def metric_names(heads: Iterable[str]) -> tuple[str, ...]:
    """The names of all validation metrics that heads may report, which are TensorBoard tags too.

    `val/{metric}` is the mean over the heads that have it, `val/{metric}/{head}` is of one head.
    """
    heads = tuple(heads)
    names = [f"val/{metric}" for metric in METRICS]
    return (*names, *(f"{name}/{head}" for name in names for head in heads))


def higher_is_better(metric: str) -> bool:
    """Whether a metric, of `metric_names` or of another split such as test, is to be maximised."""
    return metric.partition("/")[2].partition("/")[0] != "loss"


def check_metric(metric: str, heads: Iterable[str]) -> None:
    """Raises UserError, with the nearest names, for a metric that no head of any kind reports."""
    heads = tuple(heads)
    known = metric_names(heads)
    if metric not in known:
        means = ", ".join(f"val/{name}" for name in METRICS)
        way_out = did_you_mean(
            metric,
            known,
            f"the metrics are {means}, and of one head val/accuracy/{heads[0]} and so on"
            f" (heads: {', '.join(heads)})",
        )
        raise UserError(f"--metric must be one that the heads report, but is {metric!r}; {way_out}")
