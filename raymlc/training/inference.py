"""What the uses of a checkpoint have in common: its device, another image size, scarce memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from raymlc.data.batches import Batch
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError, one_line
from raymlc.training.checkpoint import Checkpoint
from raymlc.training.evaluate import seen_batches
from raymlc.trial import TrialConfig

_Result = TypeVar("_Result")


def choose_device(name: str) -> torch.device:
    """The device of a name as torch has it; of "auto" the first GPU, or the CPU where none is.

    Raises UserError for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device must be auto, cpu, cuda or another that torch has here, but is {name!r}:"
            f" {one_line(error)}"
        ) from error
    return device


def precision_on(device: torch.device, config: TrialConfig) -> str:
    """A trial's own precision; float32 for one that computed in float16, where only GPUs can."""
    return "fp32" if config.precision == "fp16" and device.type == "cpu" else config.precision


def placed(checkpoint: Checkpoint, device: torch.device) -> Checkpoint:
    """The checkpoint with its network on the device, in its memory layout, ready to predict."""
    layout = torch.channels_last if checkpoint.config.channels_last else torch.contiguous_format
    network = checkpoint.network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return dataclasses.replace(checkpoint, network=network.eval())


def checkpoint_batches(
    checkpoint: Checkpoint, images: ImageSplit, device: torch.device, size: int, flip: bool = False
) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """What a `placed` checkpoint says of images, seen as its trial evaluates them: `seen_batches`.

    size: images a batch.
    """
    config = checkpoint.config
    return seen_batches(
        checkpoint.network,
        images,
        checkpoint.normalization,
        device,
        batch_size=size,
        precision=precision_on(device, config),
        eval_crop=config.eval_crop,
        interpolation=config.interpolation,
        flip=flip,
    )


def at_size(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """The checkpoint, on the CPU, for images of another size than it was trained at.

    A transformer's weights that stand for places are interpolated, as timm does it.
    Raises UserError for a size that the backbone does not take.
    """
    config = checkpoint.config
    if image_size == config.image_size:
        return checkpoint
    resized = config.replace({"image_size": image_size})
    backbone = checkpoint.network.backbone
    try:
        if backbone.pretrained_cfg.get("fixed_input_size"):  # type: ignore[operator, union-attr]
            backbone.set_input_size(img_size=(image_size, image_size))  # type: ignore[operator]
        with torch.no_grad():
            checkpoint.network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # timm's may be of any type
        raise UserError(
            f"backbone {config.backbone!r}, trained at {config.image_size} pixels, must take"
            f" images of --image-size, but fails for {image_size}: {one_line(error)}"
        ) from error
    return dataclasses.replace(checkpoint, config=resized)


class BatchSize:
    """How many images go through a network at a time: fewer from when memory did not suffice.

    say: is told of it, in a line.
    """

    def __init__(self, size: int, say: Callable[[str], None]) -> None:
        self.size = size
        self._say = say

    def run(self, work: Callable[[int], _Result]) -> _Result:
        """The result of work(size), done again with half the size where memory is out.

        Whatever else goes wrong is not tried again. Raises UserError where one image is too many.
        """
        while True:
            try:
                return work(self.size)
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise UserError(
                        "the device must have the memory for one image at a time, but has not"
                        f" ({one_line(error):.120}); choose another --device"
                    ) from error
            # Only here, since the error holds on to what the work had in memory.
            self.size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._say(f"out of memory; going on with {self.size} images at a time")
