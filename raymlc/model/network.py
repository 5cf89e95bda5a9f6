"""One timm backbone, one linear head an attribute.

Shapes: B images, C = 3 channels, H and W pixels, F features, K classes of a head.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from raymlc.errors import UserError, one_line
from raymlc.labels import Labels
from raymlc.model.backbones import unknown_backbone
from raymlc.model.start import start_from
from raymlc.trial import TrialConfig


class Network(nn.Module):
    """A backbone's pooled features and a dropout and linear layer for each head.

    `pretrained_cfg` of the backbone says which mean, std and size its weights were trained with.
    """

    def __init__(self, backbone: nn.Module, labels: Labels, drop_rate: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.labels = labels
        features = int(cast(int, backbone.head_hidden_size))
        # A list, since a column's name need not be one that a module may have.
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Dropout(drop_rate), nn.Linear(features, len(head.classes)))
            for head in labels.heads
        )

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Normalised images to logits (B, K) for each head, by name."""
        return self.logits(self.backbone(images_BCHW))

    def logits(self, features_BF: Tensor) -> dict[str, Tensor]:
        """The backbone's features to logits (B, K) for each head, by name."""
        return {
            head.name: layers(features_BF)
            for head, layers in zip(self.labels.heads, self.heads, strict=True)
        }


class WithFeatures(nn.Module):
    """A network that tells its features, too.

    compiled: run the backbone through torch.compile. The heads stay as they are, since gradients
    between the two cannot be had from within one compiled graph.
    """

    def __init__(self, network: Network, compiled: bool = False) -> None:
        super().__init__()
        self.network = network
        self.backbone = torch.compile(network.backbone) if compiled else network.backbone

    def forward(self, images_BCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Normalised images to logits (B, K) for each head, and the features (B, F)."""
        features_BF = self.backbone(images_BCHW)
        return self.network.logits(features_BF), features_BF


def build_network(config: TrialConfig, labels: Labels, fetch: bool = True) -> Network:
    """The network of a trial, on the CPU.

    fetch: load the weights that the trial starts from; False where a checkpoint's will be loaded.
    Raises UserError for an unknown backbone, for an image_size or a drop_path_rate that it does not
    take, and for weights that cannot be had or do not fit.
    """
    import timm  # seconds to import, and not needed by whoever only reads labels

    family, _, tag = config.backbone.partition(".")
    known = timm.list_models() + timm.list_pretrained()
    named = ":" not in config.backbone  # else it says where on the hub, or on disk, it lies
    if named and (not timm.is_model(family) or (tag and config.backbone not in known)):
        raise UserError(unknown_backbone(config.backbone, known))
    try:
        own = fetch and bool(config.weights) and Path(config.weights).is_dir()  # a checkpoint
        if fetch and config.weights and not own:
            backbone = _create_from_file(config)
        else:
            backbone = _create(config, load=fetch and config.pretrained and not own)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_refusal(config, fetch, error)) from error
    _set_batch_norm(config, backbone)
    _spare_copies(backbone)
    if fetch:
        _check_image_size(config, backbone)
    network = Network(backbone, labels, config.drop_rate)
    if own:
        start_from(Path(config.weights), network.backbone, network.heads, labels)
    return network


def _create(config: TrialConfig, load: bool) -> nn.Module:
    """The backbone, with the weights of `config.weights` or else timm's own if `load` is set."""
    import timm

    # Not every backbone takes these arguments, so each is passed only where it does something.
    drop_path = {"drop_path_rate": config.drop_path_rate} if config.drop_path_rate else {}
    settings = timm.models.get_pretrained_cfg(config.backbone)
    fixed = settings is not None and settings.fixed_input_size
    backbone: nn.Module = timm.create_model(
        config.backbone,
        pretrained=load,
        pretrained_cfg_overlay={"file": config.weights} if config.weights else None,
        num_classes=0,
        **drop_path,
        **({"img_size": config.image_size} if fixed else {}),
    )
    return backbone


def _create_from_file(config: TrialConfig) -> nn.Module:
    """The backbone with the weights of `config.weights`, all of them.

    timm loads what fits by name and leaves the rest as it was, so a file of another backbone may
    load nothing at all: what was drawn alike with and without the file did not come from it.
    """
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        loaded = _create(config, load=True)
        torch.set_rng_state(state)
        drawn = _create(config, load=False)
    same = [
        name
        for (name, weight), other in zip(loaded.named_parameters(), drawn.parameters(), strict=True)
        if torch.equal(weight, other) and weight.min() < weight.max()
    ]
    if same:
        raise UserError(
            f"weights must be a file of {config.backbone}'s weights, but {config.weights} lacks"
            f" {len(same)} of them, {same[0]} for one; give the file that fits the backbone"
        )
    return loaded


def _set_batch_norm(config: TrialConfig, backbone: nn.Module) -> None:
    wanted = {"momentum": config.bn_momentum, "eps": config.bn_eps}
    wanted = {name: value for name, value in wanted.items() if value}
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if (wanted or config.sync_bn) and not norms:
        raise UserError(
            f"bn_momentum, bn_eps and sync_bn are of batch norm, but {config.backbone!r} has none;"
            " leave them as they are"
        )
    for norm in norms:
        for name, value in wanted.items():
            setattr(norm, name, value)


def _spare_copies(backbone: nn.Module) -> None:
    """Let no activation work in place whose backward pass needs what it was given.

    Autograd copies that first, so in place such a layer takes as much memory and a copy more.
    """
    for module in backbone.modules():
        if isinstance(module, nn.SiLU | nn.Hardswish | nn.Mish):
            module.inplace = False


def _check_image_size(config: TrialConfig, backbone: nn.Module) -> None:
    """One image through the backbone, which is the only way to know what sizes it takes."""
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, config.image_size, config.image_size))
    except Exception as error:
        raise UserError(_wrong_size(config, one_line(error))) from error
    backbone.train()


def _refusal(config: TrialConfig, fetch: bool, error: Exception) -> str:
    reason = one_line(error)
    if isinstance(error, TypeError) and "drop_path_rate" in reason:
        return (
            f"backbone {config.backbone!r} has no drop path, but drop_path_rate is"
            f" {config.drop_path_rate}; set it to 0 or take another backbone"
        )
    if fetch and config.weights:
        return (
            f"weights must be a file of {config.backbone}'s weights, but {config.weights} could not"
            f" be loaded: {reason}"
        )
    if fetch and config.pretrained:
        return (
            f"the pretrained weights of {config.backbone} could not be fetched from the model hub:"
            f" {reason}; give a file with --weights, or start from random ones with"
            " --set pretrained=false"
        )
    return _wrong_size(config, reason)


def _wrong_size(config: TrialConfig, reason: str) -> str:
    return (
        f"backbone {config.backbone!r} must take images of image_size pixels, but fails for"
        f" {config.image_size}: {reason}; change image_size or take another backbone"
    )
