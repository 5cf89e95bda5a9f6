"""python -m raymlc.train: train one trial, such as the winner of a sweep."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raymlc.cluster.environment import prepare_environment
from raymlc.door import check_at_least_1, guarded, plain_console
from raymlc.entry import (
    INTERRUPTED,
    check_words,
    claimed_folder,
    parse_options,
    read_data,
)
from raymlc.errors import UserError, one_line
from raymlc.model.backbones import check_backbone_name
from raymlc.options import TrainOptions
from raymlc.trial import TrialConfig

OPTIONS_FILE, TRIAL_FILE = "train.json", "trial.json"  # in the training's folder
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
        return _train(options, folder, plain_console())


def _train(options: TrainOptions, folder: Path, console: Console) -> int:
    config = _trial_of(options, folder)
    check_backbone_name(config.backbone)
    table = read_data(options, console)
    config.check_heads(table.labels.names)
    prepare_environment(own_ray=options.address is None)
    # torch and timm take seconds to import: only once the words are known to be right.
    from raymlc.cluster.single import check_trial, train_trial
    from raymlc.model.loss import loss_of
    from raymlc.training.metrics import check_metric_of

    check_metric_of(options.metric, table.labels)
    for head in table.labels.heads:
        loss_of(config, head)
    steps, seen = check_trial(options, folder, config, table, console)

    if not options.resume:
        text = json.dumps(config.to_dict(), indent=1)
        (folder / TRIAL_FILE).write_text(text + "\n", encoding="utf-8")
    options.save(folder / OPTIONS_FILE)
    return train_trial(options, folder, config, table, steps, seen, console)


def _trial_of(options: TrainOptions, folder: Path) -> TrialConfig:
    """The trial to train; of a resumed training, the one that its folder keeps."""
    fixed = check_words(options)
    if options.trial:
        config = _read_trial(options.trial)
    else:
        config = TrialConfig() if options.data else _DEMO
    config = config.replace(fixed)
    if options.resume:
        kept = _read_trial(folder)
        for name, value in kept.to_dict().items():
            new = config.to_dict()[name]
            if new != value:
                raise UserError(
                    f"a resumed training keeps its trial, but {name} is {value!r} in it and now"
                    f" {new!r}; begin another under another --name, from --weights"
                    f" {folder / 'best'} if you like"
                )
    return config


def _read_trial(path: Path) -> TrialConfig:
    path = path / TRIAL_FILE if path.is_dir() else path
    try:
        if path.suffix == ".py":
            return _trial_in_python(path)
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            "--trial must name a file with a trial in JSON or Python, or a checkpoint's folder, but"
            f" {path} cannot be read: {error}"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"a trial is a JSON object of fields, but {path} holds {values!r:.60}")
    return TrialConfig.from_dict(values)


def _trial_in_python(path: Path) -> TrialConfig:
    """The one TrialConfig among the names that a file defines. It is code that the user chose."""
    try:
        names = runpy.run_path(str(path))
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"{path.name} does not run: {one_line(error)}") from error
    found = {name: value for name, value in names.items() if isinstance(value, TrialConfig)}
    if len(found) != 1:
        raise UserError(
            f"{path.name} must define one TrialConfig to be trained, but defines"
            f" {', '.join(found) or 'none'}; leave one, or give its JSON"
        )
    return next(iter(found.values()))


if __name__ == "__main__":
    sys.exit(main())
