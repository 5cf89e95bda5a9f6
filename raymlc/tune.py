"""python -m raymlc.tune: search the hyperparameters of a multi-label image classifier."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
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
from raymlc.model.backbones import check_backbone_name
from raymlc.options import TuneOptions
from raymlc.search.space import Space, built_in, check_space, load_space
from raymlc.trial import TrialConfig

OPTIONS_FILE, SPACE_FILE = "sweep.json", "space.py"  # in a sweep's folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 1 if no trial succeeded, 2 for wrong input, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: _command(given), INTERRUPTED)


def _command(arguments: Sequence[str]) -> int:
    options = parse_options(TuneOptions, arguments, "tune", OPTIONS_FILE)
    with claimed_folder(options, (OPTIONS_FILE, "train.json")) as folder:
        return _tune(options, folder, plain_console())


def _tune(options: TuneOptions, folder: Path, console: Console) -> int:
    space, configs = _check_space(options, folder)
    table = read_data(options, console)
    for config in configs:
        config.check_heads(table.labels.names)

    prepare_environment(own_ray=options.address is None)
    # torch, timm and Ray take seconds to import: only once the words are known to be right.
    from raymlc.cluster.launch import check_trials, launch
    from raymlc.model.loss import loss_of
    from raymlc.training.metrics import check_metric_of

    check_metric_of(options.metric, table.labels)
    for config in configs:
        for head in table.labels.heads:
            loss_of(config, head)

    check_trials(options, configs, table, console)
    if not options.resume:
        (folder / SPACE_FILE).write_bytes(space.path.read_bytes())
    options.save(folder / OPTIONS_FILE)
    return launch(options, folder, space, max(c.epochs for c in configs), table, console)


def _check_space(options: TuneOptions, folder: Path) -> tuple[Space, list[TrialConfig]]:
    """The space, and trials drawn from it. Raises UserError for whatever can be known by now."""
    check_at_least_1(trials=options.trials, concurrency=options.concurrency)
    fixed = check_words(options)
    chosen = options.space or built_in("default" if options.data else "demo")
    space = load_space(folder / SPACE_FILE if options.resume else chosen, fixed)
    configs = check_space(space)
    for backbone in {config.backbone for config in configs}:
        check_backbone_name(backbone)
    return space, configs


if __name__ == "__main__":
    sys.exit(main())
