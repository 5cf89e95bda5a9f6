"""Bounds on gradients before a step, in the three ways of the field."""

from __future__ import annotations

from torch import nn

from raymlc.model.network import Network
from raymlc.trial import TrialConfig


def clip_gradients(config: TrialConfig, network: Network) -> None:
    """Bound the gradients of a network by config.clip_grad, in place, without a host sync.

    "norm": all of them are scaled so that their joint norm is at most clip_grad. "value": each
    element is cut to [-clip_grad, clip_grad]. "agc" (arXiv:2102.06171): each output unit's gradient
    is scaled to a norm of at most clip_grad times that of its weights, taken as at least 1e-3; the
    heads are spared, as in the paper. 0 changes nothing.
    The gradients are those of the step: unscaled, averaged over workers, not yet centralized.
    """
    if not config.clip_grad:
        return
    if config.clip_mode == "norm":
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_grad)
    elif config.clip_mode == "value":
        nn.utils.clip_grad_value_(network.parameters(), config.clip_grad)
    else:
        from timm.utils.agc import adaptive_clip_grad

        adaptive_clip_grad(network.backbone.parameters(), config.clip_grad)
