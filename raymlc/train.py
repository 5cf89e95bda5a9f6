"""python -m raymlc.train: train one trial, such as the winner of a sweep."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raymlc.cluster.environment import prepare_environment
from raymlc.door import check_at_least_1, guarded
from raymlc.entry import (
    INTERRUPTED,
    TRIAL_FILE,
    check_words,
    claimed_folder,
    parse_options,
    read_data,
    read_trial,
)
from raymlc.errors import UserError
from raymlc.model.backbones import check_backbone_name
from raymlc.options import TrainOptions
from raymlc.trial import TrialConfig
from raymlc.watch.terminal import quiet_console, run_console

OPTIONS_FILE = "train.json"  # in the training's folder
_DEMO = TrialConfig(
    backbone="test_efficientnet", pretrained=False, image_size=48, lr=0.02, epochs=12
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 1 if it failed, 2 for wrong input, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: _command(given), INTERRUPTED)


def _command(arguments: Sequence[str]) -> int:
    options = parse_options(TrainOptions, arguments, "train", OPTIONS_FILE)
    check_at_least_1(keep=options.keep)
    with claimed_folder(options, (OPTIONS_FILE, "sweep.json")) as folder:
        return _train(options, folder, run_console())


def _train(options: TrainOptions, folder: Path, console: Console) -> int:
    config = _trial_of(options, folder)
    check_backbone_name(config.backbone)
    said = quiet_console(console, options.quiet)
    table = read_data(options, said)
    config.check_heads(table.labels.names)
    prepare_environment(own_ray=options.address is None)
    # torch and timm take seconds to import: only once the words are known to be right.
    from raymlc.cluster.single import check_trial, train_trial
    from raymlc.model.loss import loss_of
    from raymlc.training.metrics import check_metric_of

    check_metric_of(options.metric, table.labels)
    for head in table.labels.heads:
        loss_of(config, head)
    steps, seen = check_trial(options, folder, config, table, said)

    if not options.resume:
        text = json.dumps(config.to_dict(), indent=1)
        (folder / TRIAL_FILE).write_text(text + "\n", encoding="utf-8")
    options.save(folder / OPTIONS_FILE)
    return train_trial(options, folder, config, table, steps, seen, console)


def _trial_of(options: TrainOptions, folder: Path) -> TrialConfig:
    """The trial to train; of a resumed training, the one that its folder keeps."""
    fixed = check_words(options)
    if options.trial:
        config = read_trial(options.trial, "--trial")
    else:
        config = TrialConfig() if options.data else _DEMO
    config = config.replace(fixed)
    if options.resume:
        kept = read_trial(folder, "--resume")
        for name, value in kept.to_dict().items():
            new = config.to_dict()[name]
            if new != value:
                raise UserError(
                    f"a resumed training keeps its trial, but {name} is {value!r} in it and now"
                    f" {new!r}; begin another under another --name, from --weights"
                    f" {folder / 'best'} if you like"
                )
    return config


if __name__ == "__main__":
    sys.exit(main())
