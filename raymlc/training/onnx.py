"""A checkpoint as one ONNX file, from pixels to the logits of each head, checked against PyTorch.

Shapes: B images, any number of them; C = 3 channels, H and W pixels, K classes of a head.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymlc.errors import UserError, one_line
from raymlc.labels import Labels
from raymlc.training.checkpoint import Checkpoint
from raymlc.training.files import preprocessing, version
from raymlc.training.prediction import Predictor

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT = "images"
TOLERANCE = 1e-4  # of a logit, as a share of the head's largest one, or of 1 where that is less
_OPSET = 17  # the first with layer normalization; every runtime since 2022 reads it
_LARGEST = 2**31 - 2**20  # bytes that a file of one piece may have


def check_packages() -> None:
    """Raises UserError if a package that an export needs is not there."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"an export needs {name}, which is not installed: pip install 'raymlc[onnx]'"
            )


def export_onnx(checkpoint: Checkpoint, path: Path) -> dict[str, float]:
    """Write the network of a checkpoint; returns by output the largest difference of its logits.

    Its input `images` is float32 (B, 3, H, W), RGB from 0 to 255, whole images squashed to the
    checkpoint's image_size: normalization, and the cut that evaluation makes, are in the file. Each
    head is an output (B, K) of logits by its own name, or that name with `_` after it where the
    file has the name already. Its metadata has, in JSON, `heads` (name, output, classes, multi_hot,
    and the function that makes the logits probabilities), `labels`, `preprocessing`, `trial`, and
    `raymlc`, the version. onnxruntime runs the file on 1 and 3 images of noise before it takes its
    place; the differences are those from PyTorch in float32 on the CPU.
    Raises UserError for a network that cannot be exported, and for logits that differ by more than
    TOLERANCE; then there is no file.
    """
    check_packages()
    filling = path.with_name(f".{path.name}.filling")
    try:
        filling.touch()  # so that a place that cannot be written is known before the work
        model = _graph(checkpoint, filling)
        _name_outputs(model, checkpoint.labels)
        _describe(model, checkpoint)
        filling.write_bytes(model.SerializeToString())
        differences = _differences(filling, checkpoint, [out.name for out in model.graph.output])
        os.replace(filling, path)
    except OSError as error:
        raise UserError(
            f"--output must be a file to write, but {path}: {one_line(error)}"
        ) from error
    finally:
        filling.unlink(missing_ok=True)
    return differences


class _Deployed(nn.Module):
    """From pixels to a tuple of logits."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = checkpoint.network
        self.heads = checkpoint.labels.names
        self.interpolation = checkpoint.config.interpolation
        self.crop = checkpoint.config.eval_crop
        size = checkpoint.config.image_size
        self.mean_C11: Tensor
        self.std_C11: Tensor
        self.places_1HW2: Tensor
        normalization = checkpoint.normalization
        self.register_buffer("mean_C11", 255 * torch.tensor(normalization.mean).view(3, 1, 1))
        self.register_buffer("std_C11", 255 * torch.tensor(normalization.std).view(3, 1, 1))
        line_H = ((torch.arange(size) + 0.5) * (2 / size) - 1) * self.crop
        places = torch.stack(torch.meshgrid(line_H, line_H, indexing="xy"), 2)
        self.register_buffer("places_1HW2", places[None])

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The logits of every head, in order."""
        images_BCHW = (images_BCHW - self.mean_C11) / self.std_C11
        if self.crop < 1:
            # The shape's own entry, since len() would become a number in the file.
            places_BHW2 = self.places_1HW2.expand(images_BCHW.shape[0], -1, -1, -1)
            images_BCHW = functional.grid_sample(
                images_BCHW,
                places_BHW2,
                self.interpolation,
                padding_mode="border",
                align_corners=False,
            )
        logits = self.network(images_BCHW)
        return tuple(logits[head] for head in self.heads)


