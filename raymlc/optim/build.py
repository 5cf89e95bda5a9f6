"""From a trial to its optimizer: parameter groups, the optimizer by name, the schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch

from raymlc.errors import UserError, did_you_mean
from raymlc.model.network import Network
from raymlc.optim.adamp import AdamP
from raymlc.trial import TrialConfig


def build_optimizer(config: TrialConfig, network: Network) -> torch.optim.Optimizer:
    """The optimizer of a trial over every parameter that trains.

    Raises UserError for an optimizer that timm does not know, that a trial cannot run, or that does
    not take the trial's values.
    """
    groups = parameter_groups(config, network)
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamp":
        return AdamP(
            groups,
            lr=config.lr,
            betas=betas,
            eps=config.eps,
            gc=config.gc,
            gc_conv_only=config.gc_conv_only,
        )
    _check_optimizer(config.optimizer)
    from timm.optim import create_optimizer_v2

    try:
        # timm hands momentum, betas and eps only to an optimizer that has them.
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups,
            opt=config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            betas=betas,
            eps=config.eps,
        )
    except ValueError as error:
        raise UserError(
            f"optimizer {config.optimizer!r} does not take the trial's values: {error};"
            " change them, or the optimizer"
        ) from error
    return optimizer


def _check_optimizer(name: str) -> None:
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    if name not in list_optimizers():
        way_out = did_you_mean(
            name, list_optimizers(), "timm.optim.list_optimizers() names them all"
        )
        raise UserError(f"optimizer must be one of timm's, but is {name!r}; {way_out}")
    info = get_optimizer_info(name)
    wants = None
    if info.second_order:
        wants = "second derivatives, which a training step does not take"
    elif info.has_betas and info.num_betas != 2:
        wants = f"{info.num_betas} betas, and a trial has beta1 and beta2"
    else:
        try:
            get_optimizer_class(name)
        except (AssertionError, ImportError) as error:
            wants = f"what this machine lacks: {error}"
    if wants:
        raise UserError(f"optimizer {name!r} needs {wants}; take another, such as 'adamw'")


def parameter_groups(config: TrialConfig, network: Network) -> list[dict[str, Any]]:
    """Backbone and heads, each with and without weight decay; empty groups are left out.

    No decay on biases and other parameters of fewer than two dimensions (norms), nor on what the
    backbone's `no_weight_decay` lists, by name or by pattern. A group's "peak_lr" is what its
    schedule scales; a head's is lr times head_lr_scale.
    """
    listed: Iterable[str] = getattr(network.backbone, "no_weight_decay", tuple)()
    spared = ["*.bias", *(f"backbone.{pattern}" for pattern in listed)]
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        head = name.startswith("heads.")
        decays = parameter.dim() > 1 and not any(fnmatchcase(name, part) for part in spared)
        lr = config.lr * (config.head_lr_scale if head else 1.0)
        group = groups.setdefault(
            (head, decays),
            {
                "params": [],
                "lr": lr,
                "peak_lr": lr,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def lr_factor(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """The share of the peak lr at a step, counted from 0 over the whole training.

    With t epochs done at the step's end: t / warmup_epochs during warm-up; then for "constant" 1,
    for "cosine" half a cosine over all epochs, warm-up included, that ends at min_lr_ratio with the
    last step (arXiv:1608.03983).
    """
    t = (step + 1) / steps_per_epoch
    if t < config.warmup_epochs:
        return t / config.warmup_epochs
    if config.schedule == "constant":
        return 1.0
    cosine = (1 + math.cos(math.pi * t / config.epochs)) / 2
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's lr to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
