"""The names of the validation metrics, and which of them a sweep or a training goes by.

That is one metric, or several with commas between: val/accuracy/gender,val/accuracy/article.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

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


def objectives(metric: str) -> tuple[str, ...]:
    """The metrics that one text names, in its order: one, or several with commas between.

    A comma parts two metrics where val/ follows it, and belongs to a head's name elsewhere.
    """
    return tuple(re.split(r",\s*(?=val/)", metric))


def higher_is_better(metric: str) -> bool:
    """Whether a metric, of `metric_names` or of another split such as test, is to be maximised.

    So is what `score_of` makes of several.
    """
    names = objectives(metric)
    return len(names) > 1 or names[0].partition("/")[2].partition("/")[0] != "loss"


def score_of(metrics: Mapping[str, float], metric: str) -> float:
    """The one value by which a trial's epochs are ranked, in the direction of `higher_is_better`.

    Of one metric its value; of several their mean, in which a loss counts negative. NaN if one of
    them is missing or not a number.
    """
    names = objectives(metric)
    values = [metrics.get(name, math.nan) for name in names]
    if len(names) == 1:
        return values[0]
    gains = [
        value if higher_is_better(name) else -value
        for name, value in zip(names, values, strict=True)
    ]
    return sum(gains) / len(gains)


def check_metric(metric: str, heads: Iterable[str]) -> None:
    """Raises UserError for a metric that no head of any kind reports, and for one named twice.

    metric: one or several, as `objectives` reads them. The error names the wrong one and the
    nearest right ones.
    """
    heads = tuple(heads)
    known = metric_names(heads)
    names = objectives(metric)
    for name in names:
        if name not in known:
            means = ", ".join(f"val/{kind}" for kind in METRICS)
            way_out = did_you_mean(
                name,
                known,
                f"the metrics are {means}, and of one head val/accuracy/{heads[0]} and so on"
                f" (heads: {', '.join(heads)})",
            )
            if "," in name:
                way_out += "; each of several has its own val/"
            raise UserError(
                f"--metric must be one that the heads report, but is {name!r}; {way_out}"
            )
        if names.count(name) > 1:
            raise UserError(
                f"--metric must name each metric once, but has {name!r} again; leave one out"
            )
