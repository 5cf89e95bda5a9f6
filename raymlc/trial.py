"""TrialConfig: every value that may differ between two trials on the same data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from raymlc.errors import UserError, did_you_mean
from raymlc.fields import LAWS, LossName, PerHead, typed


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One trial, as a frozen value. Field names are the names of a search space and of HParams.

    Raises UserError, with the law and the value, for a value outside its range.
    """

    # Network
    backbone: str = "efficientnet_b0"  # any timm model, with or without a ".tag"
    pretrained: bool = True  # start from the weights that timm names for the backbone
    weights: str = ""  # instead: a file of backbone weights, or a checkpoint's folder
    image_size: int = 224  # pixels, height and width
    normalization: Literal["backbone", "imagenet", "inception", "clip"] = "backbone"  # mean and std
    drop_rate: float = 0.2  # dropout before every head, in [0, 1)
    drop_path_rate: float = 0.0  # of the deepest block, in [0, 1); arXiv:1603.09382
    bn_momentum: float = 0.0  # share of a batch in the running statistics; 0: the backbone's own
    bn_eps: float = 0.0  # added to the variance by batch norm; 0: the backbone's own
    sync_bn: bool = False  # batch norm over all workers' images; on GPUs
    freeze_epochs: int = 0  # first epochs, in which the backbone stays as it is

    # Optimizer and schedule
    optimizer: str = "adamp"  # raymlc's AdamP (arXiv:2006.08217), or timm's; also lookahead_NAME
    lr: float = 2e-3  # at the peak, after warm-up; not scaled with the number of workers
    head_lr_scale: float = 1.0  # the heads' lr is lr times this
    weight_decay: float = 1e-2  # decoupled where the optimizer is; never on 1-D parameters
    beta1: float = 0.9  # decay of the first moment, in [0, 1)
    beta2: float = 0.999  # decay of the second moment, in [0, 1)
    momentum: float = 0.9  # of optimizers that have one, such as sgd
    eps: float = 1e-8  # in Adam's denominator; couples with lr when gradients are as small
    gc: bool = False  # gradient centralization, 2004.01461: of adamp's updates, others' gradients
    gc_conv_only: bool = False  # leave 2-D weights, the heads among them, uncentralized
    clip_grad: float = 0.0  # the largest gradient, as clip_mode has it; 0 clips nothing
    clip_mode: Literal["norm", "value", "agc"] = "norm"  # over all parameters; of each element;
    # or of each unit, as a share of its weights' norm, heads spared (arXiv:2102.06171)
    schedule: Literal["cosine", "step", "plateau", "constant"] = "cosine"  # after warm-up
    warmup_epochs: float = 0.5  # linear; fractions allowed, less than epochs
    warmup_lr_ratio: float = 0.0  # lr that warm-up starts from, as a share of lr
    min_lr_ratio: float = 0.01  # lr below which no schedule goes, as a share of lr
    cooldown_epochs: float = 0.0  # last epochs, of all, in which a cosine stays at its end
    decay_epochs: float = 2.0  # "step": epochs between two decays
    decay_rate: float = 0.9  # "step" and "plateau": lr is multiplied by this, in (0, 1)
    patience_epochs: int = 2  # "plateau": epochs without a lower val/loss that are let pass
    epochs: int = 10  # as many as are trained
    batch_size: int = 64  # images a step over all workers together
    micro_batch_size: int = 0  # images that a worker takes at a time, adding up gradients; 0: all
    ema_decay: float = 0.998  # moving average of the weights, with warm-up; 0 keeps none
    ema_on_cpu: bool = False  # keep the average in the machine's memory, not the GPU's

    # Loss
    loss: LossName = "auto"  # of every head; auto: cross_entropy, and bce for multi-hot heads
    head_losses: Mapping[str, LossName] = PerHead()  # of single heads, in place of `loss`
    focal_gamma: float = 2.0  # "focal": how much easy images count less; arXiv:1708.02002
    asl_gamma_pos: float = 0.0  # "asymmetric": focus on present classes; arXiv:2009.14119
    asl_gamma_neg: float = 4.0  # "asymmetric": focus on absent classes
    asl_clip: float = 0.05  # "asymmetric": probability below which an absent class counts nothing
    smoothing: float = 0.1  # label smoothing of single-label heads, in [0, 1); arXiv:1512.00567
    class_weighting: Literal["none", "inverse", "effective"] = "none"  # by a class's frequency
    class_weight_beta: float = 0.999  # "effective": of the number of samples, arXiv:1901.05555
    task_weighting: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"  # of the heads' losses:
    # as head_weights has it, or learnt by arXiv:1705.07115 or arXiv:1711.02257
    head_weights: Mapping[str, float] = PerHead()  # "fixed": only their ratios count; else 1
    gradnorm_alpha: float = 1.5  # "gradnorm": how strongly slow heads are favoured

    # Augmentation of training images, in the order in which it is done
    augment: bool = True  # False: none of the following
    randaug_ops: int = 0  # RandAugment operations an image; arXiv:1909.13719
    randaug_magnitude: float = 9.0  # their strength, 0 to 10
    randaug_std: float = 0.5  # standard deviation of the strength over images
    randaug_color: bool = True  # colour operations among them; False: geometric ones alone
    autoaugment: bool = False  # the policy found for ImageNet, arXiv:1805.09501
    augmix: bool = False  # mixtures of augmented images, arXiv:1912.02781
    color_jitter: float = 0.0  # largest change of brightness, contrast and saturation, as a share
    crop_min_area: float = 0.6  # smallest area of a random crop, share of the image, in (0, 1]
    crop_max_ratio: float = 4 / 3  # largest aspect ratio of a crop, and 1 / the smallest; from 1
    hflip_prob: float = 0.5  # probability of a horizontal flip
    vflip_prob: float = 0.0  # probability of a vertical flip
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of crops, also of eval_crop's
    erasing_prob: float = 0.0  # probability that an image is erased in part; arXiv:1708.04896
    erasing_mode: Literal["pixel", "color", "zero"] = "pixel"  # noise, one random color, the mean
    erasing_count: int = 1  # most rectangles an erased image, which share the area
    mixup_alpha: float = 0.0  # Beta(alpha, alpha) of the share of another image; arXiv:1710.09412
    cutmix_alpha: float = 0.0  # the same for a pasted rectangle, arXiv:1905.04899; with mixup: half
    # the mixed batches each
    mix_prob: float = 1.0  # share of batches that are mixed, where an alpha is above 0
    mix_off_epochs: int = 0  # last epochs, without mixing
    eval_crop: float = 1.0  # side of the central part that evaluation sees, share of the image's

    # Arithmetic
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: fp32 on the CPU, else AMP
    channels_last: bool = True
    compile: bool = False  # torch.compile: 10 % faster steps after up to minutes, for long trials
    seed: int = 0

    def __post_init__(self) -> None:
        for name, annotation in ANNOTATIONS.items():
            object.__setattr__(self, name, typed(name, getattr(self, name), annotation))
        for name, (holds, law) in LAWS.items():
            value = getattr(self, name)
            each = value if isinstance(value, PerHead) else {"": value}
            for head, one in each.items():
                if not holds(one):
                    of = f" of {head!r}" if head else ""
                    raise UserError(f"{name}{of} must be {law}, but is {one}")
        self._check_together()

    def _check_together(self) -> None:
        """The laws that bind one field to another."""
        trained = self.epochs - self.cooldown_epochs
        if not 0 <= self.warmup_epochs < trained:
            before, way_out = "", "shorten the warm-up"
            if self.cooldown_epochs:
                before, way_out = " before the cooldown", "shorten the warm-up or the cooldown"
            raise UserError(
                f"warmup_epochs must be at least 0 and less than epochs{before}, but they are"
                f" {self.warmup_epochs} and {trained:g}; {way_out}"
            )
        for name in ("freeze_epochs", "mix_off_epochs"):
            if getattr(self, name) > self.epochs:
                raise UserError(
                    f"{name} must be at most epochs, but they are {getattr(self, name)} and"
                    f" {self.epochs}; lower it"
                )
        if self.head_weights and self.task_weighting != "fixed":
            raise UserError(
                "head_weights are the weights of task_weighting 'fixed', but that is"
                f" {self.task_weighting!r}, which learns its own; leave one of them out"
            )
        policies = [n for n in ("randaug_ops", "autoaugment", "augmix") if getattr(self, n)]
        if len(policies) > 1:
            raise UserError(
                "at most one of randaug_ops, autoaugment and augmix may be on, but"
                f" {' and '.join(policies)} are; turn all but one off"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialConfig:
        """The trial of a JSON object, or of names as a space asks for them.

        A value for one head is named `field/head`, such as "head_weights/color"; beside a value of
        the whole field it takes that head's place, in whatever order they come.
        Raises UserError for a name that is no field.
        """
        whole: dict[str, Any] = {}
        for name in sorted(values, key=lambda name: "/" in str(name)):
            check_field(name)
            field, slash, head = name.partition("/")
            value = values[name]
            if slash:
                others = typed(field, whole.get(field, {}), ANNOTATIONS[field])
                value = {**others, head: value}
            whole[field] = value
        return cls(**whole)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; `from_dict` gives the same trial back."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {
            name: dict(value) if isinstance(value, PerHead) else value
            for name, value in values.items()
        }

    def replace(self, changes: Mapping[str, Any]) -> TrialConfig:
        """This trial with some fields changed. Raises UserError as the constructor does."""
        return TrialConfig.from_dict({**self.to_dict(), **changes})

    def check_heads(self, heads: Iterable[str]) -> None:
        """Raises UserError if a field is set for a head that is not among `heads`."""
        known = tuple(heads)
        for name in FIELDS:
            value = getattr(self, name)
            for head in value if isinstance(value, PerHead) else ():
                if head not in known:
                    way_out = did_you_mean(head, known, f"the heads are {', '.join(known)}")
                    raise UserError(f"{name} is set for {head!r}, which is no head; {way_out}")


