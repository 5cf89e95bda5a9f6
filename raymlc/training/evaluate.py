"""What a model says on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raymlc.data.batches import Batch, Normalization, evaluation_batches
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.training.metrics import Counts


def _no_sum(tensor: Tensor) -> None:
    """One worker's sum over all workers is its own."""


def _no_wrap(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Workers:
    """The processes that train one trial together; by default this one alone.

    rank: this process, from 0 to size - 1. sum_: adds up a tensor over all workers, in place.
    wrap: makes a model's backward pass average its gradients over the workers.
    """

    rank: int = 0
    size: int = 1
    sum_: Callable[[Tensor], None] = _no_sum
    wrap: Callable[[nn.Module], nn.Module] = _no_wrap


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced type that a trial computes in on a device; None for float32 throughout.

    "auto" is float32 on a CPU, and elsewhere bfloat16 where the device has it, else float16.
    Raises UserError for "fp16" on a CPU.
    """
    if precision == "auto":
        if device.type == "cpu":
            return None
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision 'fp16' needs a GPU, but the device is a CPU; use bf16 or fp32")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Where the network computes in `dtype`, or in float32 for None."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def seen_logits(model: nn.Module, images_BCHW: Tensor, flip: bool) -> dict[str, Tensor]:
    """Logits of normalised images, (B, K) a head; with `flip`, averaged with their mirror's."""
    logits: dict[str, Tensor] = model(images_BCHW)
    if not flip:
        return logits
    mirrored = model(images_BCHW.flip(-1))
    return {name: (logits[name].float() + mirrored[name]) / 2 for name in logits}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    labels: Labels,
    data: ImageSplit,
    normalization: Normalization,
    device: torch.device,
    *,
    batch_size: int,
    precision: str = "auto",
    eval_crop: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    flip: bool = False,
    workers: Workers = Workers(),
) -> Counts:
    """What the model says over every row of `data`, counted; alike on every worker.

    The parameters, and the mode that the model is left in, are those of `seen_batches`.
    """
    counts = Counts(labels, data.targets, device, workers.rank, workers.size)
    for logits, batch in seen_batches(
        model,
        data,
        normalization,
        device,
        batch_size=batch_size,
        precision=precision,
        eval_crop=eval_crop,
        interpolation=interpolation,
        flip=flip,
        workers=workers,
    ):
        counts.add(logits, batch.targets)
    for tensor in counts.tensors():
        workers.sum_(tensor)
    return counts


@torch.no_grad()
def seen_batches(
    model: nn.Module,
    data: ImageSplit,
    normalization: Normalization,
    device: torch.device,
    *,
    batch_size: int,
    precision: str = "auto",
    eval_crop: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    flip: bool = False,
    workers: Workers = Workers(),
) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """The logits of every row of `data` that is this worker's, (B, K) a head, with their batch.

    batch_size: images a batch of one worker. The model is left in evaluation mode.
    eval_crop, interpolation: the part of an image that is seen, as `evaluation_batches` has them.
    flip: predict by the mean of the logits of an image and of its mirror image.
    """
    model.eval()
    dtype = autocast_dtype(precision, device)
    batches = evaluation_batches(
        data,
        batch_size,
        normalization,
        device,
        workers.rank,
        workers.size,
        eval_crop=eval_crop,
        interpolation=interpolation,
    )
    for batch in batches:
        with autocast(dtype, device):
            logits = seen_logits(model, batch.images_BCHW, flip)
        yield logits, batch
