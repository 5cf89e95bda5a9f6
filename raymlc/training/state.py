"""Everything that changes while one trial trains."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from raymlc.data.batches import Normalization
from raymlc.labels import Labels
from raymlc.model.ema import EMA
from raymlc.model.network import Network, build_network
from raymlc.model.weighting import TaskWeighting
from raymlc.optim.build import build_optimizer
from raymlc.training.evaluate import autocast_dtype
from raymlc.training.metrics import Counts
from raymlc.trial import TrialConfig


class Training:
    """Everything that changes while a trial trains, ready for its next epoch.

    fetch: load the weights that the trial starts from; False if `load_state_dict` follows.
    Raises UserError for a backbone, weights or optimizer that cannot be had.
    """

    def __init__(
        self, config: TrialConfig, labels: Labels, device: torch.device, fetch: bool = True
    ) -> None:
        torch.manual_seed(config.seed)  # so that the heads start alike on every worker
        self.config = config
        self.labels = labels
        self.device = device
        network = build_network(config, labels, fetch)
        if config.sync_bn:
            from timm.layers import convert_sync_batchnorm

            network = convert_sync_batchnorm(network)
        self.normalization = normalization_of(network, config.normalization)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network: Network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.weighting = TaskWeighting(config, labels, device)
        self.optimizer = build_optimizer(config, self.network, self.weighting.parameters())
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        place = torch.device("cpu") if config.ema_on_cpu else None
        self.ema = EMA(self.network, config.ema_decay, place) if config.ema_decay else None
        self.epoch = 0  # epochs done
        self.val_losses: list[float] = []  # of all epochs done
        self.micro_batch_size = config.micro_batch_size  # less once memory did not suffice
        self.counts: Counts | None = None  # of the deployed weights, on val, after the last epoch

    @property
    def deployed(self) -> nn.Module:
        """The model that is scored and stored: the moving average where the trial keeps one."""
        return self.ema.model if self.ema else self.network

    def on_device(self, model: nn.Module) -> nn.Module:
        """The model where it can be evaluated: itself, or a copy of an average kept elsewhere."""
        apart = self.config.ema_on_cpu and self.device.type != "cpu" and model is self.deployed
        return copy.deepcopy(model).to(self.device) if apart else model

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened.

        No state of random generators: each epoch seeds its own.
        """
        return {
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "weighting": self.weighting.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "val_losses": self.val_losses,
            "micro_batch_size": self.micro_batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state_dict of a training of the same trial."""
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self.weighting.load_state_dict(state["weighting"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.val_losses = list(state["val_losses"])
        sizes = (self.micro_batch_size, state["micro_batch_size"])
        self.micro_batch_size = min((size for size in sizes if size), default=0)

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is in the epoch that comes."""
        return self.epoch < self.config.freeze_epochs


def normalization_of(network: Network, name: str = "backbone") -> Normalization:
    """The pixel statistics that the images are normalised by.

    name: as TrialConfig.normalization has it; "backbone" is what its pretrained weights expect.
    """
    from timm import data

    settings: dict[str, Any] = network.backbone.pretrained_cfg  # type: ignore[assignment]
    mean, std = {
        "backbone": (settings["mean"], settings["std"]),
        "imagenet": (data.IMAGENET_DEFAULT_MEAN, data.IMAGENET_DEFAULT_STD),
        "inception": (data.IMAGENET_INCEPTION_MEAN, data.IMAGENET_INCEPTION_STD),
        "clip": (data.OPENAI_CLIP_MEAN, data.OPENAI_CLIP_STD),
    }[name]
    return Normalization(tuple(mean), tuple(std))