def _graph(checkpoint: Checkpoint, filling: Path) -> ModelProto:
    """The network as ONNX, with outputs out0, out1 and so on, by way of a file.

    By torch's exporter of TorchScript: of ten families of timm (torch 2.14) it exported all, each
    in a tenth of the time, where the newer one failed for BEiT and MaxViT.
    """
    import onnx

    size = checkpoint.config.image_size
    parameters = sum(weight.nbytes for weight in checkpoint.network.state_dict().values())
    if parameters > _LARGEST:
        raise UserError(
            "an ONNX file in one piece holds up to 2 GiB, but the weights of"
            f" {checkpoint.config.backbone!r} take {parameters / 2**30:.1f} GiB; take a smaller"
            " backbone"
        )
    outputs = [f"out{index}" for index in range(len(checkpoint.labels.heads))]
    said = logging.getLogger("torch.onnx")
    level = said.level
    said.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of traced branches, which the check is for
            torch.onnx.export(
                _Deployed(checkpoint).eval(),
                (torch.zeros(2, 3, size, size),),
                str(filling),
                dynamo=False,
                input_names=[INPUT],
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (INPUT, *outputs)},
                opset_version=_OPSET,
            )
    except Exception as error:  # torch's may be of any type
        raise UserError(
            f"backbone {checkpoint.config.backbone!r} must be one that torch can export, but:"
            f" {one_line(error)}"
        ) from error
    finally:
        said.setLevel(level)
    return onnx.load(filling)


def _name_outputs(model: ModelProto, labels: Labels) -> None:
    graph = model.graph
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    taken -= {output.name for output in graph.output}  # which they lose
    names = {}
    for output, head in zip(graph.output, labels.names, strict=True):
        name = head or "_"
        while name in taken:
            name += "_"
        taken.add(name)
        names[output.name] = output.name = name
    for node in graph.node:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = names.get(name, name)


def _describe(model: ModelProto, checkpoint: Checkpoint) -> None:
    from onnx.helper import set_model_props

    heads = [
        {
            "name": head.name,
            "output": output.name,
            "classes": list(head.classes),
            "multi_hot": head.multi_hot,
            "probabilities": "sigmoid" if head.multi_hot else "softmax",
        }
        for head, output in zip(checkpoint.labels.heads, model.graph.output, strict=True)
    ]
    described = {
        "heads": heads,
        "labels": checkpoint.labels.to_dict(),
        "preprocessing": preprocessing(checkpoint.normalization, checkpoint.config),
        "trial": checkpoint.config.to_dict(),
        "raymlc": version(),
    }
    set_model_props(model, {name: json.dumps(value) for name, value in described.items()})
    model.doc_string = "Outputs are logits; see the metadata 'heads' for their classes."


def _differences(path: Path, checkpoint: Checkpoint, outputs: Sequence[str]) -> dict[str, float]:
    import onnxruntime

    exact = checkpoint.config.replace({"precision": "fp32"})
    predictor = Predictor(dataclasses.replace(checkpoint, config=exact), torch.device("cpu"))
    size = checkpoint.config.image_size
    random = torch.Generator().manual_seed(0)
    largest = dict.fromkeys(outputs, 0.0)
    try:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # what it logs about an error, its exception says too
        session = onnxruntime.InferenceSession(str(path), settings, ["CPUExecutionProvider"])
        for batch in (1, 3):
            shape = (batch, 3, size, size)
            pixels_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
            given = session.run(list(outputs), {INPUT: pixels_BCHW.float().numpy()})
            expected = predictor.logits(pixels_BCHW).values()
            for output, given_BK, expected_BK in zip(outputs, given, expected, strict=True):
                difference = float((torch.from_numpy(given_BK) - expected_BK).abs().max())
                scale = max(1.0, float(expected_BK.abs().max()))
                if not difference <= TOLERANCE * scale:
                    raise UserError(
                        f"the file must give PyTorch's logits, but those of output {output!r} for"
                        f" {batch} images differ by {difference:.2g} (of {scale:.2g}); this"
                        " backbone cannot be exported"
                    )
                largest[output] = max(largest[output], difference)
    except UserError:
        raise
    except Exception as error:  # onnxruntime's are of no common type
        raise UserError(
            f"onnxruntime must run the file, but cannot for {checkpoint.config.backbone!r}:"
            f" {one_line(error)}"
        ) from error
    return largest
