"""python -m raymlc.tune: search the hyperparameters of a multi-label image classifier."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
from rich.console import Console

from raymlc.begin import OPTIONS_FILE, SPACE_FILE, STUDY_VARIABLE, keep_space, open_book
from raymlc.cluster.environment import prepare_environment
from raymlc.door import check_at_least_1, guarded
from raymlc.entry import (
    INTERRUPTED,
    check_words,
    claimed_folder,
    parse_options,
    read_data,
    read_trial,
)
from raymlc.errors import UserError
from raymlc.metric import objectives
from raymlc.model.backbones import check_backbone_name
from raymlc.options import TuneOptions
from raymlc.search.budget import parse_duration, parse_trials
from raymlc.search.choice import check_objectives, chosen
from raymlc.search.place import check_storage, resolve
from raymlc.search.rows import keep_rows
from raymlc.search.space import Space, built_in, check_space, load_space
from raymlc.trial import TrialConfig
from raymlc.watch.terminal import quiet_console, run_console


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 1 if no trial succeeded, 2 for wrong input, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: _command(given), INTERRUPTED)


def _command(arguments: Sequence[str]) -> int:
    options = parse_options(TuneOptions, arguments, "tune", OPTIONS_FILE)
    study = resolve(options.study, os.environ.get(STUDY_VARIABLE), options.resume)
    if study:
        check_storage(study, options.address is not None)
    count = len(objectives(options.metric))
    sampler, pruner = chosen(options.sampler, options.pruner, count)
    check_objectives(count, sampler, pruner)
    options = dataclasses.replace(options, study=study, sampler=sampler, pruner=pruner)
    with claimed_folder(options, (OPTIONS_FILE, "train.json")) as folder:
        return _tune(options, folder, run_console())


def _tune(options: TuneOptions, folder: Path, console: Console) -> int:
    _check_numbers(options)
    space, configs = _check_space(options, folder)
    said = quiet_console(console, options.quiet)
    table = read_data(options, said)
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

    check_trials(options, configs, table, said)
    keep_space(space, folder)
    book, lasting = open_book(options, folder, space, configs, said)
    keep_rows(book.study, table)
    lasting.save(folder / OPTIONS_FILE)
    return launch(options, folder, book, table, console)


def _check_numbers(options: TuneOptions) -> None:
    check_at_least_1(concurrency=options.concurrency, epoch_budget=options.epoch_budget)
    check_at_least_1(repeats=options.repeats)
    _check_sharing(options)
    if options.finalists < 0:
        raise UserError(f"--finalists must be at least 0, but is {options.finalists}")
    parse_trials(options.trials, have=0)
    if options.time_budget:
        parse_duration(options.time_budget)


def _check_sharing(options: TuneOptions) -> None:
    gpus, trials = options.gpus_per_worker, options.trials_per_gpu
    if gpus is not None and gpus % 1:
        raise UserError(
            f"--gpus-per-worker must be whole GPUs, but is {gpus:g}; let trials share one by"
            f" --trials-per-gpu {max(2, round(1 / gpus))} in its place"
        )
    if trials == 1:
        return
    if trials != "auto":
        check_at_least_1(trials_per_gpu=trials)
    if options.workers > 1:
        raise UserError(
            "--trials-per-gpu is for trials of one worker, since those of one trial cannot share a"
            f" GPU, but --workers is {options.workers}; leave one of the two out"
        )
    if gpus not in (None, 1.0):
        raise UserError(
            f"--trials-per-gpu needs one GPU a worker, but --gpus-per-worker is {gpus:g}; leave one"
            " of the two out"
        )
    if trials == "auto" and options.trainer == "torch":
        raise UserError(
            "--trials-per-gpu auto measures trials in their own process, but --trainer is torch;"
            " leave that out, or give a number in place of auto"
        )


def _check_space(options: TuneOptions, folder: Path) -> tuple[Space, list[TrialConfig]]:
    """The space, and trials drawn from it. Raises UserError for whatever can be known by now."""
    fixed = check_words(options)
    if options.space is None and options.resume:
        chosen = folder / SPACE_FILE
    else:
        chosen = options.space or built_in("default" if options.data else "demo")
    space = load_space(chosen, fixed)
    configs = check_space(space)
    for path in options.enqueue:
        configs.append(read_trial(path, "--enqueue"))
    for backbone in {config.backbone for config in configs}:
        check_backbone_name(backbone)
    return space, configs


if __name__ == "__main__":
    sys.exit(main())