FIELDS = tuple(field.name for field in dataclasses.fields(TrialConfig))
ANNOTATIONS: dict[str, Any] = get_type_hints(TrialConfig)


def check_field(name: str) -> None:
    """Raises UserError, with the nearest names, if `name` is no field of TrialConfig.

    A field that has a value for each head is also named with the head, `field/head`.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a field must be a text, but is of type {type(name).__name__}")
    field, slash, _ = name.partition("/")
    if field not in FIELDS:
        way_out = did_you_mean(field, FIELDS, f"the fields are {', '.join(FIELDS)}")
    elif slash and get_origin(ANNOTATIONS[field]) is not Mapping:
        way_out = f"set {field!r}, which has one value for all heads"
    else:
        return
    raise UserError(f"{name!r} is not a field of TrialConfig; {way_out}")


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"lr=0.01"` as ("lr", 0.01): the value of a field as JSON, or as text for a text field.

    Raises UserError for a missing "=", an unknown field or a value of another type.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"a setting is written field=value, but this one is {text!r}")
    check_field(name)
    field, slash, _ = name.partition("/")
    annotation = ANNOTATIONS[field]
    if slash:
        annotation = get_args(annotation)[1]
    if annotation is str or get_origin(annotation) is Literal:
        return name, typed(name, value, annotation)
    try:
        parsed = json.loads(value if get_origin(annotation) is Mapping else value.lower())
    except ValueError:  # also of a number of too many digits
        parsed = value
    return name, typed(name, parsed, annotation)
