"""The names of the validation metrics, one of which ranks the trials of a sweep."""

from __future__ import annotations

from collections.abc import Iterable

from raymlc.errors import UserError, did_you_mean


def metric_names(heads: Iterable[str]) -> tuple[str, ...]:
    """The names of all validation metrics, which are TensorBoard tags too."""
    heads = tuple(heads)
    names = ["val/accuracy", "val/balanced_accuracy", "val/loss"]
    return (*names, *(f"{name}/{head}" for name in names for head in heads))


def higher_is_better(metric: str) -> bool:
    """Whether a metric of `metric_names` is to be maximised."""
    return not metric.startswith("val/loss")


def check_metric(metric: str, heads: Iterable[str]) -> None:
    """Raises UserError, with the nearest names, for a metric that no head reports."""
    known = metric_names(heads)
    if metric not in known:
        way_out = did_you_mean(metric, known, f"the metrics are {', '.join(known)}")
        raise UserError(f"--metric must be one that the heads report, but is {metric!r}; {way_out}")
