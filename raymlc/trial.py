"""TrialConfig: every value that may differ between two trials on the same data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from raymlc.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One trial, as a frozen value. Field names are the names of a search space and of HParams.

    Raises UserError, with the law and the value, for a value outside its range.
    """

    # Network
    backbone: str = "efficientnet_b0"  # any timm model, with or without a ".tag"
    pretrained: bool = True  # start from the weights that timm names for the backbone
    weights: str = ""  # a file of backbone weights; takes the place of timm's
    image_size: int = 224  # pixels, height and width
    drop_rate: float = 0.2  # dropout before every head, in [0, 1)
    drop_path_rate: float = 0.0  # of the deepest block, in [0, 1); arXiv:1603.09382

    # Optimizer and schedule
    optimizer: str = "adamp"  # raymlc's AdamP (arXiv:2006.08217), or any optimizer of timm
    lr: float = 2e-3  # at the peak, after warm-up; not scaled with the number of workers
    head_lr_scale: float = 1.0  # the heads' lr is lr times this
    weight_decay: float = 1e-2  # decoupled where the optimizer is; never on 1-D parameters
    beta1: float = 0.9  # decay of the first moment, in [0, 1)
    beta2: float = 0.999  # decay of the second moment, in [0, 1)
    momentum: float = 0.9  # of optimizers that have one, such as sgd
    eps: float = 1e-8  # in Adam's denominator; couples with lr when gradients are as small
    gc: bool = False  # gradient centralization, arXiv:2004.01461; AdamP only
    gc_conv_only: bool = False  # leave 2-D weights, the heads among them, uncentralized
    clip_grad: float = 0.0  # largest gradient norm over all parameters; 0 clips nothing
    schedule: Literal["cosine", "constant"] = "cosine"  # after warm-up; arXiv:1608.03983
    warmup_epochs: float = 0.5  # linear from 0; fractions allowed, less than epochs
    min_lr_ratio: float = 0.01  # lr of the last step of a cosine, as a share of lr
    epochs: int = 10  # as many as are trained
    batch_size: int = 64  # images a step over all workers together
    ema_decay: float = 0.998  # moving average of the weights, with warm-up; 0 keeps none

    # Loss and augmentation
    smoothing: float = 0.1  # label smoothing of single-label heads, in [0, 1); arXiv:1512.00567
    crop_min_area: float = 0.6  # smallest area of a random crop, share of the image, in (0, 1]
    hflip_prob: float = 0.5  # probability of a horizontal flip
    randaug_ops: int = 0  # RandAugment operations an image, colour ones among them; 1909.13719
    randaug_magnitude: int = 9  # strength of those operations, 0 to 30
    erasing_prob: float = 0.0  # probability of a rectangle of noise an image; arXiv:1708.04896

    # Arithmetic
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: fp32 on the CPU, else AMP
    channels_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), annotation))
        for name, (holds, law) in _LAWS.items():
            value = getattr(self, name)
            if not holds(value):
                raise UserError(f"{name} must be {law}, but is {value}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(
                "warmup_epochs must be at least 0 and less than epochs, but they are"
                f" {self.warmup_epochs} and {self.epochs}; shorten the warm-up"
            )
        if self.gc and self.optimizer != "adamp":
            raise UserError(
                "gc (gradient centralization) is part of optimizer 'adamp', but optimizer is"
                f" {self.optimizer!r}; set gc=False or optimizer='adamp'"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialConfig:
        """The trial of a JSON object. Raises UserError for a name that is no field."""
        for name in values:
            check_field(name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; `from_dict` gives the same trial back."""
        return dataclasses.asdict(self)

    def replace(self, changes: Mapping[str, Any]) -> TrialConfig:
        """This trial with some fields changed. Raises UserError as the constructor does."""
        return TrialConfig.from_dict({**self.to_dict(), **changes})


FIELDS = tuple(field.name for field in dataclasses.fields(TrialConfig))


def check_field(name: str) -> None:
    """Raises UserError, with the nearest names, if `name` is no field of TrialConfig."""
    if name not in FIELDS:
        way_out = did_you_mean(name, FIELDS, f"the fields are {', '.join(FIELDS)}")
        raise UserError(f"{name!r} is not a field of TrialConfig; {way_out}")


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"lr=0.01"` as ("lr", 0.01): the value of a field as JSON, or as text for a text field.

    Raises UserError for a missing "=", an unknown field or a value of another type.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"a setting is written field=value, but this one is {text!r}")
    check_field(name)
    annotation = get_type_hints(TrialConfig)[name]
    if annotation is str or get_origin(annotation) is Literal:
        return name, _typed(name, value, annotation)
    try:
        parsed = json.loads(value.lower())
    except json.JSONDecodeError:
        parsed = value
    return name, _typed(name, parsed, annotation)


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """The value, an int widened where a float is asked; UserError if it is of another type."""
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if value not in choices:
            way_out = did_you_mean(str(value), choices, f"choose from {', '.join(choices)}")
            raise UserError(f"{name} must be one of its names, but is {value!r}; {way_out}")
        return value
    if annotation is float and type(value) is int:
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


# Each law is one that NaN breaks too.
_LAWS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "backbone": (bool, "the name of a timm model"),
    "image_size": (lambda value: 8 <= value <= 4096, "from 8 to 4096 pixels"),
    "drop_rate": (_share, "in [0, 1)"),
    "drop_path_rate": (_share, "in [0, 1)"),
    "lr": (_positive, "above 0"),
    "head_lr_scale": (_positive, "above 0"),
    "weight_decay": (_not_negative, "at least 0"),
    "beta1": (_share, "in [0, 1)"),
    "beta2": (_share, "in [0, 1)"),
    "momentum": (_share, "in [0, 1)"),
    "eps": (_positive, "above 0"),
    "clip_grad": (_not_negative, "at least 0"),
    "min_lr_ratio": (_probability, "in [0, 1]"),
    "epochs": (lambda value: value >= 1, "at least 1"),
    "batch_size": (lambda value: value >= 2, "at least 2 (batch norm needs more than one image)"),
    "ema_decay": (_share, "in [0, 1)"),
    "smoothing": (_share, "in [0, 1)"),
    "crop_min_area": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "hflip_prob": (_probability, "in [0, 1]"),
    "randaug_ops": (lambda value: 0 <= value <= 8, "from 0 to 8"),
    "randaug_magnitude": (lambda value: 0 <= value <= 30, "from 0 to 30"),
    "erasing_prob": (_probability, "in [0, 1]"),
    "seed": (lambda value: 0 <= value < 2**31, "from 0 to 2147483647"),
}
