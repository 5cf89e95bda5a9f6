"""python -m raymlc.export: a checkpoint as an ONNX file with one named output a head."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from raymlc.door import check_free, run_door
from raymlc.errors import UserError


@dataclass(frozen=True)
class ExportOptions:
    """Write a checkpoint as an ONNX file that takes pixels, and check it against PyTorch.

    Its input `images` is float32 of any batch size: RGB from 0 to 255, each whole image squashed to
    the trial's image_size. Each head is an output of logits by its own name. Classes and
    preprocessing are in the file's metadata. Needs: pip install 'raymlc[onnx]'.

    Example:
      python -m raymlc.export runs/NAME/trials/0007/best --output model.onnx
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a checkpoint, such as runs/NAME/trials/0007/best."""
    output: Path
    """ONNX file to write."""
    overwrite: bool = False
    """Replace the file of --output if there is one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when the file is written and checked, 2 for wrong input, 130 after Ctrl-C."""
    return run_door(ExportOptions, "export", _export, arguments)


def _export(options: ExportOptions) -> int:
    check_free(options.output, "--output", options.overwrite)
    if not options.output.parent.is_dir():
        raise UserError(f"--output must be in a folder, but {options.output.parent} is none")

    # torch takes seconds to import, so only once the words are checked.
    from raymlc.training.checkpoint import load_checkpoint
    from raymlc.training.onnx import check_packages, export_onnx

    check_packages()
    checkpoint = load_checkpoint(options.checkpoint)
    differences = export_onnx(checkpoint, options.output)
    for head, (output, value) in zip(checkpoint.labels.names, differences.items(), strict=True):
        of = "" if output == head else f" of head {head!r}, whose name the file has already,"
        print(f"output {output}{of}: logits within {value:.1e} of PyTorch's")
    size = options.output.stat().st_size / 2**20
    print(
        f"{options.output}: {size:.1f} MiB, checked with onnxruntime on batches of 1 and 3 images"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
