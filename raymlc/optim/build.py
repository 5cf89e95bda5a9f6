"""From a trial to its optimizer: parameter groups, the optimizer by name, the schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from raymlc.errors import UserError, did_you_mean
from raymlc.model.network import Network
from raymlc.optim.adamp import AdamP
from raymlc.trial import TrialConfig

LOOKAHEAD = "lookahead_"  # before an optimizer's name


def build_optimizer(
    config: TrialConfig, network: Network, others: Iterable[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a trial over every parameter that trains.

    others: parameters beside the network's, such as learnt weights of the heads' losses; they get
        the trial's lr and no weight decay.
    Raises UserError for an optimizer that timm does not know, that a trial cannot run, or that does
    not take the trial's values.
    A name may begin with "lookahead_", which puts arXiv:1907.08610 around that optimizer.
    """
    groups = parameter_groups(config, network)
    if more := list(others):
        groups.append({"params": more, "lr": config.lr, "peak_lr": config.lr, "weight_decay": 0.0})
    name = config.optimizer.removeprefix(LOOKAHEAD)
    optimizer = _named(name, config, groups)
    if name == config.optimizer:
        return optimizer
    from timm.optim import Lookahead

    # Around an optimizer that has its hooks, since those of timm's wrapper miss its first step.
    wrapped: torch.optim.Optimizer = Lookahead(optimizer)
    return wrapped


def _named(name: str, config: TrialConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    betas = (config.beta1, config.beta2)
    if name == "adamp":
        return AdamP(
            groups,
            lr=config.lr,
            betas=betas,
            eps=config.eps,
            gc=config.gc,
            gc_conv_only=config.gc_conv_only,
        )
    _check_optimizer(name)
    from timm.optim import create_optimizer_v2

    try:
        # timm hands momentum, betas and eps only to an optimizer that has them.
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups,
            opt=name,
            lr=config.lr,
            momentum=config.momentum,
            betas=betas,
            eps=config.eps,
        )
    except ValueError as error:
        raise UserError(
            f"optimizer {name!r} does not take the trial's values: {error};"
            " change them, or the optimizer"
        ) from error
    if config.gc:
        for group in optimizer.param_groups:
            group["gc"], group["gc_conv_only"] = True, config.gc_conv_only
        optimizer.register_step_pre_hook(_centralize)
    return optimizer


def _centralize(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Centralize the gradients of every group that asks for it (arXiv:2004.01461)."""
    for group in optimizer.param_groups:
        least = 4 if group["gc_conv_only"] else 2
        for parameter in group["params"]:
            grad = parameter.grad
            # A row of one element is its own mean: it would never train.
            if grad is not None and grad.dim() >= least and grad.numel() > len(grad):
                grad.sub_(grad.mean(dim=tuple(range(1, grad.dim())), keepdim=True))


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


def lr_factor(config: TrialConfig, step: int, steps_per_epoch: int, decays: int = 0) -> float:
    """The share of the peak lr at a step, counted from 0 over the whole training.

    With t epochs done at the step's end, warm-up goes linearly from warmup_lr_ratio to 1 at
    t = warmup_epochs. After it, never below min_lr_ratio: "constant" is 1; "cosine" half a cosine
    over all epochs, warm-up included and cooldown left out, that ends at min_lr_ratio and stays
    there (arXiv:1608.03983); "step" is multiplied by decay_rate after each decay_epochs; "plateau"
    by decay_rate for each of `decays`, which `plateau_decays` counts.
    """
    t = (step + 1) / steps_per_epoch
    least = config.min_lr_ratio
    if t < config.warmup_epochs:
        start = config.warmup_lr_ratio
        return start + (1 - start) * t / config.warmup_epochs
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        done = min(t / (config.epochs - config.cooldown_epochs), 1.0)
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "step":
        # A hair more, since a step that begins with an epoch may lie a rounding error before it.
        decays = math.floor(step / steps_per_epoch / config.decay_epochs + 1e-9)
    return max(config.decay_rate**decays, least)


def plateau_decays(losses: Sequence[float], patience: int) -> int:
    """How often a plateau was met in the validation losses of all epochs so far.

    As torch's ReduceLROnPlateau counts: an epoch is good if its loss lies 0.01 % below the best so
    far; after more than `patience` epochs in a row that are not, the lr decays and counting begins
    anew. A loss that is not a number is not good.
    """
    best, bad, decays = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - 1e-4):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            decays, bad = decays + 1, 0
    return decays


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's lr to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
