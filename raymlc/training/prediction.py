"""What a checkpoint says of images, without a table: for the command and for notebooks.

Shapes: N images, B of them at a time, C = 3 channels, H and W pixels, K classes of a head.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from raymlc.data.batches import evaluation_images
from raymlc.data.store import decode
from raymlc.errors import UserError, one_line
from raymlc.labels import SEPARATOR, Head, Labels
from raymlc.training.calibration import Calibration, probabilities, thresholds
from raymlc.training.checkpoint import Checkpoint, load_checkpoint
from raymlc.training.evaluate import autocast, autocast_dtype, seen_logits
from raymlc.training.inference import BatchSize, choose_device, placed, precision_on

Probabilities = dict[str, NDArray[np.float32]]  # by head: (N, K), or (K,) of one image
Picture = str | Path | Image.Image
_Picture = TypeVar("_Picture", bound=Picture)

_AHEAD = 2  # batches that are decoded while one is predicted
_LOSSLESS = ("1", "L", "LA", "P", "I", "I;16", "RGB", "RGBA")  # modes that PNG keeps as they are


@dataclass(frozen=True)
class Answer:
    """What the network says of one image for one head.

    classes: the most likely class of a single-label head; those of a multi-hot head that are more
    likely than its calibration's thresholds, or than not where it has none, in the order of the
    head's. probabilities: of every class of the head, calibrated where the checkpoint is.
    """

    classes: tuple[str, ...]
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The classes as a table has them: `a|b` for a multi-hot head, `|` alone for none."""
        return SEPARATOR.join(self.classes) or SEPARATOR


def load_predictor(
    folder: str | Path,
    device: str = "auto",
    batch_size: int | None = None,
    flip: bool = False,
    say: Callable[[str], None] = print,
    raw: bool = False,
) -> Predictor:
    """A checkpoint that is ready to be asked; `raymlc.load` is the same:

        model = load("runs/NAME/trials/0005/best")
        for answers in model(["a.jpg", "b.png"]):
            print({head: answer.label for head, answer in answers.items()})

    device: as torch names it; "auto" is the first GPU, if there is any. Others: as `Predictor`.
    Raises UserError for a checkpoint or a device that cannot be used.
    """
    checkpoint = load_checkpoint(Path(folder))
    return Predictor(checkpoint, choose_device(device), batch_size, flip, say, raw)


