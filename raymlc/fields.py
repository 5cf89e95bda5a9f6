"""What the fields of a trial may hold: types, ranges, and values that differ from head to head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, get_args, get_origin

from raymlc.errors import UserError, did_you_mean

LossName = Literal["auto", "cross_entropy", "bce", "focal", "asymmetric"]
_Value = TypeVar("_Value")


class PerHead(Mapping[str, _Value]):
    """A value for some of the heads, by name, that does not change: a field of a TrialConfig."""

    def __init__(self, values: Mapping[str, _Value] | None = None) -> None:
        self._values = dict(sorted((values or {}).items()))

    def __getitem__(self, head: str) -> _Value:
        return self._values[head]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def typed(name: str, value: Any, annotation: Any) -> Any:
    """A field's value, an int widened where a float is asked.

    Raises UserError for a value of another type than the field's annotation.
    """
    if get_origin(annotation) is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} must be an object with a value a head, but is {value!r}")
        kind = get_args(annotation)[1]
        return PerHead(
            {str(head): typed(f"{name} of {head!r}", one, kind) for head, one in value.items()}
        )
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if value not in choices:
            way_out = did_you_mean(str(value), choices, f"choose from {', '.join(choices)}")
            raise UserError(f"{name} must be one of its names, but is {value!r}; {way_out}")
        return value
    if annotation is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    if type(value) is not annotation:
        raise UserError(f"{name} must be of type {annotation.__name__}, but is {value!r}")
    return value


def _share(value: float) -> bool:
    return 0 <= value < 1


def _probability(value: float) -> bool:
    return 0 <= value <= 1


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _up_to(most: float) -> Callable[[float], bool]:
    return lambda value: 0 <= value <= most


# The law of each field that has one, as words and as a check that NaN fails too.
LAWS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "backbone": (bool, "the name of a timm model"),
    "image_size": (lambda value: 8 <= value <= 4096, "from 8 to 4096 pixels"),
    "drop_rate": (_share, "in [0, 1)"),
    "drop_path_rate": (_share, "in [0, 1)"),
    "bn_momentum": (_probability, "in [0, 1]"),
    "bn_eps": (_share, "in [0, 1)"),
    "freeze_epochs": (_not_negative, "at least 0"),
    "lr": (_positive, "above 0"),
    "head_lr_scale": (_positive, "above 0"),
    "weight_decay": (_not_negative, "at least 0"),
    "beta1": (_share, "in [0, 1)"),
    "beta2": (_share, "in [0, 1)"),
    "momentum": (_share, "in [0, 1)"),
    "eps": (_positive, "above 0"),
    "clip_grad": (_not_negative, "at least 0"),
    "warmup_lr_ratio": (_probability, "in [0, 1]"),
    "min_lr_ratio": (_probability, "in [0, 1]"),
    "cooldown_epochs": (_not_negative, "at least 0"),
    "decay_epochs": (_positive, "above 0"),
    "decay_rate": (lambda value: 0 < value < 1, "in (0, 1)"),
    "patience_epochs": (_not_negative, "at least 0"),
    "epochs": (lambda value: value >= 1, "at least 1"),
    "batch_size": (lambda value: value >= 2, "at least 2 (batch norm needs more than one image)"),
    "micro_batch_size": (
        lambda value: value == 0 or value >= 2,
        "at least 2 (batch norm needs more than one image), or 0 for the whole batch",
    ),
    "ema_decay": (_share, "in [0, 1)"),
    "focal_gamma": (_not_negative, "at least 0"),
    "asl_gamma_pos": (_not_negative, "at least 0"),
    "asl_gamma_neg": (_not_negative, "at least 0"),
    "asl_clip": (_share, "in [0, 1)"),
    "smoothing": (_share, "in [0, 1)"),
    "class_weight_beta": (lambda value: 0 < value < 1, "in (0, 1)"),
    "head_weights": (_positive, "above 0"),
    "gradnorm_alpha": (_not_negative, "at least 0"),
    "randaug_ops": (lambda value: 0 <= value <= 8, "from 0 to 8"),
    "randaug_magnitude": (_up_to(10), "in [0, 10]"),
    "randaug_std": (_up_to(10), "in [0, 10]"),
    "color_jitter": (_probability, "in [0, 1]"),
    "crop_min_area": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "crop_max_ratio": (lambda value: 1 <= value <= 10, "in [1, 10]"),
    "hflip_prob": (_probability, "in [0, 1]"),
    "vflip_prob": (_probability, "in [0, 1]"),
    "erasing_prob": (_probability, "in [0, 1]"),
    "erasing_count": (lambda value: 1 <= value <= 16, "from 1 to 16"),
    "mixup_alpha": (_not_negative, "at least 0"),
    "cutmix_alpha": (_not_negative, "at least 0"),
    "mix_prob": (_probability, "in [0, 1]"),
    "mix_off_epochs": (_not_negative, "at least 0"),
    "eval_crop": (lambda value: 0.1 <= value <= 1, "in [0.1, 1]"),
    "seed": (lambda value: 0 <= value < 2**31, "from 0 to 2147483647"),
}
