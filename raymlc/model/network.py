"""One timm backbone, one linear head an attribute.

Shapes: B images, C = 3 channels, H and W pixels, F features, K classes of a head.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.backbones import unknown_backbone
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
        features_BF = self.backbone(images_BCHW)
        return {
            head.name: layers(features_BF)
            for head, layers in zip(self.labels.heads, self.heads, strict=True)
        }


def build_network(config: TrialConfig, labels: Labels, fetch: bool = True) -> Network:
    """The network of a trial, on the CPU.

    fetch: load the weights that the trial starts from; False where a checkpoint's will be loaded.
    Raises UserError for an unknown backbone, for weights that cannot be had or do not fit, and for
    a drop_path_rate that the backbone does not know.
    """
    import timm  # seconds to import, and not needed by whoever only reads labels

    family, _, tag = config.backbone.partition(".")
    known = timm.list_models() + timm.list_pretrained()
    named = ":" not in config.backbone  # else it says where on the hub, or on disk, it lies
    if named and (not timm.is_model(family) or (tag and config.backbone not in known)):
        raise UserError(unknown_backbone(config.backbone, known))
    # Not every backbone takes the argument, so it is passed only where it does something.
    drop_path = {"drop_path_rate": config.drop_path_rate} if config.drop_path_rate else {}
    source = {"file": config.weights} if config.weights else None
    try:
        backbone = timm.create_model(
            config.backbone,
            pretrained=fetch and (config.pretrained or bool(config.weights)),
            pretrained_cfg_overlay=source,
            num_classes=0,
            **drop_path,
        )
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise UserError(
            f"backbone {config.backbone!r} has no drop path, but drop_path_rate is"
            f" {config.drop_path_rate}; set it to 0 or take another backbone"
        ) from error
    except Exception as error:
        if not fetch:
            raise
        raise UserError(_no_weights(config, error)) from error
    return Network(backbone, labels, config.drop_rate)


def _no_weights(config: TrialConfig, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    reason = reason if len(reason) < 240 else reason[:240] + "…"
    if config.weights:
        return (
            f"weights must be a file of {config.backbone}'s weights, but {config.weights} could not"
            f" be loaded: {reason}"
        )
    return (
        f"the pretrained weights of {config.backbone} could not be fetched from the model hub:"
        f" {reason}; give a file with --weights, or start from random ones with"
        " --set pretrained=false"
    )