class Predictor:
    """A trained network, asked about images.

    batch_size: images at a time; by default the trial's own. It is halved as often as the device's
    memory does not suffice, which `say` is told. flip: predict by the mean of the logits of an
    image and of its mirror image. raw: leave a calibration that the checkpoint has unused, so that
    probabilities are the network's own and thresholds 0.5.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        batch_size: int | None = None,
        flip: bool = False,
        say: Callable[[str], None] = print,
        raw: bool = False,
    ) -> None:
        self.checkpoint = placed(checkpoint, device)
        self.labels = checkpoint.labels
        self.calibration = None if raw else checkpoint.calibration
        self.image_size = checkpoint.config.image_size
        self.batch_size = BatchSize(batch_size or checkpoint.config.batch_size, say)
        self._device = device
        self._flip = flip
        self._dtype = autocast_dtype(precision_on(device, checkpoint.config), device)

    def __call__(self, images: Picture | Sequence[Picture] | Tensor) -> list[dict[str, Answer]]:
        """For each image the answer of each head, by name.

        images: files or Pillow images of any size and mode, or a uint8 tensor (N, 3, H, W) of RGB
            pixels with H = W = image_size.
        Raises UserError for an image that cannot be read, and for another tensor.
        """
        if isinstance(images, Tensor):
            return self._answers(self.probabilities(images))
        pictures = [images] if isinstance(images, str | Path | Image.Image) else images
        said: list[dict[str, Answer]] = []
        for picture, outcome in self.outcomes(pictures):
            if isinstance(outcome, str):
                raise UserError(f"each image must be readable, but {picture} is not: {outcome}")
            said += self._answers({head: values_K[None] for head, values_K in outcome.items()})
        return said

    def outcomes(
        self, pictures: Sequence[_Picture]
    ) -> Iterator[tuple[_Picture, Probabilities | str]]:
        """Each picture, in order, with its probabilities, or with why it cannot be read.

        Some batches are decoded ahead, in threads, however many pictures there are.
        """
        size = self.batch_size.size
        chunks = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        ahead: deque[list[Future[NDArray[np.uint8] | str]]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, chunk in enumerate(chunks):
                for later in chunks[index + len(ahead) : index + 1 + _AHEAD]:
                    ahead.append([pool.submit(_pixels, one, self.image_size) for one in later])
                pixels = [future.result() for future in ahead.popleft()]
                yield from zip(chunk, self._predict(pixels), strict=True)

    def probabilities(self, pixels_NCHW: Tensor) -> Probabilities:
        """Of each head (N, K), in [0, 1]; an image's add up to 1 in a single-label head.

        pixels_NCHW: as `logits` has them.
        """
        logits = self.logits(pixels_NCHW)
        return {
            head.name: probabilities(head, logits[head.name], self.calibration).numpy()
            for head in self.labels.heads
        }

    def logits(self, pixels_NCHW: Tensor) -> dict[str, Tensor]:
        """Of each head (N, K), float32, on the CPU.

        pixels_NCHW: uint8, RGB, of the checkpoint's image_size; the whole image, since the part
            that evaluation sees is cut out here. Raises UserError for others.
        """
        wanted = (3, self.image_size, self.image_size)
        if pixels_NCHW.dtype != torch.uint8 or tuple(pixels_NCHW.shape[1:]) != wanted:
            raise UserError(
                f"images must be a uint8 tensor of shape {('N', *wanted)}, but are"
                f" {pixels_NCHW.dtype} of shape {tuple(pixels_NCHW.shape)}"
            )
        return self.batch_size.run(lambda size: self._logits(pixels_NCHW, size))

    @torch.no_grad()
    def _logits(self, pixels_NCHW: Tensor, size: int) -> dict[str, Tensor]:
        config, network = self.checkpoint.config, self.checkpoint.network
        parts: dict[str, list[Tensor]] = {head: [] for head in self.labels.names}
        for pixels_BCHW in torch.split(pixels_NCHW, size):
            images_BCHW = evaluation_images(
                pixels_BCHW.to(self._device),
                self.checkpoint.normalization,
                config.eval_crop,
                config.interpolation,
            )
            with autocast(self._dtype, self._device):
                seen = seen_logits(network, images_BCHW, self._flip)
            for head, logits in parts.items():
                logits.append(seen[head].float().cpu())
        return {head: torch.cat(logits) for head, logits in parts.items()}

    def _predict(self, pixels: Sequence[NDArray[np.uint8] | str]) -> Iterator[Probabilities | str]:
        whole = [image for image in pixels if not isinstance(image, str)]
        said: Probabilities = {}
        if whole:
            said = self.probabilities(torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2))
        row = 0
        for image in pixels:
            if isinstance(image, str):
                yield image
            else:
                yield {head: values_BK[row] for head, values_BK in said.items()}
                row += 1

    def _answers(self, probabilities: Probabilities) -> list[dict[str, Answer]]:
        heads = self.labels.heads
        rows = zip(*(probabilities[head.name] for head in heads), strict=True)
        return [
            {
                head.name: answer_of(head, values_K, self.calibration)
                for head, values_K in zip(heads, row, strict=True)
            }
            for row in rows
        ]


def said_of(
    head: Head, probabilities_K: NDArray[np.float32], by: Calibration | None = None
) -> list[int]:
    """The numbers of the classes that a head says, as `Answer.classes` has them."""
    if head.multi_hot:
        return [int(number) for number in np.flatnonzero(probabilities_K > thresholds(head, by))]
    return [int(probabilities_K.argmax())]


def answer_of(
    head: Head, probabilities_K: NDArray[np.float32], by: Calibration | None = None
) -> Answer:
    """The answer of one head for one image. by: what made its probabilities, with thresholds."""
    return Answer(
        tuple(head.classes[number] for number in said_of(head, probabilities_K, by)),
        dict(zip(head.classes, probabilities_K.tolist(), strict=True)),
    )


def columns(labels: Labels, top: int = 0) -> list[str]:
    """The columns of predictions beside the image's: what `cells` has for each head.

    HEAD, HEAD_probability and, for top above 0, HEAD_top; with `_` after the second or third where
    another head has that name.
    """
    taken = set(labels.names)
    named = []
    for head in labels.names:
        named.append(head)
        for suffix in ("probability", "top") if top else ("probability",):
            name = f"{head}_{suffix}"
            while name in taken:
                name += "_"
            taken.add(name)
            named.append(name)
    return named


def cells(
    labels: Labels, said: Probabilities, top: int = 0, by: Calibration | None = None
) -> list[str]:
    """What is predicted of one image, (K,) of each head, as text that tables can hold.

    The label as a table has it, so that predictions can be trained on; the probability of each of
    its classes, with `|` between those of a multi-hot head; for top above 0 the most likely classes
    and their probabilities, best first, as a JSON object. by: as `answer_of` has it.
    """
    texts = []
    for head in labels.heads:
        values_K = said[head.name]
        numbers = said_of(head, values_K, by)
        texts.append(SEPARATOR.join(head.classes[number] for number in numbers) or SEPARATOR)
        texts.append(SEPARATOR.join(f"{values_K[number]:.6g}" for number in numbers))
        if top:
            best = np.argsort(-values_K, kind="stable")[:top].tolist()
            shares = {head.classes[number]: float(f"{values_K[number]:.6g}") for number in best}
            texts.append(json.dumps(shares, ensure_ascii=False))
    return texts


def _pixels(picture: Picture, image_size: int) -> NDArray[np.uint8] | str:
    """A picture as `decode` gives it, or why it cannot be read."""
    try:
        return decode(_file_of(picture), image_size)
    except Exception as error:  # Pillow's: SyntaxError, struct.error, RuntimeError and others
        return one_line(error)


def _file_of(picture: Picture) -> Path | BytesIO:
    """What `decode` opens; of an image in memory a copy without loss, so that modes go one way."""
    if not isinstance(picture, Image.Image):
        return Path(picture)
    image = ImageOps.exif_transpose(picture)
    if image.mode not in _LOSSLESS:
        image = image.convert("RGBA" if "A" in image.mode.upper() else "RGB")
    file = BytesIO()
    image.save(file, "PNG", compress_level=0)
    file.seek(0)
    return file
